"""A person's own files -> a data set in four parts."""

import math
import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from jem.data.arrays import Array, assemble, divide, from_arrays, index_labels
from jem.data.image_files import (
    GREY_MODES,
    IMAGE_SUFFIXES,
    ImageReader,
    check_image,
    read_format,
    refuse_unreadable,
    undamaged,
)
from jem.data.scaling import Scaling
from jem.data.splits import DataPart, DataSplits, LazyPart
from jem.data.tables import read_csv
from jem.errors import InputError

INPUT_KEYS = ("images", "x")
LABEL_KEYS = ("labels", "y")
MEMORY_LIMIT = 2 * 1024**3
LARGEST_IMAGE_SIZE = 1024  # pixels a side


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
    refuse_unfit(path, label_column, image_size, skip_damaged)
    if path.is_dir():
        return _load_folder(path, seed, image_size, skip_damaged, memory_limit)
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


def refuse_unfit(
    source: str | Path, label_column: str | None, image_size: int | None, skip_damaged: bool
) -> None:
    """Refuse an option that belongs to another kind of source, rather than leave it unheard.

    Args:
        source: Path of a file or folder, or the name of a data set.
        label_column: Column of labels, for a `.csv` file; None if not given.
        image_size: Pixels a side, for a folder of images; None if not given.
        skip_damaged: For a folder of images.
    """
    is_folder = isinstance(source, Path) and source.is_dir()
    is_table = isinstance(source, Path) and source.suffix.lower() == ".csv" and not is_folder
    if label_column is not None and not is_table:
        raise InputError(
            f"Expected a .csv file with a column '{label_column}' of labels, got {source}: leave "
            f"out label_column."
        )
    if image_size is not None and not is_folder:
        raise InputError(
            f"Expected a folder of images to bring to a size of {image_size}, got {source}: "
            f"leave out image_size."
        )
    if skip_damaged and not is_folder:
        raise InputError(
            f"Expected a folder of images to leave damaged ones out of, got {source}: leave out "
            f"skip_damaged."
        )


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
        why = "" if "pickle" in str(error) else f" ({error})"  # numpy's advice would run code
        raise InputError(f"Could not read {path}: it is damaged or no .npz file{why}.") from error


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
            refuse_unreadable(files, check_image)
            raise
    splits = assemble(folder.name, parts, classes, scaling)
    return replace(splits, ignored=_count_others(folder))


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
        formats = [read_format(file) for file in files]
    except InputError:
        refuse_unreadable(files, check_image)
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
