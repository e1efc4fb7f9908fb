"""Annealed importance sampling: from a density whose integral is known to one that is not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from jem.sampling.base_distributions import GaussianBase
from jem.sampling.mala import Points, Terms, mala_step

Move = Callable[[Points, int], tuple[Points, Tensor]]
"""Moves chains by a kernel that leaves the density of a temperature, by its number, as it is;
also says which chains moved."""
Progress = Callable[[int, int], None]

ACCEPTANCE = 0.6
"""Share of accepted proposals that the step size aims at."""
MOVES = 2
"""Moves of the first chains at each temperature."""
LENGTH = 0.5
"""Standard deviation of a log-weight between two temperatures of the first chains."""
NARROWEST = 0.01
"""Least step of a component, as a share of the largest one."""
LEAST_SPREAD = 0.025
"""Least standard deviation of Gaussians in a box, as a share of its width."""


@dataclass(frozen=True)
class Path:
    r"""Densities between q, which can be drawn from, and the one that is asked about.

    .. math:: \gamma_\beta(x) = \tilde q(x) \, e^{\beta g(x)}, \qquad
              \int \tilde q(x) \, dx = e^{\mathtt{log\_z}}

    Attributes:
        terms: Gives log q~ and g of points, or g alone where q~ is 1 in the box.
        sample: Draws a number of points from q.
        log_z: Logarithm of the integral of q~, nats.
        bounds: Faces of the box that holds all of q; None for the whole space.
    """

    terms: Terms
    sample: Callable[[int, torch.Generator], Tensor]
    log_z: float
    bounds: tuple[Tensor, Tensor] | None = None

    def step(
        self, points: Points, beta: float, size: Tensor, generator: torch.Generator
    ) -> tuple[Points, Tensor]:
        """Make a `mala_step` at an inverse temperature."""
        weights = [1.0, beta][-len(points.terms) :]
        return mala_step(
            points, self.terms, weights, size, generator=generator, bounds=self.bounds
        )


class BoxGaussians:
    r"""Gaussians of classes without correlations, cut off at the faces of a box: normalised.

    .. math:: q(x) = \sum_k \pi_k \prod_i \frac{N(x_i; m_{ki}, s_{ki}^2)}{
              \Phi((u_i - m_{ki}) / s_{ki}) - \Phi((l_i - m_{ki}) / s_{ki})}

    Args:
        base: Gaussians of classes. Of their covariances the diagonal is taken.
        low: Lower faces, broadcastable to one point.
        high: Upper faces.
    """

    def __init__(self, base: GaussianBase, low: Tensor, high: Tensor) -> None:
        self.weights = base.frequencies.double().to(low.device)
        self.means = base.means.double().to(low.device)  # (K, *shape)
        variances = (base.variances + base.factors.square().sum(dim=2)).view_as(base.means)
        least = LEAST_SPREAD * (high - low).double()
        self.stds = torch.maximum(variances.double().sqrt().to(low.device), least)
        self.low, self.high = low, high
        self.below = self._cumulative(low)
        self.inside = self._cumulative(high) - self.below

    def _cumulative(self, x: Tensor) -> Tensor:
        cumulative: Tensor = torch.special.ndtr((x.double() - self.means) / self.stds)
        return cumulative

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of points (B, *shape) inside the box, shape (B,), nats."""
        squares = ((x.double()[:, None] - self.means) / self.stds).square()
        scale = (2 * math.pi) ** 0.5 * self.stds * self.inside
        each = -(squares / 2 + scale.log()).flatten(2).sum(dim=2)
        return torch.logsumexp(each + self.weights.log(), dim=1)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw points, shape (count, *shape), by the inverse of the distribution function."""
        k = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        share = torch.empty_like(self.means[k]).uniform_(generator=generator)
        at = torch.special.ndtri(self.below[k] + share * self.inside[k])
        return torch.clamp((self.means[k] + self.stds[k] * at).float(), self.low, self.high)


class Schedule(NamedTuple):
    """Inverse temperatures from 0 on, and the step size at each."""

    betas: Tensor  # (N + 1,), float64
    sizes: Tensor  # (N + 1, *shape)

    def resampled(self, num_steps: int) -> Schedule:
        """Interpolate between temperatures, so that there are `num_steps` after the first.

        1 stays among them.
        """
        last = len(self.betas) - 1
        at = torch.linspace(0, last, num_steps + 1, dtype=torch.float64)
        if (one := (self.betas == 1).nonzero()).numel():
            at[(at - one[0]).abs().argmin()] = float(one[0])
        below = at.floor().long().clamp(max=max(last - 1, 0))
        share = at - below
        above = (below + 1).clamp(max=last)
        betas = torch.lerp(self.betas[below], self.betas[above], share)
        by = share.to(self.sizes).view(-1, *([1] * (self.sizes.ndim - 1)))
        return Schedule(betas, torch.lerp(self.sizes[below], self.sizes[above], by))


def find_schedule(
    path: Path,
    num_chains: int,
    num_steps: int,
    generator: torch.Generator,
    far_enough: Callable[[float], bool],
    progress: Progress = lambda *_: None,
) -> Schedule:
    """Look for temperatures and step sizes with chains that serve for nothing else.

    Temperatures are as far apart as log-weights of these chains allow. The step of a component is
    a multiple of its standard deviation among them, and the multiple follows their acceptance.
    What is found is fixed before any chain counts: adapted meanwhile, it would bias the weights.

    Args:
        path: The path.
        num_chains: Chains, at least 2.
        num_steps: Temperatures at most.
        generator: Source of randomness.
        far_enough: Whether to end where the mean of g is this, once 1 is reached. The end also
            comes where so many steps could not bring weights of use any further.
        progress: Called with temperatures done, and `num_steps`.

    Returns:
        Up to where that was, or where temperatures ended.
    """
    points = Points.at(path.sample(num_chains, generator), path.terms)
    beta, scale = 0.0, 1.0
    betas, sizes = [beta], [_spread(points.x)]
    for done in range(num_steps):
        g = points.terms[-1]
        ahead = LENGTH / max(float(g.std()), 1e-12)
        beta = 1.0 if beta < 1 <= beta + ahead else beta + ahead
        for _ in range(MOVES):
            size = scale * _spread(points.x)
            points, moved = path.step(points, beta, size, generator)
            scale *= math.exp(float(moved.double().mean()) - ACCEPTANCE)
        betas.append(beta)
        sizes.append(size)
        progress(done + 1, num_steps)
        too_far = LENGTH * len(betas) > math.sqrt(num_steps * MOVES)
        if beta >= 1 and (too_far or far_enough(float(points.terms[-1].mean()))):
            break
    return Schedule(torch.tensor(betas, dtype=torch.float64), torch.stack(sizes))


def _spread(x: Tensor) -> Tensor:
    spread = x.std(dim=0)
    return spread.clamp_min(NARROWEST * float(spread.max()) + 1e-12)


def anneal(
    points: Points, betas: Tensor, move: Move, *, backward: bool = False
) -> tuple[Tensor, Tensor, Points]:
    """Run chains along a path, and add up their log-weights.

    Args:
        points: Chains that follow the density of the first temperature; of the last one for
            `backward`.
        betas: Inverse temperatures from 0 on, shape (N + 1,).
        move: Moves chains at the temperature of a number.
        backward: Whether to run from the last temperature to the first.

    Returns:
        Log-weights of each temperature to the first, shape (N + 1, M), float64; the share of
        chains that moved at each temperature, (N + 1,), NaN where none was to; and the chains in
        the end.

    References:
        Neal (2001), arXiv:physics/9803008. Grosse et al. (2015), arXiv:1511.02543, for both ways.
    """
    count = len(betas) - 1
    gaps = betas.diff()
    gained = torch.zeros(count + 1, len(points.x), dtype=torch.float64)
    acceptance = torch.full((count + 1,), math.nan, dtype=torch.float64)

    def moved_at(at: int) -> Points:
        new, moved = move(points, at)
        acceptance[at] = moved.double().mean()
        return new

    for at in reversed(range(count)) if backward else range(count):
        gained[at + 1] = gaps[at] * points.terms[-1]
        if backward and at:
            points = moved_at(at)
        elif not backward:
            points = moved_at(at + 1)
    return gained.cumsum(dim=0), acceptance, points


class Bracket(NamedTuple):
    """What chains of both directions say of log Z at each inverse temperature."""

    betas: Tensor  # (N + 1,)
    forward: Tensor  # (N + 1,), nats: too low on average
    forward_error: Tensor  # (N + 1,)
    backward: Tensor  # (N + 1,), nats: too high on average, where chains began as they should
    backward_error: Tensor  # (N + 1,)
    effective_size: Tensor  # (N + 1,): of the direction that has less
    acceptance: Tensor  # (N + 1,): share of accepted proposals, forward; NaN at 0

    @property
    def crossed(self) -> Tensor:
        """Where the lower bound lies above the upper one by more than their errors explain."""
        error = (self.forward_error.square() + self.backward_error.square()).sqrt()
        return self.forward - self.backward > 3 * error + 1e-6


def bracket(
    betas: Tensor, up: Tensor, down: Tensor, log_z: float, acceptance: Tensor, repeats: int
) -> Bracket:
    r"""Estimate log Z at each temperature from log-weights of both directions.

    .. math:: \log \hat Z_\beta = \log Z_0 + \log \tfrac{1}{M} \sum_i e^{w_i}, \qquad
              \log \hat Z_\beta = \log Z_0 - \log \tfrac{1}{M} \sum_i e^{-w_i}

    forward and backward. The error is that of the weights, or that of independent repeats if it is
    larger.

    Args:
        betas: Inverse temperatures, shape (N + 1,).
        up: Log-weights of `anneal` forward, shape (N + 1, M), repeat after repeat.
        down: Those backward, likewise.
        log_z: log Z_0 at the inverse temperature 0, nats.
        acceptance: Share of accepted proposals, shape (N + 1,).
        repeats: Number of repeats in M.
    """
    forward, forward_error, forward_size = _mean_weight(up, repeats)
    backward, backward_error, backward_size = _mean_weight(-down, repeats)
    size = torch.minimum(forward_size, backward_size)
    return Bracket(
        betas, log_z + forward, forward_error, log_z - backward, backward_error, size, acceptance
    )


def _mean_weight(log_weights: Tensor, repeats: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log of the mean weight, its standard error, and the effective sample size: (N + 1,) each."""
    count = log_weights.shape[1]
    total = log_weights.logsumexp(dim=1)
    size = (2 * total - (2 * log_weights).logsumexp(dim=1)).exp()
    parts = log_weights.view(len(log_weights), repeats, -1).logsumexp(dim=2)
    error = (1 / size - 1 / count).clamp_min(0).sqrt()
    if repeats > 1:
        error = torch.maximum(error, parts.std(dim=1) / math.sqrt(repeats))
    return total - math.log(count), error, size


