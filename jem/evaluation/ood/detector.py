"""A detector of OOD inputs: a score with a threshold that accepts a stated share of the data."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Self

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from jem.checks import as_batch, as_tensor, refuse
from jem.errors import InputError
from jem.evaluation.ood.borders import (
    UNFITTED,
    check_acceptance_rate,
    check_scores,
    check_units,
    doubt_ties,
)
from jem.evaluation.ood.fitted import FittedScore, Option
from jem.evaluation.ood.scores import REASONS
from jem.model import JEM, batched_logits, check_model, check_network, inference

ROUNDING = 2e-6
"""Relative rounding error of a score between batches of other sizes: 17 roundings of float32."""


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
        score: A key of `jem.evaluation.ood.SCORES`, or several that add up, such as
            `"knn+max_probability"`: the logarithms of their p-values. `"combined"` is
            `"log_density+max_probability"`.
        reference: Training inputs (N, *shape) and class indices (N,) that scores of features, such
            as `"knn"`, compare with; None for the indices where they do not count.
        validation: Inputs (N, *shape) that training has not seen, for the p-values of a sum.
            Without them `fit` takes every second calibration input, and the others for the
            threshold.
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
        >>> x, validation = torch.randn(2, 200, 2).unbind()
        >>> model = JEM(torch.nn.Linear(2, 3))
        >>> detector = OODDetector(model, validation=validation).fit(x, acceptance_rate=0.9)
        >>> detector.is_ood(x).sum().item()  # r - 1, for r = 20
        19
        >>> detector.p_value(x[0]).shape
        torch.Size([1])
    """

    def __init__(
        self,
        model: JEM,
        score: str = "combined",
        reference: tuple[Tensor | ArrayLike, Tensor | ArrayLike | None] | None = None,
        batch_size: int = 256,
        *,
        validation: Tensor | ArrayLike | None = None,
        **options: Option,
    ) -> None:
        check_model(model)
        self.model, self.fitted_score = model, FittedScore(model, score, options)
        self.batch_size, self.input_shape = batch_size, model.input_shape
        self.acceptance_rate: float | None = None
        self.threshold: float | None = None
        self._calibration = torch.empty(0)  # (n,) sorted, double precision, on the CPU
        self._maps_are_given = False  # and not fitted on a part of the calibration inputs
        if reference is not None and self.fitted_score.compares:
            x, y = as_batch(reference[0], self.input_shape), reference[1]
            labels = torch.zeros(len(x)) if y is None else as_tensor("reference", y)
            if labels.shape != (len(x),):
                refuse("reference", f"hold a label for each of {len(x)} inputs", [*labels.shape])
            self.fit_reference(zip(x.split(batch_size), labels.split(batch_size), strict=True))
        if validation is not None:
            self.fit_maps(as_batch(validation, self.input_shape).split(batch_size))

    @property
    def score_name(self) -> str:
        """The score, as it was asked for."""
        return self.fitted_score.name

    def fit_reference(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Self:
        """Fit what the score compares with, on data that need not fit in memory.

        Args:
            batches: Yields training inputs (B, *shape) and class indices (B,).

        Returns:
            The detector. A score that compares with nothing does not look at the data.

        Raises:
            InputError: If there is no input, or a feature is not finite.
        """
        self.fitted_score.fit(batches)
        return self

    def fit_maps(self, batches: Iterable[Tensor]) -> Self:
        """Fit the p-values of a sum, on inputs that training has not seen.

        Args:
            batches: Yields inputs (B, *shape).

        Returns:
            The detector. A score that is no sum does not look at the data.
        """
        if self.fitted_score.adds_up:
            self.fitted_score.fit_maps(batches)
            self._maps_are_given = True
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
            InputError: If n is too small for that share (0.95 needs 19, 0.99 needs 99; twice as
                many for a sum without `validation`), the inputs do not fit or most lie far
                outside the domain, a score is NaN, or as `jem.model.check_network`.
        """
        x = as_batch(x_calibration, self.model.input_shape)
        halved = self.fitted_score.adds_up and not self._maps_are_given
        check_acceptance_rate(acceptance_rate, len(x), shared=halved)  # before any work
        if halved:
            self.fit_maps(x[::2].split(self.batch_size))
            self._maps_are_given, x = False, x[1::2]
        return self.fit_batches(x.split(self.batch_size), acceptance_rate)

    def fit_batches(self, batches: Iterable[Tensor], acceptance_rate: float = 0.95) -> Self:
        """As `fit`, of a detector that has its reference, on inputs that need not fit in memory.

        Args:
            batches: Yields inputs (B, *shape); the first ones show their units.
            acceptance_rate: As for `fit`.
        """
        scores: list[Tensor] = []
        for x in batches:
            if not scores:
                check_units(x, self.model)
                check_network(self.model, x[:2], density=self.fitted_score.uses_density)
                self.input_shape = tuple(x.shape[1:])
            scores.append(self.score(x))
        return self.fit_threshold(torch.cat(scores), acceptance_rate)

    def fit_threshold(self, scores: Tensor | ArrayLike, acceptance_rate: float = 0.95) -> Self:
        """Keep the scores of calibration inputs, and set the threshold by them.

        Args:
            scores: What `score` gave for inputs that nothing else has seen, shape (n,).
            acceptance_rate: Share of in-distribution inputs to accept, in (0, 1).

        Returns:
            The detector. A warning says so where most of the scores are the same.

        Raises:
            InputError: If n is too small for that share, or a score is NaN.
        """
        scores = as_tensor("scores", scores)
        if scores.ndim != 1:
            refuse("scores", "have shape (n,)", tuple(scores.shape))
        check_scores(scores)
        exact = scores.cpu().double().sort().values
        slack = ROUNDING * exact.abs().clamp(min=max(1.0, self.fitted_score.roundings))
        self._set_threshold(torch.where(exact.isfinite(), exact - slack, exact), acceptance_rate)
        doubt_ties(exact, slack)
        return self

    def set_acceptance_rate(self, acceptance_rate: float) -> Self:
        """Change the threshold of a fitted detector to another share, by the same calibration.

        Args:
            acceptance_rate: Share of in-distribution inputs to accept, in (0, 1).

        Returns:
            The detector.

        Raises:
            InputError: Before `fit`, or if n is too small for that share.
        """
        if not self.num_calibration:
            raise InputError(UNFITTED)
        return self._set_threshold(self._calibration, acceptance_rate)

    def _set_threshold(self, calibration: Tensor, acceptance_rate: float) -> Self:
        check_acceptance_rate(acceptance_rate, len(calibration))
        rank = math.floor((1 - acceptance_rate) * (len(calibration) + 1) + 1e-9)
        self._calibration, self.acceptance_rate = calibration, float(acceptance_rate)
        self.threshold = float(calibration[rank - 1])
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
        x = as_batch(x, self.input_shape)
        with inference(self.model):
            scores = self._terms(x, logits).sum(dim=1)
        check_scores(scores)
        return scores.to(x.device)

    def _terms(self, x: Tensor, logits: Tensor | None) -> Tensor:
        """What adds up to the scores, shape (B, T); in inference."""
        fitted = self.fitted_score
        if logits is not None and len(logits) != len(x):
            refuse("logits", f"hold a row for each of the {len(x)} inputs", f"{len(logits)} rows")
        if not len(x):
            return x.new_empty(0, len(fitted.terms))
        if logits is None and fitted.takes("logits"):
            logits = batched_logits(self.model, x, self.batch_size)
        if logits is not None and logits.shape[1] == 1 and fitted.needs_classes:
            raise InputError(
                f"the score {fitted.name!r} needs classes, but the model has one "
                "output (K = 1): use 'log_density'"
            )
        parts: list[Tensor | None] = [None] * len(x)
        if logits is not None:
            parts = list(logits.split(self.batch_size))
        pairs = zip(x.split(self.batch_size), parts, strict=False)
        return torch.cat([fitted.score(fitted.views(*pair)) for pair in pairs])

    def is_ood(self, x: Tensor | ArrayLike) -> Tensor:
        """`verdict` of inputs `x` (B, *shape): booleans (B,), True = out-of-distribution."""
        return self.verdict(self.score(x)).is_ood

    def p_value(self, x: Tensor | ArrayLike) -> Tensor:
        """`verdict` of inputs `x` (B, *shape): p-values (B,), small = out-of-distribution."""
        return self.verdict(self.score(x)).p_value

    def verdict(self, scores: Tensor | ArrayLike) -> OODVerdict:
        """Compare scores that are at hand with the calibration scores.

        Args:
            scores: What `score` gave, shape (B,).

        Returns:
            Conformal p-values of the hypothesis that an input is in-distribution, multiples of
            1 / (n + 1) in double precision, and flags where they are at most 1 - acceptance_rate.

        Raises:
            InputError: Before `fit`, or if a score is NaN.
        """
        if self.threshold is None:
            raise InputError(UNFITTED)
        scores = as_tensor("scores", scores)
        check_scores(scores)
        # p <= 1 - acceptance_rate says that fewer than r calibration scores are at most s, which
        # says that s is below the r-th of them: no rounding on the way.
        exact = scores.cpu().double()
        not_above = torch.searchsorted(self._calibration, exact, right=True)
        p_value = (1 + not_above).double() / (self.num_calibration + 1)
        return OODVerdict(p_value.to(scores.device), (exact < self.threshold).to(scores.device))

    def reason(
        self, x: Tensor | ArrayLike, logits: Tensor | None = None, is_ood: Tensor | None = None
    ) -> list[str]:
        """Say why inputs are flagged.

        A sum of T scores flags an input where the logarithms of T p-values add up to less than the
        threshold; one that is below a T-th of it is small. The input is "unlike the data" where
        that of the density or a distance is small, "between classes" where that of p(y|x) is, or
        "both". A single score has one reason.

        Args:
            x: A batch (B, *shape) or one input, floats in the network's units.
            logits: f(x), shape (B, K), where they are at hand.
            is_ood: The verdicts, shape (B,), where they are at hand.

        Returns:
            One for each input, of `jem.evaluation.ood.REASONS`; "" where it is not flagged.

        Raises:
            InputError: Before `fit`, or as `score`.
        """
        x = as_batch(x, self.input_shape)
        if is_ood is None:
            is_ood = self.verdict(self.score(x, logits)).is_ood
        rows, codes = is_ood.nonzero().flatten(), is_ood.long()
        if len(rows):
            seen = None if logits is None else logits[rows.to(logits.device)]
            with inference(self.model):
                terms = self._terms(x[rows.to(x.device)], seen)
            codes[rows] = self.reason_of(terms, is_ood[rows].to(terms.device)).to(codes)
        return [REASONS[code] for code in codes.tolist()]

    def reason_of(self, terms: Tensor, is_ood: Tensor) -> Tensor:
        """Indices of `REASONS` (B,) from terms (B, T) and verdicts (B,), without checks."""
        assert self.threshold is not None, "verdicts are at hand"
        return self.fitted_score.reasons(terms, is_ood, self.threshold)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values: everything but the model, which is saved by itself."""
        return {
            "score": self.score_name,
            "options": dict(self.fitted_score.options),
            "batch_size": self.batch_size,
            "input_shape": None if self.input_shape is None else list(self.input_shape),
            "acceptance_rate": self.acceptance_rate,
            "calibration": self._calibration.clone(),
            "references": dict(self.fitted_score.references),
            "maps_are_given": self._maps_are_given,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> Self:
        """Take over score, threshold and reference of a saved detector of the same model.

        Args:
            state: As `state_dict` gave it; `torch.load(path, weights_only=True)` reads it.
        """
        fitted = FittedScore(self.model, state["score"], state["options"])
        fitted.references, self.fitted_score = dict(state["references"]), fitted
        self.batch_size, shape = int(state["batch_size"]), state["input_shape"]
        self.input_shape = None if shape is None else tuple(shape)
        self.acceptance_rate = self.threshold = None
        self._calibration = state["calibration"].cpu()
        self._maps_are_given = state["maps_are_given"]
        rate = state["acceptance_rate"]
        return self if rate is None else self.set_acceptance_rate(rate)
