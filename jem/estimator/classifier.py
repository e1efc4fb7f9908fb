"""A joint energy model as a scikit-learn estimator: for tables and images held as arrays."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from pandas import DataFrame
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from jem.checks import callers_level, check_number, refuse
from jem.data.arrays import refuse_missing
from jem.data.splits import DataSplits
from jem.errors import TrainingInterrupted
from jem.estimator.data import (
    RawFormat,
    call_of,
    class_indices,
    class_weights,
    content_hash,
    dense,
    divide,
    flat,
    images_or_none,
    no_threshold,
)
from jem.evaluation.ood.columns import foreign_columns
from jem.evaluation.ood.detector import OODDetector
from jem.generation import sample as draw
from jem.model import JEM, batched_logits, energy_of
from jem.networks import NetworkFactory
from jem.serving.scorer import fit_scorer, fit_temperature
from jem.training.fitting import model_for
from jem.training.recipe import Recipe
from jem.training.recipes import recipe_from
from jem.training.state import FitResult
from jem.training.trainer import Trainer

Array = npt.NDArray[Any]

BATCH_SIZE = 512
"""Inputs computed at once in prediction."""
BLOCK = 16
"""Prediction pads batches to a multiple of this: products of few rows round differently, and the
last bits of a row would depend on how many rows stand beside it."""

OF_RECIPE = ("epochs", "learning_rate", "density_weight")
"""Arguments that change the recipe."""


class JEMClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Classifier that also scores, rejects and draws inputs, with scikit-learn's manners.

    `X` is a table (N, D), or images (N, H, W), (N, H, W, C) or (N, C, H, W), of floats or bytes.
    Columns are standardised and images brought to [-1, 1] by the statistics of the training part.
    Inputs that look as if they were in other units get a warning when the classifier is used.
    Labels may be strings or integers. There is no `sample_weight` and no `partial_fit`: the chains
    that train the density have no weights, and follow the model from its first update.

    Args:
        recipe: Name of a recipe, or a `jem.Recipe`: other settings than those below go here.
        epochs: Passes over the training data; what the recipe says if None.
        learning_rate: Of the optimiser, above 0; what the recipe says if None.
        density_weight: Weight of the density beside the classes; what the recipe says if None.
        network: A module (copied, and trained on from the weights it has), or a function (shape,
            number of classes) -> module, which a pickle needs to find by name. It takes images as
            (B, C, H, W) in [-1, 1], standardised rows as (B, D). Chosen by the shape if None.
        channels: `"first"` or `"last"`, needed where the shape of images fits both.
        class_weight: Weight of each class in the cross-entropy: None for equal weights,
            `"balanced"` for N / (K * count), or a dict label -> weight above 0, 1 for labels it
            leaves out. The density is that of the data as they are.
        acceptance_rate: Share of in-distribution inputs that `is_ood` accepts; may be changed
            after `fit`.
        calibration_fraction: Share of the data held out from training for the threshold of
            `is_ood`; 0 holds out none. It grows, up to a quarter, to what `acceptance_rate`
            needs (19 for 0.95). Where that is not enough, nothing is held out and `is_ood` raises.
        validation_fraction: Share of the data held out to notice overfitting, as in `Trainer.fit`,
            and for the temperature of `predict_proba`; 0 holds out none.
        calibrate: Divide logits by a temperature in `predict_proba`. It is fitted on what is held
            out for validation, or for the threshold if nothing is, and stays 1 where it would not
            help on inputs that it was not fitted on.
        random_state: Seed, generator or None.
        device: Where to train: `"cpu"`, `"cuda"`, `"mps"` or `"auto"`. The trained model is on the
            CPU; `model_.to(...)` moves prediction elsewhere.
        verbose: Show the progress of `fit` and `report`.

    Attributes:
        classes_: Labels in the order of the logits, shape (K,).
        model_: The trained `jem.JEM`.
        detector_: The fitted `jem.OODDetector`, or None where the data were too few.
        temperature_: What `predict_proba` divides logits by, a `jem.TemperatureScaling`, or None.
        history_: Metrics of each epoch.
        n_iter_: Epochs trained.
        n_features_in_: Numbers in one input: columns, or C * H * W.
        feature_names_in_: Names of the columns, for data frames.

    References:
        Grathwohl et al. (2020), arXiv:1912.03263.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> X, y = load_iris(return_X_y=True)
        >>> classifier = JEMClassifier(epochs=60, random_state=0).fit(X, y)
        >>> classifier.score(X, y) > 0.9
        True
        >>> classifier.sample([0, 0, 2]).shape
        (3, 4)
    """

    def __init__(
        self,
        recipe: str | Recipe = "fast",
        *,
        epochs: int | None = None,
        learning_rate: float | None = None,
        density_weight: float | None = None,
        network: nn.Module | NetworkFactory | None = None,
        channels: Literal["first", "last"] | None = None,
        class_weight: Mapping[Any, float] | Literal["balanced"] | None = None,
        acceptance_rate: float = 0.95,
        calibration_fraction: float = 0.1,
        validation_fraction: float = 0.1,
        calibrate: bool = True,
        random_state: int | np.random.RandomState | None = None,
        device: str = "auto",
        verbose: bool = False,
    ) -> None:
        self.recipe = recipe
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.density_weight = density_weight
        self.network = network
        self.channels = channels
        self.class_weight = class_weight
        self.acceptance_rate = acceptance_rate
        self.calibration_fraction = calibration_fraction
        self.validation_fraction = validation_fraction
        self.calibrate = calibrate
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def __sklearn_tags__(self) -> Tags:
        """Tell scikit-learn that images and sparse matrices are accepted too."""
        tags: Tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = tags.input_tags.sparse = True
        return tags

    # -- training ---------------------------------------------------------------------------------

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> Self:  # noqa: N803
        """Train on inputs and labels.

        Args:
            X: Table (N, D), sparse too, or images (N, H, W), (N, H, W, C) or (N, C, H, W).
            y: Labels, shape (N,), strings or integers, of at least two classes.

        Raises:
            InputError: If the data or a setting cannot be used.
            TrainingDivergedError: If training diverges more often than the recipe allows.
        """
        for name in [name for name in vars(self) if name.endswith("_")]:
            delattr(self, name)  # or a fit that fails would leave an old model under new labels
        check_number("acceptance_rate", self.acceptance_rate, "(0, 1)")
        check_number("calibration_fraction", self.calibration_fraction, "[0, 0.5)")
        check_number("validation_fraction", self.validation_fraction, "[0, 0.5)")
        changes = {n: value for n in OF_RECIPE if (value := getattr(self, n)) is not None}
        recipe = recipe_from(self.recipe, changes)
        raw, labels = self._training_arrays(X, y)
        self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self._data_hash = content_hash(raw, labels)
        self._metadata = call_of(self)
        self._division: dict[str, Any] = {
            "validation": self.validation_fraction,
            "calibration": self.calibration_fraction,
            "acceptance_rate": self.acceptance_rate,
            "channels": self.channels,
            "seed": self._seed,
        }
        splits = self._divide(raw, labels)
        model = model_for(self.network, splits, recipe, self._seed)
        result = self._train(model, splits, recipe)
        self.history_, self._result = result.epochs, result
        self.n_iter_ = len(self.history_)
        self.model_, self._format = model.to("cpu"), RawFormat.of(raw, X)
        self.detector_ = temperature = None
        if splits.calibration:
            scorer = fit_scorer(model, splits, acceptance_rate=self.acceptance_rate)
            self.detector_, temperature = scorer.detector, scorer.temperature
        elif self.calibration_fraction:
            why = no_threshold(self.calibration_fraction, self.acceptance_rate, len(self.classes_))
            warnings.warn(f"`is_ood` will fail: {why}", stacklevel=callers_level())
        if splits.validation and not splits.calibration:
            temperature = fit_temperature(model, splits)
        self.temperature_ = temperature if self.calibrate else None
        return self

    def _training_arrays(self, X: npt.ArrayLike, y: npt.ArrayLike) -> tuple[Array, Array]:  # noqa: N803
        """Inputs and class indices; sets `classes_`, and what scikit-learn keeps of inputs."""
        X = dense(X)  # noqa: N806
        raw = images_or_none(X)
        rows, labels = validate_data(self, X if raw is None else flat(raw), y)
        refuse_missing(labels)
        check_classification_targets(labels)
        self.classes_, indices = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            refuse(
                "y", "hold at least two classes", f"one class only: {self.classes_.tolist()[0]!r}"
            )
        return rows if raw is None else raw, indices.astype(np.int64)

    def _divide(self, raw: Array, labels: Array) -> DataSplits:
        """The parts of the data, as they were in `fit`."""
        columns = getattr(self, "feature_names_in_", None)
        return divide(raw, labels, self.classes_.tolist(), columns=columns, **self._division)

    def _train(self, model: JEM, splits: DataSplits, recipe: Recipe) -> FitResult:
        trainer = Trainer(
            model,
            recipe,
            class_weight=class_weights(
                self.class_weight, self.classes_, splits.train[:][1].numpy()
            ),
            progress=self.verbose,
            seed=self._seed,
            device=self.device,
        )
        try:
            return trainer.fit(splits.train, splits.validation or None)
        except TrainingInterrupted as stopped:  # a search over settings would go on with the next
            raise KeyboardInterrupt from stopped

    # -- use --------------------------------------------------------------------------------------

    def predict(self, X: npt.ArrayLike) -> Array:  # noqa: N803
        """Most probable class of each input, shape (N,), as in `classes_`."""
        indices = self._logits_of(X).argmax(dim=1).numpy()
        return np.asarray(self.classes_[indices])

    def predict_proba(self, X: npt.ArrayLike) -> Array:  # noqa: N803
        """Class probabilities, shape (N, K), in the order of `classes_`."""
        logits, temperature = self._logits_of(X), self.temperature_
        scaled = logits if temperature is None else temperature.transform(logits)
        return np.asarray(scaled.softmax(dim=1))

    def decision_function(self, X: npt.ArrayLike) -> Array:  # noqa: N803
        """Logits, shape (N, K); for two classes their difference, shape (N,)."""
        logits: Array = self._logits_of(X).numpy()
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def score_samples(self, X: npt.ArrayLike) -> Array:  # noqa: N803
        """Log-density, shape (N,): unnormalised nats, higher = more in-distribution."""
        return np.asarray(-energy_of(self._logits_of(X)))

    def is_ood(self, X: npt.ArrayLike) -> Array:  # noqa: N803
        """Whether inputs are unlike the data or between classes, booleans (N,)."""
        return np.asarray(self.ood_reason(X) != "")

    def ood_reason(self, X: npt.ArrayLike) -> Array:  # noqa: N803
        """Why inputs are flagged, texts (N,): "" if not, else as `jem.OODDetector.reason`."""
        return np.asarray(self._detector().reason(x := self._inputs(X), self._logits(x)))

    def foreign_columns(self, X: npt.ArrayLike) -> list[tuple[str, ...]]:  # noqa: N803
        """Names of the one to three columns that make each row foreign, the worst first.

        Rows that pass have none. Columns without names are x0, x1 and so on. Raises as `is_ood`.
        """
        return foreign_columns(self._detector(), self._inputs(X))

    def p_value(self, X: npt.ArrayLike) -> Array:  # noqa: N803
        """P-values, shape (N,): the share of inputs like the data that score as low.

        `is_ood` flags those of at most 1 - `acceptance_rate`. Raises as `is_ood`.
        """
        detector, x = self._detector(), self._inputs(X)
        return np.asarray(detector.verdict(detector.score(x, self._logits(x))).p_value)

    def _detector(self) -> OODDetector:
        check_is_fitted(self, "model_")
        if self.detector_ is None:
            raise no_threshold(self.calibration_fraction, self.acceptance_rate, len(self.classes_))
        return self.detector_.set_acceptance_rate(self.acceptance_rate)

    def sample(
        self,
        labels: Sequence[Any] | Array | None = None,
        *,
        count: int | None = None,
        random_state: int = 0,
    ) -> Array | DataFrame:
        """Draw inputs.

        Args:
            labels: Classes, as in `classes_`, one a sample; None draws the classes too.
            count: Number of samples where `labels` is None; 16 by default.
            random_state: Sample i depends on it, i and its label alone.

        Returns:
            Inputs in the units, axes and type of `X` in training, shape (B, ...). Rows of a table
            lie within the ranges of its columns; columns of whole numbers and of categories
            (one-hot) are that again.

        Raises:
            InputError: If a label is unknown, or the recipe trained no density.
        """
        check_is_fitted(self, "model_")
        indices = None
        if labels is not None:
            indices = class_indices("labels", np.asarray(labels), self.classes_, len(labels))
        x = draw(self.model_, indices, count=count, seed=random_state)
        assert self.model_.scaling is not None, "set in fit"
        return self._format.restore(x, self.model_.scaling)

    # -- report -----------------------------------------------------------------------------------

    def report(
        self,
        X: npt.ArrayLike,  # noqa: N803
        y: npt.ArrayLike,
        X_train: npt.ArrayLike,  # noqa: N803
        y_train: npt.ArrayLike,
        *,
        folder: str | Path = "report",
        control: JEMClassifier | None = None,
    ) -> dict[str, Any]:
        """Measure the classifier, and write `report.html`, a page for people, and `report.json`.

        Args:
            X: Test inputs, which trained and chose nothing; as in `fit`.
            y: Their labels, shape (N,).
            X_train: The inputs that `fit` was given: samples are compared with them, and those
                that it held out fit temperature and threshold.
            y_train: Their labels.
            folder: Where to write; made if it is not there.
            control: Another classifier to compare with, such as `JEMClassifier("plain")`, fitted
                on the same data with the same `random_state` and the same shares held out.

        Returns:
            The content of `report.json`.

        Raises:
            InputError: If the training data are not those of `fit`, or it held none out.

        Warns:
            UserWarning: If rows of `X` are rows of `X_train` too.
        """
        from jem.estimator.report import write

        return write(self, folder, (X, y), (X_train, y_train), control)

    # -- helpers ----------------------------------------------------------------------------------

    def _logits_of(self, X: npt.ArrayLike) -> Tensor:  # noqa: N803
        """Logits of raw inputs, shape (N, K), in double precision."""
        return self._logits(self._inputs(X))

    def _inputs(self, X: npt.ArrayLike) -> Tensor:  # noqa: N803
        """Raw inputs in the network's units, shape (N, *input_shape)."""
        check_is_fitted(self, "model_")
        if len(self._format.shape) > 1:
            X = flat(self._format.check(X))  # noqa: N806
        rows = validate_data(self, dense(X), reset=False)
        raw = rows.reshape(-1, *self._format.shape)
        return self.model_.preprocess(raw)

    def _logits(self, x: Tensor) -> Tensor:
        """Logits of network inputs, shape (N, K), in double precision, on the CPU."""
        fill = -len(x) % BLOCK
        padded = torch.cat([x, x[-1:].expand(fill, *x.shape[1:])])
        return batched_logits(self.model_, padded, BATCH_SIZE)[: len(x)].cpu().double()
