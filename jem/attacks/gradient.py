"""Attacks by gradient: projected gradient ascent, with steps of fixed and of adapted length."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from jem.attacks.threat import (
    Ball,
    Found,
    LogitsFunction,
    Loss,
    Norm,
    attack_loss,
    check_attack,
)
from jem.checks import check_integer, check_number
from jem.sampling.langevin import Bounds, clip_to_bounds, per_row

MOMENTUM = 0.75
"""Share of the new step of `apgd`; the rest is the last move."""
RISING = 0.75
"""Share of steps that must raise the loss, or `apgd` halves its step."""


def pgd(
    logits_fn: LogitsFunction,
    x: Tensor,
    y: Tensor,
    *,
    norm: Norm = "linf",
    eps: float,
    num_steps: int = 40,
    step_size: float | None = None,
    restarts: int = 1,
    loss: Loss = "cross_entropy",
    bounds: Bounds | None = None,
    stop_when_fooled: bool = True,
    generator: torch.Generator,
) -> Tensor:
    r"""Look for inputs near `x` that get another class: projected gradient ascent (PGD).

    .. math:: x' \leftarrow \Pi\big(x' + \alpha\, d(\nabla_{x'} L(x', y))\big)

    where d is the sign for "linf" and the gradient over its length for "l2", and the projection
    keeps x' within eps of x and in the bounds. Each restart begins at a random point of the
    ball. For an input that is never fooled, the point of the largest margin is returned. What is
    found is a *lower* bound of what
    an attacker can do: an input that survives may fall to another attack.

    Args:
        logits_fn: Maps (B, *shape) to logits (B, K), K >= 2, row by row, such as `model.logits`
            of a model in evaluation mode. It need not be a `JEM`.
        x: Inputs, shape (B, *shape), all attacked at once.
        y: Right classes, shape (B,).
        norm: "linf" bounds the change of each component, "l2" the Euclidean length of the change.
        eps: Largest change, in the units of `x`. For images in [-1, 1] it is twice the number
            that the literature gives for [0, 1]: 8/255 there is 16/255 here.
        num_steps: Steps of each restart.
        step_size: alpha, in the units of `x`; None takes 2.5 eps / num_steps.
        restarts: Random starts.
        loss: "cross_entropy", "dlr" (the margin over the spread of the logits), or "targeted_dlr",
            where each restart aims at another wrong class, the likeliest first.
        bounds: (low, high), numbers or tensors that broadcast to one input, such as
            `model.bounds()`; None for no bounds. Where `x` lies outside they are widened to it.
        stop_when_fooled: An input that is fooled is done, and one that is misclassified already is
            returned as it is. False goes on to the largest margin: inputs that are sure to be
            wrong also fool other models more often.
        generator: Source of the random starts, on the device of `x`.

    Returns:
        Attacked inputs, shape, dtype and device of `x`, at most eps (and rounding) from `x`.

    Raises:
        InputError: If an argument does not fit, or `logits_fn` gives NaN or has no gradient.

    References:
        Madry et al. (2018), arXiv:1706.06083. Carlini et al. (2019), arXiv:1902.06705, on what
        to check before an attack is believed.

    Example:
        >>> linear = lambda x: torch.stack([x.sum(dim=1), -x.sum(dim=1)], dim=1)
        >>> x, y = torch.tensor([[0.1, 0.1], [0.5, 0.5]]), torch.tensor([0, 0])
        >>> generator = torch.Generator().manual_seed(0)
        >>> attacked = pgd(linear, x, y, eps=0.2, generator=generator)
        >>> linear(attacked).argmax(dim=1)  # 0.1 + 0.1 can be made negative, 0.5 + 0.5 cannot
        tensor([1, 0])
    """
    check_attack(x, norm, eps, loss)
    check_integer("num_steps", num_steps, 1)
    check_integer("restarts", restarts, 1)
    check_number("step_size", step_size, "(0, inf)", optional=True)
    step_size = 2.5 * eps / num_steps if step_size is None else step_size
    whole = Ball.around(x.detach(), eps, norm, bounds)
    found = Found(logits_fn, y, whole, stop_when_fooled)
    for restart in range(restarts):
        rows, ball = found.rows, whole.rows(found.rows)
        z = ball.random(generator)
        for step in range(num_steps + 1):
            if not len(rows):
                break
            _, grad, kept = found.gradient(rows, z, loss, restart)
            rows, z, grad, ball = rows[kept], z[kept], grad[kept], ball.rows(kept)
            if step < num_steps:
                z = ball.project(z + step_size * ball.uphill(z, grad))
    return found.x


def apgd(
    logits_fn: LogitsFunction,
    x: Tensor,
    y: Tensor,
    *,
    norm: Norm = "linf",
    eps: float,
    num_steps: int = 100,
    restarts: int = 1,
    loss: Loss = "dlr",
    bounds: Bounds | None = None,
    generator: torch.Generator,
) -> Tensor:
    r"""Attack with steps of adapted length: Auto-PGD.

    Steps begin at 2 eps, with momentum. At checkpoints, the step of an input is halved, and the
    search goes on from its best point, if fewer than 75 % of the steps raised the loss, or if
    neither its step nor its best loss has changed since the last checkpoint.

    Args:
        logits_fn: As in `pgd`.
        x: Inputs, shape (B, *shape).
        y: Right classes, shape (B,).
        norm: "linf" or "l2".
        eps: Largest change, in the units of `x`: see `pgd`.
        num_steps: Steps of each restart.
        restarts: Random starts; with "targeted_dlr" K - 1 of them aim at each wrong class once.
        loss: As in `pgd`.
        bounds: As in `pgd`.
        generator: Source of the random starts, on the device of `x`.

    Returns:
        Attacked inputs, as `pgd` returns them.

    Raises:
        InputError: As in `pgd`.

    References:
        Croce and Hein (2020), arXiv:2003.01690, algorithm 1.
    """
    check_attack(x, norm, eps, loss)
    check_integer("num_steps", num_steps, 1)
    check_integer("restarts", restarts, 1)
    whole = Ball.around(x.detach(), eps, norm, bounds)
    found = Found(logits_fn, y, whole)
    checkpoints = _checkpoints(num_steps)
    for restart in range(restarts):
        if not len(found.rows):
            break
        _climb(found, whole, loss, restart, checkpoints, num_steps, generator)
    return found.x


def n_fgsm(
    logits_fn: LogitsFunction,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    bounds: Bounds | None = None,
    generator: torch.Generator,
) -> Tensor:
    r"""Attack with one step, for training: the fast gradient sign method on noisy inputs (N-FGSM).

    .. math:: x' = \mathrm{clip}\big(z + \epsilon\,\mathrm{sign}\,\nabla_z L(z, y)\big), \qquad
              z = x + U(-2\epsilon, 2\epsilon)

    The change is not brought back to eps: it may be three times as large. So this is no attack to
    measure with; take `pgd`. A network that learns from these inputs withstands changes of eps,
    for one forward and backward pass more in each update.

    Args:
        logits_fn: As in `pgd`.
        x: Inputs, shape (B, *shape).
        y: Right classes, shape (B,).
        eps: Size of the change to withstand, in the units of `x`, as in `pgd` for "linf".
        bounds: As in `pgd`.
        generator: Source of the noise, on the device of `x`.

    Returns:
        Attacked inputs, shape of `x`, detached.

    References:
        De Jorge et al. (2022), arXiv:2202.01181. Wong et al. (2020), arXiv:2001.03994.
    """
    z = x.detach() + torch.empty_like(x).uniform_(-2 * eps, 2 * eps, generator=generator)
    with torch.inference_mode(False), torch.enable_grad():
        leaf = z.clone().requires_grad_()
        loss = attack_loss(logits_fn(leaf), y, "cross_entropy", y)
        (grad,) = torch.autograd.grad(loss.sum(), leaf)
    return clip_to_bounds(z + eps * grad.sign(), bounds).detach()


class _Climb(NamedTuple):
    """Where one restart of `apgd` stands, a row an input."""

    rows: Tensor  # (R,) indices of the inputs
    z: Tensor  # (R, *shape)
    last: Tensor  # the point before it
    grad: Tensor  # at z
    loss: Tensor  # (R,) at z
    best: Tensor  # the point of the largest loss
    best_grad: Tensor
    best_loss: Tensor  # (R,)
    step: Tensor  # (R,)
    rises: Tensor  # (R,) steps since the checkpoint that raised the loss
    checked_loss: Tensor  # (R,) the largest loss at the checkpoint
    halved: Tensor  # (R,) whether the step was halved there

    def at(self, kept: Tensor) -> "_Climb":
        return _Climb(*(part[kept] for part in self))


def _climb(
    found: Found,
    whole: Ball,
    loss: Loss,
    restart: int,
    checkpoints: list[int],
    num_steps: int,
    generator: torch.Generator,
) -> None:
    rows = found.rows
    ball = whole.rows(rows)
    z = ball.random(generator)
    value, grad, kept = found.gradient(rows, z, loss, restart)
    zero = torch.zeros_like(value)
    at = _Climb(
        rows, z, z, grad, value, z, grad, value, zero + 2 * ball.eps, zero, value, zero.bool()
    ).at(kept)
    ball, checked = ball.rows(kept), 0
    for done in range(1, num_steps + 1):
        if not len(at.rows):
            return
        moved = ball.project(at.z + per_row(at.step, at.z) * ball.uphill(at.z, at.grad))
        if done > 1:
            moved = at.z + MOMENTUM * (moved - at.z) + (1 - MOMENTUM) * (at.z - at.last)
            moved = ball.project(moved)
        value, grad, kept = found.gradient(at.rows, moved, loss, restart)
        better = value > at.best_loss
        at = at._replace(
            z=moved,
            last=at.z,
            grad=grad,
            loss=value,
            best=torch.where(per_row(better, moved), moved, at.best),
            best_grad=torch.where(per_row(better, moved), grad, at.best_grad),
            best_loss=value.maximum(at.best_loss),
            rises=at.rises + (value > at.loss),
        ).at(kept)
        ball = ball.rows(kept)
        if done in checkpoints:
            at, checked = _checked(at, done - checked), done


def _checked(at: _Climb, steps: int) -> _Climb:
    """Halve steps that lead nowhere, and put these rows back to their best point."""
    stuck = ~at.halved & (at.best_loss <= at.checked_loss)
    halved = (at.rises < RISING * steps) | stuck
    back = per_row(halved, at.z)
    return at._replace(
        z=torch.where(back, at.best, at.z),
        grad=torch.where(back, at.best_grad, at.grad),
        loss=torch.where(halved, at.best_loss, at.loss),
        step=torch.where(halved, at.step / 2, at.step),
        rises=torch.zeros_like(at.rises),
        checked_loss=at.best_loss,
        halved=halved,
    )


def _checkpoints(num_steps: int) -> list[int]:
    """Numbers of steps after which steps are judged: closer and closer, from 22 % on."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return [math.ceil(share * num_steps) for share in shares[1:]]
