"""The table that page, terminal and `jem compare` show: the figures that decide, a row each."""

from __future__ import annotations

from dataclasses import dataclass

from jem.evaluation.calibration.report import CalibrationReport
from jem.evaluation.fidelity.completion import ONE_DRAW
from jem.evaluation.statistics import UNKNOWN, Estimate
from jem.report.measure import Report


@dataclass(frozen=True)
class Row:
    """One figure of the model, and of the control where there is one.

    Attributes:
        name: What is measured, with its unit.
        better: Which way the figure gets better.
        model: Of the model.
        control: Of the plain classifier trained on the same data.
    """

    name: str
    better: str
    model: Estimate
    control: Estimate | None


def calibration_estimate(report: CalibrationReport, name: str) -> Estimate:
    """A figure of a calibration report with its interval; NaN where there is none."""
    value: float = getattr(report, name)
    if name not in report.intervals:
        return UNKNOWN._replace(value=value)
    low, high = report.intervals[name]
    return UNKNOWN._replace(value=value, low=low, high=high)


def summary(report: Report) -> list[Row]:
    """The rows of the table, in the order of the page."""
    rows = []
    if found := report.classification:
        for name, better, key, part in (
            ("accuracy", "higher", "accuracy", "before"),
            ("NLL, nats", "lower", "nll", "before"),
            ("NLL after temperature scaling, nats", "lower", "nll", "after"),
            ("ECE", "lower", "ece", "before"),
            ("ECE after temperature scaling", "lower", "ece", "after"),
        ):
            own, other = (
                None if each is None else calibration_estimate(getattr(each, part), key)
                for each in (found.model, found.control)
            )
            rows.append(Row(name, better, own or UNKNOWN, other))
    for each in report.ood.sets:
        note = " (used in training)" if each.used_in_training else ""
        name = f"AUROC, {each.name}{note}"
        rows.append(Row(name, "higher", each.auroc, each.control_auroc))
    if report.samples:
        drawn = report.samples.fresh.samples
        rows += [
            Row("samples of the class asked for", "higher", drawn.agreement, None),
            Row("variety of samples, real inputs = 1", "near 1", drawn.diversity, None),
            Row("Frechet distance of samples", "lower", drawn.frechet, None),
            Row("recall of samples", "higher", drawn.recall, None),
        ]
    if report.completions:
        accuracy = report.completions.fillings[ONE_DRAW].accuracy
        rows.append(Row("accuracy on completed images", "higher", accuracy, None))
    if report.run.seconds is not None:
        seconds = report.run.control_seconds
        control = None if seconds is None else UNKNOWN._replace(value=seconds)
        own_time = UNKNOWN._replace(value=report.run.seconds)
        rows.append(Row("training time, seconds", "lower", own_time, control))
    return rows
