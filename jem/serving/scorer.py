"""What a model needs in production: class, calibrated probability, and a verdict on each input."""

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from jem.checks import as_batch
from jem.data.batches import BatchStream
from jem.data.splits import DataPart, DataSplits, LazyPart
from jem.errors import InputError, RunFolderError
from jem.evaluation.calibration.temperature import TemperatureScaling
from jem.evaluation.ood.columns import foreign_columns
from jem.evaluation.ood.detector import OODDetector
from jem.evaluation.ood.features import features_of
from jem.evaluation.ood.fitted import Option
from jem.evaluation.statistics import largest_acceptance_rate
from jem.model import JEM, batched_logits, check_model, inference, log_density
from jem.runs.model_file import build_model, read_model


class Prediction(NamedTuple):
    """What a `Scorer` says of B inputs: tensors on the model's device, (B,) but one; a list."""

    class_index: Tensor  # the most probable class; `model.classes` names it
    probability: Tensor  # p(y|x) of that class, in [1/K, 1]
    calibrated_probability: Tensor  # the same after temperature scaling
    calibrated_probabilities: Tensor  # of all classes, shape (B, K)
    log_density: Tensor  # unnormalised, nats
    score: Tensor  # of the detector, higher = in-distribution
    p_value: Tensor  # conformal, small = out-of-distribution
    is_ood: Tensor  # booleans, True = out-of-distribution
    reason: list[str]  # why it is flagged: see `OODDetector.reason`


class Scorer:
    """A model's detector and temperature, for inputs that come in after training.

    Args:
        detector: A fitted detector; its model is the scorer's.
        temperature: Fitted on validation logits; None leaves probabilities as they are (K = 1).

    Example:
        >>> model = JEM(nn.Linear(2, 3))
        >>> x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
        >>> scorer = Scorer(OODDetector(model).fit(x[:40]), None)
        >>> scorer.predict(x[40:]).is_ood.shape
        torch.Size([20])
    """

    def __init__(self, detector: OODDetector, temperature: TemperatureScaling | None) -> None:
        self.detector, self.temperature = detector, temperature

    @property
    def model(self) -> JEM:
        """The model that classifies and scores."""
        return self.detector.model

    def predict(self, x: Tensor | ArrayLike) -> Prediction:
        """Classify and score inputs with one pass through the network, in batches.

        Scores that are no function of the logits take a pass of their own.

        Args:
            x: A batch (B, *shape) or one input, floats in the network's units:
                `model.preprocess` makes them from raw data.

        Returns:
            One entry for each column; the model's mode, flags and gradients are as before.

        Raises:
            InputError: If the inputs do not fit, or the network or the score gives NaN.
        """
        x = as_batch(x, self.detector.input_shape)
        logits = batched_logits(self.model, x, self.detector.batch_size)
        scores = self.detector.score(x, logits).to(logits.device)
        verdict = self.detector.verdict(scores)
        with torch.inference_mode(False), torch.no_grad():
            scaled = logits if self.temperature is None else self.temperature.transform(logits)
            calibrated = scaled.softmax(dim=1)
            return Prediction(
                logits.argmax(dim=1),
                logits.softmax(dim=1).amax(dim=1),
                calibrated.amax(dim=1),
                calibrated,
                log_density(logits),
                scores,
                *verdict,
                self.detector.reason(x, logits, verdict.is_ood),
            )

    def foreign_columns(self, x: Tensor | ArrayLike) -> list[tuple[str, ...]]:
        """Names of the columns that make each row of a table foreign, the worst first.

        See `jem.evaluation.ood.columns.foreign_columns`.

        Args:
            x: A batch (B, D) or one row, floats in the network's units.
        """
        return foreign_columns(self.detector, as_batch(x, self.detector.input_shape))


def fit_scorer(
    model: JEM,
    splits: DataSplits,
    *,
    score: str | None = None,
    acceptance_rate: float | None = None,
    batch_size: int = 256,
    **options: Option,
) -> Scorer:
    """Fit a detector on the calibration part, and a temperature on the validation part.

    The p-values of a sum such as `"combined"` are fitted on the validation part too, and not on
    the calibration part: so the threshold keeps its promise.

    Args:
        model: A trained model.
        splits: Its data, divided as for training. The training part is used only by scores that
            compare with training inputs, such as `"knn"` and `"vim"`, and by sums if there is no
            validation part.
        score: As for `OODDetector`, such as `"knn+max_probability"`; None takes `usual_score`.
        acceptance_rate: Share of in-distribution inputs to accept. None takes 0.95, or the largest
            share that a calibration part of fewer than 19 inputs can promise, n / (n + 1); a share
            that is asked for is kept or refused.
        batch_size: Inputs computed at once, now and when it is used.
        options: Passed to the score.

    Returns:
        The scorer; `jem.save` keeps its detector and its temperature beside the model.

    Raises:
        InputError: If the calibration part is too small for the share, a part is empty, the score
            does not suit the model, or its classes are not those of the data, in their order.
    """
    _check_classes(model, splits)
    score = score or usual_score(model, splits)
    detector = OODDetector(model, score, None, batch_size, **options)
    if detector.fitted_score.compares:
        detector.fit_reference(_batches(splits, "train", batch_size))
    if detector.fitted_score.adds_up:
        # Without a validation part training inputs will do: their scores are too high, but the
        # threshold comes from inputs that neither the model nor the p-values have seen.
        part = "validation" if len(splits.validation) else "train"
        detector.fit_maps(x for x, _ in _batches(splits, part, batch_size))
    if acceptance_rate is None:
        acceptance_rate = largest_acceptance_rate(len(splits.calibration))
    calibration = _batches(splits, "calibration", batch_size)
    detector.fit_batches((x for x, _ in calibration), acceptance_rate)
    return Scorer(detector, fit_temperature(model, splits, batch_size))


