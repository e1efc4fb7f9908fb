"""The user's files -> a data set in four parts, or inputs read a batch at a time."""

import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from jem.checks import check_integer, counted, refuse
from jem.data.arrays import Array, check_numbers, from_arrays
from jem.data.columns import Column, encode
from jem.data.images import image_batches, is_image
from jem.data.scaling import batch_shape, raw_shapes
from jem.data.splits import DataSplits
from jem.data.tables import TableFile
from jem.errors import InputError, naming

INPUT_KEYS = ("images", "x")
LABEL_KEYS = ("labels", "y")

Named = tuple[Sequence[str], Array]


@dataclass(frozen=True)
class InputStream:
    """Inputs in the order in which they are stored, to be gone through once.

    Attributes:
        batches: Yields names of the inputs (their number from 0, or their file) and the raw inputs
            (B, ...). It raises `InputError`, naming file and row, at the first that is none.
        total: How many inputs there are, damaged images included; None where only the end of the
            file says so.
        from_images: Whether they are bytes of image files, 0 to 255, channels last.
        notes: What was left out of a folder, and how images were changed, in words: complete when
            the batches have ended.
        beside: Of a table, the columns that the network does not take, as text, by their names: of
            the rows that came last.
    """

    batches: Iterator[Named]
    total: int | None
    from_images: bool = False
    notes: list[str] = field(default_factory=list)
    beside: dict[str, list[str]] = field(default_factory=dict)


def load_arrays(
    path: Path, *, seed: int, label_column: str | None, given: Mapping[str, Path] | None = None
) -> DataSplits:
    """Load an `.npz` file (`images` or `x`, and `labels` or `y`) or a `.csv` file with a header.

    Args:
        path: The file.
        seed: Decides which example goes to which part.
        label_column: Column of a `.csv` file that holds the labels; otherwise one called label,
            class, target or y.
        given: Files of whole parts, by name: `validation`, `test`. Columns are found by name.

    Raises:
        InputError: If a file is damaged or not as expected.
    """
    x, labels, notes = _read_arrays(path, label_column)
    parts: dict[str, Any] = {}
    for part, file in (given or {}).items():
        *pair, more = _read_arrays(file, label_column)
        parts[part], notes = pair, notes + more
    with naming(", ".join(map(str, (path, *(given or {}).values())))):
        made = from_arrays(x, labels, name=path.stem, seed=seed, **parts)
    return replace(made, notes=notes + made.notes)


def _read_arrays(
    path: Path, label_column: str | None
) -> tuple[Array | pd.DataFrame, Array, tuple[str, ...]]:
    """Raw inputs, labels, and what was left out."""
    if path.suffix.lower() == ".npz":
        with _archive(path) as archive:
            x = _find_key(path, archive.files, INPUT_KEYS, "inputs")
            y = _find_key(path, archive.files, LABEL_KEYS, "labels")
            return archive[x], archive[y], ()
    if path.suffix.lower() != ".csv":
        refuse(str(path), "be an .npz file, a .csv file or a folder of images", repr(path.suffix))
    return _read_csv(path, label_column)


def check_options(
    source: str | Path, label_column: str | None, image_size: int | None, skip_damaged: bool
) -> None:
    """Refuse an option that belongs to another kind of source, rather than ignore it.

    Args:
        source: Path of a file or folder, or the name of a data set.
        label_column: Column of labels, for a `.csv` file; None if not given.
        image_size: Pixels a side, for a folder of images; None if not given.
        skip_damaged: For a folder of images.

    Raises:
        InputError: If one does.
    """
    is_folder = isinstance(source, Path) and source.is_dir()
    is_table = isinstance(source, Path) and source.suffix.lower() == ".csv" and not is_folder
    if label_column is not None and not is_table:
        refuse("label_column", "be given only for a .csv file", f"'{label_column}' for {source}")
    for name, value in (("image_size", image_size), ("skip_damaged", skip_damaged)):
        if value and not is_folder:
            refuse(name, "be given only for a folder of images", f"{value} for {source}")


