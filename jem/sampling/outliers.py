"""Made-up outliers: inputs that no data set holds, for training to push away from the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import pairwise

import torch
from torch import Generator, Tensor, nn

from jem.sampling.base_distributions import BaseDistribution
from jem.sampling.langevin import Bounds, clip_to_bounds, per_row

Kind = Callable[[Tensor, int, Generator], Tensor]
"""Makes outliers of a batch of data (B, *shape), so many, with a generator."""

PATCHES = 4
"""Patches along each side of an image whose patches are shuffled; more where a side leaves a rest
that is as large as a patch."""

NUGGET = 1e-3
"""Share of white noise in the variance of a random field: it keeps the covariance invertible."""

LEVELS = (-1.0, -0.5, 0.0, 0.5, 1.0)
"""Means of a random field, in half-widths of the domain from its middle."""

CONTRASTS = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0)
"""Standard deviations of a random field, in half-widths; above one the domain cuts it into
shapes."""


class Outliers(nn.Module):
    """Draws made-up outliers, as many of each kind as fit.

    Chains see only where the model already holds inputs likely; they never reach simple pictures
    and broken ones. Kinds: noise of given distributions; for images smooth random fields, images
    with their patches shuffled, halves of two images put together, and blobs and strokes on a flat
    ground; for tables rows whose every column is another row's.

    Args:
        domain: Lower and upper bound, numbers or tensors that broadcast to one input.
        bases: The distributions of noise.
        frequencies: Class probabilities, shape (K,), of noise that knows classes.
        x: Training inputs, shape (N, *shape): only rows of tables are looked at.
        columns: As `column_groups` takes them.
    """

    low: Tensor
    high: Tensor
    frequencies: Tensor

    def __init__(
        self,
        domain: tuple[Tensor, Tensor],
        bases: Sequence[BaseDistribution],
        frequencies: Tensor,
        x: Tensor,
        columns: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        for name, value in zip(
            ("low", "high", "frequencies"), (*domain, frequencies), strict=True
        ):
            self.register_buffer(name, value)
        noise, broken = list(bases), list[Kind]()
        if x.ndim == 4:
            low, high = (float(bound) for bound in (self.low.min(), self.high.max()))
            noise.append(SmoothNoiseBase(low, high, x.shape[1:]))
            broken = [shuffle_patches, join_halves, self._shapes]
        elif x[0].numel() > 1:  # a single column has no other to fit to: it would be data
            broken = [partial(shuffle_columns, groups=column_groups(x.flatten(1), columns))]
        self.bases = nn.ModuleList(noise)  # so that `to` moves them
        self.kinds: list[Kind] = [partial(self._noise, base) for base in noise] + broken

    def draw(self, count: int, x: Tensor, *, generator: Generator) -> Tensor:
        """Draw outliers.

        Args:
            count: How many; each kind gives as many, the first ones one more where need be.
            x: Data of this iteration, shape (B, *shape), of which the broken ones are made.
            generator: Source of all randomness, on the device of `x`.

        Returns:
            Shape (count, *shape).
        """
        shares = [len(range(kind, count, len(self.kinds))) for kind in range(len(self.kinds))]
        parts = [
            make(x, share, generator)
            for make, share in zip(self.kinds, shares, strict=True)
            if share
        ]
        return clip_to_bounds(torch.cat(parts).to(x), (self.low, self.high))

    def _shapes(self, x: Tensor, count: int, generator: Generator) -> Tensor:
        return draw_shapes(x, count, generator, bounds=(self.low, self.high))

    def _noise(
        self, base: BaseDistribution, x: Tensor, count: int, generator: Generator
    ) -> Tensor:
        weights = self.frequencies.to(generator.device)
        labels = torch.multinomial(weights, count, replacement=True, generator=generator)
        return base.sample(count, labels, generator=generator)


def _some(x: Tensor, count: int, generator: Generator) -> Tensor:
    """Positions of rows of a batch at random, with replacement: shape (count,)."""
    return torch.randint(len(x), (count,), device=x.device, generator=generator)


def shuffle_patches(x: Tensor, count: int, generator: Generator) -> Tensor:
    """Put the patches of images in another order; a margin that no patch covers stays.

    Args:
        x: Images to choose from, shape (B, C, H, W).
        count: How many to make.
        generator: Source of all choices, on the device of `x`.
    """
    x = x[_some(x, count, generator)]
    _, channels, height, width = x.shape
    tall, wide = max(1, height // PATCHES), max(1, width // PATCHES)
    rows, columns = height // tall, width // wide
    inner = x[..., : rows * tall, : columns * wide]
    patches = inner.reshape(count, channels, rows, tall, columns, wide)
    patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # (B, patches, C, tall, wide)
    keys = torch.rand(count, rows * columns, device=x.device, generator=generator)
    order = keys.argsort(dim=1)
    patches = patches[torch.arange(count, device=x.device)[:, None], order]
    patches = patches.unflatten(1, (rows, columns)).permute(0, 3, 1, 4, 2, 5)
    shuffled = x.clone()
    shuffled[..., : rows * tall, : columns * wide] = patches.reshape(inner.shape)
    return shuffled


def join_halves(x: Tensor, count: int, generator: Generator) -> Tensor:
    """Give images the right or the lower half of another one; of itself turned over, if alone.

    Args:
        x: Images to choose from, shape (B, C, H, W).
        count: How many to make.
        generator: Source of all choices, on the device of `x`.
    """
    number, _, height, width = x.shape
    rows = _some(x, count, generator)
    away = torch.randint(max(2, number) - 1, (count,), device=x.device, generator=generator) + 1
    other = x[(rows + away) % number] if number > 1 else x[rows].flip(2, 3)
    x = x[rows]
    right = torch.zeros(height, width, dtype=torch.bool, device=x.device)
    right[:, width // 2 :] = True
    lower = torch.zeros_like(right)
    lower[height // 2 :] = True
    side = torch.rand(count, 1, 1, 1, device=x.device, generator=generator) < 0.5
    return torch.where(torch.where(side, right, lower), other, x)


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

    def __init__(self, low: float, high: float, shape: Sequence[int]) -> None:
        super().__init__()
        self.low, self.high, self.shape = low, high, tuple(shape)

    def sample(self, count: int, labels: Tensor | None = None, *, generator: Generator) -> Tensor:
        """Draw (count, C, H, W); see `BaseDistribution.sample`."""
        levels, contrasts, spectra = _grid(*self.shape[1:], generator.device)
        points = len(levels) * len(contrasts) * len(spectra)
        chosen = torch.randint(points, (count,), device=generator.device, generator=generator)
        white = torch.empty(count, *self.shape, device=generator.device)
        field = _filtered(
            white.normal_(generator=generator), spectra[chosen % len(spectra)][:, None]
        )
        chosen = chosen // len(spectra)
        half = (self.high - self.low) / 2
        level = (self.low + self.high) / 2 + half * levels[chosen // len(contrasts)]
        field = per_row(half * contrasts[chosen % len(contrasts)], white) * field
        return (per_row(level, white) + field).clamp(self.low, self.high)


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
    spectra = _grid(height, width, device)[2][3:]  # the longer half
    chosen = torch.randint(len(spectra), (count,), device=device, generator=generator)
    white = torch.empty(count, height, width, device=device).normal_(generator=generator)
    return _filtered(white, spectra[chosen])


def _filtered(white: Tensor, spectrum: Tensor) -> Tensor:
    """White noise (..., H, W) with the covariance whose eigenvalues are given."""
    field: Tensor = torch.fft.ifft2(torch.fft.fft2(white) * spectrum.sqrt()).real
    return field


@cache  # made and copied to the device once: a copy in every draw makes the host wait
def _grid(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """`LEVELS`, `CONTRASTS`, and the covariances of six kernel lengths, on a device.

    The lengths go from about a pixel to a quarter of the side, evenly in the logarithm. Of a
    periodic covariance of marginal variance one there are the eigenvalues, shape (6, H, W).
    """
    with torch.inference_mode(False):
        shortest, longest = 0.7, max(min(height, width) / 4, 1.4)
        rows = (2 * math.pi * torch.fft.fftfreq(height, dtype=torch.float64)).view(-1, 1)
        columns = (2 * math.pi * torch.fft.fftfreq(width, dtype=torch.float64)).view(1, -1)
        spectra = []
        for i in range(6):
            length = shortest * (longest / shortest) ** (i / 5)
            smooth = torch.exp(-(length**2) * (rows.square() + columns.square()) / 2)
            spectra.append(((1 - NUGGET) * smooth / smooth.mean() + NUGGET).float())
        grid = torch.tensor(LEVELS), torch.tensor(CONTRASTS), torch.stack(spectra)
        levels, contrasts, eigenvalues = (part.to(device) for part in grid)
    return levels, contrasts, eigenvalues


def draw_shapes(x: Tensor, count: int, generator: Generator, *, bounds: Bounds) -> Tensor:
    """Draw blobs or strokes of one tone on an even ground: that of a corner of an image.

    Blobs are where a smooth random field is high, strokes where it is near a level. Every channel
    has an ink of its own, mostly far from the ground; half of the pictures keep a margin of a
    seventh of the side.

    Args:
        x: Images to choose from, shape (B, C, H, W); only their upper left pixel is looked at.
        count: How many to make.
        generator: Source of all choices, on the device of `x`.
        bounds: Of the domain, which inks lie in.
    """
    x = x[_some(x, count, generator)]
    _, channels, height, width = x.shape

    def uniform(low: float, high: float, *size: int) -> Tensor:
        unit = torch.rand(count, *size, 1, 1, device=x.device, generator=generator)
        return low + (high - low) * unit

    field = smooth_fields(count, height, width, generator=generator)
    above = field - uniform(-1, 1)
    near = uniform(0.1, 0.5) - above.abs()
    inside = torch.where(uniform(0, 1) < 0.7, near, above) / uniform(0.02, 0.15)
    margin = torch.ones(height, width, dtype=torch.bool, device=x.device)
    margin[height // 7 : height - height // 7, width // 7 : width - width // 7] = False
    cut_off = margin & (uniform(0, 1) < 0.5)
    cover = torch.sigmoid(inside).masked_fill(cut_off, 0.0)[:, None]

    low, high = (torch.as_tensor(bound).to(x) for bound in bounds)
    ground = x[:, :, :1, :1]
    farther = torch.where(ground - low > high - ground, low, high)
    return ground + (farther - ground) * uniform(0, 1, channels).sqrt() * cover


def shuffle_columns(
    x: Tensor, count: int, generator: Generator, groups: Tensor | None = None
) -> Tensor:
    """Take every column of a row from any row: what columns have in common is gone.

    Args:
        x: Rows to choose from, shape (B, *shape), of D components.
        count: How many to make.
        generator: Source of all choices, on the device of `x`.
        groups: Which column each component is part of, shape (D,), of `column_groups`; None makes
            each its own.
    """
    flat = x.flatten(1)
    groups = torch.arange(flat.shape[1]) if groups is None else groups.cpu()
    size = (count, int(groups[-1]) + 1)
    rows = torch.randint(len(x), size, device=x.device, generator=generator)
    return flat.gather(0, rows[:, groups.to(x.device)]).view(count, *x.shape[1:])


def column_groups(x: Tensor, columns: Sequence[str] | None = None) -> Tensor:
    """Find which column of the user's table each component is part of.

    Neighbours that take two values each, of which exactly one is the higher in every row, are
    the parts of one column of categories (one-hot); so are neighbours of one name. Every other
    component is its own column.

    Args:
        x: Training rows, shape (N, D).
        columns: The column that each component comes from, where that is known.

    Returns:
        Numbers of columns, ascending from 0, shape (D,).
    """
    low, high = x.aminmax(dim=0)
    binary = (((x == low) | (x == high)).all(dim=0) & (low < high)).tolist()
    groups: list[int] = []
    while (start := len(groups)) < len(binary):
        size, on = 1, torch.zeros(len(x), dtype=torch.long, device=x.device)
        for part in range(start, len(binary)):
            on += x[:, part] == high[part]
            if not binary[part] or int(on.max()) > 1:
                break
            if int(on.min()) == 1:
                size = part + 1 - start
                break
        groups += [groups[-1] + 1 if groups else 0] * size
    found = torch.tensor(groups)
    if columns is None:
        return found
    same = torch.tensor([own == last for last, own in pairwise(columns)], dtype=torch.bool)
    starts = (found.diff() > 0) & ~same
    return torch.cat([found[:1], starts.cumsum(0)])
