"""What a perfectly calibrated classifier would show on so many inputs, by chance alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from jem.evaluation.calibration.errors import Confidences, bin_index
from jem.evaluation.calibration.predictions import FloatArray
from jem.evaluation.statistics import rows_by_block


def calibrated_answers(groups: Confidences, num_draws: int, seed: int) -> Iterator[Confidences]:
    """Answers as right as their confidence says, for the inputs of a sample.

    Args:
        groups: Inputs by confidence, under one weighting.
        num_draws: R.
        seed: Decides the draws.

    Yields:
        Blocks of the R draws, the counts of the sample with other hits.
    """
    generator = np.random.default_rng([seed, 1])
    counts = groups.counts[0].astype(np.int64)
    for rows in rows_by_block(num_draws, len(counts)):
        shape = (rows, len(counts))
        hits = generator.binomial(counts, groups.levels, size=shape).astype(np.float64)
        yield Confidences(groups.levels, np.broadcast_to(groups.counts, shape), hits)


def calibrated_class_wise(
    probabilities: FloatArray, edges: FloatArray, num_draws: int, seed: int
) -> FloatArray:
    """Class-wise ECE of labels drawn from the probabilities themselves.

    Args:
        probabilities: Shape (N, K).
        edges: Of the bins, shape (B + 1,).
        num_draws: R.
        seed: Decides the draws.

    Returns:
        `class_wise_error` of each draw, shape (R,).

    Example:
        >>> certain = np.array([[0.0, 1.0], [1.0, 0.0]])
        >>> calibrated_class_wise(certain, np.array([0.0, 0.5, 1.0]), num_draws=2, seed=0)
        array([0., 0.])
    """
    num_samples, num_classes = probabilities.shape
    num_bins = len(edges) - 1
    cells = bin_index(probabilities, edges) + num_bins * np.arange(num_classes)  # (N, K)
    size = num_classes * num_bins
    expected = np.bincount(cells.ravel(), weights=probabilities.ravel(), minlength=size)
    upper = np.cumsum(probabilities, axis=1)
    generator = np.random.default_rng([seed, 2])
    errors = np.empty(num_draws)
    for draw in range(num_draws):
        # Times the sum, which rounding leaves near one: the last class with a chance is the last.
        ball = generator.random((num_samples, 1)) * upper[:, -1:]
        labels = (upper <= ball).sum(axis=1)
        hits = np.bincount(cells[np.arange(num_samples), labels], minlength=size)
        errors[draw] = np.abs(hits - expected).sum() / (num_classes * num_samples)
    return errors
