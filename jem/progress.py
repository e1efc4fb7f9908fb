"""Progress of long work on the standard error stream: the one way in which all parts show it."""

from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class ProgressBar:
    """A bar on a terminal, plain lines where there is none, nothing when quiet.

    Args:
        title: What is being done.
        total: How much there is to do; None if that is not known yet.
        quiet: Show nothing.

    Attributes:
        live: Whether there is a bar: on a terminal, and not quiet.

    Example:
        >>> with ProgressBar("scoring", total=2, quiet=True) as bar:
        ...     bar.update(1, detail="accuracy 0.9")
        ...     bar.update(2)
    """

    def __init__(self, title: str, total: int | None = None, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet)
        self.live = self._console.is_terminal and not quiet
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            console=self._console,
            disable=not self.live,
        )
        self._task = self._bar.add_task(title, total=total, detail="")

    def __enter__(self) -> Self:
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the bar as it is on the screen."""
        self._bar.stop()

    def update(self, done: int, total: int | None = None, *, detail: str = "") -> None:
        """Move the bar; where there is none, nothing is shown.

        Args:
            done: How much is done.
            total: How much there is to do, if that is known only now.
            detail: Text beside the bar.
        """
        self._bar.update(self._task, completed=done, total=total, detail=detail)

    def stage(self, title: str) -> None:
        """Say what is being done now: in the bar's title, or in a line where there is no bar."""
        if self.live:
            self._bar.update(self._task, description=title)
        else:
            self.message(title)

    def message(self, text: str) -> None:
        """Print a line, above the bar where there is one."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
