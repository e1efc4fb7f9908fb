"""Persistent chains: a replay buffer whose slots are chains, each with its age."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jem.checks import check_integer, refuse
from jem.sampling.base_distributions import BaseDistribution
from jem.sampling.langevin import Bounds, EnergyFunction, LangevinStep, per_row, run_chains


class Draw(NamedTuple):
    """Chains taken from a buffer, to be moved and committed back."""

    indices: Tensor  # (B,) slots
    x: Tensor  # (B, *shape) positions, restarted ones among them
    ages: Tensor  # (B,) Langevin steps since the chain began


class ReplayBuffer:
    """Chains that persist from one training iteration to the next.

    A slot is one chain. Everything lives on one device.

    Args:
        chains: First positions, shape (capacity, *shape).

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> from jem.sampling.base_distributions import UniformBase
        >>> init = UniformBase(-1.0, 1.0, (2,))
        >>> buffer = ReplayBuffer.from_init(init, 8, generator=g)
        >>> draw = buffer.draw(4, init=init, reinit_prob=0.1, generator=g)
        >>> buffer.commit(draw, draw.x + 0.1, steps=1)
    """

    def __init__(self, chains: Tensor) -> None:
        if not len(chains):
            refuse("chains", "have shape (capacity, *shape), capacity >= 1", tuple(chains.shape))
        self.chains = chains
        self.ages = torch.zeros(len(chains), dtype=torch.int64, device=chains.device)

    @classmethod
    def from_init(
        cls, init: BaseDistribution, capacity: int, *, generator: torch.Generator
    ) -> ReplayBuffer:
        """Fill a buffer with fresh chains.

        Args:
            init: What they are drawn from.
            capacity: Number of slots.
            generator: Source of randomness; the buffer lives on its device.

        Returns:
            A buffer whose chains all have age 0.
        """
        return cls(init.sample(capacity, generator=generator))

    def __len__(self) -> int:
        """Number of slots."""
        return len(self.chains)

    def draw(
        self,
        count: int,
        *,
        init: BaseDistribution,
        reinit_prob: float,
        generator: torch.Generator,
        replacement: bool = False,
    ) -> Draw:
        """Take chains, some of them restarted; a chain that is no longer finite always is.

        Args:
            count: Number of chains B.
            init: What restarted chains are drawn from.
            reinit_prob: Probability that a chain is restarted, in [0, 1].
            generator: Source of randomness, on the buffer's device.
            replacement: Draw slots with replacement, as the official JEM code does. Of two copies
                of one chain the last committed stays.

        Returns:
            The chains. The buffer itself does not change until `commit`.

        Raises:
            InputError: If more chains are asked for than there are, without replacement.
        """
        if not replacement:
            check_integer("count", count, 0, len(self))
        device = self.chains.device
        if replacement:
            indices = torch.randint(len(self), (count,), generator=generator, device=device)
        else:
            indices = torch.randperm(len(self), generator=generator, device=device)[:count]
        x, ages = self.chains[indices], self.ages[indices]
        fresh = init.sample(count, generator=generator)
        restart = torch.rand(count, generator=generator, device=device) < reinit_prob
        restart |= ~x.flatten(1).isfinite().all(dim=1)
        # `where`, not an arithmetic mask: 0 * NaN is NaN, and the dead chain would live on.
        x = torch.where(per_row(restart, x), fresh, x)
        return Draw(indices, x, torch.where(restart, 0, ages))

    def commit(self, draw: Draw, x: Tensor, *, steps: int) -> None:
        """Put moved chains back into their slots.

        Args:
            draw: What `draw` returned.
            x: Their new positions, shape (B, *shape).
            steps: Langevin steps that they made, added to their ages.
        """
        # Of copies of one chain all write what the last holds: which write wins is left open.
        order = torch.arange(len(draw.indices), device=self.ages.device)
        last = torch.zeros_like(self.ages, dtype=torch.int64)
        last.scatter_reduce_(0, draw.indices, order, "amax")
        kept = last[draw.indices]
        self.chains[draw.indices] = x.detach()[kept].to(self.chains.dtype)
        self.ages[draw.indices] = draw.ages[kept] + steps

    def state_dict(self) -> dict[str, Any]:
        """Positions and ages."""
        return {"chains": self.chains, "ages": self.ages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take positions and ages from `state_dict`."""
        device = self.chains.device
        self.chains = state["chains"].to(device, copy=True)
        self.ages = state["ages"].to(device, copy=True)


@dataclass
class PersistentChains:
    """The negatives of training: a buffer of chains, where they begin again, and how they step.

    Attributes:
        buffer: The chains.
        init: What restarted chains are drawn from.
        count: Chains drawn in each iteration, M.
        reinit_prob: Probability that a drawn chain is restarted.
        replacement: Draw slots with replacement.
        step: The Langevin step.
        bounds: Where chains stay, or None.
        generator: Source of all their randomness, on the buffer's device.

    References:
        Tieleman (2008), ICML, for chains that persist between updates.
    """

    buffer: ReplayBuffer
    init: BaseDistribution
    count: int
    reinit_prob: float
    replacement: bool
    step: LangevinStep
    bounds: Bounds | None
    generator: torch.Generator

    def draw(self) -> Draw:
        """Take `count` chains from the buffer; in full precision, as chains are."""
        with torch.autocast(self.generator.device.type, enabled=False):
            return self.buffer.draw(
                self.count,
                init=self.init,
                reinit_prob=self.reinit_prob,
                generator=self.generator,
                replacement=self.replacement,
            )

    def make_steps(self, x: Tensor, energy_fn: EnergyFunction, num_steps: int) -> Tensor:
        """Move chains (M, *shape) by Langevin steps on an energy (M, *shape) -> (M,)."""
        steps = [self.step] * num_steps
        return run_chains(x, energy_fn, steps, generator=self.generator, bounds=self.bounds)

    def make_step(self, x: Tensor, grad: Tensor) -> Tensor:
        """Move chains once with a known gradient of their energies; both (M, *shape)."""
        return self.step(x.detach(), grad, generator=self.generator, bounds=self.bounds)
