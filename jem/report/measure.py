"""What a report is about, and everything that it says, measured once: a dataclass a section.

Nothing here trains, and nothing draws: page, terminal and `report.json` are made from the `Report`
that `measure` returns.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from torch import Tensor

from jem.data.splits import PART_NAMES, DataSplits
from jem.errors import InputError
from jem.evaluation.chains import ChainHealth
from jem.evaluation.fidelity.report import CompletionReport
from jem.evaluation.likelihood import LogPartition, log_partition
from jem.evaluation.robustness.corruption import CorruptionCurves, corruption_curves
from jem.evaluation.robustness.report import RobustnessReport, robustness_report
from jem.evaluation.statistics import largest_acceptance_rate, plain
from jem.model import batched_logits
from jem.report.classification import Classification, classification_section
from jem.report.ood import OODDetection, ood_section
from jem.report.samples import (
    Samples,
    chains_section,
    completions_section,
    reference_classifier_of,
    samples_section,
)
from jem.report.subject import Subject, TrainingRun
from jem.serving.scorer import Scorer, fit_scorer

SCHEMA_VERSION = 5
"""Of `report.json`; grows when a key changes its meaning or goes."""

LEFT_OUT = ("data", "records", "pictures", "bins", "risk_coverage")
"""Fields that `report.json` does without: pictures, and the curves and records behind others."""

MOST_CORRUPTED = 2000
"""Test images that are damaged."""

MOST_ATTACKED = 200
"""Test inputs that are attacked."""

REFINE_STEPS = 5
"""Langevin steps of attacked inputs, where accuracy after such steps is measured."""

MOST_COSTED = 2000
"""Test inputs, and validation inputs, whose bits are measured."""

MOST_POINTS = 200
"""Points of a curve of training."""

Progress = Callable[[str], None]
Section = TypeVar("Section")


@dataclass(frozen=True)
class Overfitting:
    """Validation NLL, in nats, of three epochs, numbered from 1.

    Attributes:
        best: (epoch, NLL) of the lowest.
        last: (epoch, NLL) of the last.
        kept: (epoch, NLL) of the one whose model is measured.
        last_overfits: Whether the last overfits, as `EpochGuard` has it: NLL above the lowest by
            more than its standard error, training NLL below what it was then.
        kept_overfits: Whether the one that is kept does.
    """

    best: tuple[int, float]
    last: tuple[int, float]
    kept: tuple[int, float]
    last_overfits: bool
    kept_overfits: bool


@dataclass(frozen=True)
class Training:
    """The course of training, by the run's own records.

    Attributes:
        recorded: Whether there are any records.
        gap: (update, mean energy of the chains minus that of the data, nats), thinned.
        validation_nll: (update, NLL of the validation part, nats).
        recoveries: Updates at which the run recovered from divergence.
        num_recoveries: How many there were.
        overfitting: Validation NLL by epoch; None where there is none.
    """

    recorded: bool
    gap: list[tuple[int, float]]
    validation_nll: list[tuple[int, float]]
    recoveries: list[int]
    num_recoveries: int
    overfitting: Overfitting | None


@dataclass(frozen=True)
class Report:
    """What `measure` found. A section that does not apply is None, and `left_out` says why.

    Attributes:
        run: What is known of the training.
        data: The data.
        classification: Accuracy and calibration; None for K = 1.
        ood: Detection of OOD inputs.
        samples: Quality of samples.
        completions: Quality of completions.
        chains: Health of the persistent chains.
        corruption: Figures on damaged images.
        attack: Accuracy under attack; None unless it was asked for.
        likelihood: log Z and bits of test inputs; None unless they were asked for.
        training: The course of training.
        left_out: Name of a section -> why it is not there.
    """

    run: TrainingRun
    data: DataSplits
    classification: Classification | None
    ood: OODDetection
    samples: Samples | None
    completions: CompletionReport | None
    chains: ChainHealth | None
    corruption: CorruptionCurves | None
    attack: RobustnessReport | None
    likelihood: LogPartition | None
    training: Training
    left_out: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Everything but pictures and curves as plain values for JSON; NaN as None."""
        data = {
            "name": self.data.name,
            "kind": self.data.kind,
            "input_shape": list(self.data.input_shape),
            "classes": list(self.data.classes),
            "sizes": {part: len(getattr(self.data, part)) for part in PART_NAMES},
        }
        return {"schema_version": SCHEMA_VERSION, **plain(self, LEFT_OUT), "data": data}


