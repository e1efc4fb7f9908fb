"""Langevin steps with a Metropolis correction, which leave a density exactly as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from jem.sampling.langevin import Bounds, EnergyFunction, LangevinStep, per_row

Terms = Callable[[Tensor], Sequence[Tensor]]
"""Maps points (B, ...) to the terms of a log-density, each of shape (B,), row by row."""


class Points(NamedTuple):
    """Where chains are, and what steps need to know of these places."""

    x: Tensor  # (B, *shape)
    terms: Tensor  # (n, B), float64 on the CPU: the terms of the log-density
    grads: Tensor  # (n, B, *shape): the gradient of each

    @classmethod
    def at(cls, x: Tensor, terms: Terms, batch_size: int = 256) -> Points:
        """Evaluate terms and gradients, wherever this is called.

        Args:
            x: Positions, shape (B, *shape); neither changed nor kept in a graph.
            terms: The terms.
            batch_size: Rows evaluated at once.
        """
        parts = []
        with torch.inference_mode(False), torch.enable_grad():
            for rows in x.detach().split(batch_size):
                leaf = rows.clone().requires_grad_()
                found = terms(leaf)
                sums = [term.sum() for term in found]
                grads = [torch.autograd.grad(s, leaf, retain_graph=True)[0] for s in sums]
                values = torch.stack([term.detach().cpu().double() for term in found])
                parts.append((values, torch.stack(grads)))
        values, slopes = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        return cls(x.detach(), values, slopes)

    def where(self, keep: Tensor, other: Points) -> Points:
        """These points where `keep` (B,) is true, the others elsewhere."""
        chosen = keep.to(self.x.device)
        rows = per_row(chosen, self.x)
        return Points(
            torch.where(rows, self.x, other.x),
            torch.where(keep, self.terms, other.terms),
            torch.where(rows, self.grads, other.grads),
        )

    def some(self, rows: Tensor) -> Points:
        """Some of these points, by their indices, shape (M,)."""
        there = rows.to(self.x.device)
        return Points(self.x[there], self.terms[:, rows], self.grads[:, there])


def mala_step(
    points: Points,
    terms: Terms,
    weights: Sequence[float],
    step_size: Tensor | float,
    *,
    generator: torch.Generator,
    bounds: Bounds | None = None,
) -> tuple[Points, Tensor]:
    r"""Propose a Langevin step of every chain, and accept it or stay.

    With momenta p ~ N(0, I), one leapfrog step of size e on the log-density L,

    .. math:: p' = p + \tfrac{e}{2} \nabla L(x), \quad x' = x + e\,p', \quad
              p'' = p' + \tfrac{e}{2} \nabla L(x'),

    is the Langevin step with eta = e^2 / 2. It is accepted with the probability
    min(1, exp(L(x') - L(x) - |p''|^2 / 2 + |p|^2 / 2)), which leaves exp(L) as it is, for every e.
    At the faces of a box a component of x' bounces off, and that of p' changes its sign. This
    keeps volumes and can be reversed, so the rule of acceptance stays the same. To clip x'
    instead would put a share of all points on the faces.

    Args:
        points: Where chains are.
        terms: The terms of the log-density; a model in evaluation mode.
        weights: L is the sum of the terms with these weights.
        step_size: e > 0, a number, or a tensor that broadcasts to one point.
        generator: Source of randomness, on the device of the points.
        bounds: Lower and upper faces of the box, or None.

    Returns:
        Where chains are now, and which proposals were accepted, shape (B,).

    References:
        Roberts and Tweedie (1996), Bernoulli 2. Neal (2011), arXiv:1206.1901, sections 5.1 (walls)
        and 5.2 (one leapfrog step is a Langevin step).
    """
    shares = torch.tensor(weights, dtype=torch.float64)
    device = points.x.device

    def slope(at: Points) -> Tensor:
        by = shares.to(device, at.grads.dtype).view(-1, *([1] * points.x.ndim))
        return (by * at.grads).sum(dim=0)

    momentum = torch.empty_like(points.x).normal_(generator=generator)
    chance = torch.empty(len(points.x), device=device).uniform_(generator=generator)
    half = momentum + step_size / 2 * slope(points)
    x = points.x + step_size * half
    if bounds is not None:
        x, turned = reflect(x, *bounds)
        half = torch.where(turned, -half, half)
    new = Points.at(x, terms)
    end = half + step_size / 2 * slope(new)
    kinetic = ((end - momentum) * (end + momentum)).flatten(1).sum(dim=1) / 2
    gain = (shares[:, None] * (new.terms - points.terms)).sum(dim=0) - kinetic.cpu().double()
    accepted = chance.cpu().double().log() < gain  # false where the gain is no number
    return new.where(accepted, points), accepted


def run_corrected_chains(
    x: Tensor,
    energy_fn: EnergyFunction,
    steps: Iterable[LangevinStep],
    *,
    generator: torch.Generator,
    bounds: Bounds | None = None,
    after_step: Callable[[Tensor], object] | None = None,
) -> Tensor:
    """Run every chain through the steps of `run_chains`, each accepted or refused.

    A step of noise sigma and temperature T is a `mala_step` of size sigma on -E / T, so many equal
    steps sample exp(-E / T) inside the bounds exactly. The arguments are those of `run_chains`; a
    clamp or a blur of the gradient is left out, and what `after_step` returns is not used.
    """
    points = Points.at(x, lambda x: (-energy_fn(x),))
    for step in steps:
        points, _ = mala_step(
            points,
            lambda x: (-energy_fn(x),),
            [1 / step.temperature],
            step.noise_std,
            generator=generator,
            bounds=bounds,
        )
        if after_step is not None:
            after_step(points.x)
    return points.x


def reflect(x: Tensor, low: Tensor | float, high: Tensor | float) -> tuple[Tensor, Tensor]:
    """Fold points into a box at its faces.

    Args:
        x: Points, shape (B, *shape).
        low: Lower faces, broadcastable to one point.
        high: Upper faces.

    Returns:
        Points inside, and which components bounced off an odd number of times.

    Example:
        >>> x, turned = reflect(torch.tensor([[1.25, -3.5]]), *torch.tensor([-1.0, 1.0]))
        >>> x, turned
        (tensor([[0.7500, 0.5000]]), tensor([[ True, False]]))
    """
    low, high = (torch.as_tensor(bound).to(x) for bound in (low, high))
    away = (x - low).remainder(2 * (high - low))
    turned = away > high - low
    inside = torch.where(turned, high - (away - (high - low)), low + away)
    return torch.clamp(inside, low, high), turned
