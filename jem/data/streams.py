"""A person's inputs, read a batch at a time: arrays, tables and images larger than memory."""

from __future__ import annotations

import math
import os
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from jem.data.arrays import Array
from jem.data.files import INPUT_KEYS, find_key
from jem.data.image_files import (
    GREY_MODES,
    IMAGE_SUFFIXES,
    fit_image,
    open_image,
    pixels,
    refuse_deep,
    refuse_unreadable,
    undamaged,
    upright_size,
)
from jem.data.tables import find_label_column, open_table, read_columns
from jem.errors import InputError

Shape = tuple[int, ...]
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
    """

    batches: Iterator[Named]
    total: int | None
    from_images: bool = False


def stream_inputs(
    path: str | os.PathLike[str],
    input_shape: Sequence[int],
    *,
    batch_size: int,
    label_column: str | None = None,
    columns: Sequence[str] | None = None,
    resize: bool = False,
    skip_damaged: bool = False,
) -> InputStream:
    """Open inputs for a model, of which no more than a batch is held at a time.

    Args:
        path: An `.npy` file of a batch or a single input; an `.npz` file that has it under
            `images` or `x`; a `.csv` file with a header; an image; or a folder of images, which
            is read with its subfolders in the order of their names. Arrays in Fortran order are
            the exception: their rows lie scattered, so they are read whole.
        input_shape: What the network takes for one input: (C, H, W) or (D,).
        batch_size: Inputs a batch.
        label_column: Column of a `.csv` file to leave out; otherwise one called label, class,
            target or y, where there is one column more than the network takes. Where `columns`
            are named it must be none of them, and a warning says if the file has none of its name.
        columns: Names of the columns that the network was trained on, in their order: a `.csv`
            file may have them in another, and others beside them. If None, position decides.
        resize: Bring images of another size to `input_shape`: scaled, and the middle cut out;
            otherwise they are refused.
        skip_damaged: Leave out images of a folder that cannot be read, with one warning at the end
            that says how many; otherwise they are refused.

    Returns:
        The inputs as they are stored.

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
    if batch_size < 1:
        raise InputError(f"Expected a batch size of at least 1, got {batch_size}.")
    if not path.exists():
        raise InputError(f"Expected a file or a folder, found nothing at {path}.")
    suffix = path.suffix.lower()
    if path.is_dir() or suffix in IMAGE_SUFFIXES:
        return _open_images(path, shape, batch_size, resize, skip_damaged)
    if suffix in (".npy", ".npz"):
        return _open_array(path, shape, batch_size)
    if suffix == ".csv":
        return _open_table(path, shape, batch_size, label_column, columns)
    raise InputError(
        f"Expected an .npy, .npz or .csv file, an image or a folder of images, got {path}."
    )


def _refuse_not_finite(path: Path, raw: Array, first: int) -> None:
    fits = np.abs(raw) <= np.finfo(np.float32).max if raw.dtype.kind == "f" else np.True_
    if not fits.all():
        row, *where = (int(i) for i in np.argwhere(~fits)[0])
        value, place = raw[(row, *where)], ", ".join(map(str, where))
        raise InputError(
            f"Expected finite numbers in {path}, got {value} in row {first + row}, position "
            f"({place}): remove such inputs or fill in the values."
        )


# -- arrays ---------------------------------------------------------------------------------------


def _open_array(path: Path, shape: Shape, batch_size: int) -> InputStream:
    with _array_file(path) as file:
        stored, _, dtype = _read_header(path, file)
    if dtype.kind not in "biuf":
        what = "Python objects" if dtype.hasobject else f"values of type {dtype}"
        raise InputError(f"Expected numbers in {path}, got {what}.")
    shapes = _raw_shapes(shape)
    single = stored in shapes
    if not single and (stored[1:] not in shapes or stored[0] == 0):
        expected = " or ".join(str(("N", *s)).replace("'", "") for s in shapes)
        raise InputError(f"Expected inputs of shape {expected}, N > 0, in {path}, got {stored}.")
    stored = (1, *stored) if single else stored
    return InputStream(_array_batches(path, stored, batch_size), stored[0])


