"""Where the time of a run goes."""

from __future__ import annotations

import time
from typing import Literal, get_args

Phase = Literal["data", "chains", "update", "other"]
"""Batches and their augmentation; Langevin moves before the pass that trains; that pass, optimiser
and average; logging, checkpoints and validation."""


class PhaseClock:
    """Wall-clock time, by phase: whoever begins a phase enters it, and so ends the one before.

    It never waits for an accelerator: there a phase counts the time to hand its work over, and
    whichever reads a result first counts the wait.

    Example:
        >>> clock = PhaseClock()
        >>> clock.enter("data")
        >>> sorted(clock.lap())
        ['seconds_chains', 'seconds_data', 'seconds_other', 'seconds_update']
    """

    def __init__(self) -> None:
        self._ticked = self._entered = time.perf_counter()
        self._phase: Phase = "other"
        self._spent: dict[Phase, float] = dict.fromkeys(get_args(Phase), 0.0)

    def enter(self, phase: Phase) -> None:
        """End the phase that runs, and begin another."""
        now = time.perf_counter()
        self._spent[self._phase] += now - self._entered
        self._phase, self._entered = phase, now

    def lap(self) -> dict[str, float]:
        """Seconds of each phase since the last lap, as `seconds_PHASE`; the phase goes on."""
        self.enter(self._phase)
        spent = {f"seconds_{phase}": seconds for phase, seconds in self._spent.items()}
        self._spent = dict.fromkeys(self._spent, 0.0)
        return spent

    def tick(self) -> float:
        """Seconds since the last tick, whatever the phases."""
        now = time.perf_counter()
        elapsed, self._ticked = now - self._ticked, now
        return elapsed
