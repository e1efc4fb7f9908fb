"""Images in files, and folders of them: found, read, checked and brought to a size."""

import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from jem.checks import check_integer, counted, refuse
from jem.data.arrays import Array, assemble, check_classes, known_indices
from jem.data.scaling import Scaling
from jem.data.splits import PART_NAMES, DataPart, DataSplits, LazyPart, split_indices
from jem.errors import InputError

IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm",
)  # fmt: skip
PART_FOLDERS = {
    **{name: name for name in ("train", "validation", "test")},
    **dict.fromkeys(("val", "valid"), "validation"),
}
"""Subfolders that keep their examples to one part of the data."""
GREY_MODES = ("1", "L", "LA")
MOST_NAMED = 5  # unusable images named in one message
SKIP_HINT = "--skip-damaged (skip_damaged=True in Python) leaves damaged images of a folder out"

Size = tuple[int, int]
T = TypeVar("T")


class DamagedImageError(InputError):
    """An image cannot be read."""


# -- one image ------------------------------------------------------------------------------------


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    """Open an image of 8 bits a channel; all that Pillow raises for damaged ones is one error."""
    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                refuse(str(file), "have 8 bits a channel", "more")
            yield image
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DamagedImageError(
            f"`{file}` must be an image, got a damaged one ({error}): {SKIP_HINT}"
        ) from error


def load_image(file: Path, *, ground: str = "white") -> Image.Image:
    """Read an image, turned upright if a camera says how it was held.

    Args:
        file: Where it lies.
        ground: Colour behind transparent parts.

    Returns:
        An image of Pillow's mode L where the file is grey, else RGB.

    Raises:
        DamagedImageError: If it cannot be read.
        InputError: If it has more than 8 bits a channel.
    """
    with _opened(file) as image:
        mode = "L" if image.mode in GREY_MODES else "RGB"
        image.load()
        with suppress(Exception):  # Pillow turns the image before it fails on an odd EXIF block
            ImageOps.exif_transpose(image, in_place=True)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, ground), image)
        return image.convert(mode)


def read_image(file: Path, shape: Sequence[int]) -> tuple[Array, bool]:
    """Read an image as a network takes it.

    Args:
        file: Where it lies.
        shape: (C, H, W) with 1 or 3 channels. Where C is 1, colours must be shades of grey.

    Returns:
        Bytes, shape (H, W, C); and whether the image has another size, and was brought to H x W:
        scaled to cover it, and the middle cut out.

    Raises:
        DamagedImageError: If it cannot be read.
        InputError: If it has more than 8 bits a channel, or colours that it must not have.
    """
    channels, height, width = shape
    image = load_image(file)
    if scaled := image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    if channels == 1 and image.mode == "L":
        return np.asarray(image)[:, :, None], scaled
    colours = np.asarray(image.convert("RGB"))
    if channels == 1 and (colours != colours[:, :, :1]).any():
        refuse(str(file), "be grey as in training", "a colour image")
    return colours[:, :, :channels], scaled


def read_format(file: Path, *, whole: bool = False) -> tuple[Size, bool]:
    """Read (width, height) of an image held upright, and whether it is grey.

    Args:
        file: Where it lies.
        whole: Whether to decode the pixels too, to see whether they can be.
    """
    with _opened(file) as image:
        size, orientation = image.size, 1
        if "exif" in image.info:  # asked without, a .png decodes its pixels to look for it
            with suppress(Exception):  # whatever is in the block, the image can be read
                orientation = int(image.getexif().get(ExifTags.Base.Orientation, 1))
        if whole:
            image.load()
        lying = orientation in (5, 6, 7, 8)
        return (size[1], size[0]) if lying else size, image.mode in GREY_MODES


def read_scaled(file: Path, scaling: Scaling) -> Tensor:
    """Read an image to a network input, float32, shape (C, H, W); see `read_image`."""
    return scaling(read_image(file, scaling.input_shape)[0])[0]


# -- folders --------------------------------------------------------------------------------------


def walk(folder: Path) -> Iterator[Path]:
    """Files of a folder, then those of its subfolders, by name as text; hidden ones are left out.

    Training and scoring both find images so, as torchvision's `ImageFolder` does.
    """

    def stop(error: OSError) -> None:
        raise error  # `os.walk` would leave out a folder that cannot be read

    for parent, folders, names in os.walk(folder, onerror=stop, followlinks=True):
        folders[:] = sorted(filter(_shown, folders))
        yield from (Path(parent, name) for name in sorted(filter(_shown, names)))


