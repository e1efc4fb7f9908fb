"""Sets of classes that hold the true one as often as promised (split conformal prediction)."""

import math
from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from jem.checks import (
    as_labels,
    as_tensor,
    check_number,
    check_probabilities,
    refuse,
)
from jem.errors import InputError
from jem.evaluation.statistics import BoolArray, FloatArray, smallest_calibration


class ConformalSets:
    r"""Prediction sets of a stated coverage, whatever the classifier.

    With s(x, y) = 1 - p(y|x), and q the k-th smallest score of the n labelled inputs,
    k = ceil((n + 1) coverage), the set is C(x) = {y : s(x, y) <= q}. For inputs exchangeable with
    the labelled ones

    .. math:: P(y \in C(x)) \ge \mathrm{coverage}

    on average over inputs and over labelled samples: not for each class, nor for shifted data.
    With a given q the coverage of scores without ties follows Beta(k, n + 1 - k). No sets with
    that promise are smaller on average; those of ambiguous inputs may be empty.

    Args:
        coverage: Share of sets that shall hold the true class, in (0, 1).

    Attributes:
        threshold: q, in [0, 1]; NaN until fitted.

    Raises:
        InputError: If `coverage` does not lie there.

    References:
        Sadinle, Lei and Wasserman (2019), arXiv:1609.00451. Vovk (2012), arXiv:1209.2673 (the
        Beta law).

    Example:
        >>> probabilities = [[0.9, 0.1], [0.8, 0.2], [0.6, 0.4]]
        >>> sets = ConformalSets(coverage=0.75).fit(probabilities, [0, 0, 0])
        >>> sets.predict([[0.95, 0.05], [0.55, 0.45], [0.4, 0.6]])
        array([[ True, False],
               [False, False],
               [False,  True]])
    """

    def __init__(self, coverage: float = 0.9) -> None:
        check_number("coverage", coverage, "(0, 1)")
        self.coverage, self.threshold = coverage, math.nan

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
        scores = 1 - checked[np.arange(len(true)), true.numpy()]
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
        return 1 - _read(probabilities) <= self.threshold


def _read(probabilities: Tensor | ArrayLike) -> FloatArray:
    read = as_tensor("probabilities", probabilities).cpu().double()
    check_probabilities("probabilities", read)
    return np.asarray(read.numpy())
