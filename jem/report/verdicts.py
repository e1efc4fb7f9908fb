"""What a reader looks at first: the figures that decide, and answers by stated rules."""

from dataclasses import dataclass
from typing import Literal

from jem.evaluation.chains import MEANINGS
from jem.evaluation.fidelity.report import (
    MEAN_FILL,
    NEAREST,
    ONE_DRAW,
    ORIGINAL,
    CompletionReport,
)
from jem.evaluation.statistics import UNKNOWN, Estimate, estimate_of
from jem.report.classification import Classification
from jem.report.measure import Report
from jem.report.ood import OODDetection
from jem.report.samples import Samples

Answer = Literal["yes", "no", "partly", "cannot tell"]
PARTS: tuple[Answer, ...] = ("no", "partly", "yes")  # where none, one or both of two things hold

TOLERATED_LOSS = 0.01
"""Loss of accuracy, in shares, that still counts as none."""

LEAST_RISE = 0.01
"""Rise of the validation NLL, in nats, that is no overfitting; training has it so too."""

GOOD_AUROC = 0.95
"""AUROC from which on an OOD set counts as recognised, by its whole interval."""

GOOD_AGREEMENT, GOOD_DIVERSITY = 0.9, 0.5
"""What samples must reach, by their whole intervals."""

LOW_RECALL = 0.5
"""Recall of samples, over that of real inputs, below which they vary less than the data."""

FAR_FRECHET = 0.1
"""Frechet distance of samples from which they are not like the data, whatever each of them looks
like; as a share of the number of features, which is about what one picture repeated has."""

WEAK_JUDGE = 0.8
"""Accuracy of the reference classifier on real inputs below which it decides nothing."""

USED_IN_TRAINING = " (used in training)"
"""Follows the name of an OOD set whose like training has seen."""
QUESTIONS = (
    (
        "Is it as accurate as a plain classifier?",
        "No if the whole 95 % interval of the difference in accuracy to the plain classifier, on "
        "the same test inputs, is below 0, or if always naming the most frequent class is as "
        f"accurate. Yes if the whole interval is above -{100 * TOLERATED_LOSS:g} points",
    ),
    (
        "Are its probabilities calibrated?",
        "Yes if the expected calibration error (ECE) is below what 95 % of perfectly calibrated "
        "classifiers show on as many inputs. Partly if this holds only after temperature scaling",
    ),
    (
        "Does it recognise out-of-distribution inputs?",
        "An OOD set counts as recognised if the whole 95 % interval of its AUROC is at least "
        f"{GOOD_AUROC}, and as not recognised if the whole interval is below. Sets of a kind that "
        "was used in training do not count",
    ),
    (
        "Does it draw good samples of the class asked for?",
        f"Yes if the reference classifier gives at least {GOOD_AGREEMENT:.0%} of fresh samples "
        f"the class asked for, and they vary at least {GOOD_DIVERSITY:g} times as much within a "
        "class as real inputs, both with their whole 95 % intervals. Partly if one of the two "
        f"fails, or if the Frechet distance is over {FAR_FRECHET:g} times the number of features. "
        f"Cannot tell if that classifier is weak: accuracy on real inputs below {WEAK_JUDGE:.0%}",
    ),
    (
        "Was training stable?",
        "Yes if training never had to recover from divergence, and its chains had the energy of "
        "the data when it ended and do not end above it when they continue under the finished "
        "model. Partly if only one of the two holds. Without chains only the recoveries count",
    ),
    (
        "Was it kept from overfitting?",
        "An epoch overfits if its validation NLL is above the lowest of any epoch by more than "
        "the standard error of the lowest, and its training NLL is below that of the epoch with "
        "the lowest validation NLL. Yes if the last epoch does not overfit. Partly if it does and "
        "an earlier epoch was kept. No if the kept epoch overfits. Cannot tell if the last NLL is "
        f"above the lowest by more than {LEAST_RISE:g} nats, but within that standard error",
    ),
    (
        "Does it complete missing halves?",
        "The reference classifier names the class of each completed image. Yes if it is right "
        "more often for completions by the model than for the mean image filled in, and not less "
        "often than for the nearest training image filled in. No if it is right less often than "
        "for one of the two. The 95 % intervals of the differences decide. Cannot tell if the "
        f"classifier is weak: accuracy on the original images below {WEAK_JUDGE:.0%}",
    ),
)
"""Each question with the rule that decides its answer."""

