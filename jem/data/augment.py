"""Random changes to training inputs that keep their class."""

import torch
from torch import Tensor

from jem.errors import InputError


def augment(
    x: Tensor, *, shift: int, flip: bool, noise_std: float, generator: torch.Generator
) -> Tensor:
    """Shift, mirror and blur with noise, each example on its own.

    Args:
        x: Inputs, shape (B, C, H, W) where `shift` or `flip` are used, else any.
        shift: Largest shift in pixels, up or down and left or right; edge pixels are repeated.
        flip: Whether to mirror each image left to right with probability 1/2.
        noise_std: Standard deviation of Gaussian noise, in the units of `x`. The result is not
            clipped.
        generator: Source of the draws. On a device other than that of `x` it gives the same
            changes, more slowly.

    Returns:
        New inputs, shape and dtype of `x`; `x` itself when there is nothing to do.

    Raises:
        InputError: If an amount is negative, or inputs to shift or flip are no images.
    """
    if shift < 0 or noise_std < 0:
        raise InputError(
            f"Expected shift and noise_std of at least 0, got {shift} and {noise_std}."
        )
    if (shift > 0 or flip) and x.ndim != 4:
        raise InputError(
            f"Expected images of shape (B, C, H, W) to shift or flip, got {tuple(x.shape)}: "
            f"set shift to 0 and flip to false for other inputs."
        )
    if shift > 0 or flip:
        x = _shift_and_flip(x, shift, flip, generator)
    if noise_std > 0:
        noise = torch.randn(x.shape, generator=generator, device=generator.device, dtype=x.dtype)
        x = x + noise_std * noise.to(x.device)
    return x


def _shift_and_flip(x: Tensor, shift: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Pick for every pixel of the result the row and column that it comes from."""
    batch, channels, height, width = x.shape

    def draw(low: int, high: int) -> Tensor:
        values = torch.randint(
            low, high + 1, (batch, 1), generator=generator, device=generator.device
        )
        return values.to(x.device)

    rows = (torch.arange(height, device=x.device) + draw(-shift, shift)).clamp(0, height - 1)
    columns = (torch.arange(width, device=x.device) + draw(-shift, shift)).clamp(0, width - 1)
    if flip:
        columns = torch.where(draw(0, 1) == 1, columns.flip(1), columns)
    x = x.gather(2, rows[:, None, :, None].expand(batch, channels, height, width))
    return x.gather(3, columns[:, None, None, :].expand(batch, channels, height, width))
