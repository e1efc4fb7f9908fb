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

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from jem.data.batches import BatchStream
from jem.data.foreign import DISTANCES, ROTATIONS
from jem.data.parts import DataSplits
from jem.data.shifts import rotations
from jem.errors import InputError
from jem.evaluation.calibration import CalibrationReport, calibration_report
from jem.evaluation.chain_health import chain_health
from jem.evaluation.completion import completion_accuracy
from jem.evaluation.corruption import corruption_curves
from jem.evaluation.estimates import difference_estimate, share_estimate
from jem.evaluation.examples import choose_rows, draw_subset
from jem.evaluation.fidelity import fidelity
from jem.evaluation.judge import LARGEST_SIDE, LARGEST_TRAINING_SET, Judge, train_judge
from jem.evaluation.ood import OODDetector, ood_metrics
from jem.evaluation.ood_threshold import largest_accept
from jem.evaluation.summary import TABLE_DISTANCES, foreign_sets, logits_of, seen_in_training
from jem.evaluation.temperature import TemperatureScaling
from jem.evaluation.verdicts import verdicts
from jem.generation import sample
from jem.model import JEM

SCHEMA_VERSION = 1
"""Of `report.json`; grows when a key changes its meaning or goes."""

ROTATED = "rotated by 90 degrees"

AFFORDABLE = 20_000_000
"""Pixels times moves that samples may cost, completions as much, and chains that run on."""

JUDGED_PIXELS = 8_000_000
"""Pixels of all training inputs that the judge learns from, as large as it sees them."""

MOST_SAMPLES, FEWEST_SAMPLES = 500, 100
"""Fresh samples; the Frechet distance needs more of them than the judge has features."""

SHOWN_OF_CLASS = 10
"""Samples of a class that are shown, and that are drawn of every class at the least."""

MOST_COMPLETED, FEWEST_COMPLETED = 96, 32
"""Test images whose lower half is removed and completed, once each: whole blocks of chains."""

MOST_CHAINS, FEWEST_CHAINS, CHAIN_MOVES = 64, 16, 400
"""Persistent chains that are run on, and their moves."""

SHOWN = 12
"""Inputs shown of each kind of example."""

Progress = Callable[[str], None]


@dataclass
class Subject:
    """What is reported on.

    Attributes:
        model: The trained model.
        splits: Its data.
        control: A plain classifier trained on the same data, to compare with; or None.
        chains: Persistent chains at the end of training, (M, *shape); None without any.
        chain_labels: Their classes (M,), where chains are conditional.
        foreign: More foreign sets, name -> inputs in the network's units.
        run: Plain values that say what was trained and how; kept as they are. Under `"as_given"`
            why the model is as it was given, if it is: it then has seen no foreign set, and
            neither samples nor chains are looked at.
        records: Lines of `metrics.jsonl`, oldest first.
    """

    model: JEM
    splits: DataSplits
    control: JEM | None = None
    chains: Tensor | None = None
    chain_labels: Tensor | None = None
    foreign: dict[str, Tensor] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Measured:
    """What `measure` found.

    Attributes:
        figures: Plain values: `report.json`.
        reports: Calibration before and after temperature, for diagrams.
        scores: Log-density of the test part ("test") and of each foreign set, (N,).
        images: Inputs worth looking at, by what they are examples of, (B, *shape).
    """

    figures: dict[str, Any]
    reports: dict[str, CalibrationReport] = field(default_factory=dict)
    scores: dict[str, Tensor] = field(default_factory=dict)
    images: dict[str, Tensor] = field(default_factory=dict)


