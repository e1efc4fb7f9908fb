"""Sets of classes that hold the true one as often as promised (split conformal prediction)."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from torch import Tensor

from jem.errors import InputError
from jem.evaluation.calibration.predictions import (
    BoolArray,
    FloatArray,
    Values,
    check_labels,
    check_probabilities,
)
from jem.randomness import check_seed


class SetMetrics(NamedTuple):
    """How prediction sets did on labelled inputs."""

    num_samples: int
    coverage: float  # share of sets that hold the true class
    mean_size: float  # classes a set
    empty_share: float  # share of sets with no class
    single_share: float  # share of sets with exactly one


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
        if method not in ("lac", "aps"):
            raise InputError(f'method: expected "lac" or "aps", got {method!r}')
        if not 0 < coverage < 1:
            raise InputError(f"coverage: expected a share in (0, 1), got {coverage}")
        check_seed(seed)
        self.method, self.coverage, self.seed = method, coverage, seed
        self.threshold = math.nan
        self._num_classes = 0

    def fit(self, probabilities: Values, labels: Values) -> Self:
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
        checked = check_probabilities(probabilities)
        classes = check_labels(labels, *checked.shape)
        rank = _rank(len(classes), self.coverage)
        if rank > len(classes):
            least = math.ceil(self.coverage / (1 - self.coverage) - 1e-9)
            raise InputError(
                f"probabilities: coverage {self.coverage:g} takes at least {least} labelled "
                f"inputs, got {len(classes)}"
            )
        scores = self._scores(checked, stream=0)[np.arange(len(classes)), classes]
        self.threshold = float(np.sort(scores)[rank - 1])
        self._num_classes = checked.shape[1]
        return self

    def predict(self, probabilities: Values) -> BoolArray:
        """The set of each input.

        Args:
            probabilities: p(y|x), shape (N, K) with the K of `fit`.

        Returns:
            Membership, shape (N, K).

        Raises:
            InputError: If these are no probabilities of K classes, or `fit` was not called.
        """
        if self._num_classes == 0:
            raise InputError("ConformalSets: call fit before predict")
        checked = check_probabilities(probabilities)
        if checked.shape[1] != self._num_classes:
            raise InputError(
                f"probabilities: expected {self._num_classes} classes as in fit, "
                f"got {checked.shape[1]}"
            )
        return self._scores(checked, stream=1) <= self.threshold

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


def set_metrics(sets: Tensor | npt.ArrayLike, labels: Values) -> SetMetrics:
    """Coverage and size of prediction sets.

    Args:
        sets: Membership, bool, shape (N, K).
        labels: True class indices, shape (N,).

    Returns:
        Coverage, mean size, and the shares of sets that are empty or name one class.

    Raises:
        InputError: If shapes, kinds or ranges are wrong.

    Example:
        >>> set_metrics([[True, False], [True, True]], [1, 1])
        SetMetrics(num_samples=2, coverage=0.5, mean_size=1.5, empty_share=0.0, single_share=0.5)
    """
    member = np.asarray(sets.cpu() if isinstance(sets, Tensor) else sets)
    if member.ndim != 2 or member.dtype != np.bool_ or member.size == 0:
        raise InputError(
            f"sets: expected bool of shape (N, K), N >= 1, got {member.dtype} {member.shape}"
        )
    classes = check_labels(labels, *member.shape)
    sizes = member.sum(axis=1)
    return SetMetrics(
        num_samples=len(member),
        coverage=float(member[np.arange(len(member)), classes].mean()),
        mean_size=float(sizes.mean()),
        empty_share=float((sizes == 0).mean()),
        single_share=float((sizes == 1).mean()),
    )


def _rank(num_samples: int, coverage: float) -> int:
    """ceil((n + 1) coverage), not thrown off by rounding such as 100 * 0.07 > 7."""
    return math.ceil((num_samples + 1) * coverage - 1e-9)
