"""Calibration error without bins: the gap smoothed by a kernel."""

from __future__ import annotations

import numpy as np
from scipy.fft import dct, idct
from scipy.sparse import csr_array

from jem.evaluation.calibration.errors import Confidences
from jem.evaluation.calibration.predictions import FloatArray

SMOOTHING_CELLS = 1024
BISECTIONS = 20  # leaves a bandwidth uncertain by 1e-6


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
    coefficients = dct(_spread(groups.levels, gaps), axis=1, norm="ortho")
    frequencies = np.pi * np.arange(SMOOTHING_CELLS)
    low, high = np.zeros((len(gaps), 1)), np.ones((len(gaps), 1))
    for _ in range(BISECTIONS):
        sigma = (low + high) / 2
        smoothed = idct(
            coefficients * np.exp(-0.5 * (frequencies * sigma) ** 2), axis=1, norm="ortho"
        )
        too_narrow = np.abs(smoothed).sum(axis=1, keepdims=True) > sigma
        low, high = np.where(too_narrow, sigma, low), np.where(too_narrow, high, sigma)
    width: FloatArray = ((low + high) / 2)[:, 0]
    return width


def _spread(levels: FloatArray, mass: FloatArray) -> FloatArray:
    """Share each level's mass between the two nearest of the cells' centres."""
    position = levels * SMOOTHING_CELLS - 0.5
    lower = np.floor(position).astype(np.int64)
    share = position - lower
    cells = np.clip(np.concatenate([lower, lower + 1]), 0, SMOOTHING_CELLS - 1)
    columns = np.tile(np.arange(len(levels)), 2)
    shape = (SMOOTHING_CELLS, len(levels))
    spread = csr_array((np.concatenate([1 - share, share]), (cells, columns)), shape=shape)
    return np.asarray(spread @ mass.T).T
