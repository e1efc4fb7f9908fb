"""Whether a classifier's probabilities can be believed: every figure, with its uncertainty."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jem.errors import InputError
from jem.evaluation.calibration.chance import calibrated_answers, calibrated_class_wise
from jem.evaluation.calibration.errors import (
    BinTotals,
    Confidences,
    bin_totals,
    binned_error,
    brier_parts,
    class_wise_error,
    debiased_rms_error,
    equal_mass_edges,
    equal_width_edges,
    group_by_confidence,
    maximum_error,
)
from jem.evaluation.calibration.predictions import (
    FloatArray,
    IntArray,
    Values,
    check_labels,
    check_probabilities,
)
from jem.evaluation.calibration.selective import RiskCoverage, augrc, aurc, risk_coverage_curve
from jem.evaluation.calibration.smooth_error import smooth_error
from jem.evaluation.estimates import plain
from jem.evaluation.statistics import (
    Interval,
    check_confidence,
    error_interval,
    percentile_interval,
    resampling_counts,
    wilson_interval,
)
from jem.randomness import check_seed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMALLEST_PROBABILITY = float(np.finfo(np.float64).tiny)  # what NLL takes 0 for: 708.4 nats

TOP_LABEL_ERRORS = (
    "miscalibration",
    "ece",
    "ece_equal_mass",
    "smooth_ece",
    "debiased_rmsce",
    "mce",
)
CALIBRATION_ERRORS = (*TOP_LABEL_ERRORS, "class_wise_ece")
INFLATED = {*CALIBRATION_ERRORS, "discrimination"}  # by sampling noise
Edges = tuple[FloatArray, FloatArray]  # of bins of equal width, of equal mass


class ReliabilityBins(NamedTuple):
    """The equal-width bins (lower, upper] of a reliability diagram; B of them.

    An empty bin has NaN for confidence and accuracy, and the band [0, 1].
    """

    edges: FloatArray  # (B + 1,)
    counts: IntArray  # (B,)
    confidence: FloatArray  # (B,) mean over the bin
    accuracy: FloatArray  # (B,)
    accuracy_low: FloatArray  # (B,) Wilson band of the accuracy
    accuracy_high: FloatArray  # (B,)


@dataclass(frozen=True)
class CalibrationReport:
    """Figures of `calibration_report`; lower is better except accuracy and discrimination.

    Attributes:
        num_samples: N.
        num_classes: K.
        num_bins: B, of every binned figure.
        accuracy: Share of inputs whose most probable class is the true one.
        nll: Mean of -log p(y|x), nats.
        brier: Multiclass Brier score, the mean of sum_k (p_k - [y = k])^2, in [0, 2].
        brier_top_label: Mean of (confidence - correct)^2, in [0, 1];
            equals miscalibration - discrimination + uncertainty.
        miscalibration: Part of `brier_top_label` that isotonic recalibration removes.
        discrimination: Part that confidence, once recalibrated, gains over a constant.
        uncertainty: accuracy * (1 - accuracy), the score of a constant forecast.
        ece: Expected calibration error of the top label, bins of equal width.
        ece_equal_mass: The same with bins of equal mass.
        class_wise_ece: Mean over classes of the ECE of each class's probability, equal width.
        smooth_ece: Kernel-smoothed ECE with the width that equals it.
        debiased_rmsce: Root-mean-square calibration error less sampling noise, equal mass.
        mce: Largest gap of any bin that is not empty, equal width.
        aurc: Area under the risk-coverage curve.
        augrc: Area under the generalised risk-coverage curve.
        confidence: Level of the intervals and bands.
        num_bootstrap: Replicates behind the intervals.
        intervals: Interval of each figure by its name; empty without replicates.
        if_calibrated: What each calibration error stays below, with probability `confidence`, for
            a perfectly calibrated classifier of the same probabilities and N: an error below it is
            no evidence of miscalibration, and its interval begins at 0. Empty without replicates.
        bins: The reliability diagram.
        risk_coverage: The risk-coverage curve.
    """

    num_samples: int
    num_classes: int
    num_bins: int
    accuracy: float
    nll: float
    brier: float
    brier_top_label: float
    miscalibration: float
    discrimination: float
    uncertainty: float
    ece: float
    ece_equal_mass: float
    class_wise_ece: float
    smooth_ece: float
    debiased_rmsce: float
    mce: float
    aurc: float
    augrc: float
    confidence: float
    num_bootstrap: int
    intervals: dict[str, Interval]
    if_calibrated: dict[str, float]
    bins: ReliabilityBins
    risk_coverage: RiskCoverage

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values for JSON: arrays and intervals as lists, NaN as None.

        Returns:
            One entry an attribute; `bins` and `risk_coverage` are dicts of lists.

        Example:
            >>> report = calibration_report([[0.9, 0.1]], [0], num_bins=2, num_bootstrap=0)
            >>> report.to_dict()["bins"]["accuracy"]
            [None, 1.0]
        """
        values: dict[str, Any] = plain(self)
        return values

    def plot(self) -> Figure:
        """Draw the reliability diagram with its bands and counts.

        Returns:
            A figure that no global state holds; `figure.savefig(path)` writes it.
        """
        from jem.plotting import reliability_diagram

        return reliability_diagram(self)


