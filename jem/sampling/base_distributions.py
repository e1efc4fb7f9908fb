"""Where chains begin: each start draws points and knows its own log-density.

A start with a `log_prob` also serves as the noise of noise contrastive estimation and as the base
of annealed importance sampling. Starts are plain objects; `state_dict` and `base_from_state`
carry them through a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributions import LowRankMultivariateNormal

from jem.errors import InputError
from jem.sampling.langevin import clip_to_bounds, per_row
from jem.sampling.random_fields import SmoothNoiseBase


class BaseDistribution(Protocol):
    """A distribution over inputs that chains can begin from."""

    def sample(
        self, count: int, labels: Tensor | None = None, *, generator: torch.Generator
    ) -> Tensor:
        """Draw `count` points, shape (count, *shape).

        Starts that know classes draw for `labels`, shape (count,); the others do not look at them.
        """
        ...

    def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Normalised log-density of points (B, *shape), in nats, shape (B,)."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values from which `base_from_state` makes this start again."""
        ...


class _Box:
    """Bounds expanded to one input's shape, shared by the starts that live in the domain's box."""

    kind = ""

    def __init__(self, low: Tensor | float, high: Tensor | float, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self.low = torch.as_tensor(low, dtype=torch.float32).expand(self.shape).clone()
        self.high = torch.as_tensor(high, dtype=torch.float32).expand(self.shape).clone()
        if not bool((self.low < self.high).all()):
            raise InputError("a start needs `low` below `high` for every component")

    def state_dict(self) -> dict[str, Any]:
        """The bounds and the kind."""
        return {"kind": self.kind, "low": self.low, "high": self.high}

    def _unit_noise(self, count: int, generator: torch.Generator) -> Tensor:
        noise = torch.empty(count, *self.shape, device=generator.device)
        return noise.uniform_(-1.0, 1.0, generator=generator)

    def _offset(self, x: Tensor) -> Tensor:
        """Map the box to [-1, 1] in every component."""
        low, high = self.low.to(x), self.high.to(x)
        return (2 * x - low - high) / (high - low)

    def _log_volume(self) -> float:
        return float((self.high - self.low).double().log().sum())


class UniformBase(_Box):
    """Uniform noise in the box of the domain.

    Args:
        low: Lower bound, a number or a tensor that broadcasts to `shape`.
        high: Upper bound, likewise.
        shape: Shape of one input.
    """

    kind = "uniform"

    def sample(
        self, count: int, labels: Tensor | None = None, *, generator: torch.Generator
    ) -> Tensor:
        """Draw (count, *shape) uniformly; labels are not looked at."""
        noise = self._unit_noise(count, generator)
        low, high = self.low.to(noise), self.high.to(noise)
        return low + (noise + 1) / 2 * (high - low)

    def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Minus the log-volume of the box inside it, -inf outside; shape (B,), nats."""
        # Compared without arithmetic: chains clipped to the box lie exactly on its faces.
        inside = ((x >= self.low.to(x)) & (x <= self.high.to(x))).flatten(1).all(dim=1)
        constant = torch.full((len(x),), -self._log_volume(), dtype=x.dtype, device=x.device)
        return torch.where(inside, constant, -math.inf)


class ContrastBase(_Box):
    r"""Uniform noise whose contrast is itself random: from nearly flat to full.

    .. math:: x = m + s\,h\,u, \qquad s \sim U(s_{\min}, 1), \; u_i \sim U(-1, 1)

    with m the middle and h half the width of the box, s shared by all components of one input.

    Args:
        low: Lower bound, a number or a tensor that broadcasts to `shape`.
        high: Upper bound, likewise.
        shape: Shape of one input.
        min_contrast: s_min, in (0, 1).
    """

    kind = "contrast"

    def __init__(
        self,
        low: Tensor | float,
        high: Tensor | float,
        shape: Sequence[int],
        min_contrast: float = 0.05,
    ) -> None:
        super().__init__(low, high, shape)
        if not 0 < min_contrast < 1:
            raise InputError(f"`min_contrast` must be in (0, 1), but got {min_contrast}")
        self.min_contrast = min_contrast

    def state_dict(self) -> dict[str, Any]:
        """The bounds, the kind and the least contrast."""
        return super().state_dict() | {"min_contrast": self.min_contrast}

    def sample(
        self, count: int, labels: Tensor | None = None, *, generator: torch.Generator
    ) -> Tensor:
        """Draw (count, *shape); labels are not looked at."""
        noise = self._unit_noise(count, generator)
        contrast = torch.empty(count, device=noise.device).uniform_(
            self.min_contrast, 1.0, generator=generator
        )
        low, high = self.low.to(noise), self.high.to(noise)
        return (low + high) / 2 + per_row(contrast, noise) * noise * (high - low) / 2

    def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        r"""Log-density in closed form, shape (B,), nats: the contrast is integrated out.

        With D components, M = max_i |x_i - m_i| / h_i and a = max(M, s_min), the density is
        the integral of s^-D over [a, 1], over (1 - s_min) times the volume of the box.
        """
        dim = math.prod(self.shape)
        largest = self._offset(x).flatten(1).abs().amax(dim=1)
        log_a = largest.clamp_min(self.min_contrast).log()
        if dim == 1:
            log_integral = (-log_a).log()
        else:
            power = (dim - 1) * log_a  # log of a^(D-1)
            log_integral = -power + torch.log(-torch.expm1(power)) - math.log(dim - 1)
        constant = math.log(1 - self.min_contrast) + self._log_volume()
        return torch.where(largest < 1, log_integral - constant, -math.inf)


class GaussianBase:
    r"""One Gaussian a class, of low rank plus a diagonal (the informative start of JEM++).

    .. math:: x \mid y \sim N(\mu_y, W_y W_y^\top + \mathrm{diag}(d_y))

    A full covariance would take 3.8 GB for CIFAR-100 and is rank-deficient there. Samples are
    clipped to the bounds; `log_prob` is that of the unclipped Gaussian.

    Args:
        means: mu, shape (K, *shape).
        factors: W, shape (K, D, R), D the number of components of an input; R may be 0.
        variances: d > 0, shape (K, D).
        frequencies: Class probabilities, shape (K,), for draws without labels.
        bounds: (low, high) that samples are clipped to, or None.

    References:
        Yang and Ji (2021), JEM++, arXiv:2109.09032.
    """

    kind = "gaussian"

    def __init__(
        self,
        means: Tensor,
        factors: Tensor,
        variances: Tensor,
        frequencies: Tensor,
        bounds: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.means, self.factors, self.variances = means, factors, variances
        self.frequencies, self.bounds = frequencies, bounds
        self.shape = tuple(means.shape[1:])
        self._copies: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}

    @classmethod
    def fit(
        cls,
        x: Tensor,
        labels: Tensor,
        num_classes: int,
        *,
        rank: int = 16,
        bounds: tuple[Tensor, Tensor] | None = None,
    ) -> GaussianBase:
        """Estimate the Gaussians from training data.

        Args:
            x: Training inputs, shape (N, *shape).
            labels: Class indices, shape (N,).
            num_classes: K; a class with fewer than two examples gets the moments of all data.
            rank: Directions of largest variance kept a class; 0 keeps the diagonal alone.
            bounds: (low, high) that samples are clipped to, or None.

        Returns:
            The fitted start, on the CPU.
        """
        flat, labels = x.detach().flatten(1).cpu().float(), labels.cpu()
        counts = torch.bincount(labels, minlength=num_classes).float()
        moments = []
        for k in range(num_classes):
            rows = flat[labels == k]
            moments.append(_low_rank_moments(rows if len(rows) > 1 else flat, rank))
        means, factors, variances = (torch.stack(part) for part in zip(*moments, strict=True))
        means = means.reshape(num_classes, *x.shape[1:])
        return cls(means, factors, variances, counts / counts.sum(), bounds)

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle holds: no copies on another device, which the reader may not have."""
        return self.__dict__ | {"_copies": {}}

    def state_dict(self) -> dict[str, Any]:
        """All moments, the class frequencies and the bounds."""
        keys = ("kind", "means", "factors", "variances", "frequencies", "bounds")
        return {key: getattr(self, key) for key in keys}

    def _labels(self, count: int, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        if labels is not None:
            return labels
        frequencies = self.frequencies.to(generator.device)
        return torch.multinomial(frequencies, count, replacement=True, generator=generator)

    def _moments_on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Means, factors and variances on a device, copied there once."""
        if device.type == "cpu":
            return self.means, self.factors, self.variances
        if device not in self._copies:
            self._copies[device] = (
                self.means.to(device), self.factors.to(device), self.variances.to(device)
            )  # fmt: skip
        return self._copies[device]

    def sample(
        self, count: int, labels: Tensor | None = None, *, generator: torch.Generator
    ) -> Tensor:
        """Draw (count, *shape) for `labels` (count,); None draws classes at their frequencies."""
        device = generator.device
        labels = self._labels(count, labels, generator)
        dim, rank = self.factors.shape[1:]
        z = torch.empty(count, rank, device=device).normal_(generator=generator)
        noise = torch.empty(count, dim, device=device).normal_(generator=generator)
        means, factors, variances = self._moments_on(device)
        flat = noise * variances[labels].sqrt()
        if device.type == "cpu":
            for k in sorted(set(labels.tolist())):  # a small product a class, not a matrix a chain
                rows = labels == k
                flat[rows] += z[rows] @ factors[k].T
        else:  # which would wait for the labels to be read
            for k, factor in enumerate(factors):
                flat += (z * (labels == k)[:, None]) @ factor.T
        x = means[labels] + flat.view(count, *self.shape)
        return clip_to_bounds(x, self.bounds)

    def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Log-density given the class, or of the mixture of classes without labels; (B,), nats."""
        moments = zip(self.means, self.factors, self.variances, strict=True)
        given = torch.stack(
            [
                _gaussian_log_prob(x.flatten(1), mean.flatten().to(x), w.to(x), d.to(x))
                for mean, w, d in moments
            ],
            dim=1,
        )
        if labels is not None:
            return given.gather(1, labels[:, None]).squeeze(1)
        return torch.logsumexp(given + self.frequencies.to(x).log(), dim=1)


def _gaussian_log_prob(x: Tensor, mean: Tensor, factor: Tensor, variance: Tensor) -> Tensor:
    """Log-density of rows (N, D) under N(mean, W W^T + diag(d)), W (D, R) with R >= 0."""
    if not factor.shape[1]:  # torch's own takes R >= 1
        factor = torch.zeros_like(variance)[:, None]
    gaussian = LowRankMultivariateNormal(mean, factor, variance, validate_args=False)
    log_prob: Tensor = gaussian.log_prob(x)
    return log_prob


def _low_rank_moments(
    rows: Tensor, rank: int, floor: float = 1e-4
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (D,), top scaled directions (D, rank) and remaining variances (D,) of rows (N, D)."""
    mean = rows.mean(dim=0)
    centred = (rows - mean) / math.sqrt(max(len(rows) - 1, 1))
    rank_found = min(rank, min(centred.shape))
    factor = torch.zeros(rows.shape[1], rank)
    if rank_found:
        # The smaller Gram matrix has the same non-zero spectrum as the covariance.
        wide = centred.shape[0] < centred.shape[1]
        gram = centred @ centred.T if wide else centred.T @ centred
        values, vectors = torch.linalg.eigh(gram.double())
        values, vectors = values[-rank_found:].clamp_min(0), vectors[:, -rank_found:]
        directions = centred.T.double() @ vectors if wide else vectors * values.sqrt()
        factor[:, :rank_found] = directions.float()
    variance = centred.square().sum(dim=0) - factor.square().sum(dim=1)
    return mean, factor, variance.clamp_min(floor)


class MixtureBase:
    """A mixture of starts: each chain begins from one of them, drawn at given weights.

    Args:
        parts: The starts.
        weights: Their probabilities; normalised here.
    """

    kind = "mixture"

    def __init__(self, parts: Sequence[BaseDistribution], weights: Sequence[float]) -> None:
        if len(parts) != len(weights) or not parts or min(weights) <= 0:
            raise InputError("a mixture of starts needs one weight > 0 for each of its parts")
        self.parts = list(parts)
        self.weights = [w / sum(weights) for w in weights]

    def state_dict(self) -> dict[str, Any]:
        """The states of the parts and their weights."""
        parts = [part.state_dict() for part in self.parts]
        return {"kind": self.kind, "parts": parts, "weights": self.weights}

    def sample(
        self, count: int, labels: Tensor | None = None, *, generator: torch.Generator
    ) -> Tensor:
        """Draw (count, *shape): every part draws for all chains, and one is kept for each."""
        weights = torch.tensor(self.weights, device=generator.device)
        choice = torch.multinomial(weights, count, replacement=True, generator=generator)
        draws = [part.sample(count, labels, generator=generator) for part in self.parts]
        x = draws[0]
        for index, draw in enumerate(draws[1:], start=1):
            x = torch.where(per_row(choice == index, x), draw, x)
        return x

    def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Log-density of the mixture, shape (B,), nats."""
        given = [
            part.log_prob(x, labels) + math.log(weight)
            for part, weight in zip(self.parts, self.weights, strict=True)
        ]
        return torch.logsumexp(torch.stack(given), dim=0)


def base_from_state(state: dict[str, Any]) -> BaseDistribution:
    """Make a start again from its `state_dict`.

    Args:
        state: What `state_dict` of a start returned.

    Returns:
        An equal start.
    """
    arguments = {key: value for key, value in state.items() if key != "kind"}
    if state["kind"] == "mixture":
        return MixtureBase([base_from_state(s) for s in state["parts"]], state["weights"])
    if state["kind"] == "gaussian":
        return GaussianBase(**arguments)
    if state["kind"] == "contrast":
        return ContrastBase(shape=state["low"].shape, **arguments)
    if state["kind"] == "uniform":
        return UniformBase(shape=state["low"].shape, **arguments)
    if state["kind"] == "smooth":
        return SmoothNoiseBase(**arguments)
    raise InputError(f"unknown kind of start {state['kind']!r}")
