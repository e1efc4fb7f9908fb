"""Corruptions of images in five severities, to test how a classifier and its doubt degrade."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from jem.checks import check_choice, check_integer, refuse
from jem.randomness import named_generator


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
