"""The classifier's part of the loss."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from jem.objectives.base import Mean


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    class_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Mean cross-entropy, -log p(y|x), of a batch.

    With one class (K = 1) it is exactly zero, and so is its gradient: the model is trained on the
    density alone.

    Args:
        logits: f(x), shape (B, K).
        labels: Class indices, shape (B,).
        class_weight: Weight of each class, shape (K,), or None; the mean is weighted.
        label_smoothing: Share of the target spread over all classes, in [0, 1).

    Returns:
        Scalar >= 0, nats.
    """
    if logits.shape[1] == 1:
        return logits.sum() * 0.0
    weight = None if class_weight is None else class_weight.to(logits)
    return F.cross_entropy(logits, labels, weight=weight, label_smoothing=label_smoothing)


@dataclass(frozen=True)
class Classification:
    """Cross-entropy with the weights and the smoothing of a run.

    Attributes:
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        class_weight: Weight of each class, shape (K,), or None.
    """

    label_smoothing: float = 0.0
    class_weight: Tensor | None = None

    def __call__(self, logits: Tensor, labels: Tensor, *, mean: Mean = torch.mean) -> Tensor:
        """Mean cross-entropy of this process's part of a batch, in nats.

        Args:
            logits: f(x), shape (B, K).
            labels: Class indices, shape (B,).
            mean: How values are averaged; for a run in several processes, over all of them.
        """
        loss = cross_entropy(
            logits,
            labels,
            class_weight=self.class_weight,
            label_smoothing=self.label_smoothing,
        )
        if self.class_weight is None or mean is torch.mean:
            return loss
        weight = self.class_weight[labels].sum()  # a process with heavier examples counts more
        return loss * weight / mean(weight)


def balanced_class_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Weights inversely proportional to class counts, with a mean of one over the examples.

    Args:
        labels: Class indices of the training data, shape (N,).
        num_classes: K.

    Returns:
        N / (K' * count), shape (K,), float32, of the K' classes that occur; 0 for the others.

    Example:
        >>> balanced_class_weights(torch.tensor([0, 0, 0, 1]), 2)
        tensor([0.6667, 2.0000])
    """
    counts = torch.bincount(labels, minlength=num_classes).float()
    weights = len(labels) / ((counts > 0).sum() * counts.clamp_min(1))
    return torch.where(counts > 0, weights, 0.0)
