"""The page of a report: what `measure` found, as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, Template
from torch import Tensor

from jem import __version__
from jem.evaluation.fidelity.completion import MEAN_FILL, NEAREST, ONE_DRAW
from jem.report.subject import Measured

CALIBRATION_FIGURES = (
    ("accuracy", "accuracy", 4),
    ("nll", "negative log-likelihood, nats", 4),
    ("brier", "Brier score", 4),
    ("ece", "ECE, 15 bins of equal width", 4),
    ("ece_equal_mass", "ECE, 15 bins of equal mass", 4),
    ("smooth_ece", "smooth ECE", 4),
    ("debiased_rmsce", "calibration error, root mean square, debiased", 4),
    ("class_wise_ece", "class-wise ECE", 4),
    ("mce", "largest error of a bin", 3),
    ("aurc", "AURC", 4),
    ("augrc", "AUGRC", 4),
)
FIDELITY_FIGURES = (
    ("agreement", "of the class asked for, higher is better", 3),
    ("diversity", "variety within a class, 1 is par", 2),
    ("frechet", "Frechet distance, lower is better", 2),
    ("kernel", "kernel distance, lower is better", 3),
    ("precision", "precision, higher is better", 3),
    ("recall", "recall, higher is better", 3),
    ("density", "density, 1 is par", 3),
    ("coverage", "coverage, higher is better", 3),
    ("classification_accuracy", "accuracy of a classifier trained on them, higher is better", 3),
    ("nearest_distance", "distance to the nearest training input", 2),
)


def render(
    measured: Measured,
    bounds: tuple[Tensor, Tensor] | None,
    *,
    title: str,
    samples_a_row: int = 10,
) -> str:
    """Make the page of one run.

    Args:
        measured: What `jem.report.measure.measure` found.
        bounds: Values shown as black and white.
        title: Heading.
        samples_a_row: Samples a class in the picture of fresh samples.

    Returns:
        HTML that loads nothing from anywhere.
    """
    figures = measured.figures
    images = {} if bounds is None else _images(measured, bounds, samples_a_row)
    sections = [("answers", "In one minute")]
    if "classification" in figures:
        sections.append(("classification", "Calibration"))
    sections.append(("ood", "What it rejects"))
    if not figures["run"].get("as_given"):
        sections.append(("samples", "What it draws"))
    if "completions" in figures:
        sections.append(("completions", "What it completes"))
    if "corruption" in figures:
        sections.append(("corruption", "As inputs decay"))
    sections += [("training", "Training"), ("again", "Make it again")]
    return _template("report.html.j2").render(
        title=title,
        version=__version__,
        f=figures,
        images=images,
        drawings=_drawings(measured),
        sections=sections,
        calibration_figures=CALIBRATION_FIGURES,
        calibration_rows=_calibration_rows(figures),
        fidelity_figures=FIDELITY_FIGURES,
        completion_rivals=(NEAREST, MEAN_FILL),
    )


def _calibration_rows(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Columns of the table: those after a temperature of 1 would repeat those before it."""
    found = figures.get("classification", {"rows": {}})
    left_at_1 = {
        f"{name}, temperature"
        for name, key in (("model", "temperature"), ("plain", "temperature_plain"))
        if not found.get(key, {}).get("improved")
    }
    return {name: row for name, row in found["rows"].items() if name not in left_at_1}


def render_comparison(reports: Mapping[str, Mapping[str, Any]], *, title: str) -> str:
    """Make the page that puts runs side by side.

    Args:
        reports: Name of a run -> its `report.json`.
        title: Heading.

    Returns:
        HTML that loads nothing from anywhere.
    """
    return _template("compare.html.j2").render(
        title=title, names=list(reports), rows=comparison_rows(reports), reports=reports
    )


def comparison_rows(
    reports: Mapping[str, Mapping[str, Any]],
) -> list[tuple[str, list[dict[str, Any] | None]]]:
    """The figures that runs are compared by, each an estimate a run, None where one has none.

    Args:
        reports: Name of a run -> its `report.json`.
    """
    rows: list[tuple[str, list[dict[str, Any] | None]]] = []

    def add(label: str, path: Sequence[str]) -> None:
        cells = [_at(report, path) for report in reports.values()]
        if any(cells):
            rows.append((label, cells))

    for key, label, _ in CALIBRATION_FIGURES[:4]:
        add(label, ("classification", "rows", "model", key))
    add("ECE after temperature", ("classification", "rows", "model, temperature", "ece"))
    names = dict.fromkeys(row["name"] for r in reports.values() for row in r["ood"]["sets"])
    for name in names:
        cells = []
        for report in reports.values():
            found = [row for row in report["ood"]["sets"] if row["name"] == name]
            cells.append(found[0]["auroc"] if found else None)
        rows.append((f"AUROC, {name}, higher is better", cells))
    for key, label, _ in FIDELITY_FIGURES:
        add(f"fresh samples: {label}", ("samples", "fresh", "samples", key))
    for name in (ONE_DRAW, NEAREST, MEAN_FILL):
        label = f"lower half by {name}: of the right class, higher is better"
        add(label, ("completions", "rows", name, "accuracy"))
    return rows


def _at(report: Mapping[str, Any], path: Sequence[str]) -> dict[str, Any] | None:
    found: Any = report
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, dict) and found.get("value") is not None else None


def _template(name: str) -> Template:
    environment = Environment(
        loader=PackageLoader("jem.report"),
        autoescape=True,
        trim_blocks=True,
    )
    return environment.get_template(name)


def _images(
    measured: Measured, bounds: tuple[Tensor, Tensor], samples_a_row: int
) -> dict[str, tuple[str, float]]:
    """Pictures as base64 with their width in rem; inputs that are no images have none."""
    from jem.plotting import image_bytes

    made = {}
    for name, x in measured.images.items():
        if x.ndim == 4 and x.shape[1] in (1, 3):
            columns = {"fresh samples by class": samples_a_row, "persistent chains": 20}
            if name == "completions":  # a row a filling
                columns[name] = len(x) // len(measured.figures[name]["pictures"])
            wide = min(len(x), columns.get(name, 12))
            png = base64.b64encode(image_bytes(x, bounds, wide)).decode()
            made[name] = png, min(34.0, 2.9 * wide)
    return made


def _drawings(measured: Measured) -> dict[str, str]:
    """Diagrams as inline SVG."""
    from jem import plotting

    figures, threshold = measured.figures, measured.figures["ood"].get("threshold")
    made = {
        "histograms": plotting.score_histograms(measured.scores, threshold),
        "roc": plotting.roc_figure(measured.scores),
    }
    if "model" in measured.reports:
        before, after = measured.reports["model"], measured.reports["model, temperature"]
        if figures["classification"]["temperature"]["improved"]:
            made["reliability"] = plotting.reliability_diagram(before, title="Before temperature")
            made["reliability_scaled"] = plotting.reliability_diagram(
                after, title="After temperature"
            )
        else:
            made["reliability"] = plotting.reliability_diagram(before)
        made["risk"] = plotting.risk_coverage_plot(before)
    if "corruption" in figures:
        made["corruption"] = plotting.corruption_figure(figures["corruption"])
    if figures["training"]["steps"]:
        made["training"] = plotting.training_figure(figures["training"])
    return {name: plotting.svg(figure, name) for name, figure in made.items()}
