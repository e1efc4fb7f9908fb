"""Answers to what a reader asks first, each by a stated rule from the figures of a report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jem.evaluation.calibration.report import CalibrationReport
from jem.evaluation.chains import MEANINGS
from jem.evaluation.fidelity.completion import (
    MEAN_FILL,
    NEAREST,
    ONE_DRAW,
    ORIGINAL,
    CompletionReport,
)
from jem.evaluation.statistics import Estimate
from jem.report.measure import Classification, Report
from jem.report.ood import OODDetection
from jem.report.samples import Samples

Answer = Literal["yes", "no", "partly", "cannot tell"]

TOLERATED_LOSS = 0.01
"""Loss of accuracy, in shares, that still counts as none."""

GOOD_AUROC = 0.95
"""AUROC from which on an OOD set counts as recognised, by its whole interval."""

GOOD_AGREEMENT, GOOD_DIVERSITY = 0.9, 0.5
"""What samples must reach, by their whole intervals."""

LOW_RECALL = 0.5
"""Recall of samples, over that of real inputs, below which they vary less than the data."""

ADVICE = {
    "level": "nothing",
    "lag": "more steps an update (--num-steps) or slower learning (--learning-rate)",
    "landscape": "a smaller --generative-weight or a larger --energy-l2",
    "overshoot": "a larger --noise-std or a smaller --step-size",
    "settled": "nothing, as long as samples are drawn with the run's own number of steps",
}
"""What to do about chains, by what was found of them."""


@dataclass(frozen=True)
class Verdict:
    """A question with its answer, the figures behind it, and the rule that decided."""

    question: str
    answer: Answer
    because: str
    rule: str


def verdicts(report: Report) -> list[Verdict]:
    """Answer five questions, and a sixth where inputs were completed."""
    found = [
        _accurate(report.classification),
        _calibrated(report.classification),
        _detects(report.ood),
        _draws(report.samples, report.left_out.get("samples", "no samples were drawn")),
        _stable(report),
    ]
    return found if report.completions is None else [*found, _completes(report.completions)]


def _accurate(found: Classification | None) -> Verdict:
    question = "Is it as accurate as a plain classifier?"
    rule = (
        "No if the 95 % interval of the difference in accuracy, measured on the same test inputs, "
        f"lies below 0. Yes if it lies above -{100 * TOLERATED_LOSS:g} points"
    )
    if found is None:
        return Verdict(question, "cannot tell", "there are no classes", rule)
    own = found.model.before
    because = f"accuracy {own.accuracy:.4f} (n = {own.num_samples})"
    gain = found.accuracy_difference
    if gain is None or found.control is None:
        because += "; no plain classifier was trained to compare with"
        return Verdict(question, "cannot tell", because, rule)
    because += (
        f", plain classifier {found.control.before.accuracy:.4f}: a difference of "
        f"{100 * gain.value:+.2f} points [{100 * gain.low:+.2f}, {100 * gain.high:+.2f}]"
    )
    if gain.high < 0:
        return Verdict(question, "no", because, rule)
    answer: Answer = "yes" if gain.low >= -TOLERATED_LOSS else "cannot tell"
    return Verdict(question, answer, because, rule)


def _calibrated(found: Classification | None) -> Verdict:
    question = "Are its probabilities calibrated?"
    rule = (
        "Yes if the expected calibration error (ECE) is below what 95 % of perfectly calibrated "
        "classifiers show on as many inputs. Partly if it is after temperature scaling"
    )
    if found is None:
        return Verdict(question, "cannot tell", "there are no probabilities", rule)
    before, after = found.model.before, found.model.after
    if not before.if_calibrated:
        return Verdict(question, "cannot tell", "no bootstrap replicates were drawn", rule)

    def words(of: CalibrationReport) -> str:
        limit = of.if_calibrated["ece"]
        return f"{of.ece:.4f} (calibrated: below {limit:.4f})"

    calibrated = [of.ece <= of.if_calibrated["ece"] for of in (before, after)]
    because = f"ECE {words(before)}, after temperature scaling {words(after)}"
    if not found.model.improved:
        because = f"ECE {words(before)}; temperature scaling did not help"
    answer: Answer = "yes" if calibrated[0] else "partly" if calibrated[1] else "no"
    return Verdict(question, answer, f"{because}; n = {before.num_samples}", rule)


def _detects(found: OODDetection) -> Verdict:
    question = "Does it recognise out-of-distribution inputs?"
    rule = (
        "An OOD set counts as recognised if the whole 95 % interval of its AUROC is at least "
        f"{GOOD_AUROC}, and as not recognised if the whole interval is below. Sets of a kind "
        "that was used in training do not count"
    )
    names: dict[bool | None, list[str]] = {True: [], False: [], None: []}
    for each in found.sets:
        if not each.used_in_training:
            names[_above(each.auroc, GOOD_AUROC)].append(each.name)
    if not any(names.values()):
        return Verdict(question, "cannot tell", "every OOD set was used in training", rule)
    recognised, missed, unclear = names[True], names[False], names[None]
    because = f"recognised: {', '.join(recognised) or 'none'}"
    if missed:
        because += f"; not recognised: {', '.join(missed)}"
    if unclear:
        because += (
            f"; {found.num_test} test inputs are too few to tell for {', '.join(unclear)}, where "
            f"the interval of the AUROC holds {GOOD_AUROC}"
        )
    if recognised and missed:
        return Verdict(question, "partly", because, rule)
    answer: Answer = "cannot tell" if unclear else "yes" if recognised else "no"
    return Verdict(question, answer, because, rule)


def _draws(found: Samples | None, why: str) -> Verdict:
    question = "Does it draw good samples of the class asked for?"
    rule = (
        f"Yes if at least {GOOD_AGREEMENT:.0%} of fresh samples are of the class asked for, by an "
        f"independent classifier, and they vary at least {GOOD_DIVERSITY:g} times as much within "
        "a class as real inputs; each by its whole 95 % interval. Partly if one of both holds"
    )
    if found is None:
        return Verdict(question, "cannot tell", why, rule)
    row, real = found.fresh.samples, found.fresh.real
    because = (
        f"{row.agreement.value:.1%} are of the class asked for, and within a class they vary "
        f"{row.diversity.value:.2f} times as much as real inputs (n = {row.num})"
    )
    if row.recall.value < LOW_RECALL * real.recall.value:
        because += (
            f"; but they miss a part of the data: recall {row.recall.value:.2f}, of real inputs "
            f"{real.recall.value:.2f}"
        )
    good = [_above(row.agreement, GOOD_AGREEMENT), _above(row.diversity, GOOD_DIVERSITY)]
    answers: tuple[Answer, ...] = ("no", "partly", "yes")
    answer = "cannot tell" if None in good else answers[good.count(True)]
    return Verdict(question, answer, because, rule)


def _stable(report: Report) -> Verdict:
    question = "Was training stable?"
    rule = (
        "Yes if training never had to recover from divergence, and its chains had the energy of "
        "the data when it ended and do not end above it when they run on. Partly if one of both "
        "holds. Without chains, recoveries alone decide"
    )
    training, chains = report.training, report.chains
    if report.run.as_given:
        because = f"nothing was trained: {report.run.as_given}"
        return Verdict(question, "cannot tell", because, rule)
    if not training.recorded and chains is None:
        return Verdict(question, "cannot tell", "the run kept no records", rule)
    recoveries = training.num_recoveries
    because = f"{recoveries} recoveries from divergence"
    if recoveries:
        because += " (if accuracy suffered: a smaller --learning-rate)"
    if chains is None:
        return Verdict(question, "partly" if recoveries else "yes", because, rule)
    found: str = chains.verdict
    if found == "overshoot" and abs(chains.gap_start.value) <= chains.tolerance:
        found = "settled"  # level when training ended: far below temperature 1 steps go downhill
    because += f"; {MEANINGS[chains.verdict]}. What to do: {ADVICE[found]}"
    answers: tuple[Answer, ...] = ("no", "partly", "yes")
    answer = answers[(recoveries == 0) + (found in ("level", "settled"))]
    return Verdict(question, answer, because, rule)


def _completes(found: CompletionReport) -> Verdict:
    question = "Does it complete missing halves?"
    rule = (
        "An independent classifier names the class of each completed image. Yes if it is right "
        "more often for the model's completions than with the mean image filled in, and not less "
        "often than with the nearest training image filled in; partly if only the first holds; "
        "by 95 % intervals of the differences"
    )
    names = (ONE_DRAW, MEAN_FILL, NEAREST, ORIGINAL)
    shares = ", ".join(f"{name} {found.fillings[name].accuracy.value:.3f}" for name in names)
    because = f"accuracy of {shares} (n = {found.num_inputs})"
    drawn = found.fillings[ONE_DRAW]
    assert drawn.gain_over_mean is not None
    assert drawn.gain_over_nearest is not None
    better = _above(drawn.gain_over_mean, 0.0)
    if better is None:
        return Verdict(question, "cannot tell", because, rule)
    worse_than_nearest = drawn.gain_over_nearest.high < 0
    answer: Answer = ("partly" if worse_than_nearest else "yes") if better else "no"
    return Verdict(question, answer, because, rule)


def _above(figure: Estimate, bar: float) -> bool | None:
    """Whether a figure's interval lies above a bar, below it, or on both sides (None)."""
    return True if figure.low >= bar else False if figure.high < bar else None
