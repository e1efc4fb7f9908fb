"""Arrays as scikit-learn hands them over: what is held out of them, and the way back to them."""

import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any, Literal, Self

import joblib
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from pandas import DataFrame, Series
from scipy.sparse import issparse
from sklearn import config_context
from sklearn.base import BaseEstimator
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from jem.checks import refuse
from jem.data.arrays import from_arrays
from jem.data.scaling import Scaling
from jem.data.splits import DataSplits
from jem.errors import InputError
from jem.evaluation.statistics import smallest_calibration
from jem.sampling.outliers import column_groups
from jem.training.recipe import Recipe

Array = npt.NDArray[Any]

LARGEST_SHARE = 0.25
"""Share of the data that a part may grow to, unless more is asked for."""


@dataclass(frozen=True)
class TableFormat:
    """What makes a row of the user's table valid: names, types and ranges of its columns.

    Attributes:
        like: The table without its rows, as a data frame.
        framed: Whether the user has a data frame.
        low: Lowest value of each column of numbers, by its place.
        high: Highest value.
        whole: Places of the columns of whole numbers.
    """

    like: DataFrame
    framed: bool
    low: Series
    high: Series
    whole: list[int]

    @classmethod
    def of(cls, X: Any) -> Self:  # noqa: ANN401, N803
        """Read the format off a table (N, D), a data frame or an array."""
        framed = isinstance(X, pd.DataFrame)
        frame = X if framed else pd.DataFrame(np.asarray(X))
        placed = frame.set_axis(range(frame.shape[1]), axis=1).infer_objects()
        numbers = placed.select_dtypes(["number", "bool"]).astype(float)
        whole = [name for name in numbers if (numbers[name].dropna() % 1 == 0).all()]
        return cls(frame.iloc[:0], framed, numbers.min(), numbers.max(), whole)

    def restore(self, rows: Array | DataFrame) -> Array | DataFrame:
        """Make rows valid: within the ranges of the columns, whole numbers where they all were.

        Args:
            rows: Shape (B, D), in the units of the table; a column that is all None is left out.

        Returns:
            The same as a data frame, or as an array.
        """
        frame = pd.DataFrame(rows).set_axis(range(len(self.like.columns)), axis=1)
        frame = frame.loc[:, [name for name in frame if not frame[name].isna().all()]]
        for name in self.low.index.intersection(frame.columns):
            values = frame[name].astype(float).clip(self.low[name], self.high[name])
            frame[name] = values.round() if name in self.whole else values
        columns = self.like.columns[frame.columns]
        types = dict(zip(frame.columns, self.like.dtypes.iloc[frame.columns], strict=True))
        frame = frame.astype(types).set_axis(columns, axis=1)
        return frame if self.framed else frame.to_numpy()


