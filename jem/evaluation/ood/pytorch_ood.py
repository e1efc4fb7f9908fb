"""The scores of `jem.evaluation.ood.SCORES` in the protocol of the package pytorch-ood."""

from collections.abc import Iterable
from typing import Self

from torch import Tensor

from jem.evaluation.ood.detector import OODDetector, Option
from jem.model import JEM


class PytorchOODAdapter:
    """A score in the protocol of the package pytorch-ood: `predict` is higher for OOD inputs.

    Args:
        model: The model.
        score: A key of `SCORES`.
        batch_size: Inputs computed at once.
        options: Passed to the score.

    Example:
        >>> import torch
        >>> adapter = PytorchOODAdapter(JEM(torch.nn.Linear(2, 3)), "entropy").fit([])
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
            loader: Yields batches (x, y); inputs with y < 0 are OOD by that package's rule, and
                left out.
        """
        self.detector.fit_features((x[y >= 0], y[y >= 0]) for x, y in loader)
        return self

    def predict(self, x: Tensor) -> Tensor:
        """Minus the scores of inputs (B, *shape) in the network's units, shape (B,)."""
        return -self.detector.score(x)

    __call__ = predict
