"""Inputs that a model has never seen, made without a download: foreign images and corruptions.

Every foreign set is a function of (count, shape, seed) and gives images in [-1, 1].
"""

import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import sklearn.datasets
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from jem.errors import InputError
from jem.randomness import derive_seed, named_generator

LETTERS = "AEFHKMNPVWmvw"
"""Letters that nobody reads as a digit, even at 8 x 8 pixels."""

DIGIT_LOOKALIKES: dict[str, str] = {
    "DOQo": "0",
    "CUcnu": "0 with a gap",
    "IJLijl": "1, or 1 with a foot",
    "Zz": "2",
    "ad": "2 in one loop, or 9",
    "Y": "4 with an open top",
    "Ss": "5",
    "Gbhk": "6",
    "e": "6 or 9, turned",
    "Tfrt": "7 with a longer or a second bar",
    "BRXx": "8 in few pixels",
    "gqpy": "9, or 9 in the mirror",
}
"""All other letters, and the digit that each may be read as."""

FONTS = ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif")
STYLES = ("", "-Bold", "-Oblique", "-BoldOblique")  # serifs do not survive a slant at 8 x 8
LEAST_CONTRAST = 10.0  # standard deviation over a patch, of 255
OVERSAMPLING = 4  # the digits of scikit-learn, too, count the dots in blocks of 4 x 4


def uniform_noise(count: int, shape: tuple[int, ...], *, seed: int) -> Tensor:
    """Draw every value evenly from [-1, 1]; returns (count, *shape)."""
    _check(count, shape)
    generator = named_generator(seed, "uniform_noise")
    return torch.rand(count, *shape, generator=generator) * 2 - 1


def gaussian_noise(count: int, shape: tuple[int, ...], *, seed: int) -> Tensor:
    """Draw every value from N(0, 1/4), clipped to [-1, 1]; returns (count, *shape)."""
    _check(count, shape)
    generator = named_generator(seed, "gaussian_noise")
    return (0.5 * torch.randn(count, *shape, generator=generator)).clamp(-1, 1)


def constant_images(count: int, shape: tuple[int, ...], *, seed: int) -> Tensor:
    """Fill each image with one random shade or colour; returns (count, *shape)."""
    _check(count, shape)
    generator = named_generator(seed, "constant_images")
    shades = torch.rand(count, shape[0], 1, 1, generator=generator) * 2 - 1
    return shades.expand(count, *shape).contiguous()


def photo_patches(count: int, shape: tuple[int, ...], *, seed: int) -> Tensor:
    """Cut squares at random scales out of the two photographs that come with scikit-learn.

    Args:
        count: Number of patches.
        shape: (1, H, W) for grey, (3, H, W) for colour.
        seed: Decides places and scales.

    Returns:
        Shape (count, *shape).
    """
    _check(count, shape)
    if shape[0] not in (1, 3):
        raise InputError(f"Expected 1 or 3 channels for photographs, got {shape[0]}.")
    rng = np.random.default_rng(derive_seed(seed, "photo_patches"))
    photos = _photos("L" if shape[0] == 1 else "RGB")
    patches = np.stack([_cut_patch(photos, shape[1:], rng) for _ in range(count)])
    x = torch.from_numpy(patches).reshape(count, *shape[1:], shape[0])
    return (x.float() / 127.5 - 1).permute(0, 3, 1, 2).contiguous()


