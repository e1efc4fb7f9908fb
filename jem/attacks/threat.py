"""What an attacker may do, what is maximised, and what has been found so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from jem.checks import (
    check_choice,
    check_finite,
    check_inputs,
    check_labels,
    check_number,
    refuse,
)
from jem.sampling.langevin import Bounds, per_row

LogitsFunction = Callable[[Tensor], Tensor]
Norm = Literal["linf", "l2"]
Loss = Literal["cross_entropy", "dlr", "targeted_dlr"]

LOSSES = ("cross_entropy", "dlr", "targeted_dlr")


@dataclass(frozen=True)
class Ball:
    """The inputs that an attacker may show in place of each of B inputs.

    Attributes:
        x: Inputs, shape (B, *shape).
        eps: Largest distance from them.
        norm: Of the distance: the largest change of a component, or the Euclidean length.
        low: Smallest value of each component, (B, *shape).
        high: Largest value of each component.
    """

    x: Tensor
    eps: float
    norm: Norm
    low: Tensor
    high: Tensor

    @classmethod
    def around(cls, x: Tensor, eps: float, norm: Norm, bounds: Bounds | None) -> Ball:
        """The ball within bounds; these are widened where `x` itself lies outside."""
        reach = eps if norm == "linf" else torch.inf
        low, high = x - reach, x + reach
        if bounds is not None:
            lower, upper = (torch.as_tensor(bound).to(x) for bound in bounds)
            low, high = torch.minimum(low.maximum(lower), x), torch.maximum(high.minimum(upper), x)
        return cls(x, eps, norm, low, high)

    def rows(self, kept: Tensor) -> Ball:
        """The part of some rows: indices, or a mask."""
        return replace(self, x=self.x[kept], low=self.low[kept], high=self.high[kept])

    def project(self, z: Tensor) -> Tensor:
        """Bring points (B, *shape) into the ball: shorten the change, then clip to the bounds."""
        if self.norm == "l2":
            change = z - self.x
            z = self.x + change * (self.eps / _length(change)).clamp_max(1.0)
        return z.clamp(self.low, self.high)

    def random(self, generator: torch.Generator) -> Tensor:
        """Random points (B, *shape): uniform in the ball, or at a uniform distance for "l2"."""
        if self.norm == "linf":
            share = torch.empty_like(self.x).uniform_(generator=generator)
            return self.low + share * (self.high - self.low)
        change = torch.empty_like(self.x).normal_(generator=generator)
        length = _length(change)
        far = torch.empty_like(length).uniform_(generator=generator)
        return self.project(self.x + self.eps * far * change / length)

    def uphill(self, z: Tensor, grad: Tensor) -> Tensor:
        """The step of length 1 that raises a function of this gradient most, inside the bounds."""
        if self.norm == "linf":
            return grad.sign()
        blocked = ((z <= self.low) & (grad < 0)) | ((z >= self.high) & (grad > 0))
        grad = grad.masked_fill(blocked, 0.0)
        return grad / _length(grad)


class Found:
    """The best point found for each input, and which inputs still get their class.

    A function that gives no logits of two classes or more, or NaN, is refused here.

    Args:
        logits_fn: Maps (B, *shape) to logits (B, K).
        y: Classes, shape (B,).
        ball: Around the inputs.
        stop_when_fooled: Whether an input that is fooled is done.

    Attributes:
        x: The point of the largest margin for each input, (B, *shape).
        rows: Indices of the inputs that are not done.
    """

    def __init__(
        self, logits_fn: LogitsFunction, y: Tensor, ball: Ball, stop_when_fooled: bool = True
    ) -> None:
        self.logits_fn, self.x, self.stop_when_fooled = logits_fn, ball.x.clone(), stop_when_fooled
        with torch.inference_mode(False), torch.no_grad():
            self.logits = logits_fn(self.x.clone())
        if self.logits.ndim != 2 or self.logits.shape[1] < 2:
            refuse("logits_fn", "return logits (B, K), K >= 2", tuple(self.logits.shape))
        check_finite("logits", self.logits)
        check_labels("y", y, len(self.x), self.logits.shape[1])
        self.y = y.to(self.x.device).long()
        self.lead = torch.full_like(self.logits[:, 0], -torch.inf)
        self.rows = torch.arange(len(self.x), device=self.x.device)
        self.rows = self.rows[self.look(self.rows, self.x, self.logits)[1]]

    def look(self, rows: Tensor, z: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Keep points that are better than those before them.

        Args:
            rows: Indices of the inputs that they stand for, shape (R,).
            z: Points (R, *shape).
            logits: Theirs.

        Returns:
            Their margins, and whether the search goes on from them.
        """
        lead = margin(logits, self.y[rows])
        better = lead > self.lead[rows]
        self.lead[rows[better]] = lead[better]
        self.x[rows[better]] = z[better]
        if not self.stop_when_fooled:
            return lead, torch.ones_like(better)
        fooled = logits.argmax(dim=1) != self.y[rows]
        if bool(fooled.any()):
            self.rows = self.rows[~torch.isin(self.rows, rows[fooled])]
        return lead, ~fooled

    def gradient(
        self, rows: Tensor, z: Tensor, loss: Loss, restart: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Look at points, and take the gradient of a loss there.

        Returns:
            Losses (R,), gradients (R, *shape), and whether the search goes on from the points.
        """
        with torch.inference_mode(False), torch.enable_grad():
            leaf = z.clone().requires_grad_()
            logits = self.logits_fn(leaf)
            if not logits.requires_grad:
                refuse("logits_fn", "have gradients", "none", "`jem.attacks.square` needs none")
            values = attack_loss(logits, self.y[rows], loss, self._targets(rows, restart))
            (grad,) = torch.autograd.grad(values.sum(), leaf)
        kept = self.look(rows, z, logits.detach())[1]
        return values.detach(), grad, kept

    def _targets(self, rows: Tensor, restart: int) -> Tensor:
        """The wrong class that is the next most likely at the input, by restart."""
        logits, y = self.logits[rows], self.y[rows]
        order = _others(logits, y).argsort(dim=1, descending=True, stable=True)
        return order[:, restart % (logits.shape[1] - 1)]


def check_attack(x: Tensor, norm: str, eps: float, loss: str = LOSSES[0]) -> None:
    """Check what all attacks take.

    Raises:
        InputError: If inputs are no finite batch of floats, or a setting is out of range.
    """
    check_inputs("x", x)
    check_finite("x", x)
    check_choice("norm", norm, ("linf", "l2"))
    check_number("eps", eps, "(0, inf)")
    check_choice("loss", loss, LOSSES)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Logit of the best wrong class minus that of the right one, (B,): above 0 it is fooled."""
    lead: Tensor = _others(logits, y).amax(dim=1) - _own(logits, y)
    return lead


def attack_loss(logits: Tensor, y: Tensor, loss: Loss, targets: Tensor) -> Tensor:
    r"""What an attack maximises, a value for each input.

    With z the logits, sorted as z_(1) >= z_(2) >= ..., and t a target class:

    - "cross_entropy": :math:`\log \sum_{k \ne y} e^{z_k} - z_y`, the log-odds against the class.
      The cross-entropy is log(1 + exp) of it: it has the same maxima, and gradients of the same
      direction, but where it saturates its gradients round to zero and those of the log-odds do
      not. Attacks use directions alone.
    - "dlr": :math:`(\max_{k \ne y} z_k - z_y) / (z_{(1)} - z_{(3)})`, the margin, in a form that
      does not depend on the scale of the logits; with two classes the margin itself.
    - "targeted_dlr": :math:`(z_t - z_y) / (z_{(1)} - (z_{(3)} + z_{(4)}) / 2)`; with two or three
      classes the difference alone.

    Args:
        logits: Shape (B, K), K >= 2.
        y: Right classes, shape (B,).
        loss: Name.
        targets: t, shape (B,).

    References:
        Croce and Hein (2020), arXiv:2003.01690, equations 4 and 5.
    """
    if loss == "cross_entropy":
        return _others(logits, y).logsumexp(dim=1) - _own(logits, y)
    top = logits.topk(min(4, logits.shape[1]), dim=1).values
    if loss == "dlr":
        lead = margin(logits, y)
        return lead if top.shape[1] < 3 else lead / (top[:, 0] - top[:, 2] + 1e-12)
    lead = _own(logits, targets) - _own(logits, y)
    return lead if top.shape[1] < 4 else lead / (top[:, 0] - top[:, 2:].mean(dim=1) + 1e-12)


def _own(logits: Tensor, y: Tensor) -> Tensor:
    return logits.gather(1, y[:, None])[:, 0]


def _others(logits: Tensor, y: Tensor) -> Tensor:
    """Logits, that of the right class as minus infinity."""
    return logits.masked_fill(one_hot(y, logits.shape[1]).bool(), -torch.inf)


def _length(x: Tensor) -> Tensor:
    """Euclidean length of each row, at least 1e-12, in a shape that broadcasts against it."""
    return per_row(torch.linalg.vector_norm(x.flatten(1), dim=1).clamp_min(1e-12), x)
