"""How far stated confidence lies from observed accuracy: one function a figure.

Every figure is computed for R weightings of the same N inputs at once. A row of ones is the sample
itself; a row of resampling counts is a bootstrap replicate. Only the top class counts, as
(confidence, correct) pairs, except where a function takes the probabilities of all classes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.sparse import csr_array

from jem.evaluation.calibration.predictions import BoolArray, FloatArray, IntArray


class Confidences(NamedTuple):
    """Inputs of equal confidence taken together, under R weightings."""

    levels: FloatArray  # (G,) distinct confidences, ascending
    counts: FloatArray  # (R, G) inputs at each level
    hits: FloatArray  # (R, G) those of them classified correctly


class BinTotals(NamedTuple):
    """Sums over the inputs of each of B bins, under R weightings."""

    counts: FloatArray  # (R, B)
    hits: FloatArray  # (R, B)
    confidence: FloatArray  # (R, B) summed, not averaged


class BrierParts(NamedTuple):
    """The parts of the top-label Brier score, each of shape (R,)."""

    score: FloatArray
    miscalibration: FloatArray
    discrimination: FloatArray
    uncertainty: FloatArray


def group_by_confidence(
    confidence: FloatArray, correct: BoolArray, weights: FloatArray
) -> Confidences:
    """Sort inputs by confidence and add up those of equal confidence.

    Args:
        confidence: Probability of the predicted class, shape (N,).
        correct: Whether that class is the true one, shape (N,).
        weights: How often each input counts, shape (R, N), whole numbers >= 0.

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
    hits = np.add.reduceat(ordered * correct[order], starts, axis=1)
    return Confidences(levels, counts, hits)


def equal_width_edges(num_bins: int) -> FloatArray:
    """Edges of bins of one width over [0, 1].

    Args:
        num_bins: B >= 1.

    Returns:
        Shape (B + 1,), each edge the float nearest to b / B.

    Example:
        >>> equal_width_edges(4)
        array([0.  , 0.25, 0.5 , 0.75, 1.  ])
    """
    return np.arange(num_bins + 1) / num_bins


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
        >>> bin_index(np.array([0.0, 0.25, 0.26, 1.0]), equal_width_edges(4))
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
        >>> bin_totals(groups, equal_width_edges(2)).confidence
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


def maximum_error(totals: BinTotals) -> FloatArray:
    r"""Maximum calibration error (MCE): the largest gap of any bin that is not empty.

    .. math:: MCE = \max_b |\mathrm{acc}_b - \mathrm{conf}_b|

    Ruled by the smallest bins: one input alone in its bin can set it.

    Args:
        totals: Bins of the sample.

    Returns:
        Shape (R,), in [0, 1], 0 is best.

    References:
        Guo et al. (2017), arXiv:1706.04599, eq. 5.

    Example:
        >>> counts, hits = np.array([[2.0, 0.0]]), np.array([[1.0, 0.0]])
        >>> totals = BinTotals(counts, hits, confidence=np.array([[1.5, 0.0]]))
        >>> maximum_error(totals)
        array([0.25])
    """
    gaps = np.abs(totals.hits - totals.confidence)
    error: FloatArray = (gaps / np.maximum(totals.counts, 1)).max(axis=1)
    return error


