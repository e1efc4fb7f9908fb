"""A run in TensorBoard: every figure of `metrics.jsonl`, and the chains after each epoch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jem.errors import InputError
from jem.runs.folder import RunFolder
from jem.training.monitor import RunMonitor, chains_figure, spared
from jem.training.state import RunState


class TensorBoardMonitor(RunMonitor):
    """Also writes event files into `RUN/tensorboard`: `tensorboard --logdir RUN`.

    Figures are called `update/gap` or `epoch/valid_nll`, and their step is the update. What a run
    recorded after the checkpoint that it was resumed from is purged, as in `metrics.jsonl`.

    Args:
        quiet: Show no progress.

    Raises:
        InputError: If the package tensorboard is missing, or, when a run is opened, it has no
            folder.
    """

    def __init__(self, *, quiet: bool = True) -> None:
        super().__init__(quiet=quiet)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(
                "this needs the package 'tensorboard': pip install 'jem-classifier[tensorboard]'"
            ) from error
        self._writer_of = SummaryWriter
        self._writer: SummaryWriter | None = None

    @contextmanager
    def open(self, folder: RunFolder | None, total_iterations: int) -> Iterator[None]:
        """Show a run, which must have a folder."""
        if folder is None:
            raise InputError("TensorBoard needs a run folder: Trainer(..., run_dir=...)")
        with super().open(folder, total_iterations):
            try:
                yield
            finally:
                if self._writer is not None:
                    self._writer.close()
                self._writer = None

    def record(self, kind: str, **values: Any) -> None:  # noqa: ANN401
        """Write the numbers of a record."""
        super().record(kind, **values)
        step = values.pop("iteration")
        for name, value in values.items():
            if isinstance(value, int | float):
                self._writer_at(step).add_scalar(f"{kind}/{name}", value, step)

    def epoch(self, metrics: dict[str, Any], num_epochs: int, state: RunState) -> None:
        """Record an epoch, and draw its chains."""
        super().epoch(metrics, num_epochs, state)
        if self.folder is not None and state.chains is not None:
            with spared(self.folder.path / "tensorboard"):
                figure = chains_figure(state.chains.buffer, state.model.bounds("cpu"))
                step = metrics["iteration"]
                self._writer_at(step).add_figure("chains", figure, step)

    def _writer_at(self, iteration: int) -> Any:  # noqa: ANN401
        """The writer; made at the first record, whose iteration says what a resumed run purges."""
        if self._writer is None:
            assert self.folder is not None, "a run is open"
            place = str(self.folder.path / "tensorboard")
            self._writer = self._writer_of(place, purge_step=iteration)
        return self._writer