ADVICE = {
    "lag": ". What to do: more steps in each update (--num-steps) or a smaller --learning-rate",
    "landscape": ". What to do: a smaller --density-weight or a larger --energy-l2",
    "overshoot": ". What to do: a larger --noise-std or a smaller --step-size",
    "settled": ". What to do: draw samples with the run's own number of steps",
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
    """Answer six questions, and a seventh where inputs were completed."""
    found = [
        _accurate(report.classification),
        _calibrated(report.classification),
        _detects(report.ood),
        _draws(report.samples, report.left_out.get("samples", "no samples were drawn")),
        _stable(report),
        _fits(report),
        *([] if report.completions is None else [_completes(report.completions)]),
    ]
    return [
        Verdict(question, answer, because, rule)
        for (question, rule), (answer, because) in zip(QUESTIONS, found, strict=False)
    ]


def _accurate(found: Classification | None) -> tuple[Answer, str]:
    if found is None:
        return "cannot tell", "there are no classes"
    own, gain = found.model.before, found.accuracy_difference
    because = (
        f"accuracy {own.accuracy:.4f} (n = {own.num_samples}; always naming the most frequent "
        f"class: {found.majority.value:.4f})"
    )
    if own.accuracy <= found.majority.value:
        return "no", because
    if gain is None or found.control is None:
        return "cannot tell", f"{because}; no plain classifier was trained to compare with"
    because += (
        f", plain classifier {found.control.before.accuracy:.4f}: a difference of "
        f"{100 * gain.value:+.2f} points [{100 * gain.low:+.2f}, {100 * gain.high:+.2f}]"
    )
    if gain.high < 0:
        return "no", because
    return "yes" if gain.low >= -TOLERATED_LOSS else "cannot tell", because


def _calibrated(found: Classification | None) -> tuple[Answer, str]:
    if found is None:
        return "cannot tell", "there are no classes"
    both = found.model.before, found.model.after
    before, after = (
        f"{of.ece:.4f} (a calibrated classifier: below {of.if_calibrated['ece']:.4f})"
        for of in both
    )
    because = f"ECE {before}, after temperature scaling {after}"
    if not found.model.improved:
        because = f"ECE {before}; temperature scaling did not help"
    calibrated = [of.ece <= of.if_calibrated["ece"] for of in both]
    answer: Answer = "yes" if calibrated[0] else "partly" if calibrated[1] else "no"
    return answer, f"{because}; n = {both[0].num_samples}"


def _detects(found: OODDetection) -> tuple[Answer, str]:
    names: dict[bool | None, list[str]] = {True: [], False: [], None: []}
    for each in found.sets:
        if not each.used_in_training:
            names[_above(each.auroc, GOOD_AUROC)].append(each.name)
    if not any(names.values()):
        return "cannot tell", "every OOD set was used in training"
    recognised, missed, unclear = names[True], names[False], names[None]
    inverted = [f"{s.name} ({s.auroc.value:.2f})" for s in found.sets if s.auroc.high < 0.5]
    because = f"recognised: {', '.join(recognised) or 'none'}"
    if missed:
        because += f"; not recognised: {', '.join(missed)}"
    if inverted:
        because += f"; higher scores than the test inputs (AUROC below 0.5): {', '.join(inverted)}"
    if unclear:
        because += (
            f"; for {', '.join(unclear)} the {found.num_test} test inputs are too few: the "
            f"interval of the AUROC contains {GOOD_AUROC}"
        )
    if recognised and missed:
        return "partly", because
    return "cannot tell" if unclear else "yes" if recognised else "no", because


def _draws(found: Samples | None, why: str) -> tuple[Answer, str]:
    if found is None:
        return "cannot tell", why
    row, real = found.fresh.samples, found.fresh.real
    because = (
        f"{row.agreement.value:.1%} are of the class asked for, and within a class they vary "
        f"{row.diversity.value:.2f} times as much as real inputs (n = {row.num})"
    )
    if row.recall.value < LOW_RECALL * real.recall.value:
        because += (
            f"; they cover only a part of the data: recall {row.recall.value:.2f}, real inputs "
            f"{real.recall.value:.2f}"
        )
    because += (weak := _weak(real.agreement))
    far = row.frechet.value > FAR_FRECHET * found.fresh.num_features
    if far:
        because += (
            f"; as a set they differ from the data: Frechet distance "
            f"{row.frechet.value:.1f}, real inputs {real.frechet.value:.1f}"
        )
    good = [_above(row.agreement, GOOD_AGREEMENT), _above(row.diversity, GOOD_DIVERSITY)]
    if None in good or weak:
        return "cannot tell", because
    return PARTS[min(good.count(True), 1 if far else 2)], because


def _stable(report: Report) -> tuple[Answer, str]:
    training, chains = report.training, report.chains
    if report.run.as_given:
        return "cannot tell", f"nothing was trained: {report.run.as_given}"
    if not training.recorded and chains is None:
        return "cannot tell", "the run kept no records"
    recoveries = training.num_recoveries
    because = f"recoveries from divergence: {recoveries or 'none'}"
    if recoveries:
        because += " (if accuracy suffered: a smaller --learning-rate)"
    if chains is None:
        return "partly" if recoveries else "yes", because
    found: str = chains.verdict
    if found == "overshoot" and abs(chains.gap_start.value) <= chains.tolerance:
        found = "settled"  # level when training ended: far below temperature 1 steps go downhill
    because += f"; {MEANINGS[chains.verdict]}{ADVICE.get(found, '')}"
    return PARTS[(recoveries == 0) + (found in ("level", "settled"))], because


def _fits(report: Report) -> tuple[Answer, str]:
    found = report.training.overfitting
    if report.run.as_given or found is None:
        return "cannot tell", "no epoch was measured on validation examples"
    because = (
        f"validation NLL {found.last[1]:.3f} in the last epoch, {found.last[0]}; the lowest was "
        f"{found.best[1]:.3f} in epoch {found.best[0]}"
    )
    if not found.last_overfits:
        if found.last[1] <= found.best[1] + LEAST_RISE:
            return "yes", because
        return "cannot tell", f"{because}; the validation examples are too few to judge the rise"
    because += f"; the model is that of epoch {found.kept[0]}"
    because += ". What helps: more data, fewer --epochs, --weight-decay, a smaller --network"
    return "no" if found.kept_overfits else "partly", because


def _completes(found: CompletionReport) -> tuple[Answer, str]:
    names = (ONE_DRAW, MEAN_FILL, NEAREST, ORIGINAL)
    shares = ", ".join(f"{name} {found.fillings[name].accuracy.value:.3f}" for name in names)
    because = f"accuracy of {shares} (n = {found.num_inputs})"
    over_mean, over_nearest = (
        found.fillings[ONE_DRAW].gain_over_mean, found.fillings[ONE_DRAW].gain_over_nearest
    )  # fmt: skip
    assert over_mean is not None
    assert over_nearest is not None
    if over_mean.high < 0 or over_nearest.high < 0:
        return "no", because
    weak = _weak(found.fillings[ORIGINAL].accuracy)
    return "yes" if over_mean.low >= 0 and not weak else "cannot tell", because + weak


def _weak(accuracy: Estimate) -> str:
    """Say that the reference classifier is weak; empty if it is not."""
    if accuracy.value >= WEAK_JUDGE:
        return ""
    return f"; the reference classifier is weak: accuracy {accuracy.value:.2f}"


def _above(figure: Estimate, bar: float) -> bool | None:
    """Whether a figure's interval lies above a bar, below it, or on both sides (None)."""
    return True if figure.low >= bar else False if figure.high < bar else None


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
            measured = [getattr(of, part) for of in (found.model, found.control) if of is not None]
            rows.append(Row(name, better, *(estimate_of(each, key) for each in measured)))
    for each in report.ood.sets:
        note = USED_IN_TRAINING if each.used_in_training else ""
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