def debiased_rms_error(totals: BinTotals) -> FloatArray:
    r"""Root-mean-square calibration error less the part that sampling noise alone adds.

    .. math:: \sqrt{\max\Bigl(0, \sum_b \tfrac{n_b}{N} \Bigl[(\mathrm{acc}_b - \mathrm{conf}_b)^2
              - \tfrac{\mathrm{acc}_b (1 - \mathrm{acc}_b)}{n_b - 1}\Bigr]\Bigr)}

    The sum is nearly unbiased for the squared error of the binned confidences; its root is not.
    Bins with fewer than two inputs add nothing. The usual bins are those of equal mass.

    Args:
        totals: Bins of the sample.

    Returns:
        Shape (R,), in [0, 1], 0 is best.

    References:
        Kumar, Liang and Ma (2019), arXiv:1909.10155, definition 4.1.

    Example:
        >>> totals = BinTotals(np.array([[5.0]]), np.array([[4.0]]), np.array([[2.0]]))
        >>> debiased_rms_error(totals).round(4)  # root of 0.16 - 0.04
        array([0.3464])
    """
    size = np.maximum(totals.counts, 2)
    accuracy = totals.hits / size
    gap = (totals.hits - totals.confidence) / size
    excess = gap**2 - accuracy * (1 - accuracy) / (size - 1)
    squared = np.where(totals.counts > 1, totals.counts * excess, 0.0).sum(axis=1)
    error: FloatArray = np.sqrt(np.maximum(squared / totals.counts.sum(axis=1), 0.0))
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
        labels: Shape (N,).
        weights: How often each input counts, shape (R, N).
        edges: Of the bins, shape (B + 1,).

    Returns:
        Shape (R,), in [0, 1], 0 is best.

    References:
        Nixon et al. (2019), arXiv:1904.01685. Kull et al. (2019), arXiv:1910.12656.

    Example:
        >>> probabilities = np.array([[0.8, 0.2], [0.8, 0.2]])
        >>> edges = equal_width_edges(2)
        >>> class_wise_error(probabilities, np.array([0, 1]), np.ones((1, 2)), edges).round(6)
        array([0.3])
    """
    num_samples, num_classes = probabilities.shape
    num_bins = len(edges) - 1
    columns = bin_index(probabilities, edges) + num_bins * np.arange(num_classes)
    gaps = probabilities - np.eye(num_classes)[labels]
    rows = np.repeat(np.arange(num_samples), num_classes)
    shape = (num_classes * num_bins, num_samples)
    binned = csr_array((gaps.ravel(), (columns.ravel(), rows)), shape=shape) @ weights.T
    error: FloatArray = np.abs(binned).sum(axis=0) / (num_classes * weights.sum(axis=1))
    return error


def brier_parts(groups: Confidences) -> BrierParts:
    r"""Top-label Brier score and its parts by isotonic recalibration (CORP).

    With S the mean of (confidence - correct)^2,

    .. math:: S(p) = \underbrace{S(p) - S(\hat p)}_{\mathrm{miscalibration}}
              - \underbrace{(S(\bar y) - S(\hat p))}_{\mathrm{discrimination}}
              + \underbrace{S(\bar y)}_{\mathrm{uncertainty}}

    where p-hat is the isotonic regression of correct on confidence and y-bar the accuracy. Each
    part is >= 0; high discrimination is good. The isotonic fit follows the noise of the sample, so
    miscalibration and discrimination are both biased upwards.

    Args:
        groups: Inputs by confidence.

    Returns:
        Score in [0, 1] and its three parts.

    References:
        Dimitriadis, Gneiting and Jordan (2021), PNAS 118(8), arXiv:2008.03033.

    Example:
        >>> counts, hits = np.array([[4.0, 4.0]]), np.array([[2.0, 4.0]])
        >>> groups = Confidences(np.array([0.6, 0.9]), counts, hits)
        >>> [float(part[0].round(4)) for part in brier_parts(groups)]
        [0.135, 0.01, 0.0625, 0.1875]
    """
    recalibrated = np.stack(
        [_isotonic(*row) for row in zip(groups.counts, groups.hits, strict=True)]
    )
    accuracy = groups.hits.sum(axis=1, keepdims=True) / groups.counts.sum(axis=1, keepdims=True)
    score = _brier(groups, np.broadcast_to(groups.levels, groups.counts.shape))
    best, constant = _brier(groups, recalibrated), _brier(groups, accuracy)
    return BrierParts(score, score - best, constant - best, constant)


def _isotonic(counts: FloatArray, hits: FloatArray) -> FloatArray:
    """Non-decreasing accuracy by level; levels that do not occur get 0, which no sum uses."""
    fitted = np.zeros_like(counts)
    occurs = counts > 0
    rates = hits[occurs] / counts[occurs]
    fitted[occurs] = isotonic_regression(rates, weights=counts[occurs]).x
    return fitted


def _brier(groups: Confidences, forecast: FloatArray) -> FloatArray:
    misses = groups.counts - groups.hits
    squares = groups.hits * (1 - forecast) ** 2 + misses * forecast**2
    return np.asarray(squares.sum(axis=1) / groups.counts.sum(axis=1))
