"""A detector of foreign inputs with a threshold for use, and the scores and figures it goes with.

Every score is higher for in-distribution inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from torch import Tensor

from jem.errors import InputError
from jem.evaluation.ood.features import (
    FITS,
    Fitted,
    Reference,
    as_batch,
    features_of_batches,
    fitted,
)
from jem.evaluation.ood.metrics import OODMetrics, ood_metrics
from jem.evaluation.ood.scores import (
    FROM_LOGITS,
    OF_DENSITY,
    SCORES,
    Option,
    named,
    score,
    score_logits,
)
from jem.evaluation.ood.threshold import check_acceptance_rate, flagged_rank
from jem.model import JEM, check_model, on_model, refuse_softmax

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = [
    "SCORES", "OODDetector", "OODMetrics", "PytorchOODAdapter", "Verdict", "ood_metrics", "score",
]  # fmt: skip


class Verdict(NamedTuple):
    """What a detector says of scored inputs, each of shape (B,), on the device of the scores."""

    p_value: Tensor  # multiples of 1 / (n + 1), double precision
    is_ood: Tensor  # booleans, True = out-of-distribution


ROUNDING = 2e-6
"""Share of a score that one input's may differ by in batches of other sizes: 17 roundings of
float32."""


class OODDetector:
    r"""A score with a threshold that accepts a stated share of in-distribution inputs.

    With calibration scores s_1 ... s_n, split conformal prediction gives each input the p-value

    .. math:: p(x) = \frac{1 + \#\{i : s_i \le s(x)\}}{n + 1}

    and flags it as OOD where p(x) <= 1 - accept. For inputs exchangeable with the calibration
    inputs P(p <= a) <= a, whatever the score: on average over calibration sets at least the share
    `acceptance_rate` is accepted. For one calibration set that share varies: without ties it follows
    Beta(n + 1 - r, r), r = floor((1 - accept) (n + 1)). Nothing is promised about OOD inputs.

    Infinite scores are ordered like numbers, and a tie speaks for the input: where r calibration
    inputs have score -inf, nothing is flagged. Calibration scores are taken as lower by what
    rounding may be, 2e-6 of their size and at least of 1, so an input is in a tie with its copy
    whatever batch it came in. A score of NaN raises.

    Args:
        model: The model.
        score: A key of `jem.evaluation.ood.detector.SCORES`.
        reference: (x_train, y_train), needed by `"knn"` and `"mahalanobis"` alone; y_train holds
            class indices. Features are computed once, at the first use.
        batch_size: Inputs computed at once.
        options: Passed to the score, such as `k` of `"knn"`; plain values.

    Attributes:
        threshold: Inputs scored below it are flagged; None before `fit`.
        acceptance_rate: The share it was set for; None before `fit`.

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
        reference: Reference | None = None,
        batch_size: int = 256,
        **options: Option,
    ) -> None:
        check_model(model)
        named(score)
        self.model, self.score_name, self.reference = model, score, reference
        self.batch_size, self.options = batch_size, options
        self.input_shape = model.input_shape
        self.acceptance_rate: float | None = None
        self.threshold: float | None = None
        self._calibration = torch.empty(0)  # (n,) sorted, double precision, on the CPU

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
        check_acceptance_rate(len(x), acceptance_rate)  # before the work of scoring
        self.check_density(x[:1])
        self.input_shape = tuple(x.shape[1:])
        return self.fit_scores(self.score(x), acceptance_rate)

    def check_density(self, x: Tensor) -> None:
        """Refuse a network without a density, where the score is one of the density.

        Args:
            x: Inputs that it takes, shape (B, *shape).

        Raises:
            InputError: If it ends in a softmax, which makes all densities alike.
        """
        if self.score_name in OF_DENSITY:
            refuse_softmax(self.model, on_model(self.model, x))

    def fit_scores(self, scores: Tensor | ArrayLike, acceptance_rate: float = 0.95) -> Self:
        """Choose the threshold as `fit` does, by scores of calibration inputs that are at hand.

        Args:
            scores: What `score` gave for inputs that nothing else has seen, shape (n,).
            acceptance_rate: Share of in-distribution inputs to accept, in (0, 1).

        Returns:
            The detector.

        Raises:
            InputError: If n is too small for that share, or a score is NaN.
        """
        scores = torch.as_tensor(scores)
        if scores.ndim != 1:
            raise InputError(f"`scores` must be of shape (n,), but got {tuple(scores.shape)}")
        check_acceptance_rate(len(scores), acceptance_rate)
        self._refuse_nan(scores)
        exact = scores.detach().cpu().double().sort().values
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
        if not len(self._calibration):
            raise InputError(_UNFITTED)
        check_acceptance_rate(len(self._calibration), acceptance_rate)
        self.acceptance_rate = float(acceptance_rate)
        rank = flagged_rank(len(self._calibration), acceptance_rate)
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
            B = 1.

        Raises:
            InputError: If a score is NaN, or inputs or logits do not fit.
        """
        x = as_batch(x, self.input_shape)
        if logits is not None and len(logits) != len(x):
            raise InputError(
                f"`logits` must be those of the {len(x)} inputs, a row each, but got {len(logits)}"
            )
        if logits is not None and self.score_name in FROM_LOGITS:
            scores = score_logits(logits, self.score_name, **self.options).to(x.device)
        else:
            scores = score(
                self.model,
                x,
                self.score_name,
                reference=self._fitted_reference() if self.score_name in FITS else None,
                batch_size=self.batch_size,
                **self.options,
            )
        self._refuse_nan(scores)
        return scores

    def is_ood(self, x: Tensor | ArrayLike) -> Tensor:
        """Flag inputs whose p-value is at most 1 - accept.

        Args:
            x: A batch (B, *shape) or one input, floats in the network's units.

        Returns:
            Booleans, shape (B,), on the device of `x`: True = out-of-distribution.

        Raises:
            InputError: Before `fit`, or as `score`.
        """
        self._fitted_threshold()  # before the work of scoring
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
        self._fitted_threshold()
        return self.verdict(self.score(x)).p_value

    def verdict(self, scores: Tensor | ArrayLike) -> Verdict:
        """Compare scores that are at hand with the calibration scores.

        Args:
            scores: What `score` gave, shape (B,).

        Returns:
            `p_value` and `is_ood` as the methods of those names give them.

        Raises:
            InputError: Before `fit`, or if a score is NaN.
        """
        scores = torch.as_tensor(scores)
        self._refuse_nan(scores)
        # p <= 1 - accept says that fewer than r calibration scores are at most s, which says that
        # s is below the r-th of them: no rounding on the way.
        exact = scores.detach().cpu().double()
        is_ood = exact < self._fitted_threshold()
        not_above = torch.searchsorted(self._calibration, exact, right=True)
        p_value = (1 + not_above).double() / (len(self._calibration) + 1)
        return Verdict(p_value.to(scores.device), is_ood.to(scores.device))

    def _fitted_threshold(self) -> float:
        if self.threshold is None:
            raise InputError(_UNFITTED)
        return self.threshold

    def _refuse_nan(self, scores: Tensor) -> None:
        if bool(scores.isnan().any()):
            row = int(scores.isnan().nonzero()[0])
            raise InputError(f"the score '{self.score_name}' of input {row} is NaN")

    def _fitted_reference(self) -> Fitted:
        kind: Any = FITS[self.score_name]
        fit: Fitted = fitted(self.model, kind, self.reference, self.batch_size)
        self.reference = fit  # the training data are no longer held
        return fit

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values: everything but the model, which is saved for itself."""
        fit = self._fitted_reference()._asdict() if self.score_name in FITS else None
        return {
            "score": self.score_name,
            "options": dict(self.options),
            "batch_size": self.batch_size,
            "input_shape": None if self.input_shape is None else list(self.input_shape),
            "acceptance_rate": self.acceptance_rate,
            "calibration": self._calibration.clone(),
            "reference": fit,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> Self:
        """Take over score, threshold and reference of a saved detector of the same model.

        Args:
            state: As `state_dict` gave it; `torch.load(path, weights_only=True)` reads it.

        Returns:
            The detector.
        """
        named(state["score"])
        self.score_name, self.options = state["score"], dict(state["options"])
        self.batch_size, shape = int(state["batch_size"]), state["input_shape"]
        self.input_shape = None if shape is None else tuple(shape)
        reference = state["reference"]
        self.reference = None if reference is None else FITS[self.score_name](**reference)
        self.acceptance_rate = self.threshold = None
        self._calibration = state["calibration"].cpu()
        return (
            self if state["acceptance_rate"] is None else self.accepting(state["acceptance_rate"])
        )


def _check_units(x: Tensor, model: JEM) -> None:
    """Refuse inputs said to be in-distribution that mostly leave the domain by its width.

    Those of bytes for a network of [-1, 1] do in every value that is not black. An honest table
    of many columns has a few such values in most of its rows.
    """
    bounds = model.bounds(x.device)
    if bounds is None:
        return
    low, high = bounds
    width = high - low
    far = (x < low - width) | (x > high + width)
    if far[x != 0].float().mean() > 0.5:  # the ground of a picture is 0 in many units
        raise InputError(
            f"calibration inputs must be in-distribution and in the network's units, within "
            f"[{float(low.min()):.4g}, {float(high.max()):.4g}], but they lie in "
            f"[{float(x.min()):.4g}, {float(x.max()):.4g}]: `model.preprocess` makes them from "
            f"raw data"
        )


_UNFITTED = "the detector has no threshold yet: call `fit(x_calibration)` first"


class PytorchOODAdapter:
    """A score in the protocol of the package pytorch-ood: `predict` is higher for OOD inputs.

    Args:
        model: The model.
        score: A key of `SCORES`.
        batch_size: Inputs computed at once.
        options: Passed to the score.

    Example:
        >>> adapter = PytorchOODAdapter(JEM(torch.nn.Linear(2, 3))).fit([])
        >>> adapter.predict(torch.zeros(4, 2)).shape
        torch.Size([4])
    """

    def __init__(
        self, model: JEM, score: str = "log_density", batch_size: int = 256, **options: Option
    ) -> None:
        self.detector = OODDetector(model, score, None, batch_size, **options)

    def fit(self, loader: Iterable[tuple[Tensor, Tensor]]) -> Self:
        """Fit the scores that need training data; the others do not read it.

        Args:
            loader: Yields batches (x, y); inputs with y < 0 are OOD by the package's rule, and
                left out.

        Returns:
            The adapter.
        """
        if self.detector.score_name in FITS:
            known = ((x[y >= 0], y[y >= 0]) for x, y in loader)
            kind = FITS[self.detector.score_name]
            self.detector.reference = kind.of(*features_of_batches(self.detector.model, known))
        return self

    def predict(self, x: Tensor) -> Tensor:
        """Outlier scores.

        Args:
            x: Inputs, shape (B, *shape), in the network's units.

        Returns:
            Minus the score, shape (B,); higher = out-of-distribution.
        """
        return -self.detector.score(x)

    __call__ = predict
