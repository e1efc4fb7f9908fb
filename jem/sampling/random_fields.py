"""Smooth random fields: where chains begin that must see the simple pictures noise never makes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Generator, Tensor

from jem.sampling.base_distributions import BaseDistribution
from jem.sampling.langevin import per_row

NUGGET = 1e-3
"""Share of white noise in a field's variance: it keeps the covariance invertible."""

LEVELS = (-1.0, -0.5, 0.0, 0.5, 1.0)
"""Means of a field, in half-widths of the domain from its middle."""

CONTRASTS = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0)
"""Standard deviations of a field, in half-widths; above one the domain cuts it into shapes."""


class SmoothNoiseBase(BaseDistribution):
    r"""Gaussian random fields of random smoothness, level and contrast, cut off at the domain.

    .. math:: x = \mathrm{clip}(m + s\,h\,u), \qquad u \sim N(0, C_\ell)

    with h half the width of the domain, C the periodic covariance of a Gaussian kernel of length
    l, and (m, s, l) drawn uniformly from a grid. Long lengths with large contrast give blobs on an
    even ground, short ones give texture, small contrast nearly flat pictures: regions that chains
    which began at uniform noise never visit, and where the density is then left undecided.

    Args:
        low: Lower bound of the domain, a number.
        high: Upper bound, a number above it.
        shape: Shape (C, H, W) of one image; channels are independent fields.
    """

    means: Tensor  # (components,) m of each component of the mixture
    stds: Tensor  # (components,) s h
    lengths: Tensor  # (components,) row of `spectra`
    spectra: Tensor  # (kernel lengths, H, W) eigenvalues of C, mean 1 each

    def __init__(self, low: float, high: float, shape: Sequence[int]) -> None:
        super().__init__()
        self.low, self.high, self.shape = float(low), float(high), tuple(shape)
        half = (self.high - self.low) / 2
        means = (self.low + self.high) / 2 + half * torch.tensor(LEVELS)
        stds = half * torch.tensor(CONTRASTS)
        lengths = _lengths(min(self.shape[1:]))
        sizes = (len(means), len(stds), len(lengths))
        rows = torch.cartesian_prod(*(torch.arange(size) for size in sizes))
        self.register_buffer("means", means[rows[:, 0]])
        self.register_buffer("stds", stds[rows[:, 1]])
        self.register_buffer("lengths", rows[:, 2])
        spectra = torch.stack([_spectrum(length, *self.shape[1:]) for length in lengths])
        self.register_buffer("spectra", spectra)

    def sample(self, count: int, labels: Tensor | None = None, *, generator: Generator) -> Tensor:
        """Draw (count, C, H, W); see `BaseDistribution.sample`."""
        device = generator.device
        chosen = torch.randint(len(self.means), (count,), device=device, generator=generator)
        white = torch.empty(count, *self.shape, device=device).normal_(generator=generator)
        spectra = self.spectra.to(device)[self.lengths.to(device)[chosen]]
        field = per_row(self.stds.to(device)[chosen], white) * _filtered(white, spectra[:, None])
        level = per_row(self.means.to(device)[chosen], white)
        return (level + field).clamp(self.low, self.high)


def smooth_fields(count: int, height: int, width: int, *, generator: Generator) -> Tensor:
    """Gaussian random fields of variance one, of random lengths from a twentieth of the side.

    Args:
        count: How many.
        height: H, pixels.
        width: W, pixels.
        generator: Source of all randomness; the fields lie on its device.

    Returns:
        Shape (count, H, W).
    """
    device = generator.device
    spectra = _longer_spectra(height, width, device)
    chosen = torch.randint(len(spectra), (count,), device=device, generator=generator)
    white = torch.empty(count, height, width, device=device).normal_(generator=generator)
    return _filtered(white, spectra[chosen])


@cache  # made and copied to the device once: a copy in every draw makes the host wait
def _longer_spectra(height: int, width: int, device: torch.device) -> Tensor:
    """Spectra of the longer half of all lengths, shape (lengths, H, W)."""
    with torch.inference_mode(False):
        lengths = _lengths(min(height, width))[3:]
        return torch.stack([_spectrum(length, height, width) for length in lengths]).to(device)


def _filtered(white: Tensor, spectrum: Tensor) -> Tensor:
    """White noise (..., H, W) with the covariance whose eigenvalues are given."""
    field: Tensor = torch.fft.ifft2(torch.fft.fft2(white) * spectrum.sqrt()).real
    return field


def _lengths(side: int) -> list[float]:
    """Kernel lengths in pixels, from about one to a quarter of the side, evenly in the log."""
    shortest, longest = 0.7, max(side / 4, 1.4)
    return [shortest * (longest / shortest) ** (i / 5) for i in range(6)]


def _spectrum(length: float, height: int, width: int) -> Tensor:
    """Eigenvalues (H, W) of a periodic Gaussian covariance of marginal variance one."""
    rows = (2 * math.pi * torch.fft.fftfreq(height, dtype=torch.float64)).view(-1, 1)
    columns = (2 * math.pi * torch.fft.fftfreq(width, dtype=torch.float64)).view(1, -1)
    smooth = torch.exp(-(length**2) * (rows.square() + columns.square()) / 2)
    return ((1 - NUGGET) * smooth / smooth.mean() + NUGGET).float()
