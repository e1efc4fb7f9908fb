"""The density's half of the objective: data against chains, as a function of their energies alone.

Because a chain enters only through its energy, the backward pass of these losses also holds the
gradient that moves the chain: see `jem.training.steps.fused_step`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from jem.errors import InputError

Mean = Callable[[Tensor], Tensor]


def generative_loss(
    energy_data: Tensor, energy_negative: Tensor, *, mean: Mean = torch.mean
) -> Tensor:
    r"""Contrast data with chains: the surrogate whose gradient estimates that of -log p(x).

    .. math:: L = \tfrac{1}{N}\sum_i E(x_i) - \tfrac{1}{M}\sum_j E(\tilde x_j)

    The *value* is no likelihood: it may be negative, has no floor, and must not be reported as
    NLL. It is unbiased only if the negatives follow the model; short chains make it an
    approximation.

    Args:
        energy_data: E of training points, shape (N,), nats.
        energy_negative: E of chain ends, shape (M,); M may differ from N. Detach the ends from the
            chain's graph.
        mean: How energies are averaged; for a run in several processes, over all of them.

    Returns:
        Scalar; descending it lowers the energy of data and raises that of negatives.

    Raises:
        InputError: If either input is empty or not one-dimensional (a (B, 1) energy is refused).

    References:
        Hinton (2002), contrastive divergence. Tieleman (2008), persistent chains.

    Example:
        >>> generative_loss(torch.tensor([1.0, 3.0]), torch.tensor([0.5]))
        tensor(1.5000)
    """
    for name, energy in (("energy_data", energy_data), ("energy_negative", energy_negative)):
        if energy.ndim != 1 or not len(energy):
            raise InputError(
                f"`{name}` must have shape (B,) with B >= 1, but got {tuple(energy.shape)}"
            )
    return mean(energy_data) - mean(energy_negative)


def energy_gap(energy_data: Tensor, energy_negative: Tensor, *, mean: Mean = torch.mean) -> Tensor:
    """Mean energy of chains minus that of data, a scalar in nats, without gradient.

    Near zero when chains follow the model; large and positive when they are left behind.

    Args:
        energy_data: E of training points, shape (N,).
        energy_negative: E of chains, shape (M,).
        mean: How energies are averaged.
    """
    return mean(energy_negative.detach()) - mean(energy_data.detach())


def outlier_loss(
    energy_data: Tensor, energy_outlier: Tensor, *, margin: float, mean: Mean = torch.mean
) -> Tensor:
    r"""Contrast data with made-up outliers until these lie a margin above them.

    .. math:: L = \overline{\mathrm{softplus}(m + \bar E - E(x^o))}

    Unlike the contrast with chains it is bounded: an outlier that is far above the data no longer
    counts, so the density of the rest is left to the chains.

    Args:
        energy_data: E of training points, shape (N,), nats.
        energy_outlier: E of outliers, shape (M,), nats.
        margin: m >= 0, nats.
        mean: How values are averaged; for a run in several processes, over all of them.

    Returns:
        Scalar >= 0.

    References:
        Liu et al. (2020), arXiv:2010.03759, section 3.3, for energies bounded by a margin (there a
        squared hinge around fixed levels, and real outliers).

    Example:
        >>> outlier_loss(torch.zeros(2), torch.tensor([1000.0]), margin=10.0)
        tensor(0.)
    """
    centre = mean(energy_data)
    level = centre.detach()
    # The gradient with respect to the mean is taken apart: a product of means over processes is
    # not the mean of their products.
    slope = mean(torch.sigmoid(margin + level - energy_outlier)).detach()
    return mean(F.softplus(margin + level - energy_outlier)) + slope * (centre - level)


class ContrastiveTerms(NamedTuple):
    """The contrastive objective and what it is made of, all scalars in nats."""

    loss: Tensor  # weighted sum, to be minimised
    contrast: Tensor  # E(data) - E(negatives), unweighted
    gap: Tensor  # E(negatives) - E(data), without gradient
    regulariser: Tensor  # the energy penalties, as they enter the loss
    outlier: Tensor | None = None  # the bounded contrast with outliers, unweighted


def contrastive_loss(
    energy_data: Tensor,
    energy_negative: Tensor,
    *,
    weight: float,
    energy_l2: float = 0.0,
    mean_energy_l2: float = 0.0,
    gap_limit: float | None = None,
    energy_outlier: Tensor | None = None,
    outlier_weight: float = 0.0,
    outlier_margin: float = 0.0,
    mean: Mean = torch.mean,
) -> ContrastiveTerms:
    r"""Weighted contrast with the penalties that keep energies in place.

    .. math:: L = w\,\tau\,(\bar E - \bar{\tilde E})
              + \tfrac{c}{2}\big(\overline{E^2} + \overline{\tilde E^2}\big)
              + \gamma \Big(\tfrac{\bar E + \bar{\tilde E}}{2}\Big)^2

    The penalty c on each energy has a fixed point: once the gap opens, energies settle at -w/c and
    w/c with the contrast cancelled exactly, and chains stay stuck. The gauge penalises only the
    common level and leaves the gap alone. The gap_limit tau = clip(1 - gap / g_max, 0.02, 1), a
    constant for the gradient, makes the model wait for its chains. Where there are outliers, their
    `outlier_loss` is added with a weight of its own.

    Args:
        energy_data: E of training points, shape (N,), nats.
        energy_negative: Energy that moves the chains, at the chains, shape (M,), nats.
        weight: w >= 0.
        energy_l2: c >= 0.
        mean_energy_l2: gamma >= 0.
        gap_limit: g_max > 0 in nats, or None for tau = 1.
        energy_outlier: E of made-up outliers, shape (O,), nats, or None.
        outlier_weight: Weight of `outlier_loss`, >= 0.
        outlier_margin: m of `outlier_loss`.
        mean: How energies are averaged; for a run in several processes, over all of them.

    Returns:
        The loss and its terms.
    """
    contrast = generative_loss(energy_data, energy_negative, mean=mean)
    gap = energy_gap(energy_data, energy_negative, mean=mean)
    scale = 1.0 if gap_limit is None else (1 - gap / gap_limit).clamp(0.02, 1.0)
    level = (mean(energy_data) + mean(energy_negative)) / 2
    regulariser = mean_energy_l2 * level.square()
    if energy_l2:
        squares = mean(energy_data.square()) + mean(energy_negative.square())
        regulariser = regulariser + energy_l2 / 2 * squares
    loss = weight * scale * contrast + regulariser
    if energy_outlier is None:
        return ContrastiveTerms(loss, contrast, gap, regulariser)
    outlier = outlier_loss(energy_data, energy_outlier, margin=outlier_margin, mean=mean)
    loss = loss + outlier_weight * outlier
    return ContrastiveTerms(loss, contrast, gap, regulariser, outlier)
