"""Arrays and labels -> a data set in four parts."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jem.data.scaling import Layout, Scaling, as_numeric
from jem.data.splits import DataPart, DataSplits, Indices, LazyPart, split_indices
from jem.errors import InputError

Array = npt.NDArray[Any]
Data = npt.ArrayLike | Tensor

CHANNEL_COUNTS = (1, 3, 4)  # what an axis is taken for channels by
SHARES = (0.6, 0.1, 0.1, 0.2)
SHARES_WITH_TEST = (0.8, 0.1, 0.1, 0.0)
LARGEST_COUNTS = (5_000, 5_000, 10_000)  # of validation, calibration, test: more tells no more


def from_arrays(
    x: Data,
    y: Data,
    *,
    name: str = "arrays",
    seed: int = 0,
    test: tuple[Data, Data] | None = None,
    kind: Literal["image", "table"] | None = None,
    channels: Literal["first", "last"] | None = None,
    counts: Sequence[int] | None = None,
    classes: Sequence[str] | None = None,
) -> DataSplits:
    """Make a data set of a person's own arrays.

    Rows (N, D) are standardised. Images (N, H, W), (N, H, W, C) or (N, C, H, W) are brought to
    [-1, 1]: from 0 to 255, [0, 1] or [-1, 1] if the training part looks like it, else from its
    lowest and highest value.

    Args:
        x: Inputs, integer or float.
        y: Labels, shape (N,), strings or integers. Classes are the sorted distinct values.
        name: What to call the set.
        seed: Decides which example goes to which part.
        test: Inputs and labels to keep as the test part; otherwise one is split off.
        kind: Refuses inputs of the other kind; read from the number of axes if None.
        channels: Where the channel axis of (N, ., ., .) stands; read from its size if None.
        counts: Sizes of train, validation, calibration and test (0 when `test` is given).
        classes: Names of the classes; `y` then holds indices into them.

    Returns:
        Four parts in network units, stratified by class.

    Raises:
        InputError: If the arrays do not form a classification data set.

    Example:
        >>> x = np.arange(80.0).reshape(40, 2)
        >>> splits = from_arrays(x, ["cat", "dog"] * 20)
        >>> splits.classes, len(splits.train), len(splits.test)
        (('cat', 'dog'), 24, 8)
    """
    _check_choice("kind", kind, ("image", "table"))
    _check_choice("channels", channels, ("first", "last"))
    raw = _inputs(x, "x")
    layout, input_shape = _read_layout(raw, kind, channels)
    labels = _labels(y, len(raw), "y")
    names, indices = index_labels(labels) if classes is None else _check_indices(labels, classes)
    parts = divide(indices, names, seed, counts, has_test=test is not None)
    scaling = _fit_scaling(raw[parts[0]], layout, input_shape)
    made = [_part(scaling, raw[part], indices[part]) for part in parts]
    if test is not None:
        test_raw = _inputs(test[0], "test x")
        test_labels = _labels(test[1], len(test_raw), "test y")
        if classes is None:
            test_indices = known_indices(test_labels, names)
        else:
            _, test_indices = _check_indices(test_labels, classes)
        made[3] = _part(scaling, test_raw, test_indices)
    return assemble(name, made, names, scaling)


def assemble(
    name: str, parts: Sequence[DataPart | LazyPart], classes: Sequence[str], scaling: Scaling
) -> DataSplits:
    """Put four parts and their scaling together, with the domain that goes with them."""
    train, validation, calibration, test = parts
    kind: Literal["image", "table"] = "image"
    domain = torch.tensor(-1.0), torch.tensor(1.0)
    if scaling.layout == "table" and isinstance(train, DataPart):
        kind, domain = "table", _table_domain(train.x)
    return DataSplits(
        name=name,
        train=train,
        validation=validation,
        calibration=calibration,
        test=test,
        classes=tuple(classes),
        scaling=scaling,
        domain=domain,
        kind=kind,
        input_shape=scaling.input_shape,
    )


def index_labels(labels: Array) -> tuple[tuple[str, ...], Indices]:
    """Turn label values into class names, sorted, and indices into them.

    Args:
        labels: Strings or integers, shape (N,). Strings that are all numbers sort as numbers.

    Returns:
        Names (K,) and indices (N,).
    """
    values, indices = np.unique(labels, return_inverse=True)
    if len(values) < 2:
        raise InputError(
            f"Expected labels of at least two classes, got only '{values[0]}': "
            f"a classifier needs something to tell apart."
        )
    if values.dtype.kind == "U":
        order = _numeric_order(values)
        values, indices = values[order], np.argsort(order)[indices]
    return tuple(str(value) for value in values), indices.astype(np.int64)


def known_indices(labels: Array, classes: Sequence[str]) -> Indices:
    """Turn label values into indices of classes that are already known.

    Args:
        labels: Strings or integers, shape (N,).
        classes: Names as `index_labels` gave them.
    """
    position = {name: index for index, name in enumerate(classes)}
    unknown = sorted({str(label) for label in labels} - set(position))
    if unknown:
        raise InputError(
            f"Expected labels among the training classes {', '.join(classes)}, "
            f"got also '{unknown[0]}'."
        )
    return np.array([position[str(label)] for label in labels], dtype=np.int64)


def _numeric_order(values: Array) -> Indices:
    try:
        return np.argsort(values.astype(np.float64), kind="stable")
    except ValueError:
        return np.arange(len(values))


def _to_numpy(values: Data) -> Array:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    try:
        return np.asarray(values)
    except ValueError as error:
        raise InputError(f"Expected inputs that all have one shape ({error}).") from error


def _inputs(values: Data, name: str) -> Array:
    """Check that inputs are a non-empty array of finite numbers."""
    x = as_numeric(_to_numpy(values))
    if x.ndim < 2 or x.size == 0:
        raise InputError(
            f"Expected {name} of shape (N, D), (N, H, W), (N, H, W, C) or (N, C, H, W) "
            f"with N > 0, got {x.shape}."
        )
    if x.dtype.kind == "f":
        finite = np.isfinite(x)
        if not finite.all():
            row, *where = (int(i) for i in np.argwhere(~finite)[0])
            place = f"column {where[0]}" if x.ndim == 2 else f"pixel {tuple(where)}"
            raise InputError(
                f"Expected finite numbers in {name}, got {x[(row, *where)]} in row {row}, "
                f"{place}: remove such examples or fill in the values."
            )
    return x


def _labels(values: Data, length: int, name: str) -> Array:
    """Check labels and bring them to an array of strings or integers."""
    y = _to_numpy(values)
    if y.ndim != 1:
        raise InputError(
            f"Expected {name} with one label an example, shape ({length},), got {y.shape}: "
            f"use y.ravel() for a single column, y.argmax(1) for one-hot rows."
        )
    if len(y) != length:
        raise InputError(
            f"Expected as many labels as inputs, got {length} inputs and {len(y)} labels."
        )
    refuse_missing(y)
    if y.dtype == object:
        numbers = all(isinstance(label, Real) for label in y)
        y = np.array(y.tolist()) if numbers else y.astype(str)
    if y.dtype.kind == "f":
        if not np.array_equal(y, np.round(y)):
            raise InputError(
                f"Expected class labels in {name}, strings or integers, got numbers such as "
                f"{y[y != np.round(y)][0]}: predicting quantities is another task."
            )
        return y.astype(np.int64)
    if y.dtype.kind == "S":
        try:
            return np.char.decode(y, "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"Expected {name} of text in UTF-8, got other bytes.") from error
    if y.dtype.kind not in "iubU":
        raise InputError(f"Expected labels in {name} that are strings or integers, got {y.dtype}.")
    return y


def refuse_missing(labels: Array) -> None:
    """Refuse labels, shape (N,), if there is none for some example."""
    values = labels.tolist() if labels.dtype.kind in "fOU" else []
    missing = [row for row, label in enumerate(values) if is_missing(label)]
    if missing:
        raise InputError(
            f"Expected a label for every example, got none in row {missing[0]} "
            f"({values[missing[0]]!r}): leave such examples out."
        )


def is_missing(label: object) -> bool:
    """Whether a label is None, NaN or infinite, the missing value of a data frame, or no text.

    Arrays and files of text hold NaN as "nan".
    """
    if isinstance(label, str):
        return label.strip() in ("", "nan", "NaN")
    if label is None or type(label).__name__ in ("NAType", "NaTType"):
        return True
    return label != label or label in (math.inf, -math.inf)


def _check_indices(y: Array, classes: Sequence[str]) -> tuple[tuple[str, ...], Indices]:
    if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= len(classes):
        came = f"{y.min()} to {y.max()}" if y.dtype.kind in "iu" else f"such as {y.tolist()[0]!r}"
        raise InputError(
            f"Expected y with class indices from 0 to {len(classes) - 1}, as class names are "
            f"given, got {came}."
        )
    names = tuple(str(name) for name in classes)
    if len(set(names)) < len(names):
        raise InputError(f"Expected a name of its own for every class, got {', '.join(names)}.")
    return names, y.astype(np.int64)


def _check_choice(name: str, value: object, choices: tuple[str, str]) -> None:
    if value is not None and value not in choices:
        raise InputError(f"Expected {name} {choices[0]!r}, {choices[1]!r} or None, got {value!r}.")


def _read_layout(
    x: Array, kind: str | None, channels: str | None
) -> tuple[Layout, tuple[int, ...]]:
    """Tell tables and images, and where the channels are, from the shape."""
    found = "table" if x.ndim == 2 else "image"
    if x.ndim > 4 or kind not in (None, found):
        expected = {"image": "(N, H, W), (N, H, W, C) or (N, C, H, W)", "table": "(N, D)"}
        wanted = expected[kind or "image"]
        raise InputError(f"Expected inputs of shape {wanted}, got {x.shape}: reshape them.")
    if x.ndim == 2:
        return "table", (x.shape[1],)
    if x.ndim == 3:
        return "channels_first", (1, *x.shape[1:])
    first, last = x.shape[1] in CHANNEL_COUNTS, x.shape[3] in CHANNEL_COUNTS
    if channels is None:
        if first == last:
            raise InputError(
                f'Expected channels="first" or channels="last", as images of shape {x.shape} '
                f"could be (N, C, H, W) or (N, H, W, C): say which, or store them as "
                f"(N, H, W, C) with 1, 3 or 4 channels."
            )
        channels = "first" if first else "last"
    if channels == "first":
        return "channels_first", x.shape[1:]
    return "channels_last", (x.shape[3], *x.shape[1:3])


def divide(
    y: Indices,
    classes: Sequence[str],
    seed: int,
    counts: Sequence[int] | None = None,
    *,
    has_test: bool = False,
) -> list[Indices]:
    """Split examples; with a test part of its own the fourth part stays empty.

    Args:
        y: Class indices, shape (N,).
        classes: Names of the classes for messages.
        seed: Decides which example goes to which part.
        counts: Sizes of the four parts; otherwise the usual shares, with an upper limit.
        has_test: Whether the test part comes from elsewhere.

    Returns:
        Four arrays of indices.
    """
    if counts is not None:
        if has_test and counts[3]:
            raise InputError(
                f"Expected a count of 0 for the test part, which is given, got {counts[3]}."
            )
        return list(split_indices(y, seed=seed, counts=counts, classes=classes))
    shares = SHARES_WITH_TEST if has_test else SHARES
    largest = zip(shares[1:], LARGEST_COUNTS, strict=True)
    rest = [min(share, limit / len(y)) for share, limit in largest]
    fractions = [1 - sum(rest), *rest]
    return list(split_indices(y, seed=seed, fractions=fractions, classes=classes))


def _fit_scaling(train: Array, layout: Layout, input_shape: tuple[int, ...]) -> Scaling:
    """Choose the scaling by the training part alone."""
    if layout == "table":
        return Scaling.of_table(train)
    low, high = float(train.min()), float(train.max())
    if low == high:
        raise InputError(f"Expected images, got {low:g} in every pixel of the training part.")
    return Scaling.of_range(input_shape, layout, *_likely_range(low, high))


def _likely_range(low: float, high: float) -> tuple[float, float]:
    """Guess the range that images are stored in from the lowest and highest value seen."""
    if low >= 0 and 0.5 < high <= 1:
        return 0.0, 1.0
    if -1 <= low < 0 and high <= 1 and high - low > 0.5:
        return -1.0, 1.0
    if low >= 0 and 64 < high <= 255:
        return 0.0, 255.0
    return low, high


def _part(scaling: Scaling, raw: Array, y: Indices) -> DataPart:
    x = scaling(raw) if len(raw) > 0 else torch.empty(0, *scaling.input_shape)
    return DataPart(x, torch.from_numpy(y))


def _table_domain(x: Tensor) -> tuple[Tensor, Tensor]:
    """Widen the range of each column by a tenth to each side; by 1 where it is constant."""
    low, high = x.min(0).values, x.max(0).values
    margin = torch.where(high > low, 0.1 * (high - low), torch.ones_like(low))
    return low - margin, high + margin