def stream_inputs(
    path: str | os.PathLike[str],
    input_shape: Sequence[int],
    *,
    batch_size: int,
    label_column: str | None = None,
    columns: Sequence[Column] | None = None,
    skip_damaged: bool = False,
) -> InputStream:
    """Open inputs for a model, a batch at a time; of files but `.npz` no more than that is held.

    Args:
        path: An `.npy` file of a batch or a single input; an `.npz` file that has it under
            `images` or `x`; a `.csv` file with a header; an image; or a folder of images, which
            is read with its subfolders in the order of their names. Images of another size are
            brought to that of the network: scaled, and the middle cut out.
        input_shape: What the network takes for one input: (C, H, W) or (D,).
        batch_size: Inputs a batch.
        label_column: Column of a `.csv` file to leave out; otherwise one called label, class,
            target or y, where there is one column more than the network takes. Where `columns`
            are named it must be none of them.
        columns: The columns that the network was trained on, and what is done to them: a `.csv`
            file may have them in another order, and others beside them. If None, position decides.
        skip_damaged: Leave out images of a folder that cannot be read, with one warning at the end
            that says how many; otherwise they are refused.

    Returns:
        The inputs as they are stored. Their values are checked as they are read.

    Raises:
        InputError: If the file is missing, damaged, of another kind, or holds no inputs of this
            shape; what is wrong further on is raised when it is reached.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/x.npy", np.zeros((5, 2)))
        ...     stream = stream_inputs(f"{folder}/x.npy", (2,), batch_size=3)
        ...     stream.total, [names for names, _ in stream.batches]
        (5, [['0', '1', '2'], ['3', '4']])
    """
    path, shape = Path(path).expanduser(), tuple(input_shape)
    check_integer("batch_size", batch_size, 1)
    suffix = path.suffix.lower()
    if not path.exists():
        refuse(str(path), "be a file or a folder", "no such path")
    if path.is_dir() or is_image(path):
        batches, total, notes = image_batches(path, shape, batch_size, skip_damaged=skip_damaged)
        return InputStream(batches, total, from_images=True, notes=notes)
    if suffix not in (".npy", ".npz", ".csv"):
        refuse(str(path), "be an .npy, .npz or .csv file, an image or a folder", repr(suffix))
    if suffix == ".csv":
        return _open_table(path, shape, batch_size, label_column, columns)
    x = open_array(path, INPUT_KEYS, "inputs")
    x = x.reshape(batch_shape(str(path), x.shape, raw_shapes(shape)))
    return InputStream(_array_batches(path, x, batch_size), len(x))


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Make one line of all that readers raise for a file that they cannot read.

    Raises:
        InputError: Where they do.
    """
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if "object" in str(error).lower():
            remedy = "save labels with .astype(str), and inputs as one array of numbers"
            refuse(str(path), "hold plain numbers and text", "Python objects", remedy)
        why = "" if "pickle" in str(error) else f" ({error})"  # numpy's advice would run code
        refuse(
            str(path),
            f"be a whole {path.suffix} file",
            f"one that is damaged or of another kind{why}",
        )


# -- arrays ---------------------------------------------------------------------------------------


@contextmanager
def _archive(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """An `.npz` file; `numpy.load` leaves a damaged one open."""
    with reading(path), path.open("rb") as file, np.lib.npyio.NpzFile(file) as archive:
        yield archive


def _find_key(path: Path, keys: Sequence[str], wanted: Sequence[str], what: str) -> str:
    """The first of the wanted keys that an archive has; the message says what it has."""
    found = next((key for key in wanted if key in keys), None)
    if found is None:
        expected = f"hold {what} under '{wanted[0]}' or '{wanted[1]}'"
        refuse(str(path), expected, f"the keys {', '.join(keys) or 'none'}")
    return found


def open_array(path: Path, keys: Sequence[str], what: str) -> Array:
    """Open an array of numbers: an `.npy` file mapped into memory, or a member of an `.npz` file.

    Args:
        path: The file; a member of an `.npz` file is read whole.
        keys: Names that the member may have.
        what: What it is, for the message.

    Raises:
        InputError: If the file is damaged or of another kind, or holds no such numbers.
    """
    if path.suffix.lower() == ".npz":
        with _archive(path) as archive:
            found = archive[_find_key(path, archive.files, keys, what)]
    else:
        with reading(path):
            found = np.load(path, mmap_mode="r", allow_pickle=False)
    if found.dtype.kind not in "biuf":
        refuse(str(path), "hold numbers", f"values of type {found.dtype}")
    return found


def _array_batches(path: Path, x: Array, batch_size: int) -> Iterator[Named]:
    for first in range(0, len(x), batch_size):
        raw = np.array(x[first : first + batch_size])
        check_numbers(str(path), raw, first_row=first)
        yield [str(row) for row in range(first, first + len(raw))], raw


# -- tables ---------------------------------------------------------------------------------------


def _read_csv(path: Path, label_column: str | None) -> tuple[pd.DataFrame, Array, tuple[str, ...]]:
    """Columns of features; labels (N,); what was left out."""
    with reading(path):
        table = TableFile.open(path)
        label = table.label(label_column)
        names = [name for name in table.names if name != label]
        if not names:
            refuse(str(path), "have a column besides the labels", "none")
        rows = next(table.rows([label]))
        known = rows[rows[label].notna()]
        labels = known[label].str.strip().to_numpy(object)
    note = f"{path.name}: {counted(len(rows), 'row')} read; left out: {len(rows) - len(known):,} "
    notes = (f"{note}without a label in column '{label}'",)
    with suppress(ValueError):
        labels = labels.astype(np.float64)  # 1 and 1.0 are one class, and 9 before 10
    if labels.dtype == np.float64 and (quantities := labels[labels != np.round(labels)]).size:
        expected = f"hold classes in column '{label}', strings or whole numbers"
        remedy = "name the column of the classes with --label-column"
        refuse(str(path), expected, f"quantities such as {quantities[0]:g}", remedy)
    return known[names], labels, notes


def _open_table(
    path: Path,
    shape: tuple[int, ...],
    batch_size: int,
    label_column: str | None,
    columns: Sequence[Column] | None,
) -> InputStream:
    """The columns that a network takes, and those beside them."""
    if len(shape) != 1:
        refuse(str(path), f"hold images of shape {shape} as in training", "a table")
    with reading(path):
        table = TableFile.open(path)
    chosen = columns or [Column(name) for name in table.features(shape[0], label_column)]
    if columns and label_column in {column.name for column in columns}:
        remedy = "name another with --label-column, or none"
        refuse("label_column", "be no column of the training data", label_column, remedy)
    if missing := [column.name for column in chosen if column.name not in table.names]:
        expected = f"have the columns of the training data ({', '.join(missing)} is missing)"
        refuse(str(path), expected, ", ".join(table.names))
    others = [name for name in table.names if name not in {column.name for column in chosen}]
    text = [column.name for column in chosen if column.levels or column.form] + others
    beside: dict[str, list[str]] = {}

    def batches() -> Iterator[Named]:
        with reading(path):
            for rows in table.rows(text, batch_size):
                with naming(str(path)):
                    x = encode(chosen, rows)
                beside.update({name: rows[name].fillna("").tolist() for name in others})
                yield [str(row) for row in rows.index], x

    return InputStream(batches(), None, beside=beside)
