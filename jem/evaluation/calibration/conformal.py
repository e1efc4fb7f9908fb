"""Sets of classes that hold the true one as often as promised (split conformal prediction)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from torch import Tensor

from jem.checks import (
    as_labels,
    as_tensor,
    check_choice,
    check_integer,
    check_number,
    check_probabilities,
    refuse,
)
from jem.errors import InputError
from jem.evaluation.statistics import BoolArray, FloatArray, smallest_calibration

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


class ConformalSets:
    r"""Prediction sets of a stated coverage, whatever the classifier.

    With s(x, y) a score that is high for unlikely classes, and q the k-th smallest score of the n
    labelled inputs, k = ceil((n + 1) coverage), the set is C(x) = {y : s(x, y) <= q}. For inputs
    exchangeable with the labelled ones

    .. math:: P(y \in C(x)) \ge \mathrm{coverage}

    on average over inputs and over labelled samples: not for each class, nor for shifted data.
    With a given q the coverage of scores without ties follows Beta(k, n + 1 - k).

    - "lac": s = 1 - p(y|x). The smallest sets; those of ambiguous inputs may be empty.
    - "aps": s = the probability of all classes ranked above y, plus U p(y|x) with U uniform for
      each input. Larger sets whose coverage varies less between easy and hard inputs. May be
      empty. U goes by an input's position in the call, so equal calls give equal sets.

    Args:
        method: Which score.
        coverage: Share of sets that shall hold the true class, in (0, 1).
        seed: Decides U of "aps".

    Attributes:
        threshold: q, in [0, 1]; NaN until fitted.

    Raises:
        InputError: If a setting is not one of these.

    References:
        Sadinle, Lei and Wasserman (2019), arXiv:1609.00451 ("lac"). Romano, Sesia and Candes
        (2020), arXiv:2006.02544 ("aps"). Vovk (2012), arXiv:1209.2673 (the Beta law).

    Example:
        >>> probabilities = [[0.9, 0.1], [0.8, 0.2], [0.6, 0.4]]
        >>> sets = ConformalSets("lac", coverage=0.75).fit(probabilities, [0, 0, 0])
        >>> sets.predict([[0.95, 0.05], [0.55, 0.45], [0.4, 0.6]])
        array([[ True, False],
               [False, False],
               [False,  True]])
    """

    def __init__(
        self, method: Literal["lac", "aps"] = "lac", coverage: float = 0.9, seed: int = 0
    ) -> None:
        check_choice("method", method, ("lac", "aps"))
        check_number("coverage", coverage, "(0, 1)")
        check_integer("seed", seed, 0)
        self.method, self.coverage, self.seed = method, coverage, seed
        self.threshold = math.nan

    def fit(self, probabilities: Tensor | ArrayLike, labels: Tensor | ArrayLike) -> Self:
        """Set the threshold by labelled inputs on which nothing else was fitted.

        Args:
            probabilities: p(y|x), shape (N, K), K >= 2.
            labels: Class indices, shape (N,).

        Returns:
            Itself.

        Raises:
            InputError: If the two do not form labelled probabilities, or N is less than
                coverage / (1 - coverage), so that only the set of all classes would do.
        """
        checked = _read(probabilities)
        true = as_labels("labels", labels, *checked.shape)
        # ceil((n + 1) coverage), not thrown off by rounding such as 100 * 0.07 > 7
        rank = math.ceil((len(true) + 1) * self.coverage - 1e-9)
        least = smallest_calibration(self.coverage)
        if len(true) < least:
            refuse("labels", f"number at least {least} for coverage {self.coverage:g}", len(true))
        scores = self._scores(checked, stream=0)[np.arange(len(true)), true.numpy()]
        self.threshold = float(np.sort(scores)[rank - 1])
        return self

    def predict(self, probabilities: Tensor | ArrayLike) -> BoolArray:
        """The set of each input.

        Args:
            probabilities: p(y|x), shape (N, K) with the K of `fit`.

        Returns:
            Membership, shape (N, K).

        Raises:
            InputError: If these are no probabilities of K classes, or `fit` was not called.
        """
        if math.isnan(self.threshold):
            raise InputError("the sets have no threshold yet: call `fit` first")
        return self._scores(_read(probabilities), stream=1) <= self.threshold

    def _scores(self, probabilities: FloatArray, stream: int) -> FloatArray:
        """s(x, y) of every class, shape (N, K); `stream` keeps U of fit and predict apart."""
        if self.method == "lac":
            return 1 - probabilities
        uniform = np.random.default_rng([self.seed, stream]).random((len(probabilities), 1))
        order = np.argsort(-probabilities, axis=1, kind="stable")
        ranked = np.take_along_axis(probabilities, order, axis=1)
        above = np.cumsum(ranked, axis=1) - ranked
        scores = np.empty_like(probabilities)
        np.put_along_axis(scores, order, above + uniform * ranked, axis=1)
        return scores


def _read(probabilities: Tensor | ArrayLike) -> FloatArray:
    read = as_tensor("probabilities", probabilities).cpu().double()
    check_probabilities("probabilities", read)
    return np.asarray(read.numpy())
