"""What a run shows of itself: metrics, a progress bar, pictures of its chains and samples."""

import json
import math
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jem.errors import JemError, RunFolderError
from jem.generation import sample
from jem.model import JEM
from jem.networks.foreign import in_one_line
from jem.objectives import Batch
from jem.progress import ProgressBar
from jem.runs.folder import RunFolder
from jem.sampling.buffer import ReplayBuffer
from jem.sampling.langevin import Bounds
from jem.training.safeguards import MAX_RECOVERIES
from jem.training.state import Progress, RunState
from jem.training.update import UpdateResult

SAMPLES_A_CLASS = 8
"""Fresh samples a class in the picture at the end of a run."""


class MetricsLog:
    """Lines of JSON, one a record, appended to a file whose length is part of every checkpoint.

    Args:
        path: The file, or None to keep nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def position(self) -> int:
        """Length of the file in bytes."""
        return self.path.stat().st_size if self.path is not None and self.path.exists() else 0

    def truncate(self, position: int) -> None:
        """Forget what was written after a checkpoint: a resumed run writes it again."""
        if self.path is None or not self.path.exists():
            return
        with self.path.open("r+b") as file:
            kept = file.read(position)
            # A power cut can leave less than that, and the last record torn: growing the file
            # would fill it with zeros, going on in mid-line would spoil the next record.
            file.truncate(kept.rfind(b"\n") + 1)

    def write(self, kind: str, **values: Any) -> None:  # noqa: ANN401
        """Append a record; numbers that are not finite become null, since JSON has none.

        Raises:
            RunFolderError: If the file cannot be written.
        """
        if self.path is None:
            return
        line = json.dumps({"kind": kind, **{k: _plain(v) for k, v in values.items()}})
        try:
            with self.path.open("a") as file:
                file.write(line + "\n")
        except OSError as error:
            raise RunFolderError(
                f"cannot write {self.path}: {error.strerror or error}; "
                "make room, then continue from the last checkpoint with --resume"
            ) from error


def _plain(value: Any) -> Any:  # noqa: ANN401
    """Round floats to six significant digits and turn NaN and infinity into None."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def read_metrics(path: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Read the records of a metrics file.

    Args:
        path: `metrics.jsonl` of a run.
        kind: Keep only records of this kind: `"update"`, `"epoch"`, `"recovery"`
            or `"end"`.

    Returns:
        The records, oldest first. A last line that is not finished (the run was killed, or is
        writing it now) is left out.

    Raises:
        RunFolderError: If the file is missing or damaged.
    """
    try:
        lines = path.read_text().split("\n")[:-1]
        records = [json.loads(line) for line in lines if line]
        return [record for record in records if kind is None or record["kind"] == kind]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunFolderError(f"cannot read {path}: {error}") from error


class RunMonitor:
    """Metrics file, progress bar and pictures of a run.

    Derive from it to look at more, and give it to `Trainer(monitor=...)`. All figures go through
    `record`; `jem.training.tensorboard` is an example.

    Args:
        quiet: Show no progress.

    Attributes:
        log: The metrics file, while a run is open.
        bar: The progress bar, while a run is open.
    """

    def __init__(self, *, quiet: bool = True) -> None:
        self.quiet = quiet
        self.folder: RunFolder | None = None
        self.log, self.bar = MetricsLog(None), ProgressBar("", quiet=True)
        self._total = self._examples = 0
        self._since = time.perf_counter()

    @contextmanager
    def open(self, folder: RunFolder | None, total_iterations: int) -> Iterator[None]:
        """Show a run of so many iterations, and write its files into a folder if there is one."""
        self.folder, self._total = folder, total_iterations
        self.log = MetricsLog(None if folder is None else folder.metrics)
        self._since = time.perf_counter()
        with ProgressBar("training", total_iterations, quiet=self.quiet) as self.bar:
            yield

    def record(self, kind: str, **values: Any) -> None:  # noqa: ANN401
        """Write down a record; everything that is recorded comes through here.

        Args:
            kind: `"update"`, `"epoch"`, `"recovery"` or `"end"`.
            values: Its figures: numbers, None, or lists of them. `iteration` is always one: the
                update that it is about.
        """
        self.log.write(kind, **values)

    def update(
        self,
        state: RunState,
        batch: Batch,
        result: UpdateResult,
        **settings: float | Tensor,
    ) -> None:
        """Record an update, if its turn has come.

        Args:
            state: The run after the update.
            batch: What the update saw.
            result: What it computed.
            settings: Other figures of it.
        """
        self._examples += len(batch.x)
        progress = state.progress
        if progress.iteration % state.recipe.log_every:
            return
        if self.log.path is None and not self.bar.live:  # nobody looks: no wait for the device
            self._examples, self._since = 0, time.perf_counter()
            return
        tensors = update_figures(result, batch, state.model.bounds()) | settings
        if state.chains is not None:
            tensors["chain_age"] = state.chains.buffer.ages.float().mean()
        figures = _read(tensors)
        state.tick()
        now = time.perf_counter()
        figures["images_per_second"] = self._examples / max(now - self._since, 1e-9)
        self._examples, self._since = 0, now
        self.record("update", iteration=progress.iteration, seconds=progress.seconds, **figures)
        shown = {"accuracy", "gap", "images_per_second"} & figures.keys()
        detail = "  ".join(f"{name} {figures[name]:.4g}" for name in sorted(shown))
        self.bar.update(progress.iteration, self._total, detail=detail)

    def recovery(self, diverged: int, progress: Progress) -> None:
        """Record that a run has gone back to a checkpoint.

        Args:
            diverged: The iteration at which it diverged.
            progress: Where it is now.
        """
        done, back_to = progress.recoveries, progress.rolled_back_to
        self.record("recovery", iteration=diverged, back_to=back_to, recoveries=done)
        self.bar.message(
            f"diverged at update {diverged}: back to {back_to}, learning rate times "
            f"{0.5**done:g} (recovery {done} of at most {MAX_RECOVERIES})"
        )

    def epoch(self, metrics: dict[str, Any], num_epochs: int, state: RunState) -> None:
        """Record an epoch; at every tenth of the run, draw the chains, and show a line.

        Args:
            metrics: Its figures.
            num_epochs: Epochs of the run.
            state: The run.
        """
        self.record("epoch", **metrics)
        if metrics["epoch"] % max(1, num_epochs // 10):
            return
        if not self.bar.live:
            figures = ((k, v) for k, v in metrics.items() if isinstance(v, float))
            shown = "  ".join(f"{name} {value:.4g}" for name, value in figures)
            self.bar.message(f"training epoch {metrics['epoch']}/{num_epochs}  {shown}")
        if self.folder is not None and state.chains is not None:
            from jem.plotting import save_figure

            with spared(self.folder.samples):
                figure = chains_figure(state.chains.buffer, state.model.bounds("cpu"))
                save_figure(figure, self.folder.samples)


def _read(figures: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Scalars as numbers: those on a device in one read, which waits for it once."""
    tensors = {name: value for name, value in figures.items() if isinstance(value, Tensor)}
    read = torch.stack([value.detach() for value in tensors.values()]).tolist()
    numbers = dict(zip(tensors, read, strict=True))
    return {name: float(numbers.get(name, value)) for name, value in figures.items()}


