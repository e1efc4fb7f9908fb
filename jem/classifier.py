"""A joint energy model as a scikit-learn estimator: for tables and images held as arrays."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
from torch import Tensor, nn

from jem import networks
from jem.data.arrays import from_arrays
from jem.data.parts import DataSplits
from jem.errors import InputError
from jem.evaluation.ood import OODDetector
from jem.generation import sample as draw
from jem.model import JEM, evaluation_mode
from jem.training.recipe import Recipe, recipe_from
from jem.training.trainer import Trainer

Array = npt.NDArray[Any]
NetworkFactory = Callable[[tuple[int, ...], int], nn.Module]

BATCH_SIZE = 512
"""Inputs computed at once in prediction."""


class JEMClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Classifier that also scores, rejects and draws inputs, with scikit-learn's manners.

    `X` is a table (N, D), or images (N, H, W), (N, H, W, C) or (N, C, H, W), of floats or bytes.
    Columns are standardised and images brought to [-1, 1] by the statistics of the training part.
    Labels may be strings or integers. There is neither `sample_weight` nor `partial_fit`: chains
    that train the density know of no weights, and follow the model from the beginning on.

    Args:
        recipe: Name of a recipe, or a `jem.Recipe`.
        epochs: Passes over the training data; what the recipe says if None.
        network: A module (copied), or a function (shape, number of classes) -> module; chosen by
            the shape of the inputs if None.
        channels: `"first"` or `"last"`, needed where the shape of images fits both.
        class_weight: None, or `"balanced"` to weigh classes equally.
        accept: Share of in-distribution inputs that `is_ood` accepts.
        calibration_fraction: Share of the data held out from training for the threshold of
            `is_ood`; 0 holds out none. It grows, up to a quarter, to the number that `accept`
            needs (19 for 0.95); where that is not enough, nothing is held out and `is_ood` raises.
        early_stopping: Stop when the validation NLL has not improved for `n_iter_no_change`
            epochs, and take the best epoch's weights.
        validation_fraction: Share of the data held out for that.
        n_iter_no_change: Epochs to wait for an improvement.
        random_state: Seed, generator or None.
        device: `"cpu"`, `"cuda"`, `"mps"` or `"auto"`.
        verbose: Show a progress bar.

    Attributes:
        classes_: Labels in the order of the logits, shape (K,).
        model_: The trained `jem.JEM`.
        detector_: The fitted `jem.OODDetector`, or None where the data were too few.
        history_: Metrics of each epoch.
        n_features_in_: Number of columns, for tables.
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
        network: nn.Module | NetworkFactory | None = None,
        channels: str | None = None,
        class_weight: str | None = None,
        accept: float = 0.95,
        calibration_fraction: float = 0.1,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        random_state: Any = None,  # noqa: ANN401
        device: str = "auto",
        verbose: bool = False,
    ) -> None:
        self.recipe = recipe
        self.epochs = epochs
        self.network = network
        self.channels = channels
        self.class_weight = class_weight
        self.accept = accept
        self.calibration_fraction = calibration_fraction
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    # -- training ---------------------------------------------------------------------------------

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> Self:  # noqa: N803
        """Train on inputs and labels.

        Args:
            X: Table (N, D), or images (N, H, W), (N, H, W, C) or (N, C, H, W).
            y: Labels, shape (N,), strings or integers, of at least two classes.

        Returns:
            The classifier.

        Raises:
            InputError: (a ValueError) If the data or a setting cannot be used.
            TrainingDivergedError: If training diverges more often than the recipe allows.
        """
        self._check_settings()
        raw = self._inputs(X, reset=True)
        if y is None:
            raise InputError("JEMClassifier requires y to be passed, but the target y is None")
        labels = self._labels(y, len(raw))
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        splits = self._divide(raw, labels, seed)
        recipe = self._recipe()
        shape, num_classes = splits.input_shape, len(splits.classes)
        model = JEM(
            self._network(shape, num_classes, recipe, seed),
            input_shape=shape,
            classes=splits.classes,
            domain=splits.domain,
            scaling=splits.scaling,
        )
        trainer = Trainer(
            model, recipe, seed=seed, device=self.device, progress=bool(self.verbose)
        )
        if self.early_stopping:
            watch = _EarlyStopping(trainer, self.n_iter_no_change)
            result = trainer.fit(splits.train, splits.validation, on_epoch=watch)
            watch.restore(model)
        else:
            result = trainer.fit(splits.train)
        self.model_, self.history_ = model.to("cpu"), result.epochs
        self.n_iter_ = result.iterations
        self.detector_ = None
        if len(splits.calibration):
            self.detector_ = OODDetector(model).fit(splits.calibration[:][0], self.accept)
        return self

    def _check_settings(self) -> None:
        if self.class_weight not in (None, "balanced"):
            raise InputError(
                f"`class_weight` must be None or 'balanced', but got {self.class_weight!r}"
            )
        if self.channels not in (None, "first", "last"):
            raise InputError(
                f"`channels` must be 'first', 'last' or None, but got {self.channels!r}"
            )
        if not 0 < self.accept < 1:
            raise InputError(f"`accept` must lie in (0, 1), but got {self.accept}")
        for name in ("calibration_fraction", "validation_fraction"):
            if not 0 <= getattr(self, name) < 0.5:
                raise InputError(f"`{name}` must lie in [0, 0.5), but got {getattr(self, name)}")

    def _recipe(self) -> Recipe:
        changes: dict[str, Any] = {} if self.epochs is None else {"epochs": self.epochs}
        if self.class_weight is not None:
            changes["class_weight"] = self.class_weight
        return recipe_from(self.recipe, changes)

    def _network(
        self, shape: tuple[int, ...], num_classes: int, recipe: Recipe, seed: int
    ) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.network is None:
                return networks.network_for(shape, num_classes, head=recipe.head)
            if isinstance(self.network, nn.Module):
                return copy.deepcopy(self.network)
            return self.network(shape, num_classes)

    def _labels(self, y: npt.ArrayLike, length: int) -> Array:
        """Class indices; sets `classes_`."""
        labels = column_or_1d(y, warn=True)
        if len(labels) != length:
            raise InputError(
                f"`y` must hold one label an input, {length}, but holds {len(labels)}"
            )
        check_classification_targets(labels)
        self.classes_, indices = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(
                f"a classifier needs at least two classes, but `y` holds one class only: "
                f"{self.classes_[0]!r}"
            )
        return indices.astype(np.int64)

    def _divide(self, raw: Array, labels: Array, seed: int) -> DataSplits:
        """Training, validation and calibration parts; the last two may be empty."""
        total = len(labels)
        held_out = [0, 0]
        if self.early_stopping:
            held_out[0] = max(round(self.validation_fraction * total), len(self.classes_))
        if self.calibration_fraction:
            needed = math.ceil(1 / (1 - self.accept) - 1e-9) - 1
            wanted = max(round(self.calibration_fraction * total), needed, len(self.classes_))
            held_out[1] = wanted if wanted <= total / 4 else 0
        parts = 1 + sum(size > 0 for size in held_out)
        if np.bincount(labels).min() < parts:
            if self.early_stopping:
                raise InputError(
                    f"early stopping needs {parts} examples of every class, but class "
                    f"{self.classes_[np.bincount(labels).argmin()]!r} has fewer"
                )
            held_out[1] = 0
        counts = (total - sum(held_out), *held_out, 0)
        return from_arrays(
            raw,
            labels,
            name="X",
            seed=seed,
            channels=self.channels,  # type: ignore[arg-type]
            counts=counts,
            classes=[str(label) for label in self.classes_],
        )

    def _inputs(self, X: npt.ArrayLike, *, reset: bool) -> Array:  # noqa: N803
        """Check inputs: tables by scikit-learn's rules, images by our own."""
        if np.asarray(X).ndim in (3, 4):
            if reset:
                for name in ("n_features_in_", "feature_names_in_"):
                    self.__dict__.pop(name, None)
            return np.asarray(X)
        return validate_data(self, X, reset=reset, dtype="numeric", ensure_min_samples=1)  # type: ignore[no-any-return]

    # -- use --------------------------------------------------------------------------------------

    def _network_inputs(self, X: npt.ArrayLike) -> Tensor:  # noqa: N803
        check_is_fitted(self, "model_")
        return self.model_.preprocess(self._inputs(X, reset=False))

    def _logits(self, X: npt.ArrayLike) -> Tensor:  # noqa: N803
        x, model = self._network_inputs(X), self.model_
        if x.ndim == 2:
            # In single precision the bits of a row depend on how many rows stand beside it, which
            # scikit-learn does not allow; a network for tables is small enough to widen.
            x, model = x.double(), copy.deepcopy(model).double()
        with torch.no_grad(), evaluation_mode(model):
            return torch.cat([model.logits(part) for part in x.split(BATCH_SIZE)])

    def predict(self, X: npt.ArrayLike) -> Array:  # noqa: N803
        """Most probable class of each input, shape (N,), as in `classes_`."""
        indices = self._logits(X).argmax(dim=1).numpy()
        labels: Array = self.classes_[indices]
        return labels

    def predict_proba(self, X: npt.ArrayLike) -> Array:  # noqa: N803
        """Class probabilities, shape (N, K), in the order of `classes_`."""
        probabilities: Array = self._logits(X).double().softmax(dim=1).numpy()
        return probabilities

    def decision_function(self, X: npt.ArrayLike) -> Array:  # noqa: N803
        """Logits, shape (N, K); for two classes their difference, shape (N,)."""
        logits: Array = self._logits(X).numpy()
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def score_samples(self, X: npt.ArrayLike) -> Array:  # noqa: N803
        """Log-density, shape (N,): unnormalised nats, higher = more in-distribution."""
        log_density: Array = self._logits(X).logsumexp(dim=1).numpy()
        return log_density

    def is_ood(self, X: npt.ArrayLike) -> Array:  # noqa: N803
        """Whether each input is flagged as out-of-distribution, booleans of shape (N,).

        Raises:
            InputError: If the training data were too few to hold any out for the threshold.
        """
        x = self._network_inputs(X)
        if self.detector_ is None:
            raise InputError(
                f"no inputs were held out for a threshold at accept={self.accept:g}: fit on more "
                "data, with calibration_fraction above 0, or lower `accept`"
            )
        flagged: Array = self.detector_.is_ood(x).numpy()
        return flagged

    def sample(
        self,
        labels: Sequence[Any] | Array | None = None,
        *,
        count: int | None = None,
        random_state: int = 0,
    ) -> Array:
        """Draw inputs.

        Args:
            labels: Classes, as in `classes_`, one a sample; None draws the classes too.
            count: Number of samples where `labels` is None; 16 by default.
            random_state: Sample i depends on it, i and its label alone.

        Returns:
            Inputs in the units of `X`, float: (B, D), or images with channels as in training,
            (B, H, W) where there were none.
        """
        check_is_fitted(self, "model_")
        indices = None
        if labels is not None:
            wanted = np.asarray(labels)
            unknown = ~np.isin(wanted, self.classes_)
            if wanted.ndim != 1 or unknown.any():
                raise InputError(
                    f"`labels` must be classes among {list(self.classes_)}, but got {labels!r}"
                )
            indices = torch.as_tensor(np.searchsorted(self.classes_, wanted))
        model = self.model_
        x = draw(model, indices, count=count, seed=random_state).float()
        assert model.scaling is not None, "set in fit"
        raw: Array = model.scaling.invert(x).numpy()
        return np.moveaxis(raw, 1, -1) if model.scaling.layout == "channels_last" else raw


class _EarlyStopping:
    """Ends training when the validation NLL stops improving; keeps the best weights."""

    def __init__(self, trainer: Trainer, patience: int) -> None:
        self.trainer, self.patience = trainer, patience
        self.best, self.best_epoch = math.inf, 0
        self.weights: dict[str, Tensor] | None = None

    def __call__(self, metrics: dict[str, Any]) -> bool:
        if metrics["valid_nll"] < self.best:
            self.best, self.best_epoch = metrics["valid_nll"], metrics["epoch"]
            state = self.trainer.state.averaged_model.state_dict()
            self.weights = {name: value.clone() for name, value in state.items()}
        return bool(metrics["epoch"] - self.best_epoch >= self.patience)

    def restore(self, model: JEM) -> None:
        """Give the model the weights of the best epoch."""
        if self.weights is not None:
            model.load_state_dict(self.weights)