def letters(count: int, shape: tuple[int, ...], *, seed: int) -> Tensor:
    """Draw letters that resemble no digit, white on black and of the size of a digit.

    Each is one of `LETTERS` in one of the styles of the DejaVu fonts, slightly turned, slanted,
    stretched and moved.

    Args:
        count: Number of letters.
        shape: (C, H, W); all channels are the same.
        seed: Decides letters, styles and distortions.

    Returns:
        Shape (count, *shape).
    """
    _check(count, shape)
    channels, height, width = shape
    generator = named_generator(seed, "letters")
    glyphs = _glyphs(height * OVERSAMPLING, width * OVERSAMPLING)
    chosen = torch.randint(len(glyphs), (count,), generator=generator)
    images = torch.empty(count, 1, height, width)
    for part in torch.split(torch.arange(count), 256):  # bounds the memory of the large drawings
        drawn = _distort(glyphs[chosen[part]], generator)
        images[part] = F.avg_pool2d(drawn, OVERSAMPLING)
    return (images * 2 - 1).clamp(-1, 1).repeat(1, channels, 1, 1)


def rotations(x: Tensor, quarter_turns: int = 1) -> Tensor:
    """Turn images (B, C, H, W) by multiples of 90 degrees, counterclockwise."""
    _check_images(x)
    return torch.rot90(x, quarter_turns, dims=(2, 3))


def corrupt(x: Tensor, kind: str, severity: int, *, seed: int) -> Tensor:
    """Damage images, more so with higher severity.

    Args:
        x: Images in [-1, 1], shape (B, C, H, W).
        kind: One of `CORRUPTIONS`: noise, blur, contrast, occlusion.
        severity: 1 to 5.
        seed: Decides the noise and the place of the patch, the same at every severity.

    Returns:
        Images in [-1, 1], shape and dtype of `x`.
    """
    _check_images(x)
    if kind not in CORRUPTIONS:
        raise InputError(f"Expected a corruption among {', '.join(CORRUPTIONS)}, got '{kind}'.")
    if severity not in range(1, 6):
        raise InputError(f"Expected a severity from 1 to 5, got {severity}.")
    return CORRUPTIONS[kind](x, int(severity), named_generator(seed, "corrupt", kind))