@torch.no_grad()
def update_figures(
    result: UpdateResult, batch: Batch, bounds: Bounds | None
) -> dict[str, Tensor | float]:
    """Figures of one update, scalars on its device.

    Args:
        result: What the update computed.
        batch: The data that it saw.
        bounds: Bounds of the domain, for the share of components at them.

    Returns:
        Loss and terms in nats; `accuracy` of the batch for K > 1; with chains the mean and the
        spread of their energies and of the data's, the size of the steps and the share of
        components at the bounds.
    """
    figures: dict[str, Tensor | float] = {"loss": result.loss, **result.terms.named}
    figures["cross_entropy"] = result.cross_entropy
    if result.terms.gap is not None:
        figures["gap"] = result.terms.gap
    if result.logits.shape[1] > 1:
        right = result.logits.argmax(dim=1) == batch.labels
        figures["accuracy"] = right.float().mean()
    proposed, energies = result.proposed, result.energies
    if proposed is None:
        return figures
    for name, values in (("data", energies.data), ("chains", energies.chains)):
        if values is not None:
            figures[f"energy_{name}"] = values.mean()
            figures[f"energy_{name}_std"] = values.std(correction=0)
    figures["move_rms"] = (proposed.x - proposed.draw.x).square().mean().sqrt()
    low, high = bounds or (-math.inf, math.inf)
    at_bounds = (proposed.x <= low) | (proposed.x >= high)
    return figures | {"share_at_bounds": at_bounds.float().mean()}


@contextmanager
def spared(picture: Path) -> Iterator[None]:
    """Warn where a picture cannot be made or written: it is not worth a run."""
    try:
        yield
    except JemError:  # of the model, not of its picture
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or in_one_line(error)
        warnings.warn(f"cannot write {picture}: {reason}; the run continues", stacklevel=3)


def chains_figure(buffer: ReplayBuffer, bounds: Any) -> Any:  # noqa: ANN401
    """Figure of 64 persistent chains, spread over the classes where they have one."""
    from jem.plotting import inputs_figure

    spread = torch.linspace(0, len(buffer) - 1, min(64, len(buffer))).long()
    chains = buffer.chains[spread.to(buffer.chains.device)]
    return inputs_figure(chains, bounds, title="persistent chains")


def draw_samples(model: JEM, seed: int, path: Path, bar: ProgressBar) -> None:
    """Picture of fresh samples, one row a class (the first ten classes)."""
    from jem.plotting import inputs_figure, save_figure

    names = (model.classes or ("",))[:10]
    if model.sampler is not None:
        names = names[: len(model.sampler.class_frequencies)]  # one output has no class to ask for
    labels = torch.arange(len(names)).repeat_interleave(SAMPLES_A_CLASS)
    drawn = sample(model, labels, seed=seed, progress=bar.update)
    figure = inputs_figure(
        drawn,
        model.bounds("cpu"),
        columns=SAMPLES_A_CLASS,
        row_names=names,
        names=model.columns,
        title="fresh samples by class",
    )
    save_figure(figure, path)
