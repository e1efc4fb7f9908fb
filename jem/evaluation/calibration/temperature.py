"""Recalibration by one number: logits divided by a temperature."""

from __future__ import annotations

import math
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from torch import Tensor

from jem.errors import InputError
from jem.evaluation.calibration.predictions import (
    FloatArray,
    IntArray,
    Values,
    check_labels,
    check_logits,
)

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.01, 100.0
PRIOR_STD = 0.5  # of log T: 95 % between 0.38 and 2.7, where networks are usually found

Logits = TypeVar("Logits", Tensor, npt.NDArray[Any])


class TemperatureScaling:
    r"""Divide logits by the temperature that best explains the labels.

    .. math:: T = \arg\min_T \sum_i -\log \mathrm{softmax}(f(x_i) / T)_{y_i}
              + \frac{(\log T)^2}{2 s^2}

    The first part is the negative log-likelihood (NLL) of the N inputs. The second is a normal
    prior on log T: alone, the NLL of a good classifier on a few hundred inputs, none or one of
    them wrong, asks for T near 0, and the first error on new inputs is then punished without
    bound. With thousands of inputs the prior does not matter.

    Searched in log T within [0.01, 100]; at an end of the range `at_bound` is true. T > 1 makes
    the classifier less confident, T < 1 more. The class predicted does not change. The
    calibration errors, which are not what is minimised, may rise.

    T stays 1 unless the N inputs gain more than 1 nat in all, which is what one free parameter is
    expected to lose again on new inputs (Akaike's criterion). Fit on inputs that the network was
    not trained on and report on others still.

    Scaled logits are for p(y|x) only: logsumexp(f / T) is another density, so energies, scores
    and samples take the unscaled ones.

    Args:
        prior_std: s > 0, of log T; `math.inf` leaves the likelihood alone.

    Attributes:
        temperature: T > 0; 1 until fitted.
        improved: Whether T was moved from 1.
        at_bound: Whether T is an end of the range, as without prior where every input is
            classified correctly and was worth more than 1 nat.
        nll_before: NLL of the fitted inputs at T = 1, nats; NaN until fitted.
        nll_after: The same at the temperature kept.

    References:
        Guo et al. (2017), arXiv:1706.04599. Akaike (1974), IEEE TAC 19.

    Example:
        >>> logits = np.array([[4.0, 0.0]] * 10)  # says 98 %
        >>> scaling = TemperatureScaling(math.inf)
        >>> scaling.fit(logits, [0] * 8 + [1] * 2).transform(logits[:1]).round(3)  # right in 80 %
        array([[1.386, 0.   ]])
        >>> round(scaling.temperature, 3)
        2.885
    """

    def __init__(self, prior_std: float = PRIOR_STD) -> None:
        if not prior_std > 0:
            raise InputError(f"prior_std: expected a value above 0, got {prior_std}")
        self.prior_std = float(prior_std)
        self.temperature = 1.0
        self.improved = False
        self.at_bound = False
        self.nll_before = math.nan
        self.nll_after = math.nan

    def fit(self, logits: Values, labels: Values) -> Self:
        """Choose the temperature.

        Args:
            logits: f(x), finite, shape (N, K), K >= 2.
            labels: Class indices, shape (N,).

        Returns:
            Itself.

        Raises:
            InputError: If the two do not form labelled logits.
        """
        values = check_logits(logits)
        classes = check_labels(labels, *values.shape)
        bounds = math.log(LOWEST_TEMPERATURE), math.log(HIGHEST_TEMPERATURE)
        found = minimize_scalar(
            lambda log_temperature: (
                _nll(values, classes, math.exp(log_temperature))
                + (log_temperature / self.prior_std) ** 2 / (2 * len(values))
            ),
            bounds=bounds,
            method="bounded",
            options={"xatol": 1e-9},
        )
        before, best = (_nll(values, classes, t) for t in (1.0, math.exp(found.x)))
        self.improved = len(values) * (before - best) > 1.0
        log_temperature = float(found.x) if self.improved else 0.0
        self.temperature = math.exp(log_temperature)
        self.at_bound = min(abs(log_temperature - bound) for bound in bounds) < 1e-6
        self.nll_before, self.nll_after = before, best if self.improved else before
        return self

    def transform(self, logits: Logits) -> Logits:
        """Divide logits by the temperature.

        Args:
            logits: Shape (..., K), a torch tensor or a numpy array; lists become an array.

        Returns:
            f / T, of the kind, dtype and device of `logits`; a tensor keeps its graph.

        Raises:
            InputError: If no temperature was fitted or loaded.
        """
        if math.isnan(self.nll_before):
            raise InputError("TemperatureScaling: call fit before transform")
        values = logits if isinstance(logits, Tensor) else np.asarray(logits)
        return values / self.temperature

    def state_dict(self) -> dict[str, float | bool]:
        """Everything that was fitted, as plain values.

        Returns:
            Temperature, whether it improved or stands at a bound, NLL before and after.
        """
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, float | bool]) -> None:
        """Take back what `state_dict` gave.

        Args:
            state: The dict.

        Raises:
            InputError: If entries are missing or unknown, or the temperature is out of range.

        Example:
            >>> scaling, copy = TemperatureScaling(), TemperatureScaling()
            >>> copy.load_state_dict(scaling.fit(np.eye(2) * 9, [0, 1]).state_dict())
            >>> copy.temperature == scaling.temperature
            True
        """
        if set(state) != set(vars(self)):
            raise InputError(f"temperature: expected entries {sorted(vars(self))}, got {[*state]}")
        temperature = state["temperature"]
        if not LOWEST_TEMPERATURE <= temperature <= HIGHEST_TEMPERATURE:
            raise InputError(f"temperature: expected a value in [0.01, 100], got {temperature}")
        vars(self).update(state)


def _nll(logits: FloatArray, labels: IntArray, temperature: float) -> float:
    scaled = logits / temperature
    rows = np.arange(len(labels))
    others = scaled - scaled[rows, labels][:, None]
    others[rows, labels] = -np.inf
    return float(np.logaddexp(0.0, logsumexp(others, axis=1)).mean())  # above 0, however small
