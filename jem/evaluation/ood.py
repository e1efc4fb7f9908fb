"""A detector of foreign inputs with a threshold for use, and the scores and figures it goes with.

Every score is higher for in-distribution inputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from jem.errors import InputError
from jem.evaluation.ood_features import FITS, Fitted, Reference, as_batch, fitted
from jem.evaluation.ood_metrics import OODMetrics, ood_metrics
from jem.evaluation.ood_scores import SCORES, Option, named, score
from jem.model import JEM

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["SCORES", "OODDetector", "OODMetrics", "PytorchOODAdapter", "ood_metrics", "score"]


class OODDetector:
    r"""A score with a threshold that accepts a stated share of in-distribution inputs.

    With calibration scores s_1 ... s_n, split conformal prediction gives each input the p-value

    .. math:: p(x) = \frac{1 + \#\{i : s_i \le s(x)\}}{n + 1}

    and flags it as OOD where p(x) <= 1 - accept. For inputs exchangeable with the calibration
    inputs P(p <= a) <= a, whatever the score: on average over calibration sets at least the share
    `accept` is accepted. For one calibration set that share varies: without ties it follows
    Beta(n + 1 - r, r), r = floor((1 - accept) (n + 1)). Nothing is promised about OOD inputs.

    Infinite scores are ordered like numbers, and a tie speaks for the input: where r calibration
    inputs have score -inf, nothing is flagged. A score of NaN raises.

    Args:
        model: The model.
        score: A key of `jem.evaluation.ood.SCORES`.
        reference: (x_train, y_train), needed by `"knn"` and `"mahalanobis"` alone; y_train holds
            class indices. Features are computed once, at the first use.
        batch_size: Inputs computed at once.
        options: Passed to the score, such as `k` of `"knn"`; plain values.

    Attributes:
        threshold: Inputs scored below it are flagged; None before `fit`.
        accept: The share it was set for; None before `fit`.

    References:
        Vovk, Gammerman and Shafer (2005), Algorithmic Learning in a Random World. Bates et al.
        (2023), arXiv:2104.08279, for OOD tests by conformal p-values.

    Example:
        >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> detector = OODDetector(JEM(torch.nn.Linear(2, 3))).fit(x, accept=0.9)
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
        named(score)
        self.model, self.score_name, self.reference = model, score, reference
        self.batch_size, self.options = batch_size, options
        self.input_shape = model.input_shape
        self.accept: float | None = None
        self.threshold: float | None = None
        self._calibration = torch.empty(0)  # (n,) sorted, double precision, on the CPU

    def fit(self, x_calibration: Tensor | ArrayLike, accept: float = 0.95) -> Self:
        """Choose the threshold on in-distribution inputs that nothing else has seen.

        Args:
            x_calibration: Inputs, shape (n, *shape), floats in the network's units. Not training
                inputs: the model scores those higher than new ones.
            accept: Share of in-distribution inputs to accept, in (0, 1).

        Returns:
            The detector.

        Raises:
            InputError: If n is too small for that share (0.95 needs 19, 0.99 needs 99), a score
                is NaN, or the inputs do not fit.
        """
        if not 0 < accept < 1:
            raise InputError(f"`accept` must lie in (0, 1), but got {accept}")
        x = as_batch(x_calibration, self.model.input_shape)
        if not _flagged_rank(len(x), accept):
            raise InputError(
                f"accept={accept:g} needs at least {_smallest_calibration(accept)} calibration "
                f"inputs, but got {len(x)}"
            )
        self.input_shape = tuple(x.shape[1:])
        self._settle(self.score(x).cpu().double().sort().values, accept)
        return self

    def _settle(self, calibration: Tensor, accept: float) -> None:
        self._calibration, self.accept = calibration, float(accept)
        self.threshold = float(calibration[_flagged_rank(len(calibration), accept) - 1])

    def score(self, x: Tensor | ArrayLike) -> Tensor:
        """Score inputs; needs no `fit`.

        Args:
            x: A batch (B, *shape) or one input, floats in the network's units.

        Returns:
            Scores, shape (B,), higher = in-distribution, on the device of `x`; one input gives
            B = 1.

        Raises:
            InputError: If a score is NaN, or the inputs do not fit.
        """
        scores = score(
            self.model,
            as_batch(x, self.input_shape),
            self.score_name,
            reference=self._fitted_reference() if self.score_name in FITS else None,
            batch_size=self.batch_size,
            **self.options,
        )
        if bool(scores.isnan().any()):
            row = int(scores.isnan().nonzero()[0])
            raise InputError(f"the score '{self.score_name}' of input {row} is NaN")
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
        # p <= 1 - accept says that fewer than r calibration scores are at most s, which says that
        # s is below the r-th of them: no rounding on the way.
        threshold = self._fitted_threshold()
        return self.score(x) < threshold

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
        scores = self.score(x)
        not_above = torch.searchsorted(self._calibration, scores.cpu().double(), right=True)
        p = (1 + not_above).double() / (len(self._calibration) + 1)
        return p.to(scores.device)

    def _fitted_threshold(self) -> float:
        if self.threshold is None:
            raise InputError("the detector has no threshold yet: call `fit(x_calibration)` first")
        return self.threshold

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
            "accept": self.accept,
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
        self.accept = self.threshold = None
        if state["accept"] is not None:
            self._settle(state["calibration"].cpu(), state["accept"])
        return self


def _flagged_rank(num_calibration: int, accept: float) -> int:
    """r: an input is flagged where its score is below the r-th lowest calibration score."""
    # 1 - 0.9 is a little less than a tenth in binary: the slack keeps 10 * (1 - 0.9) at 1.
    return math.floor((1 - accept) * (num_calibration + 1) + 1e-9)


def _smallest_calibration(accept: float) -> int:
    """How many calibration inputs make r = 1."""
    num = max(math.ceil(1 / (1 - accept)) - 2, 1)
    while not _flagged_rank(num, accept):
        num += 1
    return num


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
            batches = [(x[y >= 0], y[y >= 0]) for x, y in loader]
            if not batches:
                raise InputError("`loader` yields no batch")
            x, y = (torch.cat(part) for part in zip(*batches, strict=True))
            self.detector.reference = (x, y)
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