def _shown(name: str) -> bool:
    """Whether a name is neither hidden nor what macOS adds to archives."""
    return name[0] != "." and name != "__MACOSX"


def is_image(file: Path) -> bool:
    """Whether a file is called like an image."""
    return file.suffix.lower() in IMAGE_SUFFIXES


def usable(
    files: Iterable[Path], read: Callable[[Path], T], *, skip_damaged: bool = False
) -> Iterator[tuple[Path, T]]:
    """Read images one by one; at the end say of all at once which cannot be used.

    Args:
        files: The images. After one that cannot be used the others are read, but not given.
        read: Maps a file to what is wanted of it.
        skip_damaged: Whether to leave out those that are damaged, with a warning at the end.

    Raises:
        InputError: At the end, if an image cannot be used, or all are damaged.
    """
    skipped: list[Path] = []
    errors: dict[Path, InputError] = {}
    total = 0
    for total, file in enumerate(files, start=1):  # noqa: B007
        try:
            found = read(file)
        except InputError as error:
            if skip_damaged and isinstance(error, DamagedImageError):
                skipped.append(file)
            else:
                errors[file] = error
            continue
        if not errors:
            yield file, found
    if errors:
        more = f". In all, {len(errors):,} images cannot be used: {_first_few([*errors])}"
        raise InputError(f"{next(iter(errors.values()))}{more if len(errors) > 1 else ''}")
    if skipped:
        if len(skipped) == total:
            raise InputError(f"all {total:,} images are damaged: {_first_few(skipped)}")
        warnings.warn(
            f"{len(skipped):,} of {counted(total, 'image')} left out, damaged: "
            f"{_first_few(skipped)}",
            stacklevel=2,
        )


def _first_few(files: Sequence[Path]) -> str:
    dots = ", ..." if len(files) > MOST_NAMED else ""
    return ", ".join(str(file) for file in files[:MOST_NAMED]) + dots


def image_batches(
    path: Path, shape: Sequence[int], batch_size: int, *, skip_damaged: bool
) -> tuple[Iterator[tuple[list[str], Array]], int, list[str]]:
    """Open an image, or a folder of them with its subfolders, to be read a batch at a time.

    Args:
        path: The file or folder.
        shape: What the network takes, (C, H, W).
        batch_size: Images a batch.
        skip_damaged: Whether to leave out damaged images, see `usable`.

    Returns:
        Iterator over names and bytes (B, H, W, C); how many images there are; and, complete when
        it has ended, what was left out, and what was brought to another size.

    Raises:
        InputError: If the network takes no images, or there are none.
    """
    if len(shape) != 3 or shape[0] not in (1, 3):
        refuse(str(path), f"hold inputs of shape {tuple(shape)} as in training", "images")
    folder = path if path.is_dir() else path.parent

    everything = list(walk(path)) if path.is_dir() else [path]
    files = [file for file in everything if is_image(file)]
    if not files:
        refuse(str(path), f"hold images ({', '.join(IMAGE_SUFFIXES)})", "none")

    others = len(everything) - len(files)
    notes = [f"left out: {counted(others, 'other file')}"] * (others > 0)

    def batches() -> Iterator[tuple[list[str], Array]]:
        images = usable(files, partial(read_image, shape=shape), skip_damaged=skip_damaged)
        count = 0
        while chunk := list(islice(images, batch_size)):
            count += sum(scaled for _, (_, scaled) in chunk)
            names = [file.relative_to(folder).as_posix() for file, _ in chunk]
            yield names, np.stack([image for _, (image, _) in chunk])
        if count:
            how = f"{shape[2]} x {shape[1]} pixels as in training (scaled, and the middle cut out)"
            notes.append(f"brought to {how}: {counted(count, 'image')}")

    return batches(), len(files), notes


