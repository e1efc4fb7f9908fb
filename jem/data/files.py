"""A person's own files -> a data set in four parts."""

import csv
import math
import os
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from jem.data.arrays import assemble, divide, from_arrays, index_labels
from jem.data.parts import DataPart, DataSplits, LazyPart
from jem.data.scaling import Scaling
from jem.errors import InputError

INPUT_KEYS = ("images", "x")
LABEL_KEYS = ("labels", "y")
LABEL_COLUMNS = ("label", "class", "target", "y")
IMAGE_SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".webp",
    ".ppm",
    ".pgm",
)
GREY_MODES = ("1", "L", "LA")
MEMORY_LIMIT = 2 * 1024**3
LARGEST_IMAGE_SIZE = 1024  # pixels a side

MOST_NAMED = 5  # unusable images named in one message
SKIP_HINT = "Leave damaged images out with --skip-damaged (skip_damaged=True in Python)."

Array = npt.NDArray[Any]


class DamagedImageError(InputError):
    """An image cannot be read."""


def load_file(
    path: str | os.PathLike[str],
    *,
    seed: int = 0,
    label_column: str | None = None,
    image_size: int | None = None,
    skip_damaged: bool = False,
    memory_limit: int = MEMORY_LIMIT,
) -> DataSplits:
    """Load an `.npz` file, a `.csv` file, or a folder of images with one subfolder a class.

    Args:
        path: File or folder.
        seed: Decides which example goes to which part.
        label_column: Column of a `.csv` file that holds the labels; otherwise one called label,
            class, target or y.
        image_size: Pixels a side that images of a folder are brought to, see `fit_image`; None
            takes them as they are, all of one size.
        skip_damaged: Leave out images of a folder that cannot be read, with one warning that says
            how many; otherwise they are refused.
        memory_limit: Bytes above which a folder of images, as float32, stays on disk.

    Returns:
        Four parts in network units.

    Raises:
        InputError: If the file is missing, damaged or not as expected.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _load_folder(path, seed, image_size, skip_damaged, memory_limit)
    if image_size is not None:
        raise InputError(
            f"Expected a folder of images to bring to a size of {image_size}, got {path}: "
            f"leave out image_size."
        )
    if skip_damaged:
        raise InputError(
            f"Expected a folder of images to leave damaged ones out of, got {path}: leave out "
            f"skip_damaged."
        )
    if not path.is_file():
        raise InputError(f"Expected a file or a folder, found nothing at {path}.")
    if path.stat().st_size == 0:
        raise InputError(f"Expected data in {path}, got an empty file.")
    columns = None
    if path.suffix.lower() == ".npz":
        x, labels = read_npz(path)
    elif path.suffix.lower() == ".csv":
        x, labels, columns = read_csv(path, label_column)
    else:
        raise InputError(
            f"Expected an .npz file, a .csv file or a folder of images by class, got {path}."
        )
    try:
        splits = from_arrays(x, labels, name=path.stem, seed=seed)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return replace(splits, columns=columns)


def read_npz(path: Path) -> tuple[Array, Array]:
    """Read inputs (`images` or `x`) and labels (`labels` or `y`) from an `.npz` file.

    Returns:
        Raw inputs (N, ...) and labels (N,).
    """
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise InputError(f"Expected an .npz archive, got a single array in {path}.")
        with archive:
            x_key = find_key(path, archive.files, INPUT_KEYS, "inputs")
            y_key = find_key(path, archive.files, LABEL_KEYS, "labels")
            return _plain(path, archive, x_key), _plain(path, archive, y_key)
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"Could not read {path}: it is damaged or no .npz file ({error})."
        ) from error


def _plain(path: Path, archive: Any, key: str) -> Array:  # noqa: ANN401
    """An array of an archive, unless it would run code when it is read."""
    try:
        values: Array = archive[key]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise InputError(
            f"Expected plain numbers or strings under '{key}' in {path}, got Python objects: save "
            f"labels with .astype(str), and inputs as one array of numbers."
        ) from error
    return values


def find_key(path: Path, keys: Sequence[str], wanted: Sequence[str], what: str) -> str:
    """The first of the wanted keys that an archive has, or an error that says what it has."""
    for key in wanted:
        if key in keys:
            return key
    raise InputError(
        f"Expected {what} under the key '{wanted[0]}' or '{wanted[1]}' in {path}, "
        f"got the keys {', '.join(keys) or 'none'}."
    )


def read_csv(path: Path, label_column: str | None = None) -> tuple[Array, Array, tuple[str, ...]]:
    """Read numeric columns and the column of labels from a `.csv` file with a header.

    Returns:
        Features (N, D), float64; labels (N,), strings; and the names of the D columns.
    """
    header, lines = open_table(path)
    label = find_label_column(path, header, label_column)
    rows = list(lines)
    features = [i for i in range(len(header)) if i != label]
    if not features or not rows:
        what = "a column besides the labels" if rows else "rows below the header"
        raise InputError(f"Expected {what} in {path}, got none.")
    for number, row in rows:
        if not row[label].strip():
            raise InputError(
                f"Expected a label in line {number}, column '{header[label]}' of {path}, got none."
            )
    names = tuple(header[i] for i in features)
    cells = [[(number, row[i]) for number, row in rows] for i in features]
    x = np.stack(read_columns(path, names, cells), axis=1)
    return x, np.array([row[label].strip() for _, row in rows]), names


def open_table(path: Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Open a `.csv` file with a header.

    Returns:
        Names of the columns, and the rows that are not blank, each with its line number and as
        long as the header; they are read when asked for.

    Raises:
        InputError: If the file cannot be read, or has no header; later, if a row is not as long.
    """
    rows = _rows(path)
    first = next(rows, None)
    if first is None:
        raise InputError(f"Expected a header and rows in {path}, got blank lines alone.")
    header = [cell.strip() for cell in first[1]]
    for i, name in enumerate(header):
        if not name:
            raise InputError(
                f"Expected a name for every column of {path}, got none for column {i + 1} "
                f"(a saved row number, perhaps): name it or remove it."
            )
        if name in header[:i]:
            raise InputError(f"Expected different names of columns in {path}, got '{name}' twice.")
    return header, _checked_rows(path, len(header), rows)


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not blank, with their line numbers."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=max(",;\t", key=first.count), strict=True)
            for row in reader:
                if any(cell.strip() for cell in row):
                    yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"Could not read {path}: it is damaged or no .csv file ({error})."
        ) from error


