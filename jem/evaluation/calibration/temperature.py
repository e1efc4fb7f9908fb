"""Recalibration by one number: logits divided by a temperature."""

import math
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional

from jem.checks import as_labels, as_tensor, check_finite, check_number, refuse
from jem.errors import InputError

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

    Searched in log T within [0.01, 100]. T > 1 makes the classifier less confident, T < 1 more.
    The class predicted does not change. The calibration errors, which are not what is minimised,
    may rise.

    T stays 1 unless the N inputs gain more than 1 nat in all, which is what one free parameter is
    expected to lose again on new inputs (Akaike's criterion), and unless the temperatures of two
    halves, every class divided evenly, gain together on the half that they were not fitted on. Fit
    on inputs that the network was
    not trained on and report on others still.

    Scaled logits are for p(y|x) only: logsumexp(f / T) is another density, so energies, scores
    and samples take the unscaled ones.

    Args:
        prior_std: s > 0, of log T; `math.inf` leaves the likelihood alone.

    Attributes:
        temperature: T > 0; 1 until fitted.
        improved: Whether T was moved from 1.
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
        check_number("prior_std", prior_std, "(0, inf]")
        self.prior_std = float(prior_std)
        self.temperature = 1.0
        self.improved = False
        self.nll_before = math.nan
        self.nll_after = math.nan

    def fit(self, logits: Tensor | ArrayLike, labels: Tensor | ArrayLike) -> Self:
        """Choose the temperature.

        Args:
            logits: f(x), finite, shape (N, K), K >= 2.
            labels: Class indices, shape (N,).

        Returns:
            Itself.

        Raises:
            InputError: If the two do not form labelled logits.
        """
        values = as_tensor("logits", logits).cpu().double()
        if values.ndim != 2 or values.shape[1] < 2 or not len(values):
            refuse("logits", "have shape (N, K) with N >= 1 and K >= 2", tuple(values.shape))
        check_finite("logits", values)
        classes = as_labels("labels", labels, *values.shape)

        order = classes.argsort(stable=True)
        halves = (order[0::2], order[1::2])
        gain = sum(
            _gain(values[other], classes[other], self._best(values[half], classes[half]))
            for half, other in (halves, halves[::-1])
        )
        self.nll_before, best = _nll(values, classes), self._best(values, classes)
        self.improved = gain > 0 and _gain(values, classes, best) > 1.0
        self.temperature = best if self.improved else 1.0
        self.nll_after = _nll(values, classes, self.temperature)
        return self

    def _best(self, logits: Tensor, labels: Tensor) -> float:
        """The temperature that minimises NLL and prior on these inputs; 1 without any."""
        num = len(labels)
        if not num:
            return 1.0
        found = minimize_scalar(
            lambda log_t: (
                _nll(logits, labels, math.exp(log_t)) + (log_t / self.prior_std) ** 2 / (2 * num)
            ),
            bounds=(math.log(LOWEST_TEMPERATURE), math.log(HIGHEST_TEMPERATURE)),
            method="bounded",
            options={"xatol": 1e-9},
        )
        return math.exp(found.x)

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
            raise InputError("there is no temperature yet: call `fit` first")
        values = logits if isinstance(logits, Tensor) else np.asarray(logits)
        return values / self.temperature

    def state_dict(self) -> dict[str, float | bool]:
        """Everything that was fitted, as plain values.

        Returns:
            Prior, temperature, whether it improved, NLL before and after.
        """
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, float | bool]) -> None:
        """Take back what `state_dict` gave.

        Args:
            state: The dict.

        Raises:
            InputError: If the temperature is out of range.

        Example:
            >>> scaling, copy = TemperatureScaling(), TemperatureScaling()
            >>> copy.load_state_dict(scaling.fit(np.eye(2) * 9, [0, 1]).state_dict())
            >>> copy.temperature == scaling.temperature
            True
        """
        check_number("temperature", state["temperature"], "[0.01, 100]")
        vars(self).update({name: state[name] for name in vars(self)})


def _nll(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> float:
    return functional.cross_entropy(logits / temperature, labels).item()


def _gain(logits: Tensor, labels: Tensor, temperature: float) -> float:
    """What a temperature takes off the NLL of these inputs together, nats."""
    if not len(labels):
        return 0.0
    return len(labels) * (_nll(logits, labels) - _nll(logits, labels, temperature))
