"""The nearest input that the model gives to another class and holds as likely as its data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from jem.errors import InputError
from jem.generation.chains import (
    BLOCK,
    Progress,
    blocks_of,
    checked_inputs,
    checked_labels,
    counted,
    padded,
    refuse_not_finite,
)
from jem.model import JEM, check_model, evaluation_mode, joint_energy
from jem.sampling.langevin import Bounds, clip_to_bounds, per_row

REACH_STEPS = 100
"""Corrections from an input until it may satisfy the conditions."""
CORRECTIONS = 5
"""Corrections after each pull towards the input."""
SMALLEST_PULL = 1e-4
"""Share of the way to the input below which a row has settled."""
OVERSHOOT = 1.05
"""A correction aims a little beyond the boundary, or it would only ever come near it."""
LEAD = 1e-3
"""Nats by which a class must win: what wins by less may lose to rounding."""
LARGEST_RMS = 0.2
"""Largest correction, as root mean square in data units: beyond, the linear picture is wrong."""


class Counterfactuals(NamedTuple):
    """Counterfactuals of B inputs; where `success` is False the rest is the nearest miss."""

    x: Tensor  # (B, *shape)
    distance: Tensor  # (B,) Euclidean distance from the input, in the network's units
    success: Tensor  # (B,) bool: of a class asked for, as likely as asked for, inside the domain
    labels: Tensor  # (B,) class that the model gives to it
    energy: Tensor  # (B,) E(x), nats
    max_energy: float  # what E(x) had to be at most


def counterfactual(
    model: JEM,
    x: Tensor,
    target: Tensor | Sequence[int] | int | np.integer[Any] | None = None,
    *,
    max_energy: float | None = None,
    reference: Tensor | None = None,
    quantile: float = 0.95,
    num_rounds: int = 60,
    progress: Progress | None = None,
) -> Counterfactuals:
    r"""Find the nearest input of another class that is as likely as data.

    .. math:: \min_{x'} \|x' - x\|_2 \quad \text{with} \quad
              \arg\max_y f(x')[y] = \mathrm{target}, \quad E(x') \le e, \quad
              x' \in \mathrm{domain}

    Both conditions are the model's own opinion: another classifier may well see the old class
    still. Without the second these would be adversarial examples. The search linearises both
    conditions and steps onto them until both hold, then by turns pulls towards the input and
    steps back: it ends at a *local* minimum, with a distance that is an upper bound. It begins at
    the input, and also at the nearest reference input that satisfies the conditions; the nearer
    end counts. Nothing is random.

    Args:
        model: Any model with two classes or more; no sampler settings are needed.
        x: Inputs, shape (B, *shape), floats in the network's units.
        target: Class index of each input, shape (B,), or one for all; None asks for any class but
            the one that the model gives to the input.
        max_energy: e in nats; None takes a quantile of the energies of `reference`.
        reference: Data that nothing was trained on, shape (M, *shape).
        quantile: Share of the reference that is at least as likely as e asks for, or more, in
            (0, 1].
        num_rounds: Pulls towards the input.
        progress: Called after each round with rounds done and rounds in all.

    Returns:
        Inputs, distances and whether the conditions hold, checked once more at the end.

    Raises:
        InputError: If neither `max_energy` nor `reference` is given, or an argument does not fit.

    References:
        Wachter, Mittelstadt and Russell (2018), arXiv:1711.00399, for counterfactuals. Croce and
        Hein (2020), arXiv:1907.02044, for stepping onto linearised boundaries.
    """
    check_model(model)
    x = checked_inputs(model, x)
    refuse_not_finite(x)
    if num_rounds < 0:
        raise InputError(f"`num_rounds` must be at least 0, but got {num_rounds}")
    with torch.inference_mode(False), torch.no_grad(), evaluation_mode(model):
        data = _reference(model, reference)
        most = _most_energy(data, max_energy, quantile)
        allowed = _allowed(model, x, target)
        starts = 1 if data is None else 2
        on_round = counted(num_rounds * starts * -(-len(x) // BLOCK), progress)
        parts = []
        for rows in blocks_of(len(x)):
            origin = padded(x, rows, model.device).float()
            goal = _Goal(model, origin, padded(allowed, rows, model.device), most, model.bounds())
            found = _search(goal, data, num_rounds, on_round)
            parts.append(found[: rows.stop - rows.start])
        return _checked_result(model, x, torch.cat(parts), allowed, most)


@dataclass(frozen=True)
class _Goal:
    """What a block of inputs looks for: conditions c(x) <= 0, near an origin, inside bounds."""

    model: JEM
    origin: Tensor  # (B, *shape)
    allowed: Tensor  # (B, K) bool: classes that would do
    max_energy: float
    bounds: Bounds | None

    def conditions(self, x: Tensor) -> Tensor:
        """Both conditions, shape (B, 2), nats: what a wrong class leads by, and energy."""
        logits = self.model.logits(x)
        lead = logits.masked_fill(self.allowed, -torch.inf).amax(dim=1)
        lead = lead - logits.masked_fill(~self.allowed, -torch.inf).amax(dim=1)
        slack = 1e-5 * max(1.0, abs(self.max_energy))
        excess = joint_energy(logits) - self.max_energy + slack
        return torch.stack([lead + LEAD, excess], dim=1)

    def holds(self, x: Tensor) -> Tensor:
        """Whether both conditions hold, shape (B,)."""
        return _hold(self.conditions(x))

    def distance(self, x: Tensor) -> Tensor:
        """Euclidean distance from the origin, shape (B,)."""
        length: Tensor = torch.linalg.vector_norm((x - self.origin).flatten(1), dim=1)
        return length

    def correct(self, x: Tensor, steps: int) -> Tensor:
        """Step onto the linearised boundaries of the conditions that do not hold, in bounds."""
        x = clip_to_bounds(x, self.bounds)
        for _ in range(steps):
            c, gradients = self._linearised(x)
            step = _least_step(c, gradients)
            if not bool(step.any()):  # all conditions hold, or no gradient leads to them
                break
            x = clip_to_bounds(x + step.view_as(x), self.bounds)
        return x

    def _linearised(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Conditions (B, 2) and gradients (B, 2, D), zero where the bounds are in the way."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            c = self.conditions(leaf)
            one = torch.autograd.grad(c[:, 0].sum(), leaf, retain_graph=True)[0]
            two = torch.autograd.grad(c[:, 1].sum(), leaf)[0]
        if self.bounds is not None:
            low, high = self.bounds
            stuck = [((x <= low) & (g > 0)) | ((x >= high) & (g < 0)) for g in (one, two)]
            one, two = (g.masked_fill(s, 0.0) for g, s in zip((one, two), stuck, strict=True))
        return c.detach(), torch.stack([one.flatten(1), two.flatten(1)], dim=1)


def _hold(c: Tensor) -> Tensor:
    return (c <= 0).all(dim=1)


def _least_step(c: Tensor, gradients: Tensor) -> Tensor:
    """The shortest step (B, D) after which no condition is violated, if they were linear."""
    norm = gradients.norm(dim=2).clamp_min(1e-12)
    directions = gradients / norm[:, :, None]
    # Floored, since a step of length 0 would not cross the boundary.
    far = OVERSHOOT * (c / norm).clamp(1e-6, 1e6)
    weights = _onto_boundaries(directions, far, c > 0)
    # A negative weight: the step onto the other boundary alone goes beyond this one.
    weights = _onto_boundaries(directions, far, (c > 0) & (weights >= 0))
    step = -(weights[:, :, None] * directions).sum(dim=1)
    rms = step.square().mean(dim=1, keepdim=True).sqrt()
    shortened: Tensor = step * (LARGEST_RMS / rms.clamp_min(1e-30)).clamp_max(1.0)
    return shortened


def _onto_boundaries(directions: Tensor, far: Tensor, active: Tensor) -> Tensor:
    """Weights (B, 2) of directions that go so far along each active one; 0 for the others."""
    directions, on = directions * active[:, :, None], active.to(far)
    gram = directions @ directions.transpose(1, 2)
    # Others have no equation; nearly parallel ones must not ask for a huge step.
    gram = gram + torch.diag_embed((1 - on) + 1e-4)
    solved: Tensor = torch.linalg.solve(gram, far * on)
    return solved


def _search(
    goal: _Goal,
    data: tuple[Tensor, Tensor] | None,
    rounds: int,
    on_round: Callable[[Tensor], Tensor],
) -> Tensor:
    """The nearest point found from any start, shape (B, *shape)."""
    ends = [_from(goal, goal.correct(goal.origin, REACH_STEPS), rounds, on_round)]
    if data is not None:
        ends.append(_from(goal, _nearest_example(goal, *data), rounds, on_round))
    best = ends[0]
    for end in ends[1:]:
        nearer = goal.distance(end) < goal.distance(best)
        better = goal.holds(end) & (nearer | ~goal.holds(best))
        best = torch.where(per_row(better, best), end, best)
    return best


def _from(goal: _Goal, x: Tensor, rounds: int, on_round: Callable[[Tensor], Tensor]) -> Tensor:
    """Shorten the way from the origin to points that satisfy the conditions, in bounds."""
    x = clip_to_bounds(x, goal.bounds)
    pull = torch.where(goal.holds(x), 0.5, 0.0)
    for _ in range(rounds):
        pull = pull.where(pull > SMALLEST_PULL, 0.0)
        if bool(pull.any()):
            tried = goal.correct(x + per_row(pull, x) * (goal.origin - x), CORRECTIONS)
            shorter = goal.distance(tried) < (1 - 1e-5) * goal.distance(x)
            better = goal.holds(tried) & shorter
            x = torch.where(per_row(better, x), tried, x)
            pull = torch.where(better, (1.3 * pull).clamp_max(0.5), 0.5 * pull)
        on_round(x)
    return x


def _nearest_example(goal: _Goal, examples: Tensor, conditions_of: Tensor) -> Tensor:
    """The nearest reference input of an allowed class that is likely enough, or the origin."""
    logits, energies = conditions_of[:, :-1], conditions_of[:, -1]
    best_class = logits.argmax(dim=1)
    fits = goal.allowed[:, best_class] & (energies <= goal.max_energy)  # (B, M)
    away = torch.cdist(goal.origin.flatten(1), examples.flatten(1)).masked_fill(~fits, torch.inf)
    distance, nearest = away.min(dim=1)
    return torch.where(per_row(distance < torch.inf, goal.origin), examples[nearest], goal.origin)


def _reference(model: JEM, reference: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """Reference inputs (M, *shape) with their logits and energies, (M, K + 1)."""
    if reference is None:
        return None
    data = checked_inputs(model, reference, "reference").to(model.device).float()
    refuse_not_finite(data, "reference")
    logits = torch.cat([model.logits(part) for part in data.split(256)])
    return data, torch.cat([logits, joint_energy(logits)[:, None]], dim=1)


def _most_energy(
    data: tuple[Tensor, Tensor] | None, max_energy: float | None, quantile: float
) -> float:
    if max_energy is not None:
        if math.isnan(max_energy):
            raise InputError("`max_energy` must be a number, but got nan")
        return float(max_energy)
    if data is None:
        raise InputError("expected `max_energy`, or `reference` data to take it from, got neither")
    if not 0 < quantile <= 1:
        raise InputError(f"`quantile` must lie in (0, 1], but got {quantile}")
    return float(data[1][:, -1].quantile(quantile, interpolation="higher"))


def _allowed(
    model: JEM, x: Tensor, target: Tensor | Sequence[int] | int | np.integer[Any] | None
) -> Tensor:
    """Classes that would do for each input, shape (B, K)."""
    logits = torch.cat([model.logits(part.to(model.device)) for part in x.float().split(256)])
    num_classes = logits.shape[1]
    if num_classes < 2:
        raise InputError("a model with one output (K = 1) has no other class to go to")
    if target is None:
        return ~torch.nn.functional.one_hot(logits.argmax(dim=1), num_classes).bool()
    named = [int(target)] * len(x) if isinstance(target, int | np.integer) else target
    wanted = checked_labels(named, num_classes, len(x), "target")
    return torch.nn.functional.one_hot(wanted, num_classes).bool().to(model.device)


def _checked_result(
    model: JEM, x: Tensor, found: Tensor, allowed: Tensor, most: float
) -> Counterfactuals:
    """Look at what was found once more, apart from the search."""
    logits = torch.cat([model.logits(part) for part in found.split(256)])
    labels, energy = logits.argmax(dim=1), joint_energy(logits)
    success = allowed.gather(1, labels[:, None]).squeeze(1) & (energy <= most)
    distance = torch.linalg.vector_norm((found - x.to(found)).flatten(1), dim=1)
    return Counterfactuals(
        x=found.to(x),
        distance=distance.to(x.device),
        success=success.to(x.device),
        labels=labels.to(x.device),
        energy=energy.to(x.device),
        max_energy=most,
    )