def _checked_rows(
    path: Path, width: int, rows: Iterator[tuple[int, list[str]]]
) -> Iterator[tuple[int, list[str]]]:
    for number, row in rows:
        if len(row) != width:
            raise InputError(
                f"Expected {width} values in line {number} of {path}, as in the header, "
                f"got {len(row)}."
            )
        yield number, row


def find_label_column(path: Path, header: Sequence[str], label_column: str | None) -> int:
    """Position of the column of labels: the one that is named, or one with a usual name."""
    if label_column is not None and label_column in header:
        return header.index(label_column)
    if label_column is None:
        lowered = [name.lower() for name in header]
        for name in LABEL_COLUMNS:
            if name in lowered:
                return lowered.index(name)
    wanted = f"called '{label_column}'" if label_column else f"({', '.join(LABEL_COLUMNS)})"
    raise InputError(
        f"Expected a column of labels {wanted} in {path}, got the columns {', '.join(header)}: "
        f"name one with --label-column (label_column= in Python); the first line is the header."
    )


def read_columns(
    path: Path, names: Sequence[str], cells: Sequence[Sequence[tuple[int, str]]]
) -> list[Array]:
    """Convert columns, or say of all of them at once that they are no numbers throughout."""
    columns, errors = [], {}
    for name, column in zip(names, cells, strict=True):
        try:
            columns.append(read_column(path, name, column))
        except InputError as error:
            errors[name] = str(error)
    if errors:
        first, *others = errors
        more = f" Other columns with text or gaps: {', '.join(others)}." if others else ""
        raise InputError(errors[first] + more)
    return columns


def read_column(path: Path, name: str, cells: Sequence[tuple[int, str]]) -> Array:
    """Convert the cells of one column, given with their line numbers."""
    values = np.empty(len(cells))
    for i, (number, cell) in enumerate(cells):
        try:
            values[i] = float(cell) if cell.strip() else math.nan
        except ValueError:
            raise InputError(
                f"Expected numbers in column '{name}' of {path}, got '{cell}' in line {number}: "
                f"encode the column as numbers or remove it."
            ) from None
        if not math.isfinite(values[i]):
            raise InputError(
                f"Expected finite numbers in column '{name}' of {path}, got "
                f"{cell.strip() or 'an empty cell'} in line {number}: remove such rows or fill in "
                f"the values."
            )
    return values


