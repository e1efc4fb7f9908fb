"""Smooth random fields: where chains begin that must see the simple pictures noise never makes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jem.errors import InputError
from jem.sampling.langevin import clip_to_bounds

NUGGET = 1e-3
"""Share of white noise in a field's variance: it keeps the covariance invertible."""

LEVELS = (-1.0, -0.5, 0.0, 0.5, 1.0)
"""Means of a field, in half-widths of the domain from its middle."""

CONTRASTS = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0)
"""Standard deviations of a field, in half-widths; above one the domain cuts it into shapes."""


class SmoothNoiseBase:
    r"""Gaussian random fields of random smoothness, level and contrast, cut off at the domain.

    .. math:: x = \mathrm{clip}(m + s\,h\,u), \qquad u \sim N(0, C_\ell)

    with h half the width of the domain, C the periodic covariance of a Gaussian kernel of length
    l, and (m, s, l) drawn uniformly from a grid. Long lengths with large contrast give blobs on an
    even ground, short ones give texture, small contrast nearly flat pictures: regions that chains
    started at uniform noise never visit, and where the density is then left undecided.

    Samples are clipped to the domain; `log_prob` is that of the unclipped field.

    Args:
        low: Lower bound of the domain, a number.
        high: Upper bound, a number above it.
        shape: Shape (C, H, W) of one image; channels are independent fields.
    """

    kind = "smooth"

    def __init__(self, low: Tensor | float, high: Tensor | float, shape: Sequence[int]) -> None:
        self.low, self.high, self.shape = float(low), float(high), tuple(shape)
        if len(self.shape) != 3:
            raise InputError(f"smooth noise is for images (C, H, W), but got {self.shape}")
        if not self.low < self.high:
            raise InputError("a start needs `low` below `high`")
        self.lengths = _lengths(min(self.shape[1:]))
        spectra = [_spectrum(length, *self.shape[1:]) for length in self.lengths]
        self.spectra = torch.stack(spectra)  # (lengths, H, W), mean 1 each

    def state_dict(self) -> dict[str, Any]:
        """The bounds, the shape and the kind."""
        return {"kind": self.kind, "low": self.low, "high": self.high, "shape": self.shape}

    def _grid(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Means, standard deviations and index of the length of all mixture components."""
        half = (self.high - self.low) / 2
        means = (self.low + self.high) / 2 + half * torch.tensor(LEVELS)
        stds = half * torch.tensor(CONTRASTS)
        sizes = (len(means), len(stds), len(self.lengths))
        rows = torch.cartesian_prod(*(torch.arange(size) for size in sizes)).to(device)
        return means.to(device)[rows[:, 0]], stds.to(device)[rows[:, 1]], rows[:, 2]

    def sample(
        self, count: int, labels: Tensor | None = None, *, generator: torch.Generator
    ) -> Tensor:
        """Draw (count, C, H, W); labels are not looked at."""
        return clip_to_bounds(self._fields(count, generator), (self.low, self.high))

    def _fields(self, count: int, generator: torch.Generator) -> Tensor:
        """Fields that the domain has not cut yet."""
        device = generator.device
        mean, std, length = self._grid(device)
        chosen = torch.randint(len(mean), (count,), device=device, generator=generator)
        white = torch.empty(count, *self.shape, device=device).normal_(generator=generator)
        field = _filtered(white, self.spectra.to(device)[length[chosen]][:, None])
        return mean[chosen].view(-1, 1, 1, 1) + std[chosen].view(-1, 1, 1, 1) * field

    def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Log-density of the unclipped fields, shape (B,), nats: the mixture over the grid.

        A periodic covariance is diagonal in the Fourier basis, so each component costs one sum
        over frequencies.
        """
        mean, std, length = self._grid(x.device)
        dim = math.prod(self.shape)
        coefficients = torch.fft.fft2(x.double(), norm="ortho")
        power = coefficients.abs().square()
        # The mean enters the zero frequency alone.
        offset = mean.double() * math.sqrt(self.shape[1] * self.shape[2])
        spectra = self.spectra.to(x.device, torch.float64)
        energy = torch.einsum("bchw,lhw->bl", power, 1 / spectra)
        zero = coefficients[..., 0, 0].real  # (B, C)
        shift = (offset.square() - 2 * zero[:, :, None] * offset).sum(dim=1)  # (B, components)
        quadratic = energy[:, length] + shift / spectra[length, 0, 0]
        log_det = self.shape[0] * spectra.log().sum(dim=(1, 2))[length]
        scale = std.double()
        given = -0.5 * (
            quadratic / scale.square() + log_det + dim * (2 * scale.log() + math.log(2 * math.pi))
        )
        log_prob: Tensor = torch.logsumexp(given, dim=1) - math.log(len(mean))
        return log_prob.to(x.dtype)


def smooth_fields(count: int, height: int, width: int, *, generator: torch.Generator) -> Tensor:
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
    spectra = [_spectrum(length, height, width) for length in _lengths(min(height, width))[3:]]
    chosen = torch.randint(len(spectra), (count,), device=device, generator=generator)
    white = torch.empty(count, height, width, device=device).normal_(generator=generator)
    return _filtered(white, torch.stack(spectra).to(device)[chosen])


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
