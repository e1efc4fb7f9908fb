"""Write a report: one HTML page that needs nothing else, and the same figures as JSON."""

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, Template
from numpy.typing import ArrayLike
from torch import Tensor

from jem import __version__, plotting
from jem.checks import as_batch
from jem.data.splits import DataSplits
from jem.errors import RunFolderError
from jem.evaluation.statistics import estimate_of, plain
from jem.model import JEM
from jem.report.measure import SCHEMA_VERSION, Progress, Report, measure
from jem.report.subject import Subject, TrainingRun
from jem.report.verdicts import USED_IN_TRAINING, summary, verdicts
from jem.runs.folder import write_atomically


def write_report(
    model: JEM,
    splits: DataSplits,
    folder: str | Path,
    *,
    title: str = "Report",
    control: JEM | None = None,
    ood_sets: Mapping[str, Tensor | ArrayLike] | None = None,
    run: TrainingRun | None = None,
    acceptance_rate: float = 0.95,
    attack: bool = False,
    likelihood: bool = False,
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
        ood_sets: More OOD sets, name -> inputs (N, *shape) in the network's units.
        run: What is known of the training.
        acceptance_rate: Share of in-distribution inputs that the threshold is to accept.
        attack: Also measure accuracy under attack; it takes minutes.
        likelihood: Also measure what test inputs cost in bits; it takes minutes.
        seed: Decides OOD sets, samples, attacks, chains and bootstrap replicates.
        progress: Called with the name of each section before it is measured.

    Returns:
        The content of `report.json`.

    Raises:
        InputError: If model or OOD sets do not fit the data: other classes, or the same ones in
            another order; or if a part of the data that is needed is empty.

    Example:
        `write_report(JEM(network, classes=data.classes, domain=data.domain), data, "report")`
    """
    sets = {name: as_batch(x, splits.input_shape).float() for name, x in (ood_sets or {}).items()}
    subject = Subject(model, splits, control, sets, run or TrainingRun())
    report = measure(
        subject,
        acceptance_rate=acceptance_rate,
        attack=attack,
        likelihood=likelihood,
        seed=seed,
        progress=progress,
    )
    return write_pages(report, Path(folder), model.bounds("cpu"), title=title)


def content_of(report: Report) -> dict[str, Any]:
    """The content of `report.json`: everything that was measured, as plain values."""
    return {
        "made": date.today().isoformat(),
        "version": __version__,
        **report.to_dict(),
        "summary": [plain(row) for row in summary(report)],
        "verdicts": [asdict(verdict) for verdict in verdicts(report)],
    }


def write_pages(
    report: Report, folder: Path, bounds: tuple[Tensor, Tensor] | None, *, title: str
) -> dict[str, Any]:
    """Write `report.html` and `report.json`: see `render` for the arguments.

    Returns:
        The content of `report.json`.
    """
    page, content = render(report, bounds, title=title), content_of(report)
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "report.json", text.encode())
    write_atomically(folder / "report.html", page.encode(errors="backslashreplace"))
    return content


def read_report(path: Path) -> dict[str, Any]:
    """Read a `report.json`.

    Raises:
        RunFolderError: If it cannot be read, or another version of this package wrote it.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunFolderError(f"cannot read {path}: {error}") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise RunFolderError(
            f"{path} must be a report of schema version {SCHEMA_VERSION}, got {version}: "
            f"make it again with jem report {path.parent}"
        )
    return content  # type: ignore[no-any-return]


def render(report: Report, bounds: tuple[Tensor, Tensor] | None, *, title: str) -> str:
    """Make the page of one report.

    Args:
        report: What `measure` found.
        bounds: Values shown as black and white, or None without any.
        title: Heading.

    Returns:
        HTML that loads nothing from anywhere.
    """

    def png(x: Tensor | None, columns: int = 12) -> dict[str, Any] | None:
        """An image grid as base64 with its width in rem; None for inputs that are not images."""
        if bounds is None or x is None or not len(x) or x.ndim != 4 or x.shape[1] not in (1, 3):
            return None
        wide = min(len(x), columns)
        data = base64.b64encode(plotting.image_bytes(x, bounds, wide)).decode()
        return {"data": data, "width": min(34.0, 2.9 * wide)}

    return template("report.html.j2").render(
        title=title,
        version=__version__,
        schema_version=SCHEMA_VERSION,
        r=report,
        summary=summary(report),
        verdicts=verdicts(report),
        calibration_columns=_calibration_columns(report),
        estimate_of=estimate_of,
        scores={each.name: each.scores for each in report.ood.sets},
        plotting=plotting,
        png=png,
        concatenate=torch.cat,
        made=date.today(),
    )


def render_comparison(reports: Mapping[str, Mapping[str, Any]], *, title: str) -> str:
    """Make the page that shows runs side by side.

    Args:
        reports: Name of a run -> its `report.json`.
        title: Heading.

    Returns:
        HTML that loads nothing from anywhere.
    """
    return template("compare.html.j2").render(
        title=title, version=__version__, rows=comparison_rows(reports), reports=reports
    )


def comparison_rows(
    reports: Mapping[str, Mapping[str, Any]],
) -> list[tuple[str, str, list[dict[str, Any] | None]]]:
    """Put the summaries of runs side by side.

    Args:
        reports: Name of a run -> its `report.json`.

    Returns:
        For each figure its name, which way is better, and an estimate of each run, None where a
        run has none. An OOD set is marked as used in training if one of the runs has used it.
    """
    tables = [
        {row["name"].removesuffix(USED_IN_TRAINING): row for row in report["summary"]}
        for report in reports.values()
    ]
    names: dict[str, str] = {}
    for table in tables:
        for figure, row in table.items():
            names[figure] = max(names.get(figure, ""), row["name"], key=len)
    found = {figure: [table.get(figure, {}) for table in tables] for figure in names}
    return [
        (names[figure], next(row["better"] for row in rows if row), [r.get("model") for r in rows])
        for figure, rows in found.items()
    ]


def template(name: str, **filters: Callable[[str], str]) -> Template:
    """A template of this package; what it puts into HTML is escaped.

    Args:
        name: Its file.
        filters: More filters, by name.
    """
    environment = Environment(
        loader=PackageLoader("jem.report"),
        autoescape=lambda name: name is not None and ".html." in name,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(name)


def _calibration_columns(report: Report) -> dict[str, Any]:
    """Columns of the table; one after a temperature left at 1 would repeat that before it."""
    columns = {}
    if found := report.classification:
        for name, each in (("model", found.model), ("plain classifier", found.control)):
            if each is not None:
                columns[name] = each.before
                if each.improved:
                    columns[f"{name}, temperature {each.temperature:.3f}"] = each.after
    return columns
