"""Whether a model's chains are where it holds data to be, and whether they move.

Training contrasts data with chains. That makes a density only while the chains are samples of the
model; this module looks whether they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jem.checks import as_labels
from jem.errors import InputError
from jem.evaluation.autocorrelation import FEWEST_MOVES, Mixing, mixing
from jem.evaluation.examples import check_inputs, choose_rows
from jem.evaluation.statistics import Estimate, mean_estimate, normal_estimate, plain
from jem.generation.chains import chain_of
from jem.model import JEM, batched_logits, inference, joint_energy, on_model
from jem.randomness import named_generator
from jem.sampling.langevin import Bounds, sgld_chain

BATCH_SIZE = 256
NUM_DIRECTIONS = 16
"""Random directions of the input space along which mixing is measured."""

TOLERATED_SPREADS = 0.5
"""A gap below this many standard deviations of the data's energy counts as closed."""

VERDICTS = {
    "level": "chains are level with the data in energy, and stay so when they run on",
    "lag": "chains are not level with the data, but get there, or at least half the way, when "
    "they run on: they lag behind the model, and more moves an iteration or slower learning help",
    "landscape": "run on, chains end above the data in energy: the landscape holds them there, "
    "and more moves will not help",
    "overshoot": "run on, chains end below the data in energy: they seek minima, as chains far "
    "below temperature 1 do, and samples depend on the number of moves",
}
"""What each verdict says, for a person."""


@dataclass(frozen=True)
class ChainHealth:
    """Figures of `chain_health`; energies are E(x) in nats, whose scale is nominal.

    Attributes:
        num_data: Real inputs looked at.
        num_chains: Chains that were run on.
        num_steps: Moves that they made.
        conditional: Whether they moved on E(x, y) of a class each, not on E(x).
        energy_data: Mean energy of the data.
        energy_data_std: Standard deviation of the data's energy.
        gap_start: Mean energy of the chains as given, less that of the data; near 0 is good.
        gap_end: The same after the moves, the model frozen.
        tolerance: A gap no larger counts as closed: half a standard deviation of the data's
            energy, or two standard errors of a gap if that is more.
        verdict: A key of `VERDICTS`, decided by `judge_gap`.
        gaps: The gap before each move and at the end, shape (num_steps + 1,).
        energy: Mixing of the energy E(x), over the second half of the run.
        position: Mixing of the inputs along the slowest of 16 random directions, likewise.
        at_bounds_data: Share of the data's components at the bounds of the domain; 0 without
            bounds. What that of the chains is to be held against.
        at_bounds_start: The same of the chains as given.
        at_bounds_end: The same after the moves.
    """

    num_data: int
    num_chains: int
    num_steps: int
    conditional: bool
    energy_data: Estimate
    energy_data_std: float
    gap_start: Estimate
    gap_end: Estimate
    tolerance: float
    verdict: str
    gaps: tuple[float, ...]
    energy: Mixing
    position: Mixing
    at_bounds_data: float
    at_bounds_start: float
    at_bounds_end: float

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain values for JSON, with the verdict's meaning; NaN as None."""
        values: dict[str, Any] = plain(self)
        return values | {"meaning": VERDICTS[self.verdict]}


class _Run(NamedTuple):
    """What was seen of chains that ran on."""

    energies: Tensor  # (moves + 1, M) E(x) before each move and at the end, double precision
    positions: Tensor  # (moves + 1, directions, M)
    x: Tensor  # (M, *shape) where they ended


