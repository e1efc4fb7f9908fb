"""An attack that asks for logits alone: random search over squares."""

import math

import torch
from torch import Tensor

from jem.attacks.threat import Ball, Found, LogitsFunction, Norm, check_attack
from jem.checks import check_integer
from jem.sampling.langevin import Bounds, per_row

FIRST_SHARE = 0.8
"""Share of the components that the first proposals change."""
HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Shares of the queries after which that is halved."""


def square(
    logits_fn: LogitsFunction,
    x: Tensor,
    y: Tensor,
    *,
    norm: Norm = "linf",
    eps: float,
    num_queries: int = 1000,
    bounds: Bounds | None = None,
    generator: torch.Generator,
) -> Tensor:
    """Attack by random search, without gradients.

    Each query changes a random square of each image by random signs (for inputs of another shape
    a random set of components), and the change stays if it raises the margin. Squares become
    smaller. It follows the Square attack; for "l2" the change is an addition that is brought back
    to length eps, which is simpler than theirs. Where it fools inputs that gradients do not, the
    gradients are no guide, and their robust accuracy is not to be believed.

    Args:
        logits_fn: Maps (B, *shape) to logits (B, K), K >= 2; needs no gradients.
        x: Inputs, shape (B, *shape).
        y: Right classes, shape (B,).
        norm: "linf" or "l2".
        eps: Largest change, in the units of `x`: see `jem.attacks.pgd`.
        num_queries: Calls of `logits_fn` for each input at most.
        bounds: As in `jem.attacks.pgd`.
        generator: Source of squares and signs, on the device of `x`.

    Returns:
        Attacked inputs, as `jem.attacks.pgd` returns them.

    Raises:
        InputError: If an argument does not fit, or `logits_fn` gives NaN.

    References:
        Andriushchenko et al. (2020), arXiv:1912.00049.
    """
    check_attack(x, norm, eps)
    check_integer("num_queries", num_queries, 1)
    ball = Ball.around(x.detach(), eps, norm, bounds)
    found = Found(logits_fn, y, ball)
    rows, ball = found.rows, ball.rows(found.rows)
    stripes = ball.x[:, :, :1] if x.ndim == 4 else ball.x
    z = _full_length(ball, ball.x + _signs(stripes, generator))
    lead = torch.full_like(found.lead[rows], -torch.inf)
    proposed = z
    for query in range(num_queries):
        if not len(rows):
            break
        with torch.inference_mode(False), torch.no_grad():
            logits = logits_fn(proposed.clone())
        margins, kept = found.look(rows, proposed, logits)
        better = margins > lead
        z = torch.where(per_row(better, z), proposed, z)
        rows, z, lead, ball = rows[kept], z[kept], margins.maximum(lead)[kept], ball.rows(kept)
        share = FIRST_SHARE / 2 ** sum((query + 1) / num_queries > at for at in HALVINGS)
        proposed = _full_length(ball, _propose(ball, z, share, generator))
    return found.x


def _propose(ball: Ball, z: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Change a share of the components of each row by random signs."""
    if z.ndim == 4:
        area, signs = _squares(z, share, generator), _signs(z[:, :, :1, :1], generator)
    else:
        area, signs = _components(z, share, generator), _signs(z, generator)
    if ball.norm == "linf":
        return torch.where(area, ball.x + ball.eps * signs, z)
    count = per_row(area.flatten(1).sum(dim=1).clamp_min(1).sqrt(), z)
    return z + area * signs * (ball.eps * math.sqrt(share) / count)


def _full_length(ball: Ball, z: Tensor) -> Tensor:
    """Bring points to the surface of the ball, then inside the bounds."""
    change = z - ball.x
    if ball.norm == "linf":
        return ball.project(ball.x + ball.eps * change.sign())
    return ball.project(ball.x + 1e6 * change)


def _squares(z: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A square of each image at a random place, as a mask (B, 1, H, W)."""
    height, width = z.shape[2:]
    side = max(1, round((share * height * width) ** 0.5))
    masks = []
    for size in (height, width):
        room = max(1, size - side + 1)
        start = torch.randint(room, (len(z), 1), generator=generator, device=z.device)
        place = torch.arange(size, device=z.device)
        masks.append((place >= start) & (place < start + side))
    return torch.logical_and(masks[0][:, None, :, None], masks[1][:, None, None, :])


def _components(z: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A random set of components of each row, at least one on average, as a mask."""
    share = max(share, 1 / z[0].numel())
    return torch.empty_like(z).uniform_(generator=generator) < share


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Random signs of the shape of a tensor."""
    return torch.empty_like(like).uniform_(-1, 1, generator=generator).sign()
