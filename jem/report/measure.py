"""What a run is worth, measured once and kept as plain values: the content of `report.json`.

Nothing here trains, and nothing draws: the page is made from what `measure` returns. Its sections:

- `schema_version`; `run`, what was trained and how; `data`, name, shape, classes, sizes of parts.
- `left_out`: section -> why it is not there.
- `classification`: figures of calibration of the model and its control, before and after
  temperature, and the paired difference in accuracy.
- `ood`: the threshold, and a row of figures for each foreign set.
- `samples`: fidelity of fresh samples (`fresh`) and of persistent chains (`chains`).
- `completions`: for images, accuracy and error of fillings of their lower half.
- `chains`: whether chains are level with the data. `corruption`: figures along severity.
- `training`: curves, recoveries, seconds. `verdicts`: questions with answer and rule.

A figure with an interval is `{"value", "low", "high"}`, null where it is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from jem.data.batches import BatchStream
from jem.data.ood_sets import DISTANCES, ROTATIONS, rotations
from jem.data.splits import DataSplits
from jem.errors import InputError
from jem.evaluation.calibration.report import CalibrationReport, calibration_report
from jem.evaluation.calibration.temperature import TemperatureScaling
from jem.evaluation.examples import part_of
from jem.evaluation.ood.detector import OODDetector, largest_acceptance_rate
from jem.evaluation.ood.metrics import ood_metrics
from jem.evaluation.robustness.corruption import corruption_curves
from jem.evaluation.statistics import difference_estimate, share_estimate
from jem.model import JEM, batched_logits
from jem.report.samples import (
    chains_section,
    completions_section,
    judge_of,
    samples_section,
)
from jem.report.subject import Measured, Subject
from jem.report.summary import TABLE_DISTANCES, make_ood_sets, seen_in_training
from jem.report.verdicts import verdicts

SCHEMA_VERSION = 1
"""Of `report.json`; grows when a key changes its meaning or goes."""

OWN = "test"
"""What scores of the test part are called beside those of foreign sets."""

ROTATED = "rotated by 90 degrees"

SHOWN = 12
"""Inputs shown of each kind of example."""

Progress = Callable[[str], None]


def measure(
    subject: Subject,
    *,
    acceptance_rate: float = 0.95,
    seed: int = 0,
    num_bootstrap: int = 1000,
    progress: Progress = lambda _: None,
) -> Measured:
    """Measure everything that the report says.

    A section that does not apply to a kind of data, or that fails for a reason a person can cause,
    is left out, and `figures["left_out"]` says why.

    Args:
        subject: The model, its data, and what is known of the run.
        acceptance_rate: Share of in-distribution inputs that the detector is to accept.
        seed: Decides foreign sets, samples and replicates.
        num_bootstrap: Replicates behind bootstrap intervals.
        progress: Told the name of each section before it is measured.

    Returns:
        Figures and what pictures are made from. The test part is looked at here alone.
    """
    model, splits = subject.model, subject.splits
    figures: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "run": subject.run,
        "data": _data(splits),
        "left_out": {},
    }
    measured = Measured(figures)
    x, y = _part(splits, "test")
    logits = _logits(model, x)
    plain_logits = None if subject.control is None else _logits(subject.control, x)
    temperature: TemperatureScaling | None = None
    if logits.shape[1] > 1:
        progress("classification and calibration")
        temperature = TemperatureScaling().fit(*_validation_logits(model, splits))
        figures["classification"] = _classification(
            subject, measured, (logits, plain_logits), y, temperature, num_bootstrap
        )
    else:
        figures["left_out"]["classification"] = "the model has no classes (K = 1)"
    progress("foreign inputs")
    detector = _fitted_detector(model, splits, acceptance_rate, figures)
    figures["ood"] = _ood(subject, measured, x, (logits, plain_logits), detector, seed)
    judge = cache(lambda: judge_of(subject, seed))
    drawn: dict[str, Callable[[], Any]] = {
        "samples": lambda: samples_section(subject, measured, judge(), seed),
        "completions": lambda: completions_section(subject, measured, judge, seed),
        "chains": lambda: chains_section(subject, x, seed),
    }
    if why := subject.run.get("as_given"):
        figures["left_out"] |= dict.fromkeys(drawn, f"nothing was trained: {why}")
        drawn = {}
    for name, section in drawn.items():
        _attempt(figures, name, progress, section)
    _attempt(
        figures, "corruption", progress, lambda: _corruption(subject, x, y, detector, temperature)
    )
    figures["training"] = _training(subject.records)
    figures["verdicts"] = verdicts(figures)
    return measured


def _attempt(
    figures: dict[str, Any], name: str, progress: Progress, section: Callable[[], Any]
) -> None:
    progress(name)
    try:
        figures[name] = section()
    except InputError as error:
        figures["left_out"][name] = str(error)


def _logits(model: JEM, x: Tensor) -> Tensor:
    """Logits (N, K) in double precision: probabilities near 0 and 1 decide calibration."""
    return batched_logits(model, x, 512).cpu().double()


def _part(splits: DataSplits, name: str) -> tuple[Tensor, Tensor]:
    """All of a part as tensors; the parts that a report reads hold at most 10,000 inputs."""
    part = part_of(splits, name)
    batches = list(BatchStream(part, 512, seed=0, name="report", drop_last=False).epoch(0))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def _validation_logits(model: JEM, splits: DataSplits) -> tuple[Tensor, Tensor]:
    x, y = _part(splits, "validation")
    return _logits(model, x), y


def _data(splits: DataSplits) -> dict[str, Any]:
    parts = ("train", "validation", "calibration", "test")
    return {
        "name": splits.name,
        "kind": splits.kind,
        "input_shape": list(splits.input_shape),
        "classes": list(splits.classes),
        "sizes": {name: len(getattr(splits, name)) for name in parts},
    }


# -- classification and calibration ---------------------------------------------------------------


def _classification(
    subject: Subject,
    measured: Measured,
    logits: tuple[Tensor, Tensor | None],
    y: Tensor,
    temperature: TemperatureScaling,
    num_bootstrap: int,
) -> dict[str, Any]:
    own, plain = logits
    variants = {"model": own, "model, temperature": temperature.transform(own)}
    cooled: TemperatureScaling | None = None
    if plain is not None and subject.control is not None:
        cooled = TemperatureScaling().fit(*_validation_logits(subject.control, subject.splits))
        variants |= {"plain": plain, "plain, temperature": cooled.transform(plain)}
    rows = {}
    for name, of in variants.items():
        report = calibration_report(of.softmax(dim=1), y, num_bootstrap=num_bootstrap)
        measured.reports[name] = report
        rows[name] = _calibration_row(report)
    found: dict[str, Any] = {"rows": rows, "temperature": temperature.state_dict()}
    if cooled is not None:
        found["temperature_plain"] = cooled.state_dict()
    if plain is not None:
        right = own.argmax(dim=1) == y, plain.argmax(dim=1) == y
        found["accuracy_difference"] = difference_estimate(*right)._asdict()
    return found


def _calibration_row(report: CalibrationReport) -> dict[str, Any]:
    row: dict[str, Any] = {"num": report.num_samples, "num_bins": report.num_bins}
    figures = (
        "accuracy", "nll", "brier", "ece", "ece_equal_mass", "class_wise_ece", "smooth_ece",
        "debiased_rmsce", "mce", "aurc", "augrc",
    )  # fmt: skip
    for name in figures:
        low, high = report.intervals.get(name, (None, None))
        row[name] = {"value": getattr(report, name), "low": low, "high": high}
    row["ece_if_calibrated"] = report.if_calibrated.get("ece")
    return row


# -- foreign inputs -------------------------------------------------------------------------------


def _fitted_detector(
    model: JEM, splits: DataSplits, acceptance_rate: float, figures: dict[str, Any]
) -> OODDetector | None:
    try:
        share = largest_acceptance_rate(len(splits.calibration), acceptance_rate)
        return OODDetector(model).fit(_part(splits, "calibration")[0], acceptance_rate=share)
    except InputError as error:
        figures["left_out"]["threshold"] = str(error)
        return None


def _ood(
    subject: Subject,
    measured: Measured,
    x: Tensor,
    logits: tuple[Tensor, Tensor | None],
    detector: OODDetector | None,
    seed: int,
) -> dict[str, Any]:
    own, plain = (None if part is None else part.logsumexp(dim=1) for part in logits)
    assert own is not None, "the model's own logits are always there"
    sets = make_ood_sets(subject.splits, seed)
    if subject.splits.kind == "image" and x.shape[2] == x.shape[3]:
        sets[ROTATED] = rotations(x)
    sets |= {f"foreign {n}" if n == OWN else n: x for n, x in subject.ood_sets.items()}
    order = own.argsort()
    measured.scores[OWN] = own
    measured.images["most likely test inputs"] = x[order.flip(0)[:SHOWN]]
    measured.images["least likely test inputs"] = x[order[:SHOWN]]
    found: dict[str, Any] = {"score": "log_density", "num_test": len(own)}
    if detector is not None:
        flagged = detector.verdict(own).is_ood
        refused = order[: int(flagged.sum())]
        if len(refused):
            measured.images["rejected although of the data"] = x[refused.flip(0)[:SHOWN]]
        found["acceptance_rate"], found["threshold"] = detector.acceptance_rate, detector.threshold
        found["num_calibration"] = len(subject.splits.calibration)
        found["accepted"] = share_estimate(~flagged)._asdict()
    found["sets"] = [
        _foreign_row(subject, measured, name, ood_sets, own, plain, detector)
        for name, ood_sets in sets.items()
    ]
    return found


def _foreign_row(
    subject: Subject,
    measured: Measured,
    name: str,
    ood_sets: Tensor,
    own: Tensor,
    plain: Tensor | None,
    detector: OODDetector | None,
) -> dict[str, Any]:
    """Figures of one foreign set, against scores `own` of the model and `plain` of its control."""
    scores = _logits(subject.model, ood_sets).logsumexp(dim=1)
    measured.scores[name] = scores
    try:
        metrics = ood_metrics(own, scores)
    except InputError as error:
        raise InputError(f"the foreign set {name} cannot be measured: {error}") from error
    row: dict[str, Any] = {
        "name": name,
        "kind": _distance(name),
        "seen": seen_in_training(name, subject.model, trained=not subject.run.get("as_given")),
        "num": len(ood_sets),
        **_ood_figures(metrics.to_dict()),
    }
    if plain is not None and subject.control is not None:
        other = _logits(subject.control, ood_sets).logsumexp(dim=1)
        against = ood_metrics(plain, other)
        row["auroc_plain"] = _ood_figures(against.to_dict())["auroc"]
    if detector is not None:
        flagged = detector.verdict(scores).is_ood
        row["flagged"] = share_estimate(flagged)._asdict()
        passed = (~flagged).nonzero().flatten()
        if len(passed):
            best = passed[scores[passed].argsort(descending=True)[:SHOWN]]
            measured.images[f"accepted although foreign: {name}"] = ood_sets[best]
    return row


def _distance(name: str) -> str:
    """How far a made-up set lies from the data, near or far; of others nobody knows."""
    if name in TABLE_DISTANCES:
        return TABLE_DISTANCES[name]
    return DISTANCES.get(ROTATIONS if name == ROTATED else name.replace(" ", "_"), "given")


def _ood_figures(metrics: dict[str, Any]) -> dict[str, Any]:
    """Each figure beside its interval."""
    intervals = metrics["intervals"]
    found = {}
    for name, value in metrics.items():
        if isinstance(value, float) and name != "confidence":
            low, high = intervals.get(name) or (None, None)
            found[name] = {"value": value, "low": low, "high": high}
    return found


# -- corruption, training -------------------------------------------------------------------------


def _corruption(
    subject: Subject,
    x: Tensor,
    y: Tensor,
    detector: OODDetector | None,
    temperature: TemperatureScaling | None,
) -> list[dict[str, Any]]:
    if subject.splits.kind != "image" or temperature is None:
        raise InputError("corruptions are of images with classes")
    x, y = x[:2000], y[:2000]
    return corruption_curves(subject.model, x, y, detector=detector, temperature=temperature)


def _training(records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Curves of the run, thinned to at most 200 points, and its recoveries."""
    by_kind: dict[str, list[dict[str, Any]]] = {"step": [], "epoch": [], "recovery": []}
    for record in records:
        by_kind.setdefault(record["kind"], []).append(record)
    steps = by_kind["step"][:: max(1, -(-len(by_kind["step"]) // 200))]
    phases = [name for name in (steps[0] if steps else {}) if name.startswith("seconds_")]
    total = {name: sum(r.get(name) or 0.0 for r in by_kind["step"]) for name in phases}
    kept = ("iteration", "cross_entropy", "accuracy", "gap", "share_at_bounds")
    counted = (record.get("recoveries", 0) for record in by_kind["epoch"])
    return {
        "steps": [{key: r[key] for key in kept if key in r} for r in steps],
        "epochs": [
            {key: r[key] for key in ("iteration", "valid_accuracy", "valid_nll") if key in r}
            for r in by_kind["epoch"]
        ],
        "recoveries": [
            {key: r[key] for key in ("iteration", "back_to")} for r in by_kind["recovery"]
        ],
        "num_recoveries": max(len(by_kind["recovery"]), *counted, 0),
        "seconds_by_phase": {name.removeprefix("seconds_"): s for name, s in total.items()},
    }
