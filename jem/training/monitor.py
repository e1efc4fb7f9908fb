"""What a run shows of itself: figures of steps and epochs, pictures of its chains and samples."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jem.generation import sample
from jem.model import JEM
from jem.runs.folder import RunFolder
from jem.sampling.buffer import ReplayBuffer
from jem.sampling.langevin import Bounds
from jem.training.log import MetricsLog, ProgressDisplay
from jem.training.method import Batch, StepContext, StepResult
from jem.training.state import RunState

SAMPLES_A_CLASS = 8
"""Fresh samples a class in the picture at the end of a run."""


class RunMonitor:
    """Metrics file, progress bar and pictures of a run.

    Args:
        folder: Where files go; None writes none.
        progress: Whether to show a progress bar.
    """

    def __init__(self, folder: RunFolder | None, progress: bool) -> None:
        self.folder, self.progress = folder, progress
        self.log = MetricsLog(None if folder is None else folder.metrics)
        self.display = ProgressDisplay(1, "", enabled=False)
        self._examples = 0

    def shown(self, total_iterations: int, title: str) -> ProgressDisplay:
        """Make the progress bar of a run of so many iterations: a context that shows it."""
        self.display = ProgressDisplay(total_iterations, title, self.progress)
        return self.display

    def step(
        self,
        state: RunState,
        method: StepContext,
        batch: Batch,
        outcome: StepResult,
        **settings: float | Tensor,
    ) -> None:
        """Record a step, if its turn has come.

        Args:
            state: The run after the step.
            method: Recipe, chains and clock.
            batch: What the step saw.
            outcome: What it computed.
            settings: Other figures of it.
        """
        self._examples += len(batch.x)
        position = state.position
        if position.iteration % method.recipe.log_every:
            return
        figures = step_metrics(outcome, batch, state.model.bounds())
        figures |= {name: float(value) for name, value in settings.items()}
        if method.negatives is not None:
            figures["chain_age"] = float(method.negatives.buffer.ages.float().mean())
        position.seconds += method.clock.tick()  # with the lap: they tell of the same time
        spent = method.clock.lap()
        figures["images_per_second"] = self._examples / max(sum(spent.values()), 1e-9)
        self._examples = 0
        self.log.write(
            "step", iteration=position.iteration, seconds=position.seconds, **figures, **spent
        )
        shown = ("accuracy", "gap", "images_per_second")
        self.display.update(
            position.iteration, {name: figures[name] for name in shown if name in figures}
        )

    def epoch(self, metrics: dict[str, Any], num_epochs: int, state: RunState) -> None:
        """Record an epoch, and draw the chains at every tenth of the run.

        Args:
            metrics: Its figures.
            num_epochs: Epochs of the run.
            state: The run.
        """
        self.log.write("epoch", **metrics)
        self.display.epoch(metrics["epoch"], num_epochs, metrics)
        rarely = metrics["epoch"] % max(1, num_epochs // 10) == 0
        if rarely and self.folder is not None and state.negatives is not None:
            chains, bounds = state.negatives.buffer, state.model.bounds("cpu")
            with spared(self.folder.samples):
                draw_chains(chains, bounds, self.folder.samples)


@torch.no_grad()
def step_metrics(outcome: StepResult, batch: Batch, bounds: Bounds | None) -> dict[str, float]:
    """Figures of one step; reading them waits for the device.

    Args:
        outcome: What the step computed.
        batch: The data that it saw.
        bounds: Bounds of the domain, for the share of components at them.

    Returns:
        Losses and energies in nats; `accuracy` of the batch for K > 1; for generative steps the
        gap (energy of chains minus that of data), the spread of both energies, the size of the
        moves and the share of components at the bounds.
    """
    figures = {"loss": float(outcome.loss), "cross_entropy": float(outcome.classification)}
    if outcome.logits.shape[1] > 1:
        right = outcome.logits.argmax(dim=1) == batch.labels
        figures["accuracy"] = float(right.float().mean())
    energy_data, energy_negative = outcome.energy_data, outcome.energy_negative
    terms, moved = outcome.terms, outcome.moved
    if terms is None or moved is None or energy_data is None or energy_negative is None:
        return figures
    at_bounds = 0.0
    if bounds is not None:
        low, high = bounds
        at_bounds = float(((moved.x <= low) | (moved.x >= high)).float().mean())
    if terms.outlier is not None:
        figures["outlier"] = float(terms.outlier)
    return figures | {
        "gap": float(terms.gap),
        "contrast": float(terms.contrast),
        "regulariser": float(terms.regulariser),
        "energy_data": float(energy_data.mean()),
        "energy_data_std": float(energy_data.std(correction=0)),
        "energy_chains": float(energy_negative.mean()),
        "energy_chains_std": float(energy_negative.std(correction=0)),
        "move_rms": float((moved.x - moved.draw.x).square().mean().sqrt()),
        "share_at_bounds": at_bounds,
    }


@contextmanager
def spared(picture: Path) -> Iterator[None]:
    """Warn where a picture cannot be written: it is not worth a run."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        warnings.warn(f"cannot write {picture}: {reason}; the run goes on", stacklevel=3)


def draw_chains(buffer: ReplayBuffer, bounds: Any, path: Path) -> None:  # noqa: ANN401
    """Picture of 64 persistent chains, spread over the classes where they have one."""
    from jem.plotting import inputs_figure, save_figure

    spread = torch.linspace(0, len(buffer) - 1, min(64, len(buffer))).long()
    chains = buffer.chains[spread.to(buffer.chains.device)]
    save_figure(inputs_figure(chains, bounds, title="persistent chains"), path)


def draw_samples(model: JEM, seed: int, path: Path) -> None:
    """Picture of fresh samples, one row a class (the first ten classes)."""
    from jem.plotting import inputs_figure, save_figure

    names = (model.classes or ("",))[:10]
    if model.sampler is not None:
        names = names[: len(model.sampler.class_frequencies)]  # one output has no class to ask for
    labels = torch.arange(len(names)).repeat_interleave(SAMPLES_A_CLASS)
    drawn = sample(model, labels, seed=seed)
    figure = inputs_figure(
        drawn,
        model.bounds("cpu"),
        columns=SAMPLES_A_CLASS,
        row_names=names,
        title="fresh samples by class",
    )
    save_figure(figure, path)
