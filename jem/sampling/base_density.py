"""What a log-density holds by construction: Gaussians inside the domain, a tail outside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from jem.sampling.langevin import LangevinStep
from jem.sampling.moments import centred_by_class, ledoit_wolf
from jem.sampling.outliers import column_groups
from jem.sampling.products import Products

TAIL_WIDTH = 0.01
"""Share of the domain's width, outside it, at which the tail turns from a parabola to a line."""
MISFIT_WIDTH = 0.01
"""The same for the misfit, as a share of its limit."""
LEAST_VARIANCE = 0.01
"""Least variance of a component within classes, as a share of its variance in all data."""
LEAST_MISFIT_VARIANCE = 1e-4
"""The same for the misfit. It is smaller, as no chain has to make steps on the misfit."""
SHARE_WITHOUT_MISFIT = 0.99
"""Share of the training rows that have no misfit."""
LARGEST_RATIO = 1e6
"""Widths after which tail and misfit rise no more: logits beside them keep their digits."""


class BaseDensity(nn.Module):
    r"""The part of a model's log-density that is there before training and stays.

    .. math:: b(x) = T \log q(c) - \sum_j h\!\left(\frac{x_j - c_j}{s_j}\right), \qquad
              c = \mathrm{clip}(x, l, u), \quad s = 0.01\,(u - l)

    q is a mixture of Gaussians, one at the mean of each class, or of each part of a class, all
    with one covariance. log q is shifted so that its mean over the training data is 0. T is the
    temperature of the chains: chains that move on -b alone sample q. h is Huber's function, a^2/2
    up to a = 1 and |a| - 1/2 from there.

    q is no sharper than what chains resolve, and so it misses linear relations that hold almost
    exactly between columns, such as a total that is a sum. A second covariance has them; verdicts
    use it (`misfit`), energies do not.

    Args:
        low: Lower bound l of the domain, broadcastable to one row.
        high: Upper bound u, likewise.
        means: Means of the classes, shape (K, D).
        whitening: Maps a difference of rows to one whose length is the Mahalanobis distance,
            shape (D, D).
        misfit_whitening: The same by the second covariance.
        misfit_limit: Distance from the nearest mean, by the second covariance, up to which rows
            are like the data; infinite where relations between columns are not judged.
        log_weights: Logarithms of the shares of the classes, shape (K,).
        mean_log_q: Mean of log q over the training data, by which it is shifted.
        temperature: T.
        groups: Which column of the user's table each component is part of, shape (D,).
        products: Fields of `Products`, where products of columns hold almost exactly.

    References:
        Lee et al. (2018), arXiv:1807.03888, for class Gaussians with one covariance.
    """

    arguments = (
        "low", "high", "means", "whitening", "misfit_whitening", "misfit_limit", "log_weights",
        "mean_log_q", "temperature", "groups",
    )  # fmt: skip
    low: Tensor
    high: Tensor
    means: Tensor
    whitening: Tensor
    misfit_whitening: Tensor
    misfit_limit: Tensor
    log_weights: Tensor
    mean_log_q: Tensor
    temperature: Tensor
    groups: Tensor
    centre: Tensor
    white_means: Tensor
    misfit_means: Tensor

    def __init__(self, products: Mapping[str, Tensor] | None = None, **arguments: Tensor) -> None:
        super().__init__()
        self.products = Products(**products) if products else None
        for name in self.arguments:
            self.register_buffer(name, arguments[name], persistent=False)
        self.register_buffer("centre", self.means.mean(dim=0), persistent=False)
        for name, by in (("white_means", self.whitening), ("misfit_means", self.misfit_whitening)):
            self.register_buffer(name, (self.means - self.centre) @ by, persistent=False)
        # A plain value: a graph must not branch on tensors.
        self.judges_relations = bool(self.misfit_limit.isfinite())

    @classmethod
    def fit(
        cls,
        x: Tensor,
        parts: Tensor,
        domain: tuple[Tensor, Tensor],
        step: LangevinStep,
        columns: Sequence[str] | None = None,
        *,
        zero: Tensor | None = None,
        shrinkage: float = 0.0,
    ) -> BaseDensity:
        """Estimate the Gaussians from training data.

        The covariance is that within classes, shrunk as Ledoit and Wolf say, with a floor: the
        chains' noise, and a hundredth of the variance of each component. Such Gaussians are no
        narrower than what chains resolve, so that a Langevin step on them is stable: its size
        times their curvature is at most 1/2.

        The second covariance is not shrunk, and its floor is a ten thousandth of each variance.
        It is used with more than two rows for each component, and not where `shrinkage` is set.

        Args:
            x: Training rows, shape (N, D).
            parts: Which Gaussian of the mixture each row belongs to, shape (N,): its class, or a
                part of it.
            domain: Bounds of the inputs.
            step: The step of the chains, which has their noise and temperature.
            columns: As `column_groups` takes them.
            zero: What 0 is in the user's units, shape (D,); None looks for no products.
            shrinkage: Share by which the covariance becomes a multiple of the identity.
        """
        means, within, counts = centred_by_class(x, parts)
        covariance = ledoit_wolf(within)
        sphere = covariance.diagonal().mean() * torch.eye(len(covariance)).to(covariance)
        covariance = (1 - shrinkage) * covariance + shrinkage * sphere
        rows = x.double().cpu()
        variances, least = rows.var(dim=0, correction=0), max(step.noise_std, 1e-6) ** 2
        covariance.diagonal().add_((LEAST_VARIANCE * variances).clamp_min(least))
        unshrunk = within.T @ within / len(rows)
        unshrunk.diagonal().add_((LEAST_MISFIT_VARIANCE * variances).clamp_min(1e-6))
        draft = cls(
            low=domain[0],
            high=domain[1],
            means=means,
            whitening=_whitening(covariance),
            misfit_whitening=_whitening(unshrunk),
            misfit_limit=means.new_tensor(math.inf),
            log_weights=(counts / counts.sum()).double().log(),
            mean_log_q=means.new_zeros(()),
            temperature=means.new_tensor(step.temperature),
            groups=column_groups(x, columns),
        )
        known = draft.state()  # all but the following two, which need the Gaussians
        known["mean_log_q"] = torch.cat([draft.log_q(part) for part in rows.split(4096)]).mean()
        count, size = rows.shape
        # Few rows say nothing of new ones, and in an embedding no column belongs to another.
        if count > 2 * size and not shrinkage:
            far = torch.cat([draft._misfit_distance(part) for part in rows.split(4096)])
            # At least 1: rows that are all the same would leave no distance at all.
            usual = far.kthvalue(math.ceil(SHARE_WITHOUT_MISFIT * count)).values.clamp_min(1.0)
            known["misfit_limit"] = usual * (count + size) / (count - size)
        base = cls(**known)
        if zero is not None and not shrinkage:
            base.products = Products.fit(x, zero)
        return base

    def state(self) -> dict[str, Any]:
        """Tensors from which the constructor makes an equal base."""
        products = self.products and self.products._asdict()
        return {name: getattr(self, name) for name in self.arguments} | {"products": products}

    def logits_with_base(self, x: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits of a network with the base added, in double precision where the device has it.

        The softmax of each row stays what it was. In evaluation mode, the level of the logits of
        a row outside the domain, their logsumexp, becomes that of the nearest point inside: it is
        bounded there, and only the tail goes on. In training mode rows count as inside.

        Args:
            x: Inputs, shape (B, D).
            network: f, which gives logits (B, K).

        Returns:
            f(x) + b(x), shape (B, K).
        """
        logits = network(x.clone())  # some networks change what they are given
        wide = logits if x.device.type == "mps" else logits.double()
        if self.training:
            return wide + self.tempered_log_q(x)[:, None]
        inside = x.clamp(self.low, self.high)
        base = self.tempered_log_q(inside) - self.tail(x, inside)
        outside = (x != inside).any(dim=1)
        if torch.compiler.is_compiling() or bool(outside.any()):  # a graph must not branch
            moved = network(inside.clone()).to(wide).logsumexp(dim=1) - wide.logsumexp(dim=1)
            base = base + torch.where(outside, moved, 0.0)
        return wide + base[:, None]

    def tail(self, x: Tensor, inside: Tensor) -> Tensor:
        """What leaving the domain costs, shape (B,), nats: 0 for rows inside."""
        return _huber(((x - inside) / (TAIL_WIDTH * (self.high - self.low))).abs()).sum(dim=1)

    def misfit(self, x: Tensor) -> Tensor:
        """What rows lose in a verdict that break what nearly holds exactly between columns.

        Args:
            x: Rows, shape (B, D), inside the domain or not.

        Returns:
            Shape (B,), nats: 0 up to `misfit_limit`, which 99 of 100 training rows keep, and about
            1 for each hundredth of it beyond.
        """
        x = x if x.device.type == "mps" else x.double()
        lost = x.new_zeros(x.shape[0])  # not len(x), which a graph could not leave open
        if self.judges_relations:
            lost = lost + _beyond(self._misfit_distance(x), self.misfit_limit)
        if self.products is not None:
            lost = lost + _beyond(self.products.distance(x), self.products.limit)
        return lost

    def _misfit_distance(self, x: Tensor) -> Tensor:
        squares = self._squared_distances(x, self.misfit_whitening, self.misfit_means)
        return squares.amin(dim=1).clamp_min(0.0).sqrt()

    def nearest_mean(self, x: Tensor) -> Tensor:
        """The mean of the class whose Gaussian is nearest to each row, shape (B, D).

        Args:
            x: Rows, shape (B, D).
        """
        inside = x.clamp(self.low, self.high).to(self.means)
        nearest = self._squared_distances(inside, self.whitening, self.white_means).argmin(dim=1)
        return self.means[nearest].to(x)

    @property
    def log_z(self) -> float:
        """Log of the integral of exp(`tempered_log_q`) at temperature 1, nats."""
        size = self.means.shape[1]
        log_det = self.whitening.diagonal().log().sum()  # of the square root of the precision
        return float(size / 2 * math.log(2 * math.pi) - log_det - self.mean_log_q)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw from the mixture q, also outside the domain.

        Args:
            count: B.
            generator: On the device of the base.

        Returns:
            Rows, float32, shape (B, D).
        """
        which = torch.multinomial(self.log_weights.exp(), count, True, generator=generator)
        white = torch.empty_like(self.means[which]).normal_(generator=generator)
        away: Tensor = torch.linalg.solve_triangular(self.whitening, white, upper=True, left=False)
        return (self.means[which] + away).float()

    def tempered_log_q(self, x: Tensor) -> Tensor:
        """T log q of rows (B, D) inside the domain, shape (B,), nats, in the wide precision."""
        x = x if x.device.type == "mps" else x.double()
        return self.temperature.to(x) * self.log_q(x)

    def log_q(self, x: Tensor) -> Tensor:
        """Log q of rows (B, D) less its mean over the training data, shape (B,)."""
        squares = self._squared_distances(x, self.whitening, self.white_means)
        log_q = torch.logsumexp(self.log_weights.to(x) - squares / 2, dim=1)
        return log_q - self.mean_log_q.to(x)

    def _squared_distances(self, x: Tensor, whitening: Tensor, means: Tensor) -> Tensor:
        """Squared Mahalanobis distances of rows (B, D) to the class means, shape (B, K)."""
        white, means = (x - self.centre.to(x)) @ whitening.to(x), means.to(x)
        squares = white.square().sum(dim=1, keepdim=True) + means.square().sum(dim=1)
        return squares - 2 * white @ means.T


def _beyond(distance: Tensor, limit: Tensor) -> Tensor:
    return _huber(((distance / limit.to(distance) - 1) / MISFIT_WIDTH).clamp_min(0.0))


def _whitening(covariance: Tensor) -> Tensor:
    root = torch.linalg.cholesky(covariance)
    unit = torch.eye(len(root), dtype=root.dtype)
    inverse: Tensor = torch.linalg.solve_triangular(root, unit, upper=False)
    return inverse.T.contiguous()


def _huber(ratio: Tensor) -> Tensor:
    """Huber's function of ratios >= 0, which end at `LARGEST_RATIO`."""
    ratio = ratio.clamp_max(LARGEST_RATIO)
    small: Tensor = ratio.clamp_max(1.0)
    return small * (ratio - small / 2)
