"""What a person sees of a run: the metrics file and the progress bar."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from jem.errors import RunFolderError


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
                "make room, then go on from the last checkpoint with --resume"
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
        kind: Keep only records of this kind: `"step"`, `"epoch"`, `"recovery"`,
            `"gave_up"` or `"end"`.

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


class ProgressDisplay:
    """A progress bar on a terminal, a line an epoch where there is none, nothing if switched off.

    Args:
        total: Iterations of the run.
        title: What is being done.
        enabled: Whether to show anything.
    """

    def __init__(self, total: int, title: str, enabled: bool) -> None:
        self._console = Console(stderr=True)
        self._enabled = enabled
        self._live = enabled and sys.stderr.isatty()
        self._title = title
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self._console,
            disable=not self._live,
        )
        self._task = self._bar.add_task(title, total=total, figures="")

    def __enter__(self) -> Self:
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the bar as it is on the screen."""
        self._bar.stop()

    def update(self, iteration: int, figures: dict[str, float]) -> None:
        """Move the bar and show the figures that tell health."""
        if self._live:
            shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
            self._bar.update(self._task, completed=iteration, figures=shown)

    def epoch(self, epoch: int, num_epochs: int, figures: dict[str, Any]) -> None:
        """Print a line for an epoch where no bar can be drawn, at every tenth of the run."""
        if self._enabled and not self._live and epoch % max(1, num_epochs // 10) == 0:
            shown = "  ".join(
                f"{name} {value:.4g}"
                for name, value in figures.items()
                if isinstance(value, float)
            )
            self.message(f"{self._title} epoch {epoch}/{num_epochs}  {shown}")

    def message(self, text: str) -> None:
        """Print a line above the bar."""
        if self._enabled:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
