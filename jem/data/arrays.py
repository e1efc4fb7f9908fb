"""Arrays and labels -> a data set in four parts. Their values are checked here, and only here."""

from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from jem.checks import as_tensor, check_choice, check_labels, refuse
from jem.data.columns import IDENTIFIER, LARGEST, Column, encode, fit_columns
from jem.data.scaling import Layout, Scaling, range_of
from jem.data.splits import PART_NAMES, DataPart, DataSplits, Indices, LazyPart, split_indices
from jem.errors import InputError

Array = npt.NDArray[Any]
Data = npt.ArrayLike | Tensor

CHANNEL_COUNTS = (1, 3, 4)  # what an axis is taken for channels by
UNITS = (0.0, 1.0, 0.0), (-1.0, 1.0, 0.0), (0.0, 255.0, 64.0)
"""Black, white and the value that some pixel is above, of what images are usually stored in."""


def from_arrays(
    x: Data,
    y: Data,
    *,
    name: str = "arrays",
    seed: int = 0,
    validation: tuple[Data, Data] | None = None,
    test: tuple[Data, Data] | None = None,
    channels: Literal["first", "last"] | None = None,
    counts: Sequence[int] | None = None,
    classes: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
) -> DataSplits:
    """Make a data set of the user's own arrays.

    Rows (N, D) are standardised. Images (N, H, W), (N, H, W, C) or (N, C, H, W) are brought to
    [-1, 1]: from 0 to 255, [0, 1] or [-1, 1] if the training part looks like it, else from its
    lowest and highest value.

    Args:
        x: Inputs, integer or float; or a data frame, whose text, dates and missing values become
            numbers: see `jem.data.columns.Column`.
        y: Labels, shape (N,), strings or integers. Classes are the distinct values as
            scikit-learn's `LabelEncoder` sorts them: numbers as numbers, strings as text.
        name: What to call the set.
        seed: Decides which example goes to which part.
        validation: Inputs and labels to keep as the validation part; otherwise one is split off.
        test: The same for the test part.
        channels: Where the channel axis of (N, ., ., .) stands; read from its size if None.
        counts: Sizes of train, validation, calibration and test, 0 for one that is given.
        classes: Names of the classes; `y` then holds indices into them.
        columns: Names of the columns of rows (N, D).

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
    frame: Any = x.rename(columns=str) if isinstance(x, pd.DataFrame) else None
    raw = _inputs("x", x, columns) if frame is None else frame
    labels = _labels("y", y, len(raw))
    names = [str(value) for value in (np.unique(labels) if classes is None else classes)]
    check_classes(names)

    def index(what: str, values: Array) -> Indices:
        if classes is None:
            return known_indices([str(value) for value in values], names)
        indices: Any = torch.from_numpy(values) if values.dtype.kind in "iu" else values
        check_labels(what, indices, len(values), len(names))
        return values.astype(np.int64)

    indices = index("y", labels)
    whole = {"validation": validation, "test": test}
    given = {part: pair for part, pair in whole.items() if pair is not None}
    for part in given:
        if counts is not None and counts[PART_NAMES.index(part)]:
            refuse("counts", f"be 0 for the {part} part, which is given", list(counts))
    rows = split_indices(indices, names, seed=seed, counts=counts, given=given)
    notes: tuple[str, ...] = ()
    encoding: tuple[Column, ...] = ()
    if frame is not None:
        encoding = fit_columns(frame, rows[0])
        raw = encode(encoding, frame)
        if lost := {*frame.columns} - {column.name for column in encoding}:
            why = "text that differs in most rows, or no values"
            notes = (f"columns left out ({why}): {', '.join(sorted(lost))}",)
        integers = [c.name for c in encoding if c.kind == "number" and c.whole]
        if ids := [n for n in integers if IDENTIFIER.search(n) or frame[n].is_unique]:
            notes += (f"identifiers or codes? Delete such columns: {', '.join(ids)}",)
    layout, input_shape = _read_layout(raw, channels)
    scaling = _fit_scaling(raw[rows[0]], layout, input_shape, encoding or columns)
    if layout != "table" and raw.dtype != np.uint8:
        notes = ("units of the images: black {:g} and white {:g}, a guess".format(*scaling.units),)
    numbers = np.arange(len(raw)) if frame is None else frame.index.to_numpy()
    made: list[DataPart | LazyPart] = [
        _part(scaling, raw[part], indices[part], numbers[part]) for part in rows
    ]
    for part, (inputs, own) in given.items():
        given_x: Any = inputs
        part_raw = encode(encoding, given_x) if encoding else _inputs(f"{part} x", inputs, columns)
        part_labels = index(f"{part} y", _labels(f"{part} y", own, len(part_raw)))
        numbers = np.arange(len(part_raw))
        made[PART_NAMES.index(part)] = _part(scaling, part_raw, part_labels, numbers)
    return replace(assemble(name, made, names, scaling), notes=notes)


def assemble(
    name: str, parts: Sequence[DataPart | LazyPart], classes: Sequence[str], scaling: Scaling
) -> DataSplits:
    """Put four parts and their scaling together, with the domain that goes with them."""
    train = parts[0]
    kind: Literal["image", "table"] = "image"
    domain = torch.tensor(-1.0), torch.tensor(1.0)
    if scaling.layout == "table" and isinstance(train, DataPart):
        kind, domain = "table", range_of(train.x)
    return DataSplits(
        name,
        **dict(zip(PART_NAMES, parts, strict=True)),  # type: ignore[arg-type]
        classes=tuple(classes),
        scaling=scaling,
        domain=domain,
        kind=kind,
        input_shape=scaling.input_shape,
    )


def check_classes(names: Sequence[str]) -> None:
    """Check that each class has its own name; a density alone can do with one class.

    Raises:
        InputError: If not.
    """
    if len(set(names)) < max(1, len(names)):
        refuse("classes", "hold different names, each once", ", ".join(names) or "none")


def known_indices(labels: Sequence[str], classes: Sequence[str]) -> Indices:
    """Turn names of classes into indices of those that are known.

    Raises:
        InputError: If a name is unknown.
    """
    if unknown := sorted({*labels} - {*classes}):
        refuse("labels", f"be among the training classes {', '.join(classes)}", repr(unknown[0]))
    return np.asarray(pd.Index(classes).get_indexer(labels), dtype=np.int64)


def check_numbers(
    name: str, x: Array, *, first_row: int = 0, columns: Sequence[str] | None = None
) -> None:
    """Check that raw numbers (N, ...) are finite, and not too large for 32 bits.

    Args:
        name: What the user calls them.
        x: The numbers.
        first_row: Number of the first row, for the message.
        columns: Names of the columns of (N, D), for the message.

    Raises:
        InputError: If one is not; the message says where.
    """
    if x.dtype.kind != "f" or (x.min() >= -LARGEST and x.max() <= LARGEST):  # NaN is in both
        return
    row, *where = (int(i) for i in np.argwhere(~(np.abs(x) <= LARGEST))[0])
    place = f"position {tuple(where)}" if columns is None else f"column '{columns[where[0]]}'"
    got = f"{x[(row, *where)]} in row {first_row + row}, {place}"
    refuse(name, "hold finite numbers", got, "fill in such values or leave the rows out")


def refuse_missing(labels: Array) -> None:
    """Refuse labels, shape (N,), if there is none for some example."""
    values = pd.Series(labels.tolist(), dtype=object)
    bare = values.map(lambda label: label.strip() if isinstance(label, str) else label)
    # Arrays and files of text hold NaN as "nan".
    missing = bare.isna() | bare.isin(["", "nan", "NaN", np.inf, -np.inf])
    if missing.any():
        row = int(missing.argmax())
        got = f"none in row {row} ({values[row]!r})"
        refuse("y", "hold a label for every example", got, "leave such examples out")


def _to_numpy(values: Data) -> Array:
    if not isinstance(values, Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def _inputs(name: str, values: Data, columns: Sequence[str] | None) -> Array:
    """Check that inputs are a non-empty array of finite numbers."""
    x = _to_numpy(as_tensor(name, values))
    if x.ndim not in (2, 3, 4) or x.size == 0:
        expected = "have shape (N, D), (N, H, W), (N, H, W, C) or (N, C, H, W) with N > 0"
        refuse(name, expected, x.shape)
    check_numbers(name, x, columns=columns)
    return x


def _labels(name: str, values: Data, length: int) -> Array:
    """Check labels and bring them to an array of strings or integers."""
    y = _to_numpy(values)
    if y.shape != (length,):
        remedy = "use y.ravel() for a single column, y.argmax(1) for one-hot rows"
        refuse(name, f"have one label an input, shape ({length},)", y.shape, remedy)
    refuse_missing(y)
    if y.dtype == object:
        numbers = all(isinstance(label, Real) for label in y)
        y = np.array(y.tolist()) if numbers else y.astype(str)
    if y.dtype.kind == "S":
        try:
            y = np.char.decode(y, "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"`{name}` must be text in UTF-8, got other bytes") from error
    if y.dtype.kind == "f":
        if not np.array_equal(y, np.round(y)):
            got = f"numbers such as {y[y != np.round(y)][0]}"
            refuse(name, "hold classes, strings or integers", got, "jem predicts no quantities")
        y = y.astype(np.int64)
    if y.dtype.kind not in "iubU":
        refuse(name, "hold strings or integers", y.dtype)
    return y


def _read_layout(x: Array, channels: str | None) -> tuple[Layout, tuple[int, ...]]:
    """Tell tables and images, and where the channels are, from the shape."""
    if channels is not None:
        check_choice("channels", channels, ("first", "last"))
    if x.ndim == 2:
        return "table", (x.shape[1],)
    if x.ndim == 3:
        return "channels_first", (1, *x.shape[1:])
    first, last = x.shape[1] in CHANNEL_COUNTS, x.shape[3] in CHANNEL_COUNTS
    if first == last:  # of 2 or 13 channels, say: pictures are square more often than not
        first, last = x.shape[2] == x.shape[3], x.shape[1] == x.shape[2]
    if channels is None and first == last:
        remedy = "images of that shape could be (N, C, H, W) or (N, H, W, C)"
        refuse("channels", "be 'first' or 'last'", f"None for inputs of shape {x.shape}", remedy)
    if channels == "first" or (channels is None and first):
        return "channels_first", x.shape[1:]
    return "channels_last", (x.shape[3], *x.shape[1:3])


def _fit_scaling(
    train: Array,
    layout: Layout,
    input_shape: tuple[int, ...],
    columns: Sequence[str] | Sequence[Column] | None,
) -> Scaling:
    """Choose the scaling by the training part alone."""
    if layout == "table":
        return Scaling.of_table(train, columns)
    low, high = float(train.min()), float(train.max())
    if low == high:
        refuse("x", "hold images that differ", f"{low:g} in every pixel of the training part")
    units = low, high
    for black, white, least in UNITS:
        slack = (white - black) / 4  # by which interpolation overshoots
        if black - slack <= low and high <= white + slack and high > least:
            units = black, white
            if black <= low and high <= white and high - low > 0.5:
                low, high = units
            break
    if train.dtype == np.uint8:
        units = 0.0, 255.0
    return Scaling.of_range(input_shape, layout, low, high, units)


def _part(scaling: Scaling, raw: Array, y: Indices, numbers: Array) -> DataPart:
    x = scaling(raw) if len(raw) > 0 else torch.empty(0, *scaling.input_shape)
    return DataPart(x, torch.from_numpy(y), numbers.tolist())
