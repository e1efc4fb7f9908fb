"""Base distributions, which chains begin from, and the sampler's settings that a model keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from jem.checks import check_choice, refuse
from jem.sampling.langevin import Bounds, LangevinStep, clip_to_bounds, per_row
from jem.sampling.moments import low_rank_moments


class BaseDistribution(nn.Module):
    """A distribution over inputs that chains can begin from.

    It is a module with buffers and no parameters. Draws lie on the generator's device; `to` puts
    the buffers there once, which saves copying them in each draw.

    Attributes:
        kind: Its name in saved settings.
        arguments: Names of the constructor's arguments, all of them attributes too.
    """

    kind: ClassVar[str]
    arguments: ClassVar[tuple[str, ...]]

    def sample(self, count: int, labels: Tensor | None = None, *, generator: Generator) -> Tensor:
        """Draw points, shape (count, *shape), on the generator's device.

        Args:
            count: How many.
            labels: The class of each point, shape (count,); distributions that know no classes
                ignore it. None draws classes at their frequencies.
            generator: Source of all randomness.
        """
        raise NotImplementedError  # every distribution below has its own

    def complete(
        self,
        x: Tensor,
        known: Tensor,
        labels: Tensor | None = None,
        *,
        generator: Generator,
    ) -> Tensor:
        """Keep what is known of each input, and draw the rest.

        Args:
            x: Inputs, shape (B, *shape). Values in unknown places are ignored.
            known: Booleans, shape of `x`.
            labels: Classes, shape (B,), or None.
            generator: Source of all randomness, on the device of `x`.

        Returns:
            Shape, dtype and device of `x`.
        """
        return torch.where(known, x, self.sample(len(x), labels, generator=generator).to(x))

    def state(self) -> dict[str, Any]:
        """Tensors and plain values from which `base_from_state` makes an equal distribution."""
        return {"kind": self.kind, **{name: getattr(self, name) for name in self.arguments}}


class UniformBase(BaseDistribution):
    """Uniform noise in the box of the domain.

    Args:
        low: Lower bound, a number or a tensor that broadcasts to `shape`.
        high: Upper bound, likewise.
        shape: Shape of one input; that of the bounds if left out.
    """

    kind = "uniform"
    arguments = ("low", "high")
    low: Tensor
    high: Tensor

    def __init__(
        self, low: Tensor | float, high: Tensor | float, shape: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        for name, bound in (("low", low), ("high", high)):
            bound = torch.as_tensor(bound, dtype=torch.float32)
            expanded = bound if shape is None else bound.expand(tuple(shape))
            self.register_buffer(name, expanded.clone())
        if not bool((self.low < self.high).all()):
            refuse("low", "lie below `high` in every component", f"{low} and {high}")

    def sample(self, count: int, labels: Tensor | None = None, *, generator: Generator) -> Tensor:
        """Draw (count, *shape); see `BaseDistribution.sample`."""
        noise, low, high = self._noise(count, generator)
        return low + (noise + 1) / 2 * (high - low)

    def _noise(self, count: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Uniform noise in [-1, 1], shape (count, *shape), and both bounds beside it."""
        noise = torch.empty(count, *self.low.shape, device=generator.device)
        noise.uniform_(-1.0, 1.0, generator=generator)
        return noise, self.low.to(noise), self.high.to(noise)


class ContrastBase(UniformBase):
    r"""Uniform noise whose contrast is itself random: from nearly flat to full.

    .. math:: x = m + s\,h\,u, \qquad s \sim U(0.05, 1), \; u_i \sim U(-1, 1)

    with m the middle and h half the width of the box; all components of one input share s. The
    arguments are those of `UniformBase`.
    """

    kind = "contrast"
    min_contrast = 0.05

    def sample(self, count: int, labels: Tensor | None = None, *, generator: Generator) -> Tensor:
        """Draw (count, *shape); see `BaseDistribution.sample`."""
        noise, low, high = self._noise(count, generator)
        contrast = torch.empty(count, device=noise.device)
        contrast.uniform_(self.min_contrast, 1.0, generator=generator)
        return (low + high) / 2 + per_row(contrast, noise) * noise * (high - low) / 2