def chain_health(
    model: JEM,
    x_data: Tensor,
    chains: Tensor,
    *,
    labels: Tensor | None = None,
    num_steps: int = 400,
    max_chains: int = 64,
    seed: int,
) -> ChainHealth:
    """Compare chains with data, and run them on under a frozen model.

    The energy compared is E(x) for both, whatever chains move on. Steps are those of
    `model.sampler.step`, inside the domain. A run costs num_steps * min(M, max_chains) gradients
    of the network. Mode, parameters and gradients of the model stay as they are.

    Args:
        model: A model with sampler settings.
        x_data: Real inputs in the network's units, shape (N, *shape), N >= 2; the test part, or
            the training part, which usually lies a little lower.
        chains: Where chains are: of a buffer, or fresh samples; shape (M, *shape), M >= 2.
        labels: The class of each chain, shape (M,), for chains that move on E(x, y); None for
            marginal ones.
        num_steps: Moves, at least 16.
        max_chains: Chains to run at most; of more, some are chosen at random.
        seed: Decides the noise, the choice of chains and the directions.

    Returns:
        Gaps, verdict, mixing, and shares at the bounds.

    Raises:
        InputError: If the model keeps no sampler settings, the inputs do not fit, or chains leave
            the finite numbers.

    References:
        Nijkamp et al. (2020), arXiv:1903.12370, on chains that are level only where they stop.
    """
    x_data, chains, classes = _checked(model, x_data, chains, labels, num_steps)
    rows = choose_rows(len(chains), max_chains, seed=seed, name="chains")
    if len(rows) < 2:
        raise InputError(f"`max_chains` must be at least 2, but got {max_chains}")
    # Tensors made in inference mode could not enter the energy's graph; what is indexed here can.
    with inference(model):
        energies = joint_energy(batched_logits(model, x_data, BATCH_SIZE)).double().cpu()
        chains = on_model(model, chains[rows])
        classes = None if classes is None else classes[rows].to(model.device)
        run = _run_on(model, chains, classes, num_steps, seed)
    bounds = model.bounds("cpu")
    return ChainHealth(
        num_data=len(x_data),
        num_chains=len(chains),
        num_steps=num_steps,
        conditional=classes is not None,
        **_gaps(energies, run.energies),
        **_mixing(run),
        at_bounds_data=share_at_bounds(x_data, bounds),
        at_bounds_start=share_at_bounds(chains.cpu(), bounds),
        at_bounds_end=share_at_bounds(run.x.cpu(), bounds),
    )


def judge_gap(start: float, end: float, tolerance: float) -> str:
    """Say what it means that a gap was `start`, and is `end` after chains ran on.

    Args:
        start: Gap of the chains as they were.
        end: Gap after they ran on under a frozen model.
        tolerance: A gap between -tolerance and tolerance counts as closed.

    Returns:
        `"level"` if it is closed at both ends; `"lag"` if it was open and closes, or at least
        halves; else, by the sign at the end, `"landscape"` above and `"overshoot"` below.

    Example:
        >>> judge_gap(8.0, 0.2, 1.0), judge_gap(8.0, 6.0, 1.0), judge_gap(0.1, -9.0, 1.0)
        ('lag', 'landscape', 'overshoot')
    """
    was_open, is_open = abs(start) > tolerance, abs(end) > tolerance
    halved = start * end > 0 and abs(end) <= abs(start) / 2
    if was_open and (halved or not is_open):
        return "lag"
    if not is_open:
        return "level"
    return "landscape" if end > 0 else "overshoot"


def share_at_bounds(x: Tensor, bounds: Bounds | None) -> float:
    """Share of components at or beyond the bounds of the domain.

    Args:
        x: Inputs, shape (B, *shape).
        bounds: (low, high), broadcastable to one input; None gives 0.
    """
    if bounds is None:
        return 0.0
    low, high = (torch.as_tensor(bound).to(x) for bound in bounds)
    return float(((x <= low) | (x >= high)).double().mean())


