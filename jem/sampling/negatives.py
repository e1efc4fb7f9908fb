"""Negatives: the persistent chains that training contrasts data with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jem.sampling.base_distributions import BaseDistribution
from jem.sampling.buffer import Draw, ReplayBuffer
from jem.sampling.langevin import Bounds, langevin_update, sgld_chain


@dataclass
class Negatives:
    """A buffer of chains, where they restart, and how they move.

    Attributes:
        buffer: The chains.
        start: Where restarted chains begin.
        count: Chains drawn an iteration, M.
        reinit_prob: Probability that a drawn chain is restarted.
        replacement: Draw slots with replacement.
        move: Keyword arguments of `langevin_update` that describe a move.
        bounds: Where chains stay, or None.
        generator: Source of all their randomness, on the buffer's device.
    """

    buffer: ReplayBuffer
    start: BaseDistribution
    count: int
    reinit_prob: float
    replacement: bool
    move: dict[str, Any]
    bounds: Bounds | None
    generator: torch.Generator

    def draw(self) -> Draw:
        """Take `count` chains from the buffer; in full precision, as chains are."""
        with torch.autocast(self.generator.device.type, enabled=False):
            return self.buffer.draw(
                self.count,
                start=self.start,
                reinit_prob=self.reinit_prob,
                generator=self.generator,
                replacement=self.replacement,
            )

    def run(self, x: Tensor, energy_fn: Callable[[Tensor], Tensor], num_steps: int) -> Tensor:
        """Move chains (M, *shape) by Langevin steps on an energy (M, *shape) -> (M,)."""
        return sgld_chain(
            x,
            energy_fn,
            num_steps=num_steps,
            generator=self.generator,
            bounds=self.bounds,
            **self.move,
        )

    def update(self, x: Tensor, grad: Tensor) -> Tensor:
        """Move chains once with a known gradient of their energies; both (M, *shape)."""
        return langevin_update(x, grad, generator=self.generator, bounds=self.bounds, **self.move)
