"""What a classifier gains by refusing its least confident answers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jem.evaluation.calibration.errors import Confidences
from jem.evaluation.statistics import FloatArray

CURVE_POINTS = 200


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
