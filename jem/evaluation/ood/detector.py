"""A detector of OOD inputs: a score with a threshold that accepts a stated share of the data."""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple, Self

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from jem.checks import as_batch, as_tensor, check_choice, check_finite, refuse
from jem.errors import InputError
from jem.evaluation.ood.borders import (
    UNFITTED,
    check_acceptance_rate,
    check_scores,
    check_units,
    doubt_ties,
)
from jem.evaluation.ood.features import Reference, features_of, plain_head
from jem.evaluation.ood.scores import REASONS, SCORES
from jem.model import JEM, batched_logits, check_model, check_network, inference

ROUNDING = 2e-6
"""Relative rounding error of a score between batches of other sizes: 17 roundings of float32."""

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
        reference: Inputs (N, *shape) and class indices (N,) that the score compares with; None
            for the indices where they do not count. `"knn"` and `"mahalanobis"` need those of
            training. `"combined"` is best fitted on a validation part; without a reference `fit`
            takes every second calibration input for it, and the others for the threshold.
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
        >>> detector = OODDetector(model, reference=(validation, None)).fit(x, acceptance_rate=0.9)
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
        self._reference: Reference | None = None  # what the score compares with
        self._reference_is_given = False  # and not a part of the calibration inputs
        if reference is not None and SCORES[score].fit is not None:
            x, y = as_batch(reference[0], self.input_shape), reference[1]
            labels = torch.zeros(len(x)) if y is None else as_tensor("reference", y)
            if labels.shape != (len(x),):
                refuse("reference", f"hold a label for each of {len(x)} inputs", [*labels.shape])
            self.fit_reference(zip(x.split(batch_size), labels.split(batch_size), strict=True))

    def fit_reference(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Self:
        """Fit what the score compares with, on data that need not fit in memory.

        Args:
            batches: Yields inputs (B, *shape) and class indices (B,).

        Returns:
            The detector. A score that compares with nothing does not look at the data.

        Raises:
            InputError: If there is no input, or a feature is not finite.
        """
        score = SCORES[self.score_name]
        if score.fit is None:
            return self
        with inference(self.model):
            of = self._logits if score.takes == "logits" else partial(features_of, self.model)
            pairs = [(of(x), y) for x, y in batches if len(x)]
            if not pairs:
                refuse("reference", "hold inputs", "none")
            values, labels = (torch.cat(part) for part in zip(*pairs, strict=True))
            if score.takes == "features":
                check_finite("features of the reference", values)
            given = plain_head(self.model, values.shape[1]) if score.fit_takes_head else labels
            self._reference, self._reference_is_given = score.fit(values, given), True
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
                many where `"combined"` has no reference), the inputs do not fit or most lie far
                outside the domain, a score is NaN, or as `jem.model.check_network`.
        """
        x = as_batch(x_calibration, self.model.input_shape)
        halved = SCORES[self.score_name].fitted_on == "validation" and not self._reference_is_given
        check_acceptance_rate(acceptance_rate, len(x), shared=halved)  # before any work
        if halved:
            self.fit_reference([(x[::2], torch.zeros(len(x[::2])))])
            self._reference_is_given, x = False, x[1::2]
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
                check_network(self.model, x[:2], density=SCORES[self.score_name].uses_density)
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
        roundings = float((self._reference or {}).get("roundings", 1.0))
        slack = ROUNDING * exact.abs().clamp(min=max(1.0, roundings))
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
        x, score = as_batch(x, self.input_shape), SCORES[self.score_name]
        if logits is not None and len(logits) != len(x):
            refuse("logits", f"hold a row for each of the {len(x)} inputs", f"{len(logits)} rows")
        if not len(x):
            return x.new_empty(0)
        batches = x.split(self.batch_size)
        with inference(self.model):
            if score.takes == "logits":
                logits = self._logits(x, logits)
                if logits.shape[1] == 1 and not score.uses_density:
                    raise InputError(
                        f"the score {self.score_name!r} needs classes, but the model has one "
                        "output (K = 1): use 'log_density'"
                    )
                parts = [self.score_logits(each) for each in logits.split(self.batch_size)]
            elif score.takes == "features":
                parts = [self._call(score.function, features_of(self.model, r)) for r in batches]
            else:
                parts = [score.function(self.model, rows, **self.options) for rows in batches]
            scores = torch.cat(parts)
        check_scores(scores)
        return scores.to(x.device)

    def _logits(self, x: Tensor, logits: Tensor | None = None) -> Tensor:
        logits = batched_logits(self.model, x, self.batch_size) if logits is None else logits
        return self.with_misfit(x.to(self.model.device), logits)

    def with_misfit(self, x: Tensor, logits: Tensor) -> Tensor:
        """Logits (B, K) of `x`, less the misfit of rows of a table (`BaseDensity.misfit`)."""
        base = self.model.base
        return logits if base is None else logits - base.misfit(x)[:, None].to(logits.device)

    def score_logits(self, logits: Tensor) -> Tensor:
        """Scores (B,) from logits (B, K) `with_misfit`, in one piece, unchecked: for export."""
        return self._call(SCORES[self.score_name].function, logits)

    def _call(self, function: Callable[..., Tensor], values: Tensor) -> Tensor:
        """What a function of logits or features gives, with what was fitted for it."""
        if SCORES[self.score_name].fit is None:
            return function(values, **self.options)
        if self._reference is None:
            raise InputError(
                f"the score {self.score_name!r} needs reference data: pass reference=(x, y), the "
                f"{SCORES[self.score_name].fitted_on} part"
            )
        return function(values, self._reference, **self.options)

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

        `"combined"` flags an input where log p of the density and log p of the confidence add up
        to less than the threshold. One that is below half of it is small. The input is "unlike
        the data" where the first is small, "between classes" where the second is, or "both".
        Other scores have one reason: "between classes" if they are of p(y|x) alone.

        Args:
            x: A batch (B, *shape) or one input, floats in the network's units.
            logits: f(x), shape (B, K), where they are at hand.
            is_ood: The verdicts, shape (B,), where they are at hand.

        Returns:
            One for each input, of `jem.evaluation.ood.REASONS`; "" where it is not flagged.

        Raises:
            InputError: Before `fit`, or as `score`.
        """
        x, score = as_batch(x, self.input_shape), SCORES[self.score_name]
        if score.summands is not None and logits is None:
            logits = batched_logits(self.model, x, self.batch_size)
        if is_ood is None:
            is_ood = self.verdict(self.score(x, logits)).is_ood
        if score.summands is None or logits is None:
            return [score.reason if flagged else "" for flagged in is_ood.tolist()]
        rows, codes = is_ood.nonzero().flatten(), is_ood.long()
        with inference(self.model):
            seen = self._logits(x[rows.to(x.device)], logits[rows.to(logits.device)])
            codes[rows] = self.reason_logits(seen, is_ood[rows]).to(codes)
        return [REASONS[code] for code in codes.tolist()]

    def reason_logits(self, logits: Tensor, is_ood: Tensor) -> Tensor:
        """Indices of `REASONS` (B,) from logits (B, K) and verdicts (B,), without checks."""
        score = SCORES[self.score_name]
        if score.summands is None or self.threshold is None:
            return is_ood.long() * REASONS.index(score.reason)
        both = self._call(score.summands, logits)
        # Of two that add up to less than the threshold one is below half of it. NaN is low.
        low = ~(both >= self.threshold / 2) | (both <= both.amin(dim=1, keepdim=True))
        return is_ood.long() * (low[:, 0].long() + 2 * low[:, 1].long())

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values: everything but the model, which is saved by itself."""
        return {
            "score": self.score_name,
            "options": dict(self.options),
            "batch_size": self.batch_size,
            "input_shape": None if self.input_shape is None else list(self.input_shape),
            "acceptance_rate": self.acceptance_rate,
            "calibration": self._calibration.clone(),
            "reference": self._reference,
            "reference_is_given": self._reference_is_given,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> Self:
        """Take over score, threshold and reference of a saved detector of the same model.

        Args:
            state: As `state_dict` gave it; `torch.load(path, weights_only=True)` reads it.
        """
        check_choice("score", state["score"], SCORES)
        self.score_name, self.options = state["score"], dict(state["options"])
        self.batch_size, shape = int(state["batch_size"]), state["input_shape"]
        self.input_shape = None if shape is None else tuple(shape)
        self.acceptance_rate = self.threshold = None
        self._calibration, self._reference = state["calibration"].cpu(), state["reference"]
        self._reference_is_given = state["reference_is_given"]
        rate = state["acceptance_rate"]
        return self if rate is None else self.set_acceptance_rate(rate)