def calibration_report(
    probabilities: Values,
    labels: Values,
    *,
    num_bins: int = 15,
    num_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> CalibrationReport:
    """Measure how well class probabilities agree with labels.

    Use inputs on which nothing was fitted, the temperature included. The predicted class is the
    most probable one, the first of equals. A true class of probability 0 costs 708.4 nats, the
    probability being raised to the smallest normal float64. Bins are (lower, upper].

    Args:
        probabilities: p(y|x), shape (N, K), K >= 2, rows summing to 1 within 1e-3.
        labels: True class indices, shape (N,), integers in [0, K).
        num_bins: Bins of the binned figures.
        num_bootstrap: Bootstrap replicates, each N inputs drawn with replacement, bins of equal
            mass keeping the edges of the sample; and draws for `if_calibrated`. 0 leaves both
            `intervals` and `if_calibrated` empty. Intervals are of percentiles, except Wilson's
            for the accuracy and `error_interval` for the calibration errors and discrimination;
            those of errors reach down by `if_calibrated` at least: chance adds no more.
        confidence: Level of the intervals and of the bands, in (0, 1).
        seed: Decides the replicates.

    Returns:
        Every figure with its interval, the reliability bins and the risk-coverage curve.

    Raises:
        InputError: If probabilities and labels are not what is said above, or a setting is out of
            range.

    Example:
        >>> probabilities = [[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]]
        >>> report = calibration_report(probabilities, [0, 0, 1, 1], num_bootstrap=100)
        >>> report.accuracy, round(report.ece, 4), round(report.nll, 4)
        (0.75, 0.3, 0.4004)
    """
    checked = check_probabilities(probabilities)
    classes = check_labels(labels, *checked.shape)
    _check_settings(num_bins, num_bootstrap, confidence, seed)
    edges = equal_width_edges(num_bins), equal_mass_edges(checked.max(axis=1), num_bins)
    whole = np.ones((1, len(classes)))
    groups = _top_label(checked, classes, whole)
    figures = {
        name: float(value[0]) for name, value in _figures(checked, classes, whole, edges).items()
    }
    replicates = _stack(
        _figures(checked, classes, weights, edges)
        for weights in resampling_counts(len(classes), num_bootstrap, seed)
    )
    chance = _chance(checked, groups, edges, num_bootstrap, confidence, seed)
    return CalibrationReport(
        num_samples=len(classes),
        num_classes=checked.shape[1],
        num_bins=num_bins,
        **figures,
        confidence=confidence,
        num_bootstrap=num_bootstrap,
        intervals=_intervals(figures, replicates, chance, confidence, len(classes)),
        if_calibrated=chance,
        bins=_reliability_bins(bin_totals(groups, edges[0]), edges[0], confidence),
        risk_coverage=risk_coverage_curve(groups),
    )


def _check_settings(num_bins: int, num_bootstrap: int, confidence: float, seed: int) -> None:
    check_seed(seed)
    for name, value, least in (("num_bins", num_bins, 1), ("num_bootstrap", num_bootstrap, 0)):
        if not isinstance(value, Integral) or value < least:
            raise InputError(f"{name}: expected an integer of at least {least}, got {value}")
    check_confidence(confidence)


def _top_label(probabilities: FloatArray, labels: IntArray, weights: FloatArray) -> Confidences:
    correct = probabilities.argmax(axis=1) == labels
    return group_by_confidence(probabilities.max(axis=1), correct, weights)


def _figures(
    probabilities: FloatArray, labels: IntArray, weights: FloatArray, edges: Edges
) -> dict[str, FloatArray]:
    """Every figure under each of R weightings."""
    groups = _top_label(probabilities, labels, weights)
    true = np.maximum(probabilities[np.arange(len(labels)), labels], SMALLEST_PROBABILITY)
    squares = ((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2).sum(axis=1)
    total = weights.sum(axis=1)
    return {
        "accuracy": groups.hits.sum(axis=1) / total,
        "nll": weights @ -np.log(true) / total,
        "brier": weights @ squares / total,
        "class_wise_ece": class_wise_error(probabilities, labels, weights, edges[0]),
        "aurc": aurc(groups),
        "augrc": augrc(groups),
        **_top_label_figures(groups, edges),
    }


def _top_label_figures(groups: Confidences, edges: Edges) -> dict[str, FloatArray]:
    """The Brier score of the predicted class, its parts, and the other errors of confidence."""
    brier = brier_parts(groups)
    width, mass = (bin_totals(groups, part) for part in edges)
    return {
        "brier_top_label": brier.score,
        "miscalibration": brier.miscalibration,
        "discrimination": brier.discrimination,
        "uncertainty": brier.uncertainty,
        "ece": binned_error(width),
        "ece_equal_mass": binned_error(mass),
        "smooth_ece": smooth_error(groups),
        "debiased_rmsce": debiased_rms_error(mass),
        "mce": maximum_error(width),
    }


def _chance(
    probabilities: FloatArray,
    groups: Confidences,
    edges: Edges,
    num_draws: int,
    confidence: float,
    seed: int,
) -> dict[str, float]:
    """What each calibration error of a calibrated classifier stays below; empty without draws."""
    if not num_draws:
        return {}
    drawn = _stack(
        _top_label_figures(block, edges) for block in calibrated_answers(groups, num_draws, seed)
    )
    drawn["class_wise_ece"] = calibrated_class_wise(probabilities, edges[0], num_draws, seed)
    return {name: float(np.quantile(drawn[name], confidence)) for name in CALIBRATION_ERRORS}


def _stack(blocks: Iterable[dict[str, FloatArray]]) -> dict[str, FloatArray]:
    """Join the figures of all blocks; no entry without blocks."""
    held = list(blocks)
    names = held[0] if held else ()
    return {name: np.concatenate([block[name] for block in held]) for name in names}


def _intervals(
    figures: dict[str, float],
    replicates: dict[str, FloatArray],
    chance: dict[str, float],
    confidence: float,
    num_samples: int,
) -> dict[str, Interval]:
    """Wilson for accuracy, mirrored for what noise inflates, percentile for the rest."""
    intervals = {
        name: error_interval(figures[name], values, confidence, largest=1.0)
        if name in INFLATED
        else percentile_interval(values, confidence)
        for name, values in replicates.items()
    }
    for name, level in chance.items():
        low, high = intervals[name]
        intervals[name] = Interval(max(0.0, min(low, figures[name] - level)), high)
    if intervals:
        hits = round(figures["accuracy"] * num_samples)
        ends = wilson_interval(hits, num_samples, confidence)
        intervals["accuracy"] = Interval(float(ends[0]), float(ends[1]))
    return intervals


def _reliability_bins(totals: BinTotals, edges: FloatArray, confidence: float) -> ReliabilityBins:
    counts, hits, stated = (part[0] for part in totals)
    filled = np.where(counts > 0, counts, np.nan)
    low, high = wilson_interval(hits, counts, confidence)
    return ReliabilityBins(
        edges, counts.astype(np.int64), stated / filled, hits / filled, low, high
    )