def _load_folder(
    folder: Path, seed: int, image_size: int | None, skip_damaged: bool, memory_limit: int
) -> DataSplits:
    """Load images whose class is the name of their subfolder."""
    if image_size is not None and not 4 <= image_size <= LARGEST_IMAGE_SIZE:
        raise InputError(
            f"Expected an image size of 4 to {LARGEST_IMAGE_SIZE} pixels, got {image_size}."
        )
    files = _list_images(folder)
    if skip_damaged:
        files = _undamaged_of_each_class(folder, files)
    size, mode = _common_format(files, image_size)
    classes, y = index_labels(np.array([file.parent.name for file in files]))
    shape = (1 if mode == "L" else 3, size[1], size[0])
    scaling = Scaling.of_bytes(shape, "channels_last")
    read = ImageReader(scaling, mode, resize=image_size is not None)
    parts: list[DataPart | LazyPart] = [
        LazyPart([files[i] for i in part], torch.from_numpy(y[part]), read)
        for part in divide(y, classes, seed)
    ]
    if 4 * len(files) * math.prod(shape) <= memory_limit:
        try:
            parts = [DataPart(*part[:]) for part in parts]
        except InputError:
            refuse_unreadable(files, _check_image)
            raise
    splits = assemble(folder.name, parts, classes, scaling)
    return replace(splits, ignored=_count_others(folder))


class ImageReader:
    """Read one image file to a network input; a class, so that worker processes can be sent it.

    Args:
        scaling: Brings bytes to network units.
        mode: Pillow's name for grey (L) or colour (RGB).
        resize: Whether to bring images to the size that the scaling takes, see `fit_image`.
    """

    def __init__(
        self, scaling: Scaling, mode: Literal["L", "RGB"], *, resize: bool = False
    ) -> None:
        self.scaling = scaling
        self.mode = mode
        self.resize = resize

    def __call__(self, file: Path) -> Tensor:
        """Return the image as float32, shape (C, H, W)."""
        _, height, width = self.scaling.input_shape
        try:
            with open_image(file) as image:
                if self.resize:
                    image = fit_image(file, image, (width, height))
                return self.scaling(pixels(file, image, self.mode))[0]
        except DamagedImageError as error:
            raise DamagedImageError(f"{error} {SKIP_HINT}") from error


def _list_images(folder: Path) -> list[Path]:
    """List the images of each class, sorted; hidden files and folders are left out."""
    files: list[Path] = []
    subfolders = _visible(folder, Path.is_dir)
    for subfolder in subfolders:
        images = [
            f for f in _visible(subfolder, Path.is_file) if f.suffix.lower() in IMAGE_SUFFIXES
        ]
        if not images:
            nested = _visible(subfolder, Path.is_dir)
            hint = f": give {subfolder} itself if its subfolders are the classes" if nested else ""
            raise InputError(f"Expected images in the class folder {subfolder}, got none{hint}.")
        files += images
    if not files:
        raise InputError(
            f"Expected one subfolder of images for each class in {folder}, got no subfolder."
        )
    return files


def _count_others(folder: Path) -> int:
    """Files beside the class folders, and those in them that are no images."""
    others = len(_visible(folder, Path.is_file))
    for subfolder in _visible(folder, Path.is_dir):
        files = _visible(subfolder, Path.is_file)
        others += sum(file.suffix.lower() not in IMAGE_SUFFIXES for file in files)
    return others


def _visible(folder: Path, kind: Any) -> list[Path]:  # noqa: ANN401
    return sorted(
        path for path in folder.iterdir() if not path.name.startswith(".") and kind(path)
    )


def _common_format(
    files: Sequence[Path], image_size: int | None
) -> tuple[tuple[int, int], Literal["L", "RGB"]]:
    """Return the (width, height) that all images share or get, and L if all of them are grey."""
    try:
        formats = [_read_format(file) for file in files]
    except InputError:
        refuse_unreadable(files, _check_image)
        raise
    modes = {mode for _, mode in formats}
    common: Literal["L", "RGB"] = "L" if modes <= set(GREY_MODES) else "RGB"
    if image_size is not None:
        return (image_size, image_size), common
    (w0, h0), _ = formats[0]
    for file, ((w, h), _) in zip(files, formats, strict=True):
        if (w, h) != (w0, h0):
            raise InputError(
                f"Expected images of one size, got {w0} x {h0} in {files[0]} and {w} x {h} in "
                f"{file}: name the pixels a side to bring them to with --image-size "
                f"(image_size= in Python)."
            )
    return (w0, h0), common


