"""The contrastive loss: the energy of data against that of chains.

A chain enters only through its energy, so the backward pass of this loss also holds the gradient
that moves the chain: see `jem.training.update.compute_update`.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from jem.model import JEM
from jem.objectives.base import Batch, Energies, Mean, Terms


def contrastive_loss(
    energy_data: Tensor, energy_chains: Tensor, *, mean: Mean = torch.mean
) -> Tensor:
    r"""Contrast data with chains: the surrogate whose gradient estimates that of -log p(x).

    .. math:: L = \tfrac{1}{N}\sum_i E(x_i) - \tfrac{1}{M}\sum_j E(\tilde x_j)

    The *value* is no likelihood: it may be negative, has no floor, and must not be reported as
    NLL. It is unbiased only if the chains follow the model; short chains make it an approximation.

    Args:
        energy_data: E of training points, shape (N,), nats.
        energy_chains: E of chain ends, shape (M,); M may differ from N. Detach the ends from the
            chain's graph.
        mean: How energies are averaged; for a run in several processes, over all of them.

    Returns:
        Scalar; descending it lowers the energy of data and raises that of chains.

    References:
        Hinton (2002), contrastive divergence. Tieleman (2008), persistent chains.

    Example:
        >>> contrastive_loss(torch.tensor([1.0, 3.0]), torch.tensor([0.5]))
        tensor(1.5000)
    """
    return mean(energy_data) - mean(energy_chains)


def outlier_loss(
    energy_data: Tensor, energy_outliers: Tensor, *, margin: float, mean: Mean = torch.mean
) -> Tensor:
    r"""Contrast data with made-up outliers until these lie a margin above them.

    .. math:: L = \overline{\mathrm{softplus}(m + \bar E - E(x^o))}

    Unlike the contrastive loss it is bounded: an outlier that is far above the data no longer
    counts, so the density of the rest is left to the chains.

    Args:
        energy_data: E of training points, shape (N,), nats.
        energy_outliers: E of outliers, shape (O,), nats.
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
    slope = mean(torch.sigmoid(margin + level - energy_outliers)).detach()
    return mean(F.softplus(margin + level - energy_outliers)) + slope * (centre - level)


@dataclass(frozen=True)
class Contrastive:
    r"""The weighted contrastive loss, with the penalties that keep energies in place.

    .. math:: L = w\,\tau\,(\bar E - \bar{\tilde E})
              + \tfrac{c}{2}\big(\overline{E^2} + \overline{\tilde E^2}\big)
              + \gamma \Big(\tfrac{\bar E + \bar{\tilde E}}{2}\Big)^2

    The penalty c on each energy has a fixed point: once the gap opens, energies settle at -w/c and
    w/c. There it cancels the contrastive loss exactly, and chains stay stuck. The penalty gamma
    acts on the common level alone and leaves the gap as it is. The factor
    tau = clip(1 - gap / g_max, 0.02, 1), a constant for the gradient, makes the model wait for its
    chains. Where there are outliers, their `outlier_loss` is added. Where the model has a base
    density, the penalty c counts what the network adds to it; otherwise the network would learn to
    take the base away.

    Attributes:
        energy_l2: c >= 0.
        mean_energy_l2: gamma >= 0.
        gap_limit: g_max > 0 in nats, or None for tau = 1.
        outlier_weight: Weight of `outlier_loss`, as a multiple of w.
        outlier_margin: m of `outlier_loss`, nats.

    References:
        Grathwohl et al. (2020), arXiv:1912.03263, algorithm 1. Du and Mordatch (2019),
        arXiv:1903.08689, for the penalty c.
    """

    energy_l2: float = 0.0
    mean_energy_l2: float = 0.0
    gap_limit: float | None = None
    outlier_weight: float = 0.0
    outlier_margin: float = 0.0

    needs: ClassVar[frozenset[str]] = frozenset({"chains"})

    def __call__(
        self,
        model: JEM,
        batch: Batch,
        energies: Energies,
        *,
        weight: float,
        generator: torch.Generator,
        mean: Mean,
    ) -> Terms:
        """The loss and its terms; `outlier` is unweighted."""
        data, chains = energies.data, energies.chains
        assert chains is not None, "asked for in `needs`"
        contrastive = contrastive_loss(data, chains, mean=mean)
        gap = -contrastive.detach()
        tau = 1.0 if self.gap_limit is None else (1 - gap / self.gap_limit).clamp(0.02, 1.0)
        level = (mean(data) + mean(chains)) / 2
        regulariser = self.mean_energy_l2 * level.square()
        if self.energy_l2:
            own_data = data + energies.base_data
            own_chains = chains + energies.base_chains
            squares = mean(own_data.square()) + mean(own_chains.square())
            regulariser = regulariser + self.energy_l2 / 2 * squares
        loss = weight * tau * contrastive + regulariser
        named = {"regulariser": regulariser}
        if energies.outliers is not None:
            margin = self.outlier_margin
            named["outlier"] = outlier_loss(data, energies.outliers, margin=margin, mean=mean)
            loss = loss + weight * self.outlier_weight * named["outlier"]
        return Terms(loss, named, gap)


def bounded_contrast(
    energy_data: Tensor, energy_chains: Tensor, *, mean: Mean = torch.mean
) -> Tensor:
    r"""Tell data from chains by the sign of the energy: the binary cross-entropy of -E as a logit.

    .. math:: L = \overline{-\log \sigma(-E(x))} + \overline{-\log \sigma(E(\tilde x))}

    A datum far below zero, or a chain far above, no longer counts, so energies stay small without
    a penalty. What is learned is where the data lie rather than how dense they are.

    Args:
        energy_data: E of training points, shape (N,), nats.
        energy_chains: E of chain ends, shape (M,), detached from the chain's graph.
        mean: How values are averaged; for a run in several processes, over all of them.

    Returns:
        Scalar >= 0; 2 log 2 where all energies are zero.

    References:
        Yin et al. (2025), arXiv:2510.13872 (DAT), the generative part of the loss.

    Example:
        >>> bounded_contrast(torch.tensor([-100.0]), torch.tensor([0.0]))
        tensor(0.6931)
    """
    return mean(F.softplus(energy_data)) + mean(F.softplus(-energy_chains))


@dataclass(frozen=True)
class Adversarial:
    """The weighted `bounded_contrast`; the log calls it `bounded_contrast`.

    Its chains go straight for low energy, by steps without noise (`Recipe.normalize_gradient`).
    With `Recipe.attack_eps` the classifier beside it learns to withstand small changes of its
    inputs, which keeps the energy smooth, too.

    References:
        Yin et al. (2025), arXiv:2510.13872, dual adversarial training (DAT).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"chains"})

    def __call__(
        self,
        model: JEM,
        batch: Batch,
        energies: Energies,
        *,
        weight: float,
        generator: torch.Generator,
        mean: Mean,
    ) -> Terms:
        """The loss and its term, which is unweighted."""
        data, chains = energies.data, energies.chains
        assert chains is not None, "asked for in `needs`"
        loss = bounded_contrast(data, chains, mean=mean)
        gap = (mean(chains) - mean(data)).detach()
        return Terms(weight * loss, {"bounded_contrast": loss}, gap)
