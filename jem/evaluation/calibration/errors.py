"""How far stated confidence lies from observed accuracy: one function a figure.

Every figure is computed for R versions of the same N inputs at once: R weightings, or R sets of
labels. A row of ones is the sample itself; a row of resampling counts is a bootstrap replicate.
Only the top class counts, as (confidence, correct) pairs, except where a function takes the
probabilities of all classes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.fft import dct, idct
from scipy.sparse import csr_array

from jem.evaluation.statistics import BoolArray, FloatArray, IntArray

SMOOTHING_CELLS = 1024
BISECTIONS = 20  # leaves a bandwidth uncertain by 1e-6


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


def smooth_error(groups: Confidences) -> FloatArray:
    r"""Smooth ECE: the gap averaged under a kernel whose width the data choose.

    .. math:: \mathrm{smECE}_\sigma = \int_0^1 \Bigl|\tfrac{1}{N}\sum_i (y_i - p_i)
              K_\sigma(t, p_i)\Bigr| \, dt, \qquad
              \mathrm{smECE} = \mathrm{smECE}_{\sigma^*} = \sigma^*

    K is the Gaussian reflected at 0 and 1. Its cosine coefficients are exp(-(pi k sigma)^2 / 2),
    which is how it is applied, on 1024 cells. smECE_sigma falls as sigma grows, so one width
    equals its own error. Accurate to about 1e-4, to a cell's width (1e-3) for smaller values.

    Args:
        groups: Inputs by confidence.

    Returns:
        Shape (R,), in [0, 1], 0 is best.

    References:
        Blasiok and Nakkiran (2023), arXiv:2309.12236, definition 4.

    Example:
        >>> groups = Confidences(np.array([0.5]), np.array([[10.0]]), np.array([[8.0]]))
        >>> smooth_error(groups).round(3)
        array([0.3])
    """
    gaps = (groups.hits - groups.levels * groups.counts) / groups.counts.sum(axis=1, keepdims=True)
    # Each level's gap is shared between the two cells whose centres are nearest.
    position = groups.levels * SMOOTHING_CELLS - 0.5
    lower = np.floor(position).astype(np.int64)
    cells = np.clip(np.concatenate([lower, lower + 1]), 0, SMOOTHING_CELLS - 1)
    shares = np.concatenate([1 - (position - lower), position - lower])
    columns = np.tile(np.arange(len(lower)), 2)
    spread = csr_array((shares, (cells, columns)), shape=(SMOOTHING_CELLS, len(lower)))
    coefficients = dct((spread @ gaps.T).T, axis=1, norm="ortho")
    frequencies = np.pi * np.arange(SMOOTHING_CELLS)
    low, high = np.zeros((len(gaps), 1)), np.ones((len(gaps), 1))
    for _ in range(BISECTIONS):
        sigma = (low + high) / 2
        kernel = np.exp(-0.5 * (frequencies * sigma) ** 2)
        smoothed = idct(coefficients * kernel, axis=1, norm="ortho")
        too_narrow = np.abs(smoothed).sum(axis=1, keepdims=True) > sigma
        low, high = np.where(too_narrow, sigma, low), np.where(too_narrow, high, sigma)
    return np.asarray((low + high)[:, 0] / 2)
