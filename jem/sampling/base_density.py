"""What a log-density holds by construction: Gaussians inside the domain, a tail outside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from jem.sampling.moments import tied_moments

SOFT = 0.01
"""Share of the domain's width, outside it, at which the tail turns from a parabola to a line."""
FLOOR = 0.01
"""Least variance of a component within classes, as a share of its variance in all data."""
LOWEST = -1e9
"""Least value of the tail: in double precision a softmax beside it still keeps nine digits."""


class BaseDensity(nn.Module):
    r"""The part of a model's log-density that is there before training and stays.

    .. math:: b(x) = T \log q(c) - \sum_j h\!\left(\frac{x_j - c_j}{s_j}\right), \qquad
              c = \mathrm{clip}(x, l, u), \quad s = 0.01\,(u - l)

    q is a mixture of Gaussians, one at the mean of each class, all with one covariance. log q is
    shifted so that its mean over the training data is 0.
    T is the temperature of the chains: chains that move on -b alone sample q. h is Huber's
    function, a^2/2 up to a = 1 and |a| - 1/2 from there.

    Args:
        low: Lower bound l of the domain, broadcastable to one row.
        high: Upper bound u, likewise.
        gaussians: T log q, or None to leave it out: `temperature`, `centre` (D,), `whitening`
            (D, D), whitened class means `means` (K, D), `log_weights` (K,), and `level`, the mean
            of log q; all in double precision.

    References:
        Lee et al. (2018), arXiv:1807.03888, for class Gaussians with one covariance.
    """

    low: Tensor
    high: Tensor
    temperature: Tensor
    centre: Tensor
    whitening: Tensor
    means: Tensor
    log_weights: Tensor
    level: Tensor

    def __init__(
        self, low: Tensor, high: Tensor, gaussians: dict[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        self.names = () if gaussians is None else tuple(gaussians)
        for name, value in {"low": low, "high": high, **(gaussians or {})}.items():
            self.register_buffer(name, value, persistent=False)

    @classmethod
    def fit(
        cls,
        x: Tensor,
        labels: Tensor,
        domain: tuple[Tensor, Tensor],
        *,
        noise_std: float,
        temperature: float,
    ) -> BaseDensity:
        """Estimate the Gaussians from training data.

        The covariance is that within classes, shrunk as Ledoit and Wolf say, with a floor: the
        chains' noise, and a hundredth of the variance of each component. Such Gaussians are no
        narrower than what chains resolve, so that a Langevin step on them is stable: its size
        times their curvature is at most 1/2.

        Args:
            x: Training rows, shape (N, D).
            labels: Class indices, shape (N,).
            domain: Bounds of the inputs.
            noise_std: sigma of the chains' steps, in data units.
            temperature: T of the chains; with 0 there are no Gaussians.
        """
        if not temperature:
            return cls(*domain)
        means, covariance = tied_moments(x, labels)
        covariance.diagonal().add_((FLOOR * x.double().var(dim=0)).clamp_min(noise_std**2))
        root = torch.linalg.cholesky(covariance)
        unit = torch.eye(len(root), dtype=root.dtype)
        whitening = torch.linalg.solve_triangular(root, unit, upper=False).T.contiguous()
        centre = means.mean(dim=0)
        counts = torch.unique(labels.cpu(), return_counts=True)[1]
        base = cls(
            *domain,
            {
                "temperature": torch.tensor(temperature, dtype=root.dtype),
                "centre": centre,
                "whitening": whitening,
                "means": (means - centre) @ whitening,
                "log_weights": (counts / counts.sum()).double().log(),
                "level": torch.zeros((), dtype=root.dtype),
            },
        )
        base.level = torch.cat([base._log_q(rows) for rows in x.cpu().split(4096)]).mean()
        return base

    def state(self) -> dict[str, Any]:
        """Tensors from which the constructor makes an equal base."""
        gaussians = {name: getattr(self, name) for name in self.names}
        return {"low": self.low, "high": self.high, "gaussians": gaussians or None}

    def added(self, x: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
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
            return wide + self._scaled(x.to(wide))[:, None]
        inside = x.clamp(self.low, self.high)
        added = self._scaled(inside.to(wide)) + self.tail(x, inside)
        outside = (x != inside).any(dim=1)
        if torch.compiler.is_compiling() or bool(outside.any()):  # a graph must not branch
            moved = network(inside.clone()).to(wide).logsumexp(dim=1) - wide.logsumexp(dim=1)
            added = added + torch.where(outside, moved, 0.0)
        return wide + added[:, None]

    def tail(self, x: Tensor, inside: Tensor) -> Tensor:
        """Minus what leaving the domain costs, shape (B,), nats: 0 for inputs inside."""
        ratio = ((x - inside) / (SOFT * (self.high - self.low))).abs()
        ratio = ratio.clamp_max(-LOWEST)  # so that no gradient is infinity times zero
        small = ratio.clamp_max(1.0)
        return -(small * (ratio - small / 2)).sum(dim=1).clamp_max(-LOWEST)

    def _scaled(self, x: Tensor) -> Tensor:
        """T log q of rows (B, D) in the wide precision, shape (B,)."""
        if not self.names:
            return x.new_zeros(len(x))
        return self.temperature.to(x) * self._log_q(x)

    def _log_q(self, x: Tensor) -> Tensor:
        """Log-density of the Gaussians, shape (B,), shifted; x (B, D) in the wide precision."""
        white, means = (x - self.centre.to(x)) @ self.whitening.to(x), self.means.to(x)
        squares = white.square().sum(dim=1, keepdim=True) + means.square().sum(dim=1)
        distances = squares - 2 * white @ means.T  # (B, K)
        log_q = torch.logsumexp(self.log_weights.to(x) - distances / 2, dim=1)
        return log_q - self.level.to(x)
