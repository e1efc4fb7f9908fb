"""How far stated confidence lies from observed accuracy: one function a figure.

Every figure is computed for R versions of the same N inputs at once: R weightings, or R sets of
labels. A row of ones is the sample itself; a row of resampling counts is a bootstrap replicate.
Only the top class counts, as (confidence, correct) pairs, except where a function takes the
probabilities of all classes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from jem.evaluation.statistics import BoolArray, FloatArray, IntArray


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