def load_folder(
    folder: Path,
    *,
    seed: int,
    image_size: int | None,
    skip_damaged: bool,
    memory_limit: float,
    given: Mapping[str, Path] | None = None,
) -> DataSplits:
    """Load a folder of images with a subfolder for each class, as `ImageFolder` reads it.

    Classes are the subfolders, sorted as text ("10" before "9"). Where there are subfolders
    `train` and `test`, `val`, `valid` or `validation`, which hold those of the classes, their
    examples stay in these parts; parts that are not given are taken from `train`.

    Args:
        folder: The folder.
        seed: Decides which example goes to which part.
        image_size: Pixels a side that images are brought to; None takes all as they are.
        skip_damaged: Whether to leave out damaged images, see `usable`.
        memory_limit: Bytes above which the images, as float32, stay on disk.
        given: Folders of whole parts elsewhere, by name: `validation`, `test`.

    Raises:
        InputError: If these are no such folders, or an image cannot be used.
    """
    check_integer("image_size", image_size, 4, 1024, optional=True)
    parts = {PART_FOLDERS[f.name]: f for f in _subfolders(folder) if f.name in PART_FOLDERS}
    if "train" not in parts or len(parts) == 1:
        parts = {"train": folder}
    parts |= given or {}
    class_of = {file: (part, name) for part in parts for file, name in _examples(parts[part])}
    look = partial(read_format, whole=skip_damaged)
    files, formats = zip(*usable(class_of, look, skip_damaged=skip_damaged), strict=True)
    lost = {*class_of.values()} - {class_of[file] for file in files}
    if lost:
        refuse(f"{folder}/.../{min(lost)[1]}", "hold images that can be read", "only damaged ones")
    (width, height), grey = _common_format(files, formats, image_size)

    classes = sorted({name for part, name in class_of.values() if part == "train"})
    check_classes(classes)
    y = known_indices([class_of[file][1] for file in files], classes)
    home = np.array([class_of[file][0] for file in files])
    (own,) = np.nonzero(home == "train")
    divided = split_indices(y[own], classes, seed=seed, given=parts)
    rows = [
        np.nonzero(home == name)[0] if name in parts and name != "train" else own[drawn]
        for name, drawn in zip(PART_NAMES, divided, strict=True)
    ]
    scaling = Scaling.of_bytes((1 if grey else 3, height, width), "channels_last")
    read = partial(read_scaled, scaling=scaling)
    made: list[DataPart | LazyPart] = [
        LazyPart([files[i] for i in part], torch.from_numpy(y[part]), read) for part in rows
    ]
    if 4 * len(files) * math.prod(scaling.input_shape) <= memory_limit:
        x = [image for _, image in usable(files, read)]
        made = [
            DataPart(torch.stack([x[i] for i in r]), part.y, part.sources)
            for r, part in zip(rows, made, strict=True)
        ]
    splits = assemble(folder.name, made, classes, scaling)
    others = sum(1 for file in walk(folder) if file not in class_of)
    note = f"{counted(len(files), 'image')} read, of subfolders too; left out: "
    note += counted(others, "other file")
    if len(files) < len(class_of):
        note += f" and {counted(len(class_of) - len(files), 'damaged one')}"
    return replace(splits, notes=(note,))


def _subfolders(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.is_dir() and _shown(f.name))


def _examples(folder: Path) -> list[tuple[Path, str]]:
    """Images with the names of their classes, which are the subfolders that they lie in."""
    examples = []
    for subfolder in _subfolders(folder):
        images = [(file, subfolder.name) for file in walk(subfolder) if is_image(file)]
        if not images:
            refuse(str(subfolder), "hold images, as the folder of a class", "none")
        examples += images
    if not examples:
        refuse(str(folder), "hold a subfolder of images for each class", "no subfolder")
    return examples


def _common_format(
    files: Sequence[Path], formats: Sequence[tuple[Size, bool]], image_size: int | None
) -> tuple[Size, bool]:
    """(width, height) that all images have or get, and whether all are grey."""
    grey = all(grey for _, grey in formats)
    if image_size is not None:
        return (image_size, image_size), grey
    first = formats[0][0]
    for file, (size, _) in zip(files, formats, strict=True):
        if size != first:
            got = f"{first[0]} x {first[1]} in {files[0]} and {size[0]} x {size[1]} in {file}"
            remedy = "--image-size (image_size= in Python) scales them to one"
            refuse("images", "be of one size", got, remedy)
    return first, grey