def log_z_bracket(
    path: Path,
    *,
    num_chains: int,
    num_steps: int,
    repeats: int,
    generator: torch.Generator,
    far_enough: Callable[[float], bool] = lambda *_: True,
    progress: Progress = lambda *_: None,
) -> Bracket:
    """Anneal forward, and back from where chains ended.

    Chains that run back begin at ends of the forward run, drawn by their weights. These are no
    exact samples, so the upper bound is approximate. It is too low where they miss a part of the
    density, or have not cooled down to it.

    Args:
        path: The path.
        num_chains: Chains of a repeat.
        num_steps: Temperatures after the first.
        repeats: Independent groups of chains.
        generator: Source of randomness, on the device of the chains.
        far_enough: See `find_schedule`.
        progress: Called with steps done and steps in all.
    """
    rounds = 3 * num_steps
    schedule = find_schedule(
        path, num_chains, num_steps // MOVES, generator, far_enough,
        lambda done, _: progress(MOVES * done, rounds),
    ).resampled(num_steps)  # fmt: skip
    done = num_steps

    def move(points: Points, at: int) -> tuple[Points, Tensor]:
        nonlocal done
        done += 1
        progress(min(done, rounds), rounds)
        return path.step(points, float(schedule.betas[at]), schedule.sizes[at], generator)

    start = Points.at(path.sample(num_chains * repeats, generator), path.terms)
    up, acceptance, ends = anneal(start, schedule.betas, move)
    weights = up[-1].view(repeats, -1).softmax(dim=1).float().to(generator.device)
    drawn = torch.multinomial(weights, num_chains, replacement=True, generator=generator).cpu()
    rows = (drawn + num_chains * torch.arange(repeats)[:, None]).flatten()
    begin = ends.some(rows)
    for _ in range(num_steps // 10):  # copies of the same end part from each other
        begin, _ = move(begin, num_steps)
    down, _, _ = anneal(begin, schedule.betas, move, backward=True)
    return bracket(schedule.betas, up, down, path.log_z, acceptance, repeats)
