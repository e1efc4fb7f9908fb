"""The nearest input that the model gives to another class and holds as likely as its data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from jem.checks import check_finite, check_inputs, check_number
from jem.errors import InputError
from jem.generation.samples import blocks_of, class_indices, padded
from jem.model import JEM, batched_logits, check_model, energy_of, inference, on_model
from jem.sampling.langevin import Bounds, clip_to_bounds, per_row

QUANTILE = 0.95
"""Share of the reference that is as likely as a counterfactual must be, or more."""
REACH_STEPS = 100
"""Corrections from an input until it may satisfy the conditions."""
ROUNDS = 60
"""Pulls towards the input."""
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
    target: Tensor | Sequence[int] | int | None = None,
    *,
    max_energy: float | None = None,
    reference: Tensor | None = None,
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
        max_energy: e in nats; None takes the energy that 95 % of `reference` do not exceed.
        reference: Data that nothing was trained on, shape (M, *shape).

    Returns:
        Inputs, distances and whether the conditions hold, checked once more at the end.

    Raises:
        InputError: If neither `max_energy` nor `reference` is given, or an argument does not fit.

    References:
        Wachter, Mittelstadt and Russell (2018), arXiv:1711.00399, for counterfactuals. Croce and
        Hein (2020), arXiv:1907.02044, for stepping onto linearised boundaries.

    Example:
        >>> linear = torch.nn.Linear(2, 2)
        >>> _ = linear.weight.data.copy_(torch.tensor([[2.0, 0.0], [0.0, 0.0]]))
        >>> _ = linear.bias.data.zero_()
        >>> found = counterfactual(JEM(linear), torch.tensor([[1.0, 3.0]]), 1, max_energy=0.0)
        >>> found.success, round(float(found.distance), 2)  # class 1 wins where x_1 < 0
        (tensor([True]), 1.0)
    """
    check_model(model)
    check_inputs("x", x, model.input_shape)
    check_finite("x", x)
    if reference is not None:
        check_inputs("reference", reference, model.input_shape)
        check_finite("reference", reference)
    elif max_energy is None:
        raise InputError("`max_energy` or `reference` data must be given, got neither")
    check_number("max_energy", max_energy, "[-inf, inf]", optional=True)
    logits = batched_logits(model, x)
    num_classes = logits.shape[1]
    if num_classes < 2:
        raise InputError("a model with one output (K = 1) has no other class to go to")
    if not getattr(model.network, "has_class_gradients", True):
        raise InputError("counterfactuals need a classifier that is a module, with gradients")
    allowed = ~one_hot(logits.argmax(dim=1), num_classes).bool()
    if target is not None:
        wanted = class_indices("target", target, num_classes, len(x))
        allowed = one_hot(wanted, num_classes).bool().to(logits.device)
    examples = None
    with inference(model):
        if reference is not None:
            logits = batched_logits(model, reference)
            energies = energy_of(logits)
            if max_energy is None:
                max_energy = float(energies.quantile(QUANTILE, interpolation="higher"))
            fits = energies <= max_energy
            examples = on_model(model, reference)[fits], logits.argmax(dim=1)[fits]
        assert max_energy is not None, "one of the two was given"
        origins, parts = on_model(model, x), []
        for rows in blocks_of(len(x)):
            origin, would_do = (padded(part, rows, model.device) for part in (origins, allowed))
            goal = _Goal(model, origin, would_do, max_energy, model.bounds())
            parts.append(_search(goal, examples)[: rows.stop - rows.start])
        found = torch.cat(parts)
    logits = batched_logits(model, found)
    labels, energy = logits.argmax(dim=1), energy_of(logits)
    success = allowed.gather(1, labels[:, None])[:, 0] & (energy <= max_energy)
    found, distance = found.to(x), _length(found - origins).to(x.device)
    success, labels, energy = (part.to(x.device) for part in (success, labels, energy))
    return Counterfactuals(found, distance, success, labels, energy, max_energy)


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
        excess = energy_of(logits) - self.max_energy + slack
        return torch.stack([lead + LEAD, excess], dim=1).to(x.dtype)  # logits may be wider

    def holds(self, x: Tensor) -> Tensor:
        """Whether both conditions hold, shape (B,)."""
        return (self.conditions(x) <= 0).all(dim=1)

    def distance(self, x: Tensor) -> Tensor:
        """Euclidean distance from the origin, shape (B,)."""
        return _length(x - self.origin)

    def correct(self, x: Tensor, steps: int) -> Tensor:
        """Step onto the linearised boundaries of the conditions that do not hold, in bounds."""
        x = clip_to_bounds(x, self.bounds)
        for _ in range(steps):
            step = _least_step(*self._linearised(x))
            if not bool(step.any()):  # all conditions hold, or no gradient leads to them
                break
            x = clip_to_bounds(x + step.view_as(x), self.bounds)
        return x

    def shorten(self, x: Tensor) -> Tensor:
        """Shorten the way from the origin to points that satisfy the conditions, in bounds."""
        x = clip_to_bounds(x, self.bounds)
        pull = torch.where(self.holds(x), 0.5, 0.0)
        for _ in range(ROUNDS):
            pull = pull.where(pull > SMALLEST_PULL, 0.0)
            if not bool(pull.any()):
                break
            tried = self.correct(x + per_row(pull, x) * (self.origin - x), CORRECTIONS)
            shorter = self.distance(tried) < (1 - 1e-5) * self.distance(x)
            better = self.holds(tried) & shorter
            x = torch.where(per_row(better, x), tried, x)
            pull = torch.where(better, (1.3 * pull).clamp_max(0.5), 0.5 * pull)
        return x

    def _linearised(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Conditions (B, 2) and gradients (B, 2, D), zero where the bounds are in the way."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            c = self.conditions(leaf)
            gradients = [
                torch.autograd.grad(part.sum(), leaf, retain_graph=True)[0]
                for part in c.unbind(dim=1)
            ]
        if self.bounds is not None:
            low, high = self.bounds
            gradients = [
                g.masked_fill(((x <= low) & (g > 0)) | ((x >= high) & (g < 0)), 0.0)
                for g in gradients
            ]
        return c.detach(), torch.stack([g.flatten(1) for g in gradients], dim=1)


def _search(goal: _Goal, examples: tuple[Tensor, Tensor] | None) -> Tensor:
    """The nearest point found, shape (B, *shape), from the origin and from the nearest example.

    Args:
        goal: What is looked for.
        examples: Reference inputs that are likely enough, (M, *shape), and their classes (M,).
    """
    best = goal.shorten(goal.correct(goal.origin, REACH_STEPS))
    if examples is None or not len(examples[0]):
        return best
    x, classes = examples
    away = torch.cdist(goal.origin.flatten(1), x.flatten(1))
    distance, nearest = away.masked_fill(~goal.allowed[:, classes], torch.inf).min(dim=1)
    found = per_row(distance < torch.inf, goal.origin)
    end = goal.shorten(torch.where(found, x[nearest], goal.origin))
    nearer = goal.distance(end) < goal.distance(best)
    better = goal.holds(end) & (nearer | ~goal.holds(best))
    return torch.where(per_row(better, best), end, best)


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


def _length(x: Tensor) -> Tensor:
    """Euclidean length of each row of (B, *shape), shape (B,)."""
    length: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return length