def measure(
    subject: Subject,
    *,
    acceptance_rate: float = 0.95,
    attack: bool = False,
    likelihood: bool = False,
    seed: int = 0,
    progress: Progress = lambda _: None,
) -> Report:
    """Measure everything that the report says, on the test part.

    A section that does not apply to a kind of data or model is left out.

    Args:
        subject: The model, its data, and what is known of its training.
        acceptance_rate: Share of in-distribution inputs that the threshold is to accept; fewer
            than 19 calibration inputs can promise no more than n / (n + 1).
        attack: Also attack test inputs; it takes minutes.
        likelihood: Also measure what test inputs cost in bits; it takes minutes.
        seed: Decides OOD sets, samples, attacks, chains and replicates.
        progress: Called with the name of each section before it is measured.

    Returns:
        The figures, and what pictures are made from.

    Raises:
        InputError: If the model or an OOD set does not fit the data, or a part of the data that
            is needed is empty.
    """
    model, splits = subject.model, subject.splits
    if not len(splits.test):
        raise InputError(f"the test part of `{splits.name}` must hold examples, but is empty")
    x, y = splits.test[:]
    share = largest_acceptance_rate(len(splits.calibration), acceptance_rate)
    scorer = fit_scorer(model, splits, acceptance_rate=share)
    logits = batched_logits(model, x).cpu()
    left_out: dict[str, str] = {}

    def attempt(
        name: str, section: Callable[[], Section], *, draws: bool = False
    ) -> Section | None:
        if draws and subject.run.as_given:
            left_out[name] = f"nothing was trained: {subject.run.as_given}"
            return None
        progress(name)
        try:
            return section()
        except InputError as error:
            left_out[name] = str(error)
            return None

    progress("classification and calibration")
    classification = None
    if scorer.temperature is None:
        left_out["classification"] = "the model has no classes (K = 1)"
    else:
        classification = classification_section(subject, scorer.temperature, logits)
    progress("OOD sets")
    ood = ood_section(subject, scorer, x, logits, seed)
    reference = cache(lambda: reference_classifier_of(subject, seed))
    return Report(
        run=subject.run,
        data=splits,
        classification=classification,
        ood=ood,
        samples=attempt(
            "samples", lambda: samples_section(subject, reference(), seed), draws=True
        ),
        completions=attempt(
            "completions", lambda: completions_section(subject, reference(), seed), draws=True
        ),
        chains=attempt("chains", lambda: chains_section(subject, x, seed), draws=True),
        corruption=attempt("corruption", lambda: _corruption(subject, x, y, scorer)),
        attack=attempt("attacks", lambda: _attack(subject, x, y, scorer, seed, progress))
        if attack
        else None,
        likelihood=attempt(
            "likelihood", lambda: _likelihood(subject, x, seed, progress), draws=True
        )
        if likelihood
        else None,
        training=_training(subject.run.records),
        left_out=left_out,
    )


def _corruption(subject: Subject, x: Tensor, y: Tensor, scorer: Scorer) -> CorruptionCurves:
    if subject.splits.kind != "image" or scorer.temperature is None:
        raise InputError("corruptions are of images with classes")
    x, y = x[:MOST_CORRUPTED], y[:MOST_CORRUPTED]
    return corruption_curves(subject.model, x, y, scorer.temperature, scorer.detector)


def _attack(
    subject: Subject, x: Tensor, y: Tensor, scorer: Scorer, seed: int, progress: Progress
) -> RobustnessReport:
    if _has_encoded_columns(subject):
        raise InputError("small changes of columns of text, dates or gaps give no rows of a table")
    if scorer.temperature is None:
        raise InputError("attacks are on classes")
    has_chains = subject.model.sampler is not None and not subject.run.as_given
    return robustness_report(
        subject.model,
        x[:MOST_ATTACKED],
        y[:MOST_ATTACKED],
        plain=subject.control,
        detector=scorer.detector,
        refine_steps=REFINE_STEPS if has_chains else 0,
        seed=seed,
        progress=lambda done, total: progress(f"attacks, part {done} of {total}"),
    )


def _likelihood(subject: Subject, x: Tensor, seed: int, progress: Progress) -> LogPartition:
    if subject.model.sampler is None:
        raise InputError("no density was trained")
    if _has_encoded_columns(subject):
        raise InputError("columns of text, dates or gaps have no density")
    validation = subject.splits.validation[:MOST_COSTED][0]
    return log_partition(
        subject.model,
        seed=seed,
        test=x[:MOST_COSTED],
        validation=validation if len(validation) else None,
        progress=lambda done, total: progress(f"likelihood, step {done:,} of {total:,}"),
    )


def _has_encoded_columns(subject: Subject) -> bool:
    scaling = subject.splits.scaling
    columns = (scaling and scaling.encoding) or ()
    return any(column.width > 1 or column.form for column in columns)


def _training(records: list[dict[str, Any]]) -> Training:
    kinds = ("update", "epoch", "recovery")
    updates, epochs, recoveries = ([r for r in records if r["kind"] == kind] for kind in kinds)
    thinned = updates[:: max(1, -(-len(updates) // MOST_POINTS))]
    return Training(
        recorded=bool(records),
        gap=[(r["iteration"], r["gap"]) for r in thinned if r.get("gap") is not None],
        validation_nll=[(r["iteration"], r["valid_nll"]) for r in epochs if "valid_nll" in r],
        recoveries=[r["iteration"] for r in recoveries],
        num_recoveries=max(len(recoveries), *(r.get("recoveries", 0) for r in epochs), 0),
        overfitting=_overfitting(records),
    )


def _overfitting(records: list[dict[str, Any]]) -> Overfitting | None:
    needed = {"valid_nll", "valid_nll_se", "cross_entropy"}
    epochs = [r for r in records if r["kind"] == "epoch" and r.keys() >= needed]
    if not epochs:
        return None
    best, last = min(epochs, key=lambda r: r["valid_nll"]), epochs[-1]
    ends = [r["kept_epoch"] for r in records if r["kind"] == "end"]
    kept = next((r for r in epochs if r["epoch"] in ends[-1:]), last)

    def overfits(epoch: dict[str, Any]) -> bool:
        above = epoch["valid_nll"] > best["valid_nll"] + best["valid_nll_se"]
        return bool(above and epoch["cross_entropy"] < best["cross_entropy"])

    three = [(r["epoch"], r["valid_nll"]) for r in (best, last, kept)]
    return Overfitting(three[0], three[1], three[2], overfits(last), overfits(kept))