def _noise(x: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
    return (x + 0.1 * severity * noise).clamp(-1, 1)


def _blur(x: Tensor, severity: int, _: torch.Generator) -> Tensor:
    """Blur by a Gaussian, over images that are mirrored at their edges."""
    side = min(x.shape[2:])
    sigma = 0.3 + 0.03 * severity * side  # below 0.3 pixels nothing would change
    radius = min(math.ceil(3 * sigma), side - 1)
    offsets = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    profile = torch.softmax(-0.5 * (offsets / sigma) ** 2, dim=0)
    kernel = torch.outer(profile, profile).expand(x.shape[1], 1, -1, -1)
    padded = F.pad(x, [radius] * 4, mode="reflect")
    return F.conv2d(padded, kernel, groups=x.shape[1]).clamp(-1, 1)


def _contrast(x: Tensor, severity: int, _: torch.Generator) -> Tensor:
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (1 - 0.17 * severity) * (x - mean)


def _occlusion(x: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Cover a grey rectangle; those of higher severity contain the lower ones."""
    inside = torch.ones(len(x), 1, *x.shape[2:], dtype=torch.bool)
    share = (1 + severity) / 8
    for axis in (2, 3):
        side = x.shape[axis]
        length = max(1, round(share * side))
        start = torch.rand(len(x), generator=generator) * (side - length + 1)
        offset = torch.arange(side) - start.floor()[:, None]
        covered = (offset >= 0) & (offset < length)
        inside &= covered[:, None, :, None] if axis == 2 else covered[:, None, None, :]
    return x.masked_fill(inside.to(x.device), 0.0)


CORRUPTIONS: dict[str, Callable[[Tensor, int, torch.Generator], Tensor]] = {
    "noise": _noise,
    "blur": _blur,
    "contrast": _contrast,
    "occlusion": _occlusion,
}

OOD_SETS: dict[str, Callable[..., Tensor]] = {
    "uniform_noise": uniform_noise,
    "gaussian_noise": gaussian_noise,
    "constant_images": constant_images,
    "photo_patches": photo_patches,
    "letters": letters,
}


def _check(count: int, shape: tuple[int, ...]) -> None:
    if count < 1 or len(shape) != 3 or min(shape) < 1:
        raise InputError(
            f"Expected a count of at least 1 and an image shape (C, H, W), got {count} and "
            f"{tuple(shape)}."
        )


def _check_images(x: Tensor) -> None:
    if x.ndim != 4:
        raise InputError(f"Expected images of shape (B, C, H, W), got {tuple(x.shape)}.")


@lru_cache(maxsize=2)
def _photos(mode: str) -> list[Image.Image]:
    photos = sklearn.datasets.load_sample_images().images
    return [Image.fromarray(photo).convert(mode) for photo in photos]


def _cut_patch(
    photos: list[Image.Image], size: tuple[int, ...], rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Cut one patch of (height, width) pixels, at a scale from 1 to the whole photograph."""
    height, width = size
    while True:
        photo = photos[rng.integers(len(photos))]
        largest = min(photo.width / width, photo.height / height)
        scale = min(largest, max(1.0, largest) ** rng.random())
        w, h = width * scale, height * scale
        left, top = rng.random() * (photo.width - w), rng.random() * (photo.height - h)
        box = (left, top, left + w, top + h)
        patch = np.asarray(photo.resize((width, height), Image.Resampling.BOX, box))
        # Sky and shadow look like `constant_images`; a single pixel can be nothing else.
        if patch.std() >= LEAST_CONTRAST or height * width == 1:
            return patch


@lru_cache(maxsize=4)
def _glyphs(height: int, width: int) -> Tensor:
    """Draw every letter in every style, filling the frame as digits do; (G, 1, height, width)."""
    folder = Path(mpl.get_data_path()) / "fonts" / "ttf"
    fonts = [folder / f"{font}{style}.ttf" for font in FONTS for style in STYLES]
    drawn = [
        _draw_glyph(letter, str(font), height, width)
        for font in fonts
        if font.exists()
        for letter in LETTERS
    ]
    return torch.stack(drawn).unsqueeze(1)


def _draw_glyph(letter: str, font_file: str, height: int, width: int) -> Tensor:
    """Draw one letter in the middle of the frame, in [0, 1], shape (height, width)."""
    small = height < 16 * OVERSAMPLING
    # Handwriting of 8 x 8 pixels fills its frame with strokes as heavy as bold type; in 28 x 28
    # pixels it has strokes of normal weight and a margin of 4.
    margin = 0 if small else min(height, width) // 7
    stroke = height // 16 if small and "Bold" not in font_file else 0
    font = ImageFont.truetype(font_file, 2 * height)
    canvas = Image.new("L", (5 * height, 5 * height))
    place = (height, height)
    ImageDraw.Draw(canvas).text(place, letter, fill=255, font=font, stroke_width=stroke)
    glyph = canvas.crop(canvas.getbbox())
    scale = min((width - 2 * margin) / glyph.width, (height - 2 * margin) / glyph.height)
    size = (max(1, round(glyph.width * scale)), max(1, round(glyph.height * scale)))
    frame = Image.new("L", (width, height))
    corner = ((width - size[0]) // 2, (height - size[1]) // 2)
    frame.paste(glyph.resize(size, Image.Resampling.BOX), corner)
    return torch.from_numpy(np.asarray(frame, dtype=np.float32)) / 255


def _distort(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, slant, stretch and move each image a little; (B, 1, H, W)."""

    def draw(spread: float) -> Tensor:
        return (torch.rand(len(images), generator=generator) * 2 - 1) * spread

    angle, slant = draw(0.12), draw(0.15)
    stretch_x, stretch_y = 1.05 + draw(0.1), 1.05 + draw(0.05)
    cos, sin = angle.cos(), angle.sin()
    rows = [
        torch.stack([stretch_x * cos, stretch_x * (slant - sin), draw(0.06)], 1),
        torch.stack([stretch_y * sin, stretch_y * cos, draw(0.06)], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