def measure(
    subject: Subject,
    *,
    accept: float = 0.95,
    seed: int = 0,
    num_bootstrap: int = 1000,
    progress: Progress = lambda _: None,
) -> Measured:
    """Measure everything that the report says.

    A section that does not apply to a kind of data, or that fails for a reason a person can cause,
    is left out, and `figures["left_out"]` says why.

    Args:
        subject: The model, its data, and what is known of the run.
        accept: Share of in-distribution inputs that the detector is to accept.
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
    x, y = _part(splits.test)
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
    detector = _fitted_detector(model, splits, accept, figures)
    figures["ood"] = _ood(subject, measured, x, (logits, plain_logits), detector, seed)
    judge = cache(lambda: _judge(subject, seed))
    drawn: dict[str, Callable[[], Any]] = {
        "samples": lambda: _samples(subject, measured, judge(), seed),
        "completions": lambda: _completions(subject, measured, judge, seed),
        "chains": lambda: _chains(subject, x, seed),
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
    return logits_of(model, x).double()


def _part(part: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401 - a part in memory or on disk
    """All of a part as tensors; the parts that a report reads hold at most 10,000 inputs."""
    batches = list(BatchStream(part, 512, seed=0, name="report", drop_last=False).epoch(0))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def _validation_logits(model: JEM, splits: DataSplits) -> tuple[Tensor, Tensor]:
    x, y = _part(splits.validation)
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
    model: JEM, splits: DataSplits, accept: float, figures: dict[str, Any]
) -> OODDetector | None:
    try:
        share = largest_accept(len(splits.calibration), accept)
        return OODDetector(model).fit(_part(splits.calibration)[0], accept=share)
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
    sets = foreign_sets(subject.splits, seed)
    if subject.splits.kind == "image" and x.shape[2] == x.shape[3]:
        sets[ROTATED] = rotations(x)
    sets |= subject.foreign
    threshold = None if detector is None else detector.threshold
    measured.scores["test"] = own
    order = own.argsort()
    measured.images["most likely test inputs"] = x[order.flip(0)[:SHOWN]]
    measured.images["least likely test inputs"] = x[order[:SHOWN]]
    if threshold is not None and bool((own < threshold).any()):
        refused = order[: int((own < threshold).sum())]
        measured.images["rejected although of the data"] = x[refused.flip(0)[:SHOWN]]
    rows = []
    for name, foreign in sets.items():
        scores = _logits(subject.model, foreign).logsumexp(dim=1)
        measured.scores[name] = scores
        metrics = ood_metrics(own, scores, num_bootstrap=200)
        row: dict[str, Any] = {
            "name": name,
            "kind": _distance(name),
            "seen": seen_in_training(name, subject.model, trained=not subject.run.get("as_given")),
            "num": len(foreign),
            **_ood_figures(metrics.to_dict()),
        }
        if plain is not None and subject.control is not None:
            other = _logits(subject.control, foreign).logsumexp(dim=1)
            row["auroc_plain"] = _ood_figures(
                ood_metrics(plain, other, num_bootstrap=1).to_dict()
            )["auroc"]
        if threshold is not None:
            row["flagged"] = share_estimate(scores < threshold)._asdict()
            passed = (scores >= threshold).nonzero().flatten()
            if len(passed):
                best = passed[scores[passed].argsort(descending=True)[:SHOWN]]
                measured.images[f"accepted although foreign: {name}"] = foreign[best]
        rows.append(row)
    found: dict[str, Any] = {"score": "log_density", "num_test": len(own), "sets": rows}
    if detector is not None and threshold is not None:
        found["accept"], found["threshold"] = detector.accept, threshold
        found["num_calibration"] = len(subject.splits.calibration)
        found["accepted"] = share_estimate(own >= threshold)._asdict()
    return found


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


# -- samples, completions, chains, corruption, training -------------------------------------------


def _judge(subject: Subject, seed: int) -> Judge:
    """The independent classifier that looks at samples and completions."""
    model, splits = subject.model, subject.splits
    if model.chain is None:
        raise InputError("the model was trained without chains: it draws no samples")
    num_classes = len(splits.classes)
    if num_classes < 2 or len(model.chain.class_frequencies) < 2:
        raise InputError("samples are judged by a classifier, and the model has no classes")
    pixels = math.prod(min(side, LARGEST_SIDE) for side in splits.input_shape[1:])
    limit = min(LARGEST_TRAINING_SET, JUDGED_PIXELS // pixels)
    x_train, y_train = draw_subset(splits.train, limit, seed=seed, name="judge")
    return train_judge(x_train, y_train, num_classes, seed=seed, data=splits.name)


def _samples(subject: Subject, measured: Measured, judge: Judge, seed: int) -> dict[str, Any]:
    model, splits = subject.model, subject.splits
    frequencies = model.chain.class_frequencies.cpu()
    fewest = max(FEWEST_SAMPLES, SHOWN_OF_CLASS * len(frequencies))
    wanted = affordable(splits.input_shape, model.chain.num_steps, fewest, MOST_SAMPLES)
    count = min(wanted, len(splits.test))
    labels = _labels(frequencies, count, seed)
    drawn = sample(model, labels, seed=seed).cpu()
    measured.images["fresh samples by class"] = _by_class(model, drawn, labels, seed)
    parts: dict[str, Any] = {"train": splits.train, "test": splits.test, "judge": judge}
    fresh = fidelity(drawn, labels, **parts, seed=seed)
    found = {"fresh": fresh.to_dict()}
    if subject.chains is not None:
        chains, of_class = subject.chains.cpu(), subject.chain_labels
        measured.images["persistent chains"] = chains[:100]
        rows = choose_rows(len(chains), count, seed=seed, name="report chains")
        of_class = None if of_class is None else of_class.cpu()[rows]
        found["chains"] = fidelity(
            chains[rows], of_class, **parts, seed=seed, real=fresh.real
        ).to_dict()
    return found


def affordable(shape: Sequence[int], num_moves: int, fewest: int, most: int) -> int:
    """How many inputs of a shape may be moved so often: fewer of large images, never too few.

    Args:
        shape: Of one input; channels do not count, and a row of a table counts as one pixel.
        num_moves: Langevin moves of each.
        fewest: What the figures need, wherever it is below `most`.
        most: More tells little.

    Example:
        >>> [affordable((1, side, side), 200, 100, 500) for side in (8, 28, 64)]
        [500, 127, 100]
    """
    paid = AFFORDABLE // max(1, num_moves * math.prod(shape[1:]))
    return min(most, max(fewest, paid))


def _labels(frequencies: Tensor, count: int, seed: int) -> Tensor:
    """Classes to draw (count,), each as often as its frequency says, give or take one."""
    generator = torch.Generator().manual_seed(seed)
    edges = frequencies.double().cumsum(dim=0) / frequencies.double().sum()
    offset = torch.rand(1, generator=generator, dtype=torch.double)
    places = (torch.arange(count) + offset) / count
    labels = torch.searchsorted(edges, places).clamp(max=len(frequencies) - 1)
    return labels[torch.randperm(count, generator=generator)]


def _by_class(model: JEM, drawn: Tensor, labels: Tensor, seed: int) -> Tensor:
    """Samples to show, as many of each of the first classes; more are drawn where some lack."""
    classes = torch.arange(min(len(model.chain.class_frequencies), 10))
    lacking = torch.cat(
        [k.repeat(max(0, SHOWN_OF_CLASS - int((labels == k).sum()))) for k in classes]
    )
    if len(lacking):
        more = sample(model, lacking, seed=seed + 1).cpu()
        drawn, labels = torch.cat([drawn, more]), torch.cat([labels, lacking])
    return torch.cat([drawn[labels == k][:SHOWN_OF_CLASS] for k in classes])


def _completions(
    subject: Subject, measured: Measured, judge: Callable[[], Judge], seed: int
) -> dict[str, Any]:
    model, splits = subject.model, subject.splits
    if splits.kind != "image":
        raise InputError("completions are of images")
    seen_by, moves = judge(), model.chain.num_steps
    found = completion_accuracy(
        model,
        train=splits.train,
        test=splits.test,
        seed=seed,
        judge=seen_by,
        count=affordable(splits.input_shape, moves, FEWEST_COMPLETED, MOST_COMPLETED),
        num_draws=1,
    )
    low, high = model.bounds("cpu") or (-1.0, 1.0)
    shown = [
        torch.where(x.isnan(), (low + high) / 2, x)  # what was removed is grey
        for x in found.pictures.values()
    ]
    measured.images["completions"] = torch.cat(shown)
    figures = found.to_dict()
    figures["pictures"] = list(found.pictures)
    figures["rows"] = {row["name"]: _completion_row(row) for row in found.rows}
    return figures


def _completion_row(row: dict[str, Any]) -> dict[str, Any]:
    """The accuracy beside its interval."""
    accuracy = {"value": row["accuracy"], "low": row["low"], "high": row["high"]}
    return {"accuracy": accuracy, "rmse": row["rmse"]}


def _chains(subject: Subject, x: Tensor, seed: int) -> dict[str, Any]:
    if subject.chains is None:
        raise InputError("the run kept no chains")
    health = chain_health(
        subject.model,
        x,
        subject.chains,
        labels=subject.chain_labels,
        num_steps=CHAIN_MOVES,
        max_chains=affordable(x.shape[1:], CHAIN_MOVES, FEWEST_CHAINS, MOST_CHAINS),
        seed=seed,
    )
    return health.to_dict()


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