def _gaps(data: Tensor, chains: Tensor) -> dict[str, Any]:
    """Compare energies of the data (N,) with those of chains, (moves + 1, M)."""
    level, spread = mean_estimate(data), float(data.std())
    start, end = (_gap(mean_estimate(energies), level) for energies in (chains[0], chains[-1]))
    errors = [gap.std_error for gap in (start, end) if not math.isnan(gap.std_error)]
    tolerance = max([TOLERATED_SPREADS * spread, *(2 * error for error in errors)])
    return {
        "energy_data": level,
        "energy_data_std": spread,
        "gap_start": start,
        "gap_end": end,
        "tolerance": tolerance,
        "verdict": judge_gap(start.value, end.value, tolerance),
        "gaps": tuple((chains.mean(dim=1) - level.value).tolist()),
    }


def _gap(chains: Estimate, data: Estimate) -> Estimate:
    error = math.hypot(chains.std_error, data.std_error)
    return normal_estimate(chains.value - data.value, error)


def _mixing(run: _Run) -> dict[str, Any]:
    later = slice(len(run.energies) // 2, None)  # the first half may still be on its way
    along = [mixing(trace.T) for trace in run.positions[later].unbind(dim=1)]
    return {"energy": mixing(run.energies[later].T), "position": max(along, key=_slowness)}


def _slowness(found: Mixing) -> float:
    return found.autocorrelation_time if found.autocorrelation_time > 0 else 0.0  # NaN last


def _run_on(model: JEM, x: Tensor, classes: Tensor | None, num_steps: int, seed: int) -> _Run:
    settings = chain_of(model)
    generator = named_generator(seed, "chain health", device=x.device)
    marginal: list[Tensor] = []
    project = _projection(x, seed)
    positions = [project(x)]
    energy = _recording_energy(model, classes, marginal)

    def record(x: Tensor) -> Tensor:
        positions.append(project(x))
        return x

    steps = [settings.step] * num_steps
    bounds = model.bounds()
    x = sgld_chain(x, energy, steps, generator=generator, bounds=bounds, after_step=record)
    energy(x)
    run = _Run(torch.stack(marginal).cpu().double(), torch.stack(positions), x)
    finite = run.energies.isfinite().all(dim=1) & run.positions.isfinite().flatten(1).all(dim=1)
    if not bool(finite.all()):
        raise InputError(
            f"chains left the finite numbers before move {int((~finite).nonzero()[0])}: "
            "lower `model.sampler.step.step_size`, or set `model.domain`"
        )
    return run


def _recording_energy(
    model: JEM, classes: Tensor | None, marginal: list[Tensor]
) -> Callable[[Tensor], Tensor]:
    """The energy that moves chains, which also notes E(x): both come from the same logits."""

    def energy(x: Tensor) -> Tensor:
        logits = model.logits(x)
        marginal.append(joint_energy(logits.detach()))
        return joint_energy(logits, classes)

    return energy


def _projection(x: Tensor, seed: int) -> Callable[[Tensor], Tensor]:
    """Coordinates along random directions of length one: (M, *shape) -> (directions, M)."""
    generator = named_generator(seed, "directions")
    directions = torch.randn(NUM_DIRECTIONS, x[0].numel(), generator=generator)
    directions = (directions / directions.norm(dim=1, keepdim=True)).to(x)
    return lambda x: (directions @ x.flatten(1).T).cpu().double()


def _checked(
    model: JEM, x_data: Tensor, chains: Tensor, labels: Tensor | None, num_steps: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    chain = chain_of(model)
    x_data = check_inputs(x_data, model.input_shape, "x_data")
    chains = check_inputs(chains, tuple(x_data.shape[1:]), "chains")
    if min(len(x_data), len(chains)) < 2:
        raise InputError(
            "expected at least 2 data inputs and 2 chains, "
            f"but got {len(x_data)} and {len(chains)}"
        )
    if num_steps < 2 * FEWEST_MOVES:
        raise InputError(f"`num_steps` must be at least {2 * FEWEST_MOVES}, but got {num_steps}")
    if labels is None:
        return x_data, chains, None
    num_classes = len(chain.class_frequencies)
    return x_data, chains, as_labels("labels", labels, len(chains), num_classes)
