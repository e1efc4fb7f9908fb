"""The report of a model: measured, and written as a page for people and as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from torch import Tensor

from jem.checks import as_batch
from jem.data.splits import DataSplits
from jem.evaluation.examples import check_classes
from jem.model import JEM
from jem.report.measure import Progress, measure
from jem.report.page import render
from jem.report.subject import Subject
from jem.runs.files import write_atomically

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def write_report(
    model: JEM,
    splits: DataSplits,
    folder: str | Path,
    *,
    title: str = "Report",
    control: JEM | None = None,
    ood_sets: dict[str, Tensor | ArrayLike] | None = None,
    acceptance_rate: float = 0.95,
    seed: int = 0,
    progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """Measure a model on the test part of its data, and write `report.html` and `report.json`.

    Args:
        model: The model; any classifier, with or without a density that was trained.
        splits: Its data. The test and calibration parts must not have trained it.
        folder: Where to write; made if it is not there.
        title: Heading of the page.
        control: A plain classifier trained on the same data, to compare with.
        ood_sets: More foreign sets, name -> inputs (N, *shape) in the network's units.
        acceptance_rate: Share of in-distribution inputs that the detector is to accept.
        seed: Decides foreign sets, samples and bootstrap replicates.
        progress: Told the name of each section before it is measured.

    Returns:
        The content of `report.json`.

    Raises:
        InputError: If model or foreign sets do not fit the data: other classes, or the same ones
            in another order; or if its test or validation part is empty.

    Example:
        `write_report(JEM(network, classes=data.classes, domain=data.domain), data, "report")`
    """
    for classifier in (model,) if control is None else (model, control):
        check_classes(classifier, splits)
    sets = {name: as_batch(x, splits.input_shape).float() for name, x in (ood_sets or {}).items()}
    subject = Subject(model, splits, control, ood_sets=sets)
    return write_report_on(
        subject, folder, title=title, acceptance_rate=acceptance_rate, seed=seed, progress=progress
    )


def write_report_on(
    subject: Subject,
    folder: str | Path,
    *,
    title: str,
    acceptance_rate: float = 0.95,
    seed: int = 0,
    progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """Write the report with all that is known of a run; `write_report` for what a person has.

    Args:
        subject: The model, its data, and what is known of the run.
        folder: Where to write; made if it is not there.
        title: Heading of the page.
        acceptance_rate: Share of in-distribution inputs that the detector is to accept.
        seed: Decides foreign sets, samples and bootstrap replicates.
        progress: Told the name of each section before it is measured.

    Returns:
        The content of `report.json`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    measured = measure(subject, acceptance_rate=acceptance_rate, seed=seed, progress=progress)
    page = render(measured, subject.model.bounds("cpu"), title=title)
    text = json.dumps(measured.figures, indent=2, allow_nan=False) + "\n"
    write_atomically(folder / "report.json", text.encode())
    write_atomically(folder / "report.html", page.encode())
    return measured.figures


class SectionDisplay:
    """What is being measured: one line that changes on a terminal, elsewhere a line a section.

    Args:
        enabled: Whether to show anything.
    """

    def __init__(self, *, enabled: bool) -> None:
        self._lines = enabled and not sys.stderr.isatty()
        self._console = Console(stderr=True, quiet=not enabled)
        live = Console(stderr=True, quiet=not enabled or self._lines)
        self._status = live.status("measuring")

    def __enter__(self) -> Progress:
        """Show it; what is returned is told the name of each section."""
        self._status.start()
        return self._tell

    def __exit__(self, *error: object) -> None:
        """Take it away."""
        self._status.stop()

    def _tell(self, section: str) -> None:
        self._status.update(f"measuring: {section}")
        if self._lines:
            self._console.print(f"jem: measuring {section}", highlight=False, soft_wrap=True)
