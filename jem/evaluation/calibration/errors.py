"""How far stated confidence lies from observed accuracy, and what refusing answers gains.

Every figure is computed for R versions of the same N inputs at once: R weightings, or R sets of
labels. A row of ones is the sample itself; a row of resampling counts is a bootstrap replicate.
Only the top class counts, as (confidence, correct) pairs, except where a function takes the
probabilities of all classes.
"""

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from jem.evaluation.statistics import BoolArray, FloatArray, IntArray

CURVE_POINTS = 200
"""Points of a risk-coverage curve at most."""


class Confidences(NamedTuple):
    """Inputs of equal confidence taken together, in R versions."""

    levels: FloatArray  # (G,) distinct confidences, ascending
    counts: FloatArray  # (R, G) inputs at each level; one row where all versions have the same
    hits: FloatArray  # (R, G) those of them classified correctly


class BinTotals(NamedTuple):
    """Sums over the inputs of each of B bins, in R versions."""

    counts: FloatArray  # (R, B), as of `Confidences`
    hits: FloatArray  # (R, B)
    confidence: FloatArray  # (R, B) summed, not averaged


def group_by_confidence(
    confidence: FloatArray, correct: BoolArray, weights: FloatArray
) -> Confidences:
    """Sort inputs by confidence and add up those of equal confidence.

    Args:
        confidence: Probability of the predicted class, shape (N,).
        correct: Whether that class is the true one, shape (N,), or (R, N) with one weighting.
        weights: How often each input counts, shape (R, N) or (1, N), whole numbers >= 0.

    Returns:
        Levels in ascending order with their counts and hits.

    Example:
        >>> pairs = np.array([0.9, 0.6, 0.9]), np.array([True, True, False])
        >>> groups = group_by_confidence(*pairs, np.ones((1, 3)))
        >>> groups.levels, groups.counts, groups.hits
        (array([0.6, 0.9]), array([[1., 2.]]), array([[1., 1.]]))
    """
    order = np.argsort(confidence, kind="stable")
    levels, starts = np.unique(confidence[order], return_index=True)
    ordered = weights[:, order]
    counts = np.add.reduceat(ordered, starts, axis=1)
    hits = np.add.reduceat(ordered * correct[..., order], starts, axis=1)
    return Confidences(levels, counts, hits)


