"""Images that training has not seen the like of, made without a download: OOD sets, corruptions.

Every entry of `OOD_SETS` is a function of (count, shape, seed) that gives images in [-1, 1].
`CORRUPTIONS` damage images in five severities.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
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

from jem.checks import check_choice, check_integer, refuse
from jem.data.splits import DataPart, DataSplits, LazyPart
from jem.randomness import derive_seed, named_generator

LETTERS = "AEFHKMNPVWmvw"
"""Letters that nobody reads as a digit, even at 8 x 8 pixels.

The others may be read as 0 (DOQo, CUcnu), 1 (IJLijl), 2 (Zz, ad), 4 (Y), 5 (Ss), 6 (Gbhk, e),
7 (Tfrt), 8 (BRXx) or 9 (gqpy, and a or e turned).
"""

FONTS = ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif")
STYLES = ("", "-Bold", "-Oblique", "-BoldOblique")  # serifs do not survive a slant at 8 x 8
LEAST_CONTRAST = 10.0  # standard deviation over a patch, of 255
OVERSAMPLING = 4  # the digits of scikit-learn, too, count the dots in blocks of 4 x 4


def make_ood_set(name: str, splits: DataSplits, count: int, *, seed: int) -> Tensor:
    """Make images that a data set does not hold: an entry of `OOD_SETS`, or its own, turned.

    Args:
        name: A key of `OOD_SETS`, or "rotations": images of the test part, each turned by a
            quarter, a half or three quarters. Some still show what they showed (the digits 0 and
            8, a ball): no detector should flag those.
        splits: The data set that the images are out of the distribution of.
        count: How many; of rotations at most as many as there are test images.
        seed: Decides which.

    Returns:
        Images in [-1, 1], shape (count, *input_shape).

    Raises:
        InputError: If the name is unknown, or the data are not such images.
    """
    shape = splits.input_shape
    check_choice("name", name, (*OOD_SETS, ROTATIONS))
    check_integer("count", count, 1)
    if len(shape) != 3:
        refuse("splits", "hold images", f"inputs of shape {shape}")
    if name in OOD_SETS:
        return OOD_SETS[name](count, shape, seed=seed)
    if shape[1] != shape[2]:
        refuse("splits", "hold square images to turn", f"images of shape {shape}")
    generator = named_generator(seed, ROTATIONS)
    order = torch.randperm(len(splits.test), generator=generator)[:count]
    x, _ = splits.test[order]
    turns = torch.randint(1, 4, (len(x),), generator=generator)
    turned = x.clone()
    for quarter_turns in range(1, 4):
        turned[turns == quarter_turns] = rotations(x[turns == quarter_turns], quarter_turns)
    return turned


def hold_out(splits: DataSplits, names: Sequence[str]) -> tuple[DataSplits, Tensor]:
    """Take classes out of a data set, for a model that shall not know them: a near OOD set.

    Args:
        splits: The data.
        names: Names of the classes to take out; at least two others must stay.

    Returns:
        The data without them, scaled as before, and the test inputs of the classes taken out.

    Raises:
        InputError: If a name is unknown, or fewer than two classes stay.

    Example:
        >>> from jem.data import load
        >>> known, unseen = hold_out(load("digits"), ["8", "9"])
        >>> len(known.classes), unseen.shape[1:]
        (8, torch.Size([1, 8, 8]))
    """
    if not names or not set(names) <= set(splits.classes):
        refuse("names", f"be classes among {', '.join(splits.classes)}", list(names))
    kept = [k for k, name in enumerate(splits.classes) if name not in names]
    if len(kept) < 2:
        refuse("names", "leave at least two classes", f"{len(kept)} that stays")
    index = torch.full((len(splits.classes),), -1)
    index[kept] = torch.arange(len(kept))

    def known(part: DataPart | LazyPart) -> DataPart | LazyPart:
        rows = (index[part.y] >= 0).nonzero()[:, 0]
        y = index[part.y[rows]]
        if isinstance(part, LazyPart):
            return LazyPart([part.sources[int(row)] for row in rows], y, part.read)
        return DataPart(part.x[rows], y)

    parts = {name: known(part) for name, part in splits.parts.items()}
    classes = tuple(splits.classes[k] for k in kept)
    unseen = (index[splits.test.y] < 0).nonzero()[:, 0]
    return replace(splits, **parts, classes=classes), splits.test[unseen][0]  # type: ignore[arg-type]


def uniform_noise(count: int, shape: tuple[int, ...], *, seed: int) -> Tensor:
    """Draw every value evenly from [-1, 1]; returns (count, *shape)."""
    generator = named_generator(seed, "uniform_noise")
    return torch.rand(count, *shape, generator=generator) * 2 - 1


def gaussian_noise(count: int, shape: tuple[int, ...], *, seed: int) -> Tensor:
    """Draw every value from N(0, 1/4), clipped to [-1, 1]; returns (count, *shape)."""
    generator = named_generator(seed, "gaussian_noise")
    return (0.5 * torch.randn(count, *shape, generator=generator)).clamp(-1, 1)


def constant_images(count: int, shape: tuple[int, ...], *, seed: int) -> Tensor:
    """Fill each image with one random shade or colour; returns (count, *shape)."""
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
    if shape[0] not in (1, 3):
        refuse("shape", "have 1 or 3 channels for photographs", shape)
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
    channels, height, width = shape
    generator = named_generator(seed, "letters")
    glyphs = _glyphs(height * OVERSAMPLING, width * OVERSAMPLING)
    chosen = torch.randint(len(glyphs), (count,), generator=generator)
    images = torch.empty(count, 1, height, width)
    for part in torch.split(torch.arange(count), 256):  # bounds the memory of the large drawings
        drawn = _distort(glyphs[chosen[part]], generator)
        images[part] = F.avg_pool2d(drawn, OVERSAMPLING)
    return (images * 2 - 1).clamp(-1, 1).repeat(1, channels, 1, 1)


OOD_SETS: dict[str, Callable[..., Tensor]] = {
    "uniform_noise": uniform_noise,
    "gaussian_noise": gaussian_noise,
    "constant_images": constant_images,
    "photo_patches": photo_patches,
    "letters": letters,
}

ROTATIONS = "rotations"


def rotations(x: Tensor, quarter_turns: int = 1) -> Tensor:
    """Turn images (B, C, H, W) by multiples of 90 degrees, counterclockwise."""
    return torch.rot90(x, quarter_turns, dims=(2, 3))


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


# -- corruptions ---------------------------------------------------------------------------------


def corrupt(x: Tensor, kind: str, severity: int, *, seed: int) -> Tensor:
    """Corrupt images, more so with higher severity.

    Args:
        x: Images in [-1, 1], shape (B, C, H, W).
        kind: One of `CORRUPTIONS`: noise, blur, contrast, occlusion.
        severity: 1 to 5.
        seed: Decides the noise and the place of the patch, the same at every severity.

    Returns:
        Images in [-1, 1], shape and dtype of `x`.

    Raises:
        InputError: If these are no images, or kind or severity are unknown.
    """
    check_choice("kind", kind, CORRUPTIONS)
    check_integer("severity", severity, 1, 5)
    if x.ndim != 4:
        refuse("x", "be images of shape (B, C, H, W)", tuple(x.shape))
    return CORRUPTIONS[kind](x, severity, named_generator(seed, "corrupt", kind))


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
