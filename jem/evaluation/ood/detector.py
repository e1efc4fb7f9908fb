"""A detector of OOD inputs: a score with a threshold that accepts a stated share of the data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from torch import Tensor

from jem.checks import as_batch, as_tensor, check_choice, check_finite, check_number, refuse
from jem.errors import InputError
from jem.evaluation.ood.scores import SCORES, Fit, features_of
from jem.evaluation.statistics import smallest_calibration
from jem.model import JEM, batched_logits, check_model, check_no_softmax, inference, on_model

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

ROUNDING = 2e-6
"""Share of a score that one input's may differ by in batches of other sizes: 17 roundings of
float32."""

Option = int | float | None
"""Value of an option of a score."""


class OODVerdict(NamedTuple):
    """What a detector says of scored inputs, each of shape (B,), on the device of the scores."""

    p_value: Tensor  # multiples of 1 / (n + 1), double precision
    is_ood: Tensor  # booleans, True = out-of-distribution


class OODDetector:
    r"""A score with a threshold that accepts a stated share of in-distribution inputs.

    With calibration scores s_1 ... s_n, split conformal prediction gives each input the p-value

    .. math:: p(x) = \frac{1 + \#\{i : s_i \le s(x)\}}{n + 1}

    and flags it as OOD where p(x) <= 1 - `acceptance_rate`. For inputs exchangeable with the
    calibration inputs P(p <= a) <= a, whatever the score: on average over calibration sets at
    least the share `acceptance_rate` is accepted. For one calibration set that share varies:
    without ties it follows Beta(n + 1 - r, r), r = floor((1 - acceptance_rate) (n + 1)). Nothing
    is promised about OOD inputs.

    Infinite scores are ordered like numbers, and a tie speaks for the input: where r calibration
    inputs have score -inf, nothing is flagged. Calibration scores are taken as lower by what
    rounding may be, 2e-6 of their size and at least of 1, so an input is in a tie with its copy
    whatever batch it came in. A score of NaN raises.

    Args:
        model: The model.
        score: A key of `jem.evaluation.ood.SCORES`.
        reference: (x_train, y_train), needed by the scores of the features (`"knn"`,
            `"mahalanobis"`) alone; y_train holds class indices, None where they do not count.
        batch_size: Inputs computed at once.
        options: Passed to the score, such as `k` of `"knn"`; plain values.

    Attributes:
        threshold: Inputs scored below it are flagged; None before `fit`.
        acceptance_rate: The share it was set for; None before `fit`.

    Raises:
        InputError: If the score is unknown, has no such option, or the reference does not fit.

    References:
        Vovk, Gammerman and Shafer (2005), Algorithmic Learning in a Random World. Bates et al.
        (2023), arXiv:2104.08279, for OOD tests by conformal p-values.

    Example:
        >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> detector = OODDetector(JEM(torch.nn.Linear(2, 3))).fit(x, acceptance_rate=0.9)
        >>> detector.is_ood(x).sum().item()  # r - 1, for r = 20
        19
        >>> detector.p_value(x[0]).shape
        torch.Size([1])
    """

    def __init__(
        self,
        model: JEM,
        score: str = "log_density",
        reference: tuple[Tensor | ArrayLike, Tensor | ArrayLike | None] | None = None,
        batch_size: int = 256,
        **options: Option,
    ) -> None:
        check_model(model)
        check_choice("score", score, SCORES)
        for option in options:
            check_choice(f"option of {score}", option, SCORES[score].options)
        self.model, self.score_name, self.options = model, score, options
        self.batch_size, self.input_shape = batch_size, model.input_shape
        self.acceptance_rate: float | None = None
        self.threshold: float | None = None
        self._calibration = torch.empty(0)  # (n,) sorted, double precision, on the CPU
        self._fit: Fit | None = None  # what a score of the features compares with
        if reference is not None and SCORES[score].fit is not None:
            x, y = as_batch(reference[0], self.input_shape), reference[1]
            labels = torch.zeros(len(x)) if y is None else as_tensor("reference", y)
            if labels.shape != (len(x),):
                refuse("reference", f"hold a label for each of {len(x)} inputs", [*labels.shape])
            self.fit_features(zip(x.split(batch_size), labels.split(batch_size), strict=True))

    def fit_features(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Self:
        """Fit a score of the features on training data, which need not fit in memory.

        Args:
            batches: Yields inputs (B, *shape) and class indices (B,).

        Returns:
            The detector. A score of something else does not look at the data.

        Raises:
            InputError: If there is no input, or a feature is not finite.
        """
        fit = SCORES[self.score_name].fit
        if fit is None:
            return self
        with inference(self.model):
            pairs = [(features_of(self.model, x), y) for x, y in batches if len(x)]
            if not pairs:
                refuse("reference", "hold training inputs", "none")
            features, labels = (torch.cat(part) for part in zip(*pairs, strict=True))
            check_finite("features of the reference", features)
            self._fit = fit(features, labels)
        return self

    def fit(self, x_calibration: Tensor | ArrayLike, acceptance_rate: float = 0.95) -> Self:
        """Choose the threshold on in-distribution inputs that nothing else has seen.

        Args:
            x_calibration: Inputs, shape (n, *shape), floats in the network's units. Not training
                inputs: the model scores those higher than new ones.
            acceptance_rate: Share of in-distribution inputs to accept, in (0, 1).

        Returns:
            The detector.

        Raises:
            InputError: If n is too small for that share (0.95 needs 19, 0.99 needs 99), a score
                is NaN, or the inputs do not fit: also where most lie far outside the domain. For
                a score of the density also if the network ends in a softmax.
        """
        x = as_batch(x_calibration, self.model.input_shape)
        _check_units(x, self.model)
        _check_acceptance_rate(acceptance_rate, len(x))  # before the work of scoring
        self.check_density(x[:1])
        self.input_shape = tuple(x.shape[1:])
        return self.fit_threshold(self.score(x), acceptance_rate)

    def check_density(self, x: Tensor) -> None:
        """Refuse a network without a density, where the score is one of the density.

        Args:
            x: Inputs that it takes, shape (B, *shape).

        Raises:
            InputError: If it ends in a softmax, which makes all densities alike.
        """
        if SCORES[self.score_name].of_density:
            check_no_softmax(self.model, on_model(self.model, x))

    def fit_threshold(self, scores: Tensor | ArrayLike, acceptance_rate: float = 0.95) -> Self:
        """Choose the threshold by scores of calibration inputs: the one place where it is fitted.

        Args:
            scores: What `score` gave for inputs that nothing else has seen, shape (n,).
            acceptance_rate: Share of in-distribution inputs to accept, in (0, 1).

        Returns:
            The detector.

        Raises:
            InputError: If n is too small for that share, or a score is NaN.
        """
        scores = as_tensor("scores", scores)
        if scores.ndim != 1:
            refuse("scores", "have shape (n,)", tuple(scores.shape))
        _check_acceptance_rate(acceptance_rate, len(scores))
        _check_nan(scores)
        exact = scores.cpu().double().sort().values
        slack = ROUNDING * exact.abs().clamp(min=1.0)
        self._calibration = torch.where(exact.isfinite(), exact - slack, exact)
        return self.accepting(acceptance_rate)

    def accepting(self, acceptance_rate: float) -> Self:
        """Move the threshold of a fitted detector to another share, by the same calibration.

        Args:
            acceptance_rate: Share of in-distribution inputs to accept, in (0, 1).

        Returns:
            The detector.

        Raises:
            InputError: Before `fit`, or if n is too small for that share.
        """
        if not self.num_calibration:
            raise InputError(_UNFITTED)
        _check_acceptance_rate(acceptance_rate, self.num_calibration)
        rank = math.floor((1 - acceptance_rate) * (self.num_calibration + 1) + 1e-9)
        self.acceptance_rate = float(acceptance_rate)
        self.threshold = float(self._calibration[rank - 1])
        return self

    @property
    def num_calibration(self) -> int:
        """Calibration inputs behind the threshold; 0 before `fit`."""
        return len(self._calibration)

    def score(self, x: Tensor | ArrayLike, logits: Tensor | None = None) -> Tensor:
        """Score inputs; needs no `fit`.

        Args:
            x: A batch (B, *shape) or one input, floats in the network's units.
            logits: f(x) of these inputs, shape (B, K), where they are at hand: scores that are
                functions of them then need no pass through the network.

        Returns:
            Scores, shape (B,), higher = in-distribution, on the device of `x`; one input gives
            B = 1. Mode, flags and gradients of the model stay as they are.

        Raises:
            InputError: If a score is NaN, inputs or logits do not fit, or the score does not suit
                the model or lacks its reference.
        """
        x, score = as_batch(x, self.input_shape), SCORES[self.score_name]
        if logits is not None and len(logits) != len(x):
            refuse("logits", f"hold a row for each of the {len(x)} inputs", f"{len(logits)} rows")
        if not len(x):
            return x.new_empty(0)
        with inference(self.model):
            if score.needs == "logits":
                if logits is None:
                    logits = batched_logits(self.model, x, self.batch_size)
                if logits.shape[1] == 1 and not score.of_density:
                    raise InputError(
                        f"the score {self.score_name!r} needs classes, but the model has one "
                        "output (K = 1): use 'log_density'"
                    )
                scores = score.function(logits, **self.options)
            else:
                batches = torch.split(x, self.batch_size)
                scores = torch.cat([self._score_batch(rows) for rows in batches])
        _check_nan(scores)
        return scores.to(x.device)

    def _score_batch(self, x: Tensor) -> Tensor:
        score = SCORES[self.score_name]
        if score.needs == "input_gradients":
            return score.function(on_model(self.model, x), self.model, **self.options)
        if self._fit is None:
            raise InputError(
                f"the score {self.score_name!r} compares with training data: "
                "pass reference=(x_train, y_train)"
            )
        return score.function(features_of(self.model, x), self._fit, **self.options)

    def is_ood(self, x: Tensor | ArrayLike) -> Tensor:
        """Flag inputs whose p-value is at most 1 - `acceptance_rate`.

        Args:
            x: A batch (B, *shape) or one input, floats in the network's units.

        Returns:
            Booleans, shape (B,), on the device of `x`: True = out-of-distribution.

        Raises:
            InputError: Before `fit`, or as `score`.
        """
        return self.verdict(self.score(x)).is_ood

    def p_value(self, x: Tensor | ArrayLike) -> Tensor:
        """Conformal p-value of the hypothesis that an input is in-distribution.

        Args:
            x: A batch (B, *shape) or one input, floats in the network's units.

        Returns:
            p-values, shape (B,), multiples of 1 / (n + 1) in double precision, on the device of
            `x`; small = out-of-distribution.

        Raises:
            InputError: Before `fit`, or as `score`.
        """
        return self.verdict(self.score(x)).p_value

    def verdict(self, scores: Tensor | ArrayLike) -> OODVerdict:
        """Compare scores that are at hand with the calibration scores.

        Args:
            scores: What `score` gave, shape (B,).

        Returns:
            `p_value` and `is_ood` as the methods of those names give them.

        Raises:
            InputError: Before `fit`, or if a score is NaN.
        """
        if self.threshold is None:
            raise InputError(_UNFITTED)
        scores = as_tensor("scores", scores)
        _check_nan(scores)
        # p <= 1 - acceptance_rate says that fewer than r calibration scores are at most s, which
        # says that s is below the r-th of them: no rounding on the way.
        exact = scores.cpu().double()
        is_ood = exact < self.threshold
        not_above = torch.searchsorted(self._calibration, exact, right=True)
        p_value = (1 + not_above).double() / (self.num_calibration + 1)
        return OODVerdict(p_value.to(scores.device), is_ood.to(scores.device))

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values: everything but the model, which is saved by itself."""
        return {
            "score": self.score_name,
            "options": dict(self.options),
            "batch_size": self.batch_size,
            "input_shape": None if self.input_shape is None else list(self.input_shape),
            "acceptance_rate": self.acceptance_rate,
            "calibration": self._calibration.clone(),
            "fit": self._fit,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> Self:
        """Take over score, threshold and reference of a saved detector of the same model.

        Args:
            state: As `state_dict` gave it; `torch.load(path, weights_only=True)` reads it.

        Returns:
            The detector.
        """
        check_choice("score", state["score"], SCORES)
        self.score_name, self.options = state["score"], dict(state["options"])
        self.batch_size, shape = int(state["batch_size"]), state["input_shape"]
        self.input_shape = None if shape is None else tuple(shape)
        self.acceptance_rate = self.threshold = None
        self._calibration, self._fit = state["calibration"].cpu(), state["fit"]
        rate = state["acceptance_rate"]
        return self if rate is None else self.accepting(rate)


_UNFITTED = "the detector has no threshold yet: call `fit(x_calibration)` first"


def _check_acceptance_rate(acceptance_rate: float, num_calibration: int) -> None:
    check_number("acceptance_rate", acceptance_rate, "(0, 1)")
    needed = smallest_calibration(acceptance_rate)
    if num_calibration < needed:
        refuse(
            "x_calibration",
            f"hold at least {needed} inputs for an acceptance rate of {acceptance_rate:g}",
            num_calibration,
        )


def _check_nan(scores: Tensor) -> None:
    if bool(scores.isnan().any()):
        refuse("scores", "be numbers", f"NaN for input {int(scores.isnan().nonzero()[0])}")


def _check_units(x: Tensor, model: JEM) -> None:
    """Refuse inputs said to be in-distribution that mostly leave the domain by its width.

    Those of bytes for a network of [-1, 1] do in every value that is not black. An honest table
    of many columns has a few such values in most of its rows.
    """
    bounds = model.bounds(x.device)
    if bounds is None:
        return
    low, high = bounds
    far = (x < 2 * low - high) | (x > 2 * high - low)
    if far[x != 0].float().mean() > 0.5:  # the ground of a picture is 0 in many units
        refuse(
            "x_calibration",
            f"lie within [{float(low.min()):.4g}, {float(high.max()):.4g}]",
            f"[{float(x.min()):.4g}, {float(x.max()):.4g}]",
            "`model.preprocess` brings raw data to the network's units",
        )