def equal_mass_edges(confidence: FloatArray, num_bins: int) -> FloatArray:
    """Edges between which equally many inputs lie, as far as ties allow.

    Inner edge b is the confidence of rank ceil(b N / B), so that equal confidences share a bin and
    repeated edges leave a bin empty.

    Args:
        confidence: Shape (N,), in any order.
        num_bins: B >= 1.

    Returns:
        Shape (B + 1,), from 0 to 1.

    Example:
        >>> equal_mass_edges(np.array([0.9, 0.5, 0.6, 0.7]), 2)
        array([0. , 0.6, 1. ])
    """
    ranks = -(-np.arange(1, num_bins) * len(confidence) // num_bins)
    inner = np.sort(confidence)[np.maximum(ranks, 1) - 1]
    return np.concatenate([[0.0], inner, [1.0]])


def bin_index(values: FloatArray, edges: FloatArray) -> IntArray:
    """The bin (lower, upper] of each value; 0 belongs to the first bin.

    Args:
        values: Any shape, in [0, 1].
        edges: Shape (B + 1,), ascending.

    Returns:
        Shape of `values`, integers in [0, B).

    Example:
        >>> bin_index(np.array([0.0, 0.25, 0.26, 1.0]), np.linspace(0, 1, 5))
        array([0, 0, 1, 3])
    """
    return np.searchsorted(edges[1:-1], values, side="left").astype(np.int64)


def bin_totals(groups: Confidences, edges: FloatArray) -> BinTotals:
    """Counts, hits and summed confidence of each bin.

    Args:
        groups: Inputs by confidence.
        edges: Shape (B + 1,), ascending.

    Returns:
        Three arrays of shape (R, B).

    Example:
        >>> counts, hits = np.array([[2.0, 4.0]]), np.array([[1.0, 3.0]])
        >>> groups = Confidences(np.array([0.4, 0.9]), counts, hits)
        >>> bin_totals(groups, np.linspace(0, 1, 3)).confidence
        array([[0.8, 3.6]])
    """
    member = np.eye(len(edges) - 1)[bin_index(groups.levels, edges)]  # (G, B)
    weighted = groups.counts * groups.levels
    return BinTotals(groups.counts @ member, groups.hits @ member, weighted @ member)


def binned_error(totals: BinTotals) -> FloatArray:
    r"""Expected calibration error (ECE) of binned top-label confidences.

    .. math:: ECE = \sum_b \tfrac{n_b}{N} \, |\mathrm{acc}_b - \mathrm{conf}_b|

    Biased upwards on a finite sample, the more so the more bins there are.

    Args:
        totals: Bins of equal width or equal mass.

    Returns:
        Shape (R,), in [0, 1], 0 is best.

    References:
        Naeini, Cooper and Hauskrecht (2015), AAAI. Guo et al. (2017), arXiv:1706.04599, eq. 3.

    Example:
        >>> counts, hits = np.array([[2.0, 8.0]]), np.array([[1.0, 6.0]])
        >>> totals = BinTotals(counts, hits, confidence=np.array([[1.0, 7.0]]))
        >>> binned_error(totals)
        array([0.1])
    """
    gaps = np.abs(totals.hits - totals.confidence)
    error: FloatArray = gaps.sum(axis=1) / totals.counts.sum(axis=1)
    return error


def class_wise_error(
    probabilities: FloatArray, labels: IntArray, weights: FloatArray, edges: FloatArray
) -> FloatArray:
    r"""Class-wise ECE: the ECE of each class's probability as a forecast of that class, averaged.

    .. math:: \tfrac{1}{K} \sum_k \sum_b \tfrac{n_{bk}}{N} \, |f_{bk} - p_{bk}|

    with f the frequency of class k among the inputs of a bin, and p its mean probability there.

    All N inputs enter for every class, most of them with small probabilities, so the figure
    shrinks as K grows.

    Args:
        probabilities: Shape (N, K).
        labels: Shape (N,), or (R, N) with one weighting.
        weights: How often each input counts, shape (R, N) or (1, N).
        edges: Of the bins, shape (B + 1,).

    Returns:
        Shape (R,), in [0, 1], 0 is best.

    References:
        Nixon et al. (2019), arXiv:1904.01685. Kull et al. (2019), arXiv:1910.12656.

    Example:
        >>> probabilities = np.array([[0.8, 0.2], [0.8, 0.2]])
        >>> edges = np.linspace(0, 1, 3)
        >>> class_wise_error(probabilities, np.array([0, 1]), np.ones((1, 2)), edges).round(6)
        array([0.3])
    """
    num_samples, num_classes = probabilities.shape
    size = num_classes * (len(edges) - 1)  # a cell for each bin of each class
    cells = bin_index(probabilities, edges) + (len(edges) - 1) * np.arange(num_classes)
    rows = np.repeat(np.arange(num_samples), num_classes)
    member = csr_array((probabilities.ravel(), (cells.ravel(), rows)), shape=(size, num_samples))
    expected = (member @ weights.T).T  # (R, size) or (1, size)
    counted = np.broadcast_arrays(cells[np.arange(num_samples), labels], weights)
    versions = len(counted[1])
    places = counted[0] + size * np.arange(versions)[:, None]
    hits = np.bincount(places.ravel(), weights=counted[1].ravel(), minlength=versions * size)
    gaps = np.abs(hits.reshape(versions, size) - expected).sum(axis=1)
    return np.asarray(gaps / (num_classes * weights.sum(axis=1)))


# -- answers that are refused ---------------------------------------------------------------------


class RiskCoverage(NamedTuple):
    """Errors among the answered, by the confidence from which the classifier answers.

    Answering every input with confidence >= threshold[j] answers the share coverage[j].
    """

    threshold: FloatArray  # (J,) descending
    coverage: FloatArray  # (J,) share of inputs answered, in (0, 1], ends at 1
    risk: FloatArray  # (J,) share of the answered that are wrong


def risk_coverage_curve(groups: Confidences) -> RiskCoverage:
    """Risk against coverage at the thresholds that the sample offers.

    Args:
        groups: Inputs by confidence, of which the first weighting is drawn.

    Returns:
        At most 200 points, the last at full coverage.

    References:
        El-Yaniv and Wiener (2010), JMLR 11. Geifman and El-Yaniv (2017), arXiv:1705.08500.

    Example:
        >>> counts, hits = np.array([[2.0, 2.0]]), np.array([[1.0, 2.0]])
        >>> groups = Confidences(np.array([0.6, 0.9]), counts, hits)
        >>> curve = risk_coverage_curve(groups)
        >>> curve.threshold, curve.coverage, curve.risk
        (array([0.9, 0.6]), array([0.5, 1. ]), array([0.  , 0.25]))
    """
    answered, wrong = (row[0] for row in _answered_and_wrong(groups))
    steps = np.linspace(1, len(groups.levels), min(CURVE_POINTS, len(groups.levels)))
    chosen = np.round(steps).astype(np.int64)
    return RiskCoverage(
        threshold=groups.levels[::-1][chosen - 1],
        coverage=answered[chosen] / answered[-1],
        risk=wrong[chosen] / answered[chosen],
    )


def share_answered(curve: RiskCoverage, accuracy: float) -> float:
    """Largest share of inputs that is answered with at least this accuracy, on the sample itself.

    Args:
        curve: Risk against coverage.
        accuracy: Wanted of the answers that are given, in [0, 1].

    Returns:
        In [0, 1]: 0 where even the most confident answers are not as accurate.

    Example:
        >>> curve = RiskCoverage(*np.array([[0.9, 0.6], [0.5, 1.0], [0.0, 0.25]]))
        >>> share_answered(curve, 0.9), share_answered(curve, 0.75)
        (0.5, 1.0)
    """
    return float(curve.coverage[curve.risk <= 1 - accuracy + 1e-9].max(initial=0.0))


def aurc(groups: Confidences) -> FloatArray:
    r"""Area under the risk-coverage curve (AURC): risk averaged over all coverages.

    .. math:: AURC = \tfrac{1}{N} \sum_{k=1}^{N} \tfrac{e_k}{k}

    with e_k the errors among the k most confident inputs, in expectation over the order of inputs
    of equal confidence. Weighs errors at high confidence far more than others, without bound.

    Args:
        groups: Inputs by confidence, with whole counts.

    Returns:
        Shape (R,), in [0, 1], 0 is best. Constant confidence gives the error rate.

    References:
        Geifman, Uziel and El-Yaniv (2019), arXiv:1805.08206.

    Example:
        >>> counts, hits = np.array([[1.0, 1.0]]), np.array([[0.0, 1.0]])
        >>> groups = Confidences(np.array([0.6, 0.9]), counts, hits)
        >>> aurc(groups)  # risks 0 and 1/2
        array([0.25])
    """
    answered, wrong = _answered_and_wrong(groups)
    size, errors = np.diff(answered, axis=1), np.diff(wrong, axis=1)
    rate = errors / np.maximum(size, 1)  # within a level errors grow at this rate
    total = answered[:, -1]
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, total.max() + 1))])
    at = harmonic[answered.astype(np.int64)]
    offset = wrong[:, :-1] - rate * answered[:, :-1]
    return np.asarray((errors + offset * np.diff(at, axis=1)).sum(axis=1) / total)


def _answered_and_wrong(groups: Confidences) -> tuple[FloatArray, FloatArray]:
    """Inputs answered and wrong ones among them, as the threshold falls: (R, G + 1), from 0."""
    from_the_top = np.stack([groups.counts, groups.counts - groups.hits])[:, :, ::-1]
    answered, wrong = np.pad(np.cumsum(from_the_top, axis=2), ((0, 0), (0, 0), (1, 0)))
    return answered, wrong
