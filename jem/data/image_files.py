"""Image files, one by one: read, checked, brought to a size."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from jem.data.arrays import Array
from jem.data.scaling import Scaling
from jem.errors import InputError

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
LYING = (5, 6, 7, 8)
"""EXIF orientations whose width and height change places."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings each orientation upright; Pillow's own `exif_transpose` writes the block anew, and
fails on odd ones."""

_DAMAGED = (UnidentifiedImageError, OSError, SyntaxError, ValueError)
"""What Pillow raises for files that it cannot read."""

MOST_NAMED = 5  # unusable images named in one message
SKIP_HINT = "Leave damaged images out with --skip-damaged (skip_damaged=True in Python)."


class DamagedImageError(InputError):
    """An image cannot be read."""


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


def read_format(file: Path) -> tuple[tuple[int, int], str]:
    """Size (width, height) and mode of an image, whose pixels are not read."""
    with open_image(file) as image:
        refuse_deep(file, image)
        return upright_size(image), image.mode


def check_image(file: Path) -> None:
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
            check_image(file)
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
    except (*_DAMAGED, Image.DecompressionBombError) as error:
        raise DamagedImageError(
            f"Could not read the image {file}: it is damaged ({error})."
        ) from error


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of an image that is open, as `pixels` gives it."""
    width, height = image.size
    return (height, width) if _orientation(image) in LYING else (width, height)


def _orientation(image: Image.Image) -> int:
    """How a camera was held, 1 to 8 as EXIF has it; 1 is upright, and where it cannot be read."""
    if "exif" not in image.info:
        return 1
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # whatever is in the block, the picture itself can be read
        return 1


def fit_image(file: Path, image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Bring an image that is open to a size: scaled to cover it, and the middle cut out.

    Args:
        file: Where it lies, for messages.
        image: The image, in any mode of 8 bits a channel.
        size: (width, height).
    """
    whole = Image.fromarray(pixels(file, image, "L" if image.mode in GREY_MODES else "RGB"))
    return ImageOps.fit(whole, size, Image.Resampling.BICUBIC)


def pixels(
    file: Path, image: Image.Image, mode: Literal["L", "RGB"], *, ground: str = "white"
) -> Array:
    """Read an image that is open to bytes of shape (H, W) or (H, W, 3).

    Args:
        file: Where it lies, for messages.
        image: The image, turned upright if a camera says how it was held.
        mode: Pillow's name for grey (L) or colour (RGB).
        ground: Colour behind transparent parts.
    """
    try:
        turn = _TURNS.get(_orientation(image))
        if turn is not None:
            image = image.transpose(turn)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, ground), image)
        return np.asarray(image.convert(mode))
    except _DAMAGED as error:
        raise DamagedImageError(
            f"Could not read the image {file}: it is damaged ({error})."
        ) from error