@dataclass(frozen=True)
class RawFormat:
    """The format of the user's inputs, which samples are brought back to.

    Attributes:
        shape: Shape of one input: (D,), (H, W), (H, W, C) or (C, H, W).
        dtype: Type of its numbers.
        table: The format of a table, None for images.
        groups: Places of the parts of each one-hot column of a table.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    table: TableFormat | None = None
    groups: tuple[list[int], ...] = ()

    @classmethod
    def of(cls, raw: Array, X: npt.ArrayLike | DataFrame | None = None) -> Self:  # noqa: N803
        """Read the format off inputs (N, *shape), and the names of columns off what they were."""
        if raw.ndim > 2:
            return cls(raw.shape[1:], raw.dtype)
        columns = column_groups(torch.as_tensor(raw.astype(float))).numpy()
        parts = (np.flatnonzero(columns == group).tolist() for group in np.unique(columns))
        groups = tuple(group for group in parts if len(group) > 1)
        table = TableFormat.of(X if hasattr(X, "iloc") else raw)
        return cls(raw.shape[1:], raw.dtype, table, groups)

    def check(self, X: npt.ArrayLike) -> Array:  # noqa: N803
        """Return images as an array, refusing those of another shape than in training.

        Args:
            X: Images, shape (N, *shape).

        Raises:
            InputError: If they are not of that shape.
        """
        expected = f"be images of shape (N, {', '.join(map(str, self.shape))}), as in training"
        try:
            images = np.asarray(X)
        except ValueError:
            refuse("X", expected, "parts of different lengths")
        if images.shape[1:] != self.shape:
            hint = "for one image x give x[None]" if images.shape == self.shape else ""
            refuse("X", expected, images.shape, hint)
        return images

    def restore(self, x: Tensor, scaling: Scaling) -> Array | DataFrame:
        """Bring network inputs back to raw units, axes and type; all but floats are rounded.

        Args:
            x: Network inputs, shape (B, *scaling.input_shape).
            scaling: What made them.

        Returns:
            Shape (B, *shape). Rows of tables are valid: see `TableFormat.restore`; and one part
            of each one-hot column is on.
        """
        raw: Array = scaling.invert(x.cpu().double()).numpy()
        if self.table is not None:
            low, high = self.table.low.to_numpy(), self.table.high.to_numpy()
            for group in self.groups:
                on = (raw[:, group] - low[group]) / (high[group] - low[group])
                chosen = on.argmax(axis=1)[:, None] == np.arange(len(group))
                raw[:, group] = np.where(chosen, high[group], low[group])
            return self.table.restore(raw)
        if scaling.layout == "channels_last":
            raw = np.moveaxis(raw, 1, -1)
        if self.dtype.kind == "b":
            raw = raw > 0.5
        elif self.dtype.kind in "iu":
            limits = np.iinfo(self.dtype)
            raw = np.rint(raw).clip(limits.min, limits.max)
        if self.dtype.kind in "biuf":
            raw = raw.astype(self.dtype)
        return raw.reshape(len(raw), *self.shape)


def rows_needed(calibration: float, acceptance_rate: float, num_classes: int) -> int:
    """How many inputs `divide` needs to hold out enough for a threshold.

    Args:
        calibration: Share held out for it; where it is 0, some other that is at most a quarter.
        acceptance_rate: Share of in-distribution inputs to accept.
        num_classes: K.
    """
    share = max(calibration, LARGEST_SHARE)
    held_out = max(smallest_calibration(acceptance_rate), num_classes)
    return next(n for n in itertools.count(held_out) if round(share * n) >= held_out)


def no_threshold(calibration: float, acceptance_rate: float, num_classes: int) -> InputError:
    """Make the error for a verdict that no inputs were held out for; see `rows_needed`."""
    needed = rows_needed(calibration, acceptance_rate, num_classes)
    return InputError(
        f"no inputs were held out for a threshold at acceptance_rate={acceptance_rate:g}: fit on "
        f"{needed:,} inputs or more, a few of each class, with `calibration_fraction` above 0, or "
        "lower `acceptance_rate`"
    )


def rows_shared(X: npt.ArrayLike, X_train: npt.ArrayLike) -> int:  # noqa: N803
    """How many rows of X are rows of X_train too, number by number.

    Args:
        X: Shape (N, ...).
        X_train: Shape (M, ...).
    """

    def rows(x: npt.ArrayLike) -> list[bytes]:
        return [np.asarray(row, dtype=np.float64).tobytes() for row in np.asarray(x)]

    known = set(rows(X_train))
    return sum(row in known for row in rows(X))


def divide(
    X: Array,  # noqa: N803
    labels: Array,
    classes: Sequence[Any],
    *,
    validation: float,
    calibration: float,
    acceptance_rate: float,
    channels: Literal["first", "last"] | None,
    seed: int,
    columns: Sequence[str] | None = None,
) -> DataSplits:
    """Divide inputs into training, validation and calibration parts, and scale them.

    Every part that is not empty holds every class, in proportion. The calibration part grows to
    what `acceptance_rate` needs, if that is at most a quarter of the data. Otherwise it stays
    empty: inputs that cannot set a threshold are better used in training. So does the validation
    part where a class has one example, or a quarter of the data cannot hold every class.

    Args:
        X: Inputs, shape (N, *shape).
        labels: Class indices, shape (N,).
        classes: The K labels, for messages.
        validation: Share held out to notice overfitting; 0 holds out none.
        calibration: Share held out for the threshold; 0 holds out none.
        acceptance_rate: Share of in-distribution inputs to accept.
        channels: Where the channels of images are; read from the shape if None.
        seed: Decides which input goes to which part.
        columns: Names of the columns of a table.

    Returns:
        Parts in network units with an empty test part; the scaling is that of the training part.

    Raises:
        InputError: If inputs cannot be used.
    """
    total, counts = len(labels), np.bincount(labels)
    num_validation = max(round(validation * total), len(classes))
    most = round(max(validation, LARGEST_SHARE) * total)
    if not validation or counts.min() < 2 or num_validation > most:
        num_validation = 0
    num_calibration = 0
    if calibration and counts.min() >= 2 + bool(num_validation):
        largest = round(max(calibration, LARGEST_SHARE) * total)
        sizes = range(max(round(calibration * total), len(classes)), largest + 1)
        needed = smallest_calibration(acceptance_rate)
        num_calibration = next((n for n in sizes if n >= needed), 0)
    num_train = total - num_validation - num_calibration
    return from_arrays(
        X,
        labels,
        name="X",
        seed=seed,
        channels=channels,
        counts=(num_train, num_validation, num_calibration, 0),
        classes=[str(label) for label in classes],
        columns=columns,
    )


def images_or_none(X: npt.ArrayLike) -> Array | None:  # noqa: N803
    """Inputs of three or four axes as an array; None for tables and for ragged lists."""
    try:
        axes = X.ndim if hasattr(X, "ndim") else np.asarray(X).ndim
    except ValueError:  # rows of unequal length: scikit-learn says what is wrong
        return None
    return np.asarray(X) if axes in (3, 4) else None


def content_hash(raw: Array, labels: Array) -> str:
    """The same for the same values, however they lie in memory."""
    found: str = joblib.hash((np.ascontiguousarray(raw), np.ascontiguousarray(labels)))
    return found


def dense(X: Any) -> Any:  # noqa: ANN401, N803
    """A sparse matrix, such as `OneHotEncoder` gives, as an array; all else as it is.

    Raises:
        InputError: If a column of a table holds text or dates.
    """
    table = np.asarray(X, dtype=object) if isinstance(X, list) else X
    numbers = not isinstance(table, np.ndarray) or table.dtype.kind not in "OUS" or table.ndim > 2
    if isinstance(table, DataFrame) or not numbers:
        others = DataFrame(table).infer_objects().select_dtypes(exclude=["number", "bool"])
        found = others.map(lambda value: isinstance(value, str | date)).any()
        if found.any():
            got = f"text or dates in the columns {', '.join(map(str, found.index[found]))}"
            remedy = "take jem.make_pipeline(jem.TableEncoder(), jem.JEMClassifier())"
            refuse("X", "hold numbers", got, remedy)
    return X.toarray() if issparse(X) else X


def flat(images: Array) -> Array:
    """Images (N, ...) as rows (N, D)."""
    return images.reshape(len(images), math.prod(images.shape[1:]))  # -1 fails where N is 0


def class_indices(name: str, labels: Array, classes: Array, count: int) -> Tensor:
    """Class indices (N,) of labels as the user has them.

    Args:
        name: What the user calls them.
        labels: Labels, shape (N,).
        classes: The K labels that there are, sorted.
        count: N.

    Raises:
        InputError: If there are not N, or one is no class; numpy would take the text "3" for 3.
    """
    if labels.shape != (count,) or not set(labels.tolist()) <= set(classes.tolist()):
        got = f"{len(labels)} of {list(dict.fromkeys(labels.ravel().tolist()))[:10]}"
        refuse(name, f"hold {count} labels among {classes.tolist()}", got)
    return torch.as_tensor(np.searchsorted(classes, labels))


def class_weights(
    wanted: Mapping[Any, float] | str | None, classes: Array, labels: Array
) -> Tensor | None:
    """Weight of each class in the cross-entropy, shape (K,); None where all weigh the same.

    Args:
        wanted: `JEMClassifier`'s argument `class_weight`.
        classes: The K labels.
        labels: Class indices of the training part, shape (N,).

    Raises:
        InputError: If it names no class, or a weight is not above 0.
    """
    if wanted is None:
        return None
    if isinstance(wanted, Mapping) and (unknown := [key for key in wanted if key not in classes]):
        refuse("class_weight", f"name classes among {classes.tolist()}", unknown)
    weights = compute_class_weight(wanted, classes=classes, y=classes[labels])
    if not (np.isfinite(weights) & (weights > 0)).all():
        refuse("class_weight", "hold numbers above 0", wanted)
    return torch.as_tensor(weights, dtype=torch.float32)


def call_of(estimator: BaseEstimator) -> dict[str, Any]:
    """The call that fits an estimator, and its parameters as JSON holds them."""
    with config_context(print_changed_only=True):
        call = " ".join(BaseEstimator.__repr__(estimator, N_CHAR_MAX=sys.maxsize).split())
    config = {}
    for name, value in estimator.get_params().items():
        plain = value is None or isinstance(value, bool | int | float | str)
        fields = asdict(value) if isinstance(value, Recipe) else repr(value)
        config[name] = value if plain else fields
    return {"command": f"{call}.fit(X_train, y_train)", "config": config}