def usual_score(model: JEM, splits: DataSplits) -> str:
    """The score of a model that is given none.

    `"combined"` where `jem.Trainer` has trained a density. A classifier without one is judged by
    the features before its last linear layer, where it has one, and its largest probability:
    `"mahalanobis+max_probability"` with more than two training inputs for each feature, as the
    covariance needs them, and `"knn+max_probability"` with fewer.

    Args:
        model: The model.
        splits: Its data.
    """
    x, _ = splits.train[:1]
    if model.sampler is not None or batched_logits(model, x).shape[1] == 1:
        return "combined"
    try:
        with inference(model):
            size = features_of(model, x).shape[1]
    except InputError:
        return "combined"
    return f"{'mahalanobis' if len(splits.train) > 2 * size else 'knn'}+max_probability"


def fit_temperature(
    model: JEM, splits: DataSplits, batch_size: int = 256
) -> TemperatureScaling | None:
    """The temperature of `fit_scorer`; None where the model has no classes (K = 1).

    Without a validation part it is fitted on the calibration part.

    Args:
        model: A trained model.
        splits: Its data, divided as for training.
        batch_size: Inputs computed at once.

    Raises:
        InputError: If both parts are empty, or the classes of model and data differ.
    """
    _check_classes(model, splits)
    part = "validation" if len(splits.validation) else "calibration"
    batches = _batches(splits, part, batch_size)
    pairs = [(batched_logits(model, x, batch_size), y) for x, y in batches]
    logits, labels = (torch.cat(part).cpu() for part in zip(*pairs, strict=True))
    return TemperatureScaling().fit(logits, labels) if logits.shape[1] > 1 else None


def load_scorer(
    path: str | Path, network: nn.Module | None = None, *, device: str = "cpu"
) -> Scorer:
    """Load a model with the detector and the temperature that were saved beside it.

    Args:
        path: What `jem.save` wrote, or the folder of a run whose training has ended.
        network: The network that was trained, freshly built, if it cannot be built from the file.
        device: Where to put the model.

    Returns:
        The scorer; its `model` and `detector` serve by themselves too.

    Raises:
        RunFolderError: If the file is missing, damaged or without a detector.
        InputError: If `network` is needed, or does not fit the weights.
    """
    state = read_model(path)
    return scorer_from_state(state, build_model(state, path, network, device=device), path)


def scorer_from_state(state: dict[str, Any], model: JEM, source: str | Path) -> Scorer:
    """Build the scorer of what `jem.runs.model_file.read_model` returned.

    Args:
        state: What was read.
        model: The model built from it.
        source: Where from, for messages.

    Raises:
        RunFolderError: If there is no detector, or what is there is damaged.
    """
    if state["detector"] is None:
        raise RunFolderError(
            f"{source} holds no detector: fit one, jem.fit_scorer(model, data), and keep it, "
            "jem.save(model, path, detector=scorer.detector, temperature=scorer.temperature)"
        )
    try:
        detector = OODDetector(model).load_state_dict(state["detector"])
        temperature = None
        if state["temperature"] is not None:
            temperature = TemperatureScaling()
            temperature.load_state_dict(state["temperature"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunFolderError(f"{source} holds no usable detector: {error}") from error
    return Scorer(detector, temperature)


def _check_classes(model: JEM, splits: DataSplits) -> None:
    """Check that the classes of a model are those of the data, in their order.

    Classes that are only numbered, as training does without names, are those of any data, and so
    is the one of a density.
    """
    check_model(model)
    classes = tuple(str(name) for name in splits.classes)
    numbered = tuple(str(k) for k in range(len(classes)))
    if model.classes in (None, numbered, classes, ("0",)):
        return
    pairs = zip_longest(model.classes or (), classes)
    k, (own, wanted) = next((k, pair) for k, pair in enumerate(pairs) if pair[0] != pair[1])
    raise InputError(
        f"class {k} must be {wanted!r}, as in `{splits.name}`, but is {own!r} in the model: put "
        "its outputs into the order of the data's `classes`"
    )


def _batches(splits: DataSplits, name: str, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    part: DataPart | LazyPart = getattr(splits, name)
    if not len(part):
        raise InputError(f"the {name} part of `{splits.name}` must hold examples, but is empty")
    return BatchStream(part, size, seed=0, name="scorer", drop_last=False).epoch(0)