def _raw_shapes(shape: Shape) -> list[Shape]:
    """How one input may be stored: channels first, last, or left out where there is one."""
    if len(shape) != 3:
        return [shape]
    channels, *plane = shape
    shapes = [shape, (*plane, channels), tuple(plane)]
    return shapes if channels == 1 else shapes[:2]


@contextmanager
def _array_file(path: Path) -> Iterator[IO[bytes]]:
    """An array as `np.save` wrote it: the file itself, or a member of an archive, unpacked."""
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as file:
                yield file
            return
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            with archive.open(find_key(path, names, INPUT_KEYS, "inputs") + ".npy") as file:
                yield file
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"Could not read {path}: it is damaged or no {path.suffix} file ({error})."
        ) from error


def _read_header(path: Path, file: IO[bytes]) -> tuple[Shape, bool, np.dtype[Any]]:
    """Shape, whether in Fortran order, and type; the file then stands at the first number."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise InputError(f"Expected numbers in {path}, got an array of named columns.")


def _array_batches(path: Path, shape: Shape, batch_size: int) -> Iterator[Named]:
    """Read inputs of shape (N, ...)."""
    with _array_file(path) as file:
        _, fortran_order, dtype = _read_header(path, file)
        whole = _take(path, file, shape[::-1], dtype).T if fortran_order else None
        for first in range(0, shape[0], batch_size):
            last = min(first + batch_size, shape[0])
            if whole is None:
                raw = _take(path, file, (last - first, *shape[1:]), dtype)
            else:
                raw = whole[first:last]
            _refuse_not_finite(path, raw, first)
            yield [str(number) for number in range(first, last)], raw


def _take(path: Path, file: IO[bytes], shape: Shape, dtype: np.dtype[Any]) -> Array:
    """Read the next numbers of a file."""
    size = math.prod(shape) * dtype.itemsize
    content = file.read(size)
    if len(content) < size:
        raise InputError(
            f"Could not read {path}: it is cut off, with fewer numbers than its header says."
        )
    return np.frombuffer(content, dtype).reshape(shape)


# -- tables ---------------------------------------------------------------------------------------


def _open_table(
    path: Path,
    shape: Shape,
    batch_size: int,
    label_column: str | None,
    names: Sequence[str] | None,
) -> InputStream:
    if len(shape) != 1:
        wanted = " x ".join(map(str, shape))
        raise InputError(f"Expected images of {wanted}, as in training, got the table {path}.")
    header, rows = open_table(path)
    if names is None:
        if all(_is_number(name) for name in header):
            raise InputError(
                f"Expected names of columns in the first line of {path}, got numbers."
            )
        columns = _feature_columns(path, header, shape[0], label_column)
    else:
        columns = _named_columns(path, header, names, label_column)
    return InputStream(_table_batches(path, header, columns, rows, batch_size), None)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _named_columns(
    path: Path, header: Sequence[str], names: Sequence[str], label_column: str | None
) -> list[int]:
    """Positions of the columns of these names, in the order of the names."""
    if label_column in names:
        raise InputError(
            f"Expected a column of labels to leave out of {path}, got '{label_column}', on which "
            f"the network was trained: name another with --label-column, or none."
        )
    if label_column is not None and label_column not in header:
        warnings.warn(f"{path} has no column '{label_column}' to leave out", stacklevel=2)
    missing = [name for name in names if name not in header]
    if missing:
        raise InputError(
            f"Expected the columns of the training data in {path}, got none called "
            f"{', '.join(missing)}: the header has {', '.join(header)}."
        )
    return [header.index(name) for name in names]


def _feature_columns(
    path: Path, header: Sequence[str], wanted: int, label_column: str | None
) -> list[int]:
    """Positions of the columns that are no labels."""
    columns = list(range(len(header)))
    if label_column in header or len(header) == wanted + 1:
        columns.remove(find_label_column(path, header, label_column))
    if len(columns) != wanted:
        raise InputError(
            f"Expected {wanted} columns of numbers in {path}, as in training, and perhaps one of "
            f"labels, got {', '.join(header)}."
        )
    return columns


def _table_batches(
    path: Path,
    header: Sequence[str],
    columns: Sequence[int],
    rows: Iterator[tuple[int, list[str]]],
    batch_size: int,
) -> Iterator[Named]:
    first = 0
    while chunk := list(islice(rows, batch_size)):
        yield [str(first + i) for i in range(len(chunk))], _numbers(path, header, columns, chunk)
        first += len(chunk)
    if first == 0:
        raise InputError(f"Expected rows below the header in {path}, got none.")


def _numbers(
    path: Path,
    header: Sequence[str],
    columns: Sequence[int],
    rows: Sequence[tuple[int, list[str]]],
) -> Array:
    try:
        raw = np.array([[float(row[i]) for i in columns] for _, row in rows])
        if np.isfinite(raw).all():
            return raw
    except ValueError:
        pass
    # Cell by cell, which names the one that is no number.
    cells = ([(number, row[i]) for number, row in rows] for i in columns)
    names = [header[i] for i in columns]
    return np.stack(read_columns(path, names, list(cells)), axis=1)


# -- images ---------------------------------------------------------------------------------------


def _open_images(
    path: Path, shape: Shape, batch_size: int, resize: bool, skip_damaged: bool
) -> InputStream:
    if len(shape) != 3 or shape[0] not in (1, 3):
        wanted = " x ".join(map(str, shape))
        raise InputError(f"Expected inputs of {wanted}, as in training, got images: {path}.")

    def read(file: Path) -> Array:
        return _read_image(file, shape, resize)

    if not path.is_dir():
        batches = iter([([path.name], read(path)[None])])
        return InputStream(batches, 1, from_images=True)
    total = sum(1 for _ in _walk(path))
    if total == 0:
        raise InputError(f"Expected images ({', '.join(IMAGE_SUFFIXES)}) in {path}, got none.")
    files = undamaged(path, _walk(path)) if skip_damaged else _walk(path)
    return InputStream(_image_batches(path, files, read, batch_size), total, from_images=True)


def _walk(folder: Path) -> Iterator[Path]:
    """Images of a folder and its subfolders by name; what is hidden is left out."""
    seen = set()  # a link may lead back to where it lies
    for parent, folders, names in os.walk(folder, onerror=_stop, followlinks=True):
        seen.add(os.path.realpath(parent))
        folders[:] = sorted(
            name
            for name in folders
            if name[0] != "." and os.path.realpath(os.path.join(parent, name)) not in seen
        )
        for name in sorted(names):
            if name[0] != "." and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield Path(parent, name)


def _stop(error: OSError) -> None:
    raise error  # `os.walk` would leave out a folder that cannot be read


def _image_batches(
    folder: Path, files: Iterator[Path], read: Callable[[Path], Array], batch_size: int
) -> Iterator[Named]:
    while chunk := list(islice(files, batch_size)):
        names = [file.relative_to(folder).as_posix() for file in chunk]
        try:
            raw = [read(file) for file in chunk]
        except InputError:
            refuse_unreadable(chain(chunk, files), read)
            raise
        yield names, np.stack(raw)


def _read_image(file: Path, shape: Shape, resize: bool) -> Array:
    """Bytes of shape (H, W, C)."""
    channels, height, width = shape
    with open_image(file) as image:
        refuse_deep(file, image)
        if resize:
            image = fit_image(file, image, (width, height))
        size = upright_size(image)
        if size != (width, height):
            raise InputError(
                f"Expected images of {width} x {height}, as in training, got "
                f"{size[0]} x {size[1]} in {file}: resize them first."
            )
        if channels == 1 and image.mode in GREY_MODES:
            return pixels(file, image, "L")[:, :, None]
        colours = pixels(file, image, "RGB")
    if channels == 3:
        return colours
    if (colours != colours[:, :, :1]).any():
        raise InputError(f"Expected grey images, as in training, got colours in {file}.")
    return colours[:, :, :1]