def _read_format(file: Path) -> tuple[tuple[int, int], str]:
    """Size (width, height) and mode of an image, whose pixels are not read."""
    with open_image(file) as image:
        refuse_deep(file, image)
        return image.size, image.mode


def _check_image(file: Path) -> None:
    """Read an image with its pixels, to see whether it can be."""
    with open_image(file) as image:
        refuse_deep(file, image)
        pixels(file, image, "RGB")


def undamaged(folder: Path, files: Iterable[Path]) -> Iterator[Path]:
    """Read images with their pixels and leave out those that cannot be, with one warning.

    Args:
        folder: Where they lie, for messages.
        files: The images.

    Raises:
        InputError: At the end, if none can be read.
    """
    total, damaged = 0, []
    for total, file in enumerate(files, start=1):  # noqa: B007
        try:
            _check_image(file)
        except DamagedImageError:
            damaged.append(file)
            continue
        except InputError:
            pass  # not damaged: who reads it says what is wrong
        yield file
    if damaged and len(damaged) == total:
        raise InputError(f"Expected images in {folder}, got {total:,} that are damaged.")
    if damaged:
        warnings.warn(
            f"{len(damaged):,} of {total:,} images in {folder} are damaged and were left out: "
            f"{_first_few(damaged)}",
            stacklevel=2,
        )


def _undamaged_of_each_class(folder: Path, files: Sequence[Path]) -> list[Path]:
    """Images that can be read; a class must not vanish with its images."""
    kept = list(undamaged(folder, files))
    lost = {file.parent for file in files} - {file.parent for file in kept}
    if lost:
        raise InputError(
            f"Expected images in the class folder {min(lost)}, got damaged ones alone: replace "
            f"them or remove the folder."
        )
    return kept


def _first_few(files: Sequence[Path]) -> str:
    dots = ", ..." if len(files) > MOST_NAMED else ""
    return ", ".join(str(file) for file in files[:MOST_NAMED]) + dots


def refuse_unreadable(files: Iterable[Path], read: Callable[[Path], object]) -> None:
    """Read images once more to say of all at once which are unusable.

    Args:
        files: The images.
        read: Raises `InputError` for an unusable one.

    Raises:
        InputError: What is wrong with the first; of several also their number and the first few.
    """
    errors: dict[Path, InputError] = {}
    for file in files:
        try:
            read(file)
        except InputError as error:
            errors[file] = error
    if not errors:
        return
    message = str(next(iter(errors.values())))
    if len(errors) > 1:
        message += f" In all, {len(errors):,} images are unusable: {_first_few(list(errors))}."
    if any(isinstance(error, DamagedImageError) for error in errors.values()):
        message += f" {SKIP_HINT}"
    raise InputError(message)


def refuse_deep(file: Path, image: Image.Image) -> None:
    """Refuse an image of more than 8 bits a channel."""
    if image.mode.startswith(("I", "F")):
        raise InputError(f"Expected images with 8 bits a channel, got more in {file}.")


def open_image(file: Path) -> Image.Image:
    """Open an image, whose pixels are read later."""
    try:
        return Image.open(file)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise DamagedImageError(
            f"Could not read the image {file}: it is damaged ({error})."
        ) from error


def fit_image(file: Path, image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Bring an image that is open to a size: scaled to cover it, and the middle cut out.

    Args:
        file: Where it lies, for messages.
        image: The image, in any mode of 8 bits a channel.
        size: (width, height).
    """
    whole = Image.fromarray(pixels(file, image, "L" if image.mode in GREY_MODES else "RGB"))
    return ImageOps.fit(whole, size, Image.Resampling.BICUBIC)


def pixels(file: Path, image: Image.Image, mode: Literal["L", "RGB"]) -> Array:
    """Read an image that is open to bytes of shape (H, W) or (H, W, 3)."""
    try:
        return np.asarray(image.convert(mode))
    except (OSError, SyntaxError, ValueError) as error:
        raise DamagedImageError(
            f"Could not read the image {file}: it is damaged ({error})."
        ) from error
