"""The table that page, terminal and `jem compare` show: the figures that decide, a row each."""

from __future__ import annotations

from dataclasses import dataclass, replace

from jem.evaluation.fidelity.completion import ONE_DRAW
from jem.evaluation.statistics import UNKNOWN, Estimate, estimate_of
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
    control: Estimate | None = None


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
            row = Row(name, better, estimate_of(getattr(found.model, part), key))
            if found.control is not None:
                row = replace(row, control=estimate_of(getattr(found.control, part), key))
            rows.append(row)
    for each in report.ood.sets:
        note = " (used in training)" if each.used_in_training else ""
        rows.append(Row(f"AUROC, {each.name}{note}", "higher", each.auroc, each.control_auroc))
    if report.samples:
        drawn = report.samples.fresh.samples
        rows += [
            Row("samples of the class asked for", "higher", drawn.agreement),
            Row("variety of samples, real inputs = 1", "near 1", drawn.diversity),
            Row("Frechet distance of samples", "lower", drawn.frechet),
            Row("recall of samples", "higher", drawn.recall),
        ]
    if report.completions:
        accuracy = report.completions.fillings[ONE_DRAW].accuracy
        rows.append(Row("accuracy on completed images", "higher", accuracy))
    if report.run.seconds is not None:
        both = report.run.seconds, report.run.control_seconds
        own, control = (s and UNKNOWN._replace(value=s) for s in both)
        rows.append(Row("training time, seconds", "lower", own or UNKNOWN, control or None))
    return rows