class GaussianBase(BaseDistribution):
    r"""One Gaussian for each class, of low rank plus a diagonal (the initialisation of JEM++).

    .. math:: x \mid y \sim N(\mu_y, W_y W_y^\top + \mathrm{diag}(d_y))

    A full covariance would take 3.8 GB for CIFAR-100 and is rank-deficient there. Samples are
    clipped to the bounds.

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
    arguments = ("means", "factors", "variances", "frequencies", "bounds")
    means: Tensor
    factors: Tensor
    variances: Tensor
    frequencies: Tensor
    low: Tensor | None
    high: Tensor | None

    def __init__(
        self,
        means: Tensor,
        factors: Tensor,
        variances: Tensor,
        frequencies: Tensor,
        bounds: Bounds | None = None,
    ) -> None:
        super().__init__()
        moments = (means, factors, variances, frequencies)
        for name, moment in zip(self.arguments, moments, strict=False):
            self.register_buffer(name, moment)
        low, high = (None, None) if bounds is None else map(torch.as_tensor, bounds)
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    @property
    def bounds(self) -> tuple[Tensor, Tensor] | None:
        """What samples are clipped to, or None."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    @classmethod
    def fit(
        cls,
        x: Tensor,
        labels: Tensor,
        num_classes: int,
        *,
        rank: int = 16,
        bounds: Bounds | None = None,
    ) -> GaussianBase:
        """Estimate the Gaussians from training data.

        Args:
            x: Training inputs, shape (N, *shape).
            labels: Class indices, shape (N,).
            num_classes: K; a class with fewer than two examples gets the moments of all data.
            rank: Directions of largest variance kept for each class; 0 keeps the diagonal alone.
            bounds: (low, high) that samples are clipped to, or None.

        Returns:
            The fitted distribution, on the CPU.
        """
        flat, labels = x.detach().flatten(1).cpu().float(), labels.cpu()
        counts = torch.bincount(labels, minlength=num_classes).float()
        moments = []
        for k in range(num_classes):
            rows = flat[labels == k]
            moments.append(low_rank_moments(rows if len(rows) > 1 else flat, rank))
        means, factors, variances = (torch.stack(part) for part in zip(*moments, strict=True))
        means = means.reshape(num_classes, *x.shape[1:])
        return cls(means, factors, variances, counts / counts.sum(), bounds)

    def sample(self, count: int, labels: Tensor | None = None, *, generator: Generator) -> Tensor:
        """Draw (count, *shape); see `BaseDistribution.sample`."""
        device = generator.device
        if labels is None:
            weights = self.frequencies.to(device)
            labels = torch.multinomial(weights, count, replacement=True, generator=generator)
        dim, rank = self.factors.shape[1:]
        z = torch.empty(count, rank, device=device).normal_(generator=generator)
        noise = torch.empty(count, dim, device=device).normal_(generator=generator)
        flat = noise * self.variances.to(device)[labels].sqrt()
        # One small product for each class: W of each chain at once could fill the memory.
        if device.type == "cpu":
            for k in labels.unique().tolist():
                rows = labels == k
                flat[rows] += z[rows] @ self.factors[k].T
        else:  # to select rows, an accelerator would have to wait for the labels
            for k, factor in enumerate(self.factors.to(device)):
                flat += (z * (labels == k)[:, None]) @ factor.T
        means = self.means.to(device)[labels]
        return clip_to_bounds(means + flat.view_as(means), self.bounds)

    def complete(
        self,
        x: Tensor,
        known: Tensor,
        labels: Tensor | None = None,
        *,
        generator: Generator,
    ) -> Tensor:
        r"""Keep what is known of each input, and draw the rest given it.

        With K the known and U the unknown components, S = (I + W_K^T diag(d_K)^{-1} W_K)^{-1},

        .. math:: z \mid x_K \sim N\big(S W_K^\top \mathrm{diag}(d_K)^{-1} (x_K - \mu_K),\; S\big),
                  \qquad x_U = \mu_U + W_U z + \sqrt{d_U}\, \epsilon

        Without labels the class is drawn first, also given what is known. All is computed in
        double precision on the CPU. See `BaseDistribution.complete` for the arguments.
        """
        keep = known.flatten(1).cpu()
        flat = x.flatten(1).cpu().double().masked_fill(~keep, 0.0)

        def normal(*size: int) -> Tensor:
            drawn = torch.empty(size, device=generator.device).normal_(generator=generator)
            return drawn.cpu().double()

        if labels is None:
            every = torch.arange(len(self.means))
            evidence = [self._latent(flat, keep, k.expand(len(x)))[2] for k in every]
            log_weights = torch.stack(evidence, dim=1) + self.frequencies.cpu().double().log()
            weights = log_weights.softmax(dim=1).float().to(generator.device)
            labels = torch.multinomial(weights, 1, generator=generator).squeeze(1)
        labels = labels.cpu()
        mean, root, _ = self._latent(flat, keep, labels)
        z = normal(*mean.shape)[:, :, None]
        z = mean + torch.linalg.solve_triangular(root.mT, z, upper=True).squeeze(2)
        drawn = torch.einsum("bdr,br->bd", self.factors.cpu().double()[labels], z)
        drawn = drawn + normal(*flat.shape) * self.variances.cpu().double()[labels].sqrt()
        drawn = drawn.view(x.shape) + self.means.cpu().double()[labels]
        return torch.where(known, x, clip_to_bounds(drawn.to(x), self.bounds))

    def _latent(
        self, flat: Tensor, known: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What known components say of the latent z of each row, given its class.

        Returns:
            Mean (B, R), Cholesky factor (B, R, R) of the precision, and the log-density of the
            known components up to a constant, (B,).
        """
        factor, variance = (m.cpu().double()[labels] for m in (self.factors, self.variances))
        weight = known / variance
        residual = (flat - self.means.flatten(1).cpu()[labels]) * known
        precision = (factor * weight[:, :, None]).mT @ factor
        root = torch.linalg.cholesky(precision + torch.eye(factor.shape[2], dtype=factor.dtype))
        pull = torch.einsum("bd,bdr->br", residual * weight, factor)
        mean = torch.cholesky_solve(pull[:, :, None], root).squeeze(2)
        quadratic = (residual.square() * weight).sum(dim=1) - (pull * mean).sum(dim=1)
        log_det = 2 * root.diagonal(dim1=1, dim2=2).log().sum(dim=1)
        log_det = log_det + torch.where(known, variance.log(), 0.0).sum(dim=1)
        return mean, root, -0.5 * (quadratic + log_det)


class MixtureBase(BaseDistribution):
    """A mixture: each chain begins from one of several distributions, each as likely.

    Args:
        parts: The distributions, one at least.
    """

    kind = "mixture"

    def __init__(self, parts: Sequence[BaseDistribution]) -> None:
        super().__init__()
        self.parts: Sequence[BaseDistribution] = nn.ModuleList(parts)  # type: ignore[assignment]

    def state(self) -> dict[str, Any]:
        """The states of the parts."""
        return {"kind": self.kind, "parts": [part.state() for part in self.parts]}

    def sample(self, count: int, labels: Tensor | None = None, *, generator: Generator) -> Tensor:
        """Draw (count, *shape): every part draws for all chains, and one is kept for each."""
        weights = torch.full((len(self.parts),), 1 / len(self.parts), device=generator.device)
        choice = torch.multinomial(weights, count, replacement=True, generator=generator)
        draws = [part.sample(count, labels, generator=generator) for part in self.parts]
        x = draws[0]
        for index, draw in enumerate(draws[1:], start=1):
            x = torch.where(per_row(choice == index, x), draw, x)
        return x


KINDS: dict[str, type[BaseDistribution]] = {
    base.kind: base for base in (UniformBase, ContrastBase, GaussianBase, MixtureBase)
}
"""Base distributions by their names in saved settings."""


def base_from_state(state: dict[str, Any]) -> BaseDistribution:
    """Make a base distribution again from what its `state` returned.

    Raises:
        InputError: If the kind is unknown.
    """
    check_choice("kind", state["kind"], KINDS)
    arguments = {name: value for name, value in state.items() if name != "kind"}
    if "parts" in arguments:  # of a mixture
        arguments["parts"] = [base_from_state(part) for part in arguments["parts"]]
    return KINDS[state["kind"]](**arguments)


@dataclass(frozen=True)
class SamplerSettings:
    """How chains of a trained model begin and move.

    Attributes:
        init: What fresh chains are drawn from.
        num_steps: Langevin steps of a fresh chain.
        step: The Langevin step.
        class_frequencies: Probabilities of the K classes in the training data, shape (K,).
        trained_on_outliers: Whether training contrasted the data with made-up outliers, too.
        trained_on_noise: Whether chains of training began at noise; None where they began at
            `init`.

    Example:
        >>> import torch
        >>> from jem.sampling import UniformBase
        >>> settings = SamplerSettings(
        ...     init=UniformBase(-1.0, 1.0, (2,)),
        ...     num_steps=20,
        ...     step=LangevinStep(step_size=1.0, noise_std=0.01),
        ...     class_frequencies=torch.tensor([0.5, 0.5]),
        ... )
        >>> round(settings.step.temperature, 7)
        5e-05
    """

    init: BaseDistribution
    num_steps: int
    step: LangevinStep
    class_frequencies: Tensor
    trained_on_outliers: bool = False
    trained_on_noise: bool | None = None

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return values | {"init": self.init.state(), "step": asdict(self.step)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> SamplerSettings:
        """Make settings again from `state_dict`."""
        init, step = base_from_state(state["init"]), LangevinStep(**state["step"])
        return cls(**{**state, "init": init, "step": step})
