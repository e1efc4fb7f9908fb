"""Whether a classifier's probabilities can be believed: every figure, with its uncertainty."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from jem.checks import (
    as_labels,
    as_tensor,
    check_integer,
    check_number,
    check_probabilities,
)
from jem.evaluation.calibration.errors import (
    BinTotals,
    Confidences,
    RiskCoverage,
    aurc,
    bin_totals,
    binned_error,
    class_wise_error,
    equal_mass_edges,
    group_by_confidence,
    risk_coverage_curve,
)
from jem.evaluation.statistics import (
    FloatArray,
    IntArray,
    Interval,
    error_interval,
    percentile_interval,
    plain,
    resampling_counts,
    rows_by_block,
    share_interval,
    wilson_interval,
)
from jem.plotting import Figure, reliability_diagram

SMALLEST_PROBABILITY = float(np.finfo(np.float64).tiny)  # what NLL takes 0 for: 708.4 nats

CALIBRATION_ERRORS = ("ece", "ece_equal_mass", "class_wise_ece")
"""Figures that are 0 for a perfectly calibrated classifier, but for the noise of the sample."""

FIGURES = ("accuracy", "nll", "brier", *CALIBRATION_ERRORS, "aurc")
"""All figures, in the order in which they are printed."""

Edges = tuple[FloatArray, FloatArray]  # of bins of equal width, of equal mass
Figures = dict[str, FloatArray]  # name -> R values


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
    """Figures of `calibration_report`; lower is better except for accuracy.

    Attributes:
        num_samples: N.
        num_bins: B, of every binned figure.
        accuracy: Share of inputs whose most probable class is the true one.
        nll: Mean of -log p(y|x), nats.
        brier: Brier score: for two classes the mean of (p_1 - y)^2, in [0, 1]; for more that of
            sum_k (p_k - [y = k])^2, in [0, 2]. As `sklearn.metrics.brier_score_loss` has it.
        ece: Expected calibration error of the top label, bins of equal width.
        ece_equal_mass: The same with bins of equal mass.
        class_wise_ece: Mean over classes of the ECE of each class's probability, equal width.
        aurc: Area under the risk-coverage curve.
        confidence: Level of the intervals and bands.
        intervals: Interval of each figure by its name; empty without replicates.
        if_calibrated: What each calibration error stays below, with probability `confidence`, for
            a perfectly calibrated classifier of the same probabilities and N: an error below it is
            no evidence of miscalibration, and its interval begins at 0. Empty without replicates.
        bins: The reliability diagram.
        risk_coverage: The risk-coverage curve.
    """

    num_samples: int
    num_bins: int
    accuracy: float
    nll: float
    brier: float
    ece: float
    ece_equal_mass: float
    class_wise_ece: float
    aurc: float
    confidence: float
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
        return dict(plain(self))

    def __str__(self) -> str:
        """The figures as a table, with intervals and what chance does, where they are known."""
        head = f"{self.num_samples:,} inputs", f"{self.confidence:.0%} interval", "chance: below"
        lines = [f"{head[0]:18}{'value':>9}{head[1]:>20}{head[2]:>16}"]
        for name in FIGURES:
            low, high = self.intervals.get(name, (np.nan, np.nan))
            interval = f"{low:.4f} to {high:.4f}" if name in self.intervals else ""
            chance = f"{self.if_calibrated[name]:.4f}" if name in self.if_calibrated else ""
            lines.append(f"{name:18}{getattr(self, name):9.4f}{interval:>20}{chance:>16}".rstrip())
        return "\n".join(lines)

    def plot(self, title: str = "Reliability") -> Figure:
        """Draw the reliability diagram with its bands and counts.

        Args:
            title: Heading.

        Returns:
            A figure that no global state holds; `figure.savefig(path)` writes it.
        """
        note = (
            f"N = {self.num_samples}\naccuracy {self.accuracy:.3f}\n"
            f"ECE {self.ece:.4f} ({self.num_bins} bins)"
        )
        return reliability_diagram(*self.bins, title=title, note=note)


def calibration_report(
    probabilities: Tensor | ArrayLike,
    labels: Tensor | ArrayLike,
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
            for the accuracy and `error_interval` for the calibration errors; the latter reach
            down by `if_calibrated` at least: chance adds no more.
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
    stated = as_tensor("probabilities", probabilities).cpu().double()
    check_probabilities("probabilities", stated)
    check_integer("num_bins", num_bins, 1)
    check_integer("num_bootstrap", num_bootstrap, 0)
    check_number("confidence", confidence, "(0, 1)")
    check_integer("seed", seed, 0)
    p, y = stated.numpy(), as_labels("labels", labels, *stated.shape).numpy()
    # b / B is the float nearest to it; steps of 1 / B would add up their rounding.
    edges = np.arange(num_bins + 1) / num_bins, equal_mass_edges(p.max(axis=1), num_bins)
    whole = np.ones((1, len(y)))
    figures = {name: float(value[0]) for name, value in _figures(p, y, whole, edges).items()}
    replicates = _stack(
        _figures(p, y, weights, edges)
        for weights in resampling_counts(len(y), num_bootstrap, seed)
    )
    by_chance = _stack(
        _errors(p, drawn, whole, edges) for drawn in _calibrated_labels(p, num_bootstrap, seed)
    )
    if_calibrated = {name: float(np.quantile(by_chance[name], confidence)) for name in by_chance}
    groups = _top_label(p, y, whole)
    return CalibrationReport(
        num_samples=len(y),
        num_bins=num_bins,
        **figures,
        confidence=confidence,
        intervals=_intervals(figures, replicates, if_calibrated, confidence, len(y)),
        if_calibrated=if_calibrated,
        bins=_reliability_bins(bin_totals(groups, edges[0]), edges[0], confidence),
        risk_coverage=risk_coverage_curve(groups),
    )


def _top_label(probabilities: FloatArray, labels: IntArray, weights: FloatArray) -> Confidences:
    correct = probabilities.argmax(axis=1) == labels
    return group_by_confidence(probabilities.max(axis=1), correct, weights)


def _figures(p: FloatArray, y: IntArray, weights: FloatArray, edges: Edges) -> Figures:
    """Every figure under each of R weightings (R, N) of labels (N,)."""
    groups, total = _top_label(p, y, weights), weights.sum(axis=1)
    true = np.maximum(p[np.arange(len(y)), y], SMALLEST_PROBABILITY)
    squares = ((p - np.eye(p.shape[1])[y]) ** 2).sum(axis=1) / (1 + (p.shape[1] == 2))
    return {
        "accuracy": groups.hits.sum(axis=1) / total,
        "nll": weights @ -np.log(true) / total,
        "brier": weights @ squares / total,
        "aurc": aurc(groups),
        **_errors(p, y, weights, edges),
    }


def _errors(p: FloatArray, y: IntArray, weights: FloatArray, edges: Edges) -> Figures:
    """The calibration errors for R weightings, or for R sets of labels (R, N) under one."""
    groups = _top_label(p, y, weights)
    width, mass = (bin_totals(groups, part) for part in edges)
    return {
        "ece": binned_error(width),
        "ece_equal_mass": binned_error(mass),
        "class_wise_ece": class_wise_error(p, y, weights, edges[0]),
    }


def _calibrated_labels(p: FloatArray, num_draws: int, seed: int) -> Iterator[IntArray]:
    """Labels drawn from the probabilities themselves, in blocks (rows, N): chance alone."""
    generator, upper = np.random.default_rng([seed, 1]), np.cumsum(p, axis=1)
    for rows in rows_by_block(num_draws, len(p)):
        # Times the sum, which rounding leaves near one: the last class with a chance is the last.
        ball = generator.random((rows, len(p))) * upper[:, -1]
        labels = np.zeros(ball.shape, dtype=np.int64)
        for edge in upper.T:
            labels += edge <= ball
        yield labels


def _stack(blocks: Iterable[Figures]) -> Figures:
    """Join the figures of all blocks; no entry without blocks."""
    held = list(blocks)
    names = held[0] if held else ()
    return {name: np.concatenate([block[name] for block in held]) for name in names}


def _intervals(
    figures: dict[str, float],
    replicates: Figures,
    if_calibrated: dict[str, float],
    confidence: float,
    num_samples: int,
) -> dict[str, Interval]:
    """Wilson's for the accuracy, mirrored for what noise inflates, percentiles for the rest."""
    intervals = {}
    for name, values in replicates.items():
        if name == "accuracy":
            hits = round(figures[name] * num_samples)
            intervals[name] = share_interval(hits, num_samples, confidence)
        elif name in CALIBRATION_ERRORS:
            found = error_interval(figures[name], values, confidence)
            unbiased = max(0.0, figures[name] - if_calibrated[name])
            intervals[name] = Interval(min(found.low, unbiased), found.high)
        else:
            intervals[name] = percentile_interval(values, confidence)
    return intervals


def _reliability_bins(totals: BinTotals, edges: FloatArray, confidence: float) -> ReliabilityBins:
    counts, hits, stated = (part[0] for part in totals)
    filled = np.where(counts > 0, counts, np.nan)
    low, high = wilson_interval(hits, counts, confidence)
    return ReliabilityBins(
        edges, counts.astype(np.int64), stated / filled, hits / filled, low, high
    )
