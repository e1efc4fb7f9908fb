"""How many independent draws a set of chains is worth."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from jem.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

FloatArray = npt.NDArray[np.float64]

FEWEST_MOVES = 8
"""Positions of a chain from which mixing is measured at least."""

LONG_ENOUGH = 10
"""A run is trusted once it lasts this many autocorrelation times."""


class Mixing(NamedTuple):
    """How a quantity forgets where it was; NaN where it never changes at all.

    Chains that each stay in a place of their own are correlated at every lag, however fast they
    move within it: the autocorrelation is about the mean over all chains.
    """

    autocorrelation_time: float  # tau >= 0, moves a chain needs for one independent draw
    effective_size: float  # draws that all chains together are worth, at most; high is good
    r_hat: float  # 1 where chains agree with each other and with their own past
    resolved: bool  # the run lasts at least ten tau; if not, tau is a lower bound
    autocorrelation: tuple[float, ...]  # at lags 0, 1, 2, ... moves


def autocorrelation(traces: Tensor | ArrayLike) -> FloatArray:
    r"""Autocorrelation of a quantity along chains, about the mean over all of them.

    .. math:: \hat\rho_t = 1 - \frac{W - \bar\gamma_t}{W (n - 1) / n + B / n}

    W is the mean variance within chains, gamma_t the mean autocovariance at lag t, B / n the
    variance of the chains' means.

    Args:
        traces: The quantity before each move, shape (M, n): a row a chain.

    Returns:
        Shape (n,), 1 at lag 0; NaN if the quantity is the same everywhere.

    Raises:
        InputError: If there are fewer than 8 positions, or one is not finite.

    References:
        Gelman et al. (2013), Bayesian Data Analysis, section 11.5. Vehtari et al. (2021),
        arXiv:1903.08008, equation 10.
    """
    return _autocorrelation(_checked(traces))


def mixing(traces: Tensor | ArrayLike, *, num_lags: int = 100) -> Mixing:
    r"""Autocorrelation time, effective sample size and R-hat of a quantity along chains.

    .. math:: \tau = -1 + 2 \sum_{k=0}^{K} (\rho_{2k} + \rho_{2k+1}), \qquad
              \mathrm{ESS} = M n / \tau

    The sum ends before the first pair that is not positive, and pairs are made to decrease:
    Geyer's initial monotone sequence. Chains are first cut into halves, so that one that drifts
    disagrees with itself.

    Args:
        traces: The quantity before each move, shape (M, n), n >= 8: a row a chain.
        num_lags: Lags of the autocorrelation to return at most.

    Returns:
        The figures. tau never falls below 1 / log10(M n), where chains move to and fro.

    Raises:
        InputError: If there are fewer than 8 positions, or one is not finite.

    References:
        Geyer (1992), Statistical Science 7. Vehtari et al. (2021), arXiv:1903.08008.

    Example:
        >>> white = np.random.default_rng(0).normal(size=(4, 1000))
        >>> 0.8 < mixing(white).autocorrelation_time < 1.2
        True
    """
    values = _checked(traces)
    half = values.shape[1] // 2
    halves = np.concatenate([values[:, :half], values[:, -half:]])
    rho = _autocorrelation(halves)
    tau = max(_initial_monotone_sum(rho), 1 / math.log10(halves.size))
    known = not math.isnan(rho[0])
    return Mixing(
        autocorrelation_time=tau if known else math.nan,
        effective_size=halves.size / tau if known else math.nan,
        r_hat=_r_hat(halves),
        resolved=known and values.shape[1] >= LONG_ENOUGH * tau,
        autocorrelation=tuple(rho[:num_lags].tolist()),
    )


def _checked(traces: Tensor | ArrayLike) -> FloatArray:
    raw = traces.detach().cpu().double().numpy() if isinstance(traces, Tensor) else traces
    try:
        values = np.asarray(raw, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"`traces` must be a rectangle of numbers: {error}") from error
    if values.ndim != 2 or not len(values) or values.shape[1] < FEWEST_MOVES:
        raise InputError(
            f"`traces` must be of shape (chains, positions) with at least {FEWEST_MOVES} "
            f"positions, but got {values.shape}"
        )
    if not np.isfinite(values).all():
        raise InputError("`traces` must be finite, but holds NaN or infinite values")
    return values


def _variances(values: FloatArray) -> tuple[float, float]:
    """Mean variance within chains, and the estimate of the variance over all chains."""
    num_chains, num = values.shape
    within = float(values.var(axis=1, ddof=1).mean())
    between = float(values.mean(axis=1).var(ddof=1)) if num_chains > 1 else 0.0
    overall = within * (num - 1) / num + between
    rounding = 1e-24 * float(np.abs(values).max()) ** 2  # all that a constant leaves
    return (within, overall) if overall > rounding else (0.0, 0.0)


def _autocorrelation(values: FloatArray) -> FloatArray:
    within, overall = _variances(values)
    if overall == 0:
        return np.full(values.shape[1], math.nan)
    covariances = _autocovariances(values).mean(axis=0)
    return np.concatenate([[1.0], 1 - (within - covariances[1:]) / overall])


def _autocovariances(values: FloatArray) -> FloatArray:
    """Autocovariance of each chain about its own mean, divided by n at every lag, by FFT."""
    num = values.shape[1]
    centred = values - values.mean(axis=1, keepdims=True)
    spectrum = np.fft.rfft(centred, n=2 * num, axis=1)  # padded: no wrapping round
    covariances: FloatArray = np.fft.irfft(np.abs(spectrum) ** 2, n=2 * num, axis=1)[:, :num] / num
    return covariances


def _initial_monotone_sum(rho: FloatArray) -> float:
    pairs = rho[: len(rho) // 2 * 2].reshape(-1, 2).sum(axis=1)
    ends = np.flatnonzero(~(pairs > 0))
    kept = pairs[: ends[0] if len(ends) else len(pairs)]
    return float(-1 + 2 * np.minimum.accumulate(kept).sum()) if len(kept) else 0.0


def _r_hat(values: FloatArray) -> float:
    within, overall = _variances(values)
    if overall == 0:
        return math.nan
    return math.sqrt(overall / within) if within > 0 else math.inf
