"""What the loss is made of: the cross-entropy, and beside it an objective for the density."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from jem.model import JEM

NEEDS = frozenset({"chains", "input_gradients", "curvature"})
"""What an objective may ask for; see `Objective`."""

Mean = Callable[[Tensor], Tensor]
"""Mean of values, over all processes of a run."""


class Batch(NamedTuple):
    """What one update sees of the data."""

    x: Tensor  # (B, *shape) inputs of the classifier
    labels: Tensor  # (B,) class indices
    x_density: Tensor  # (B', *shape) data of the density; `x` itself if both see the same
    outliers: Tensor | None = None  # (O, *shape) made-up inputs that are to be unlikely


class Energies(NamedTuple):
    """Energies that the forward passes of an update gave, in nats, with their graph."""

    data: Tensor  # (B',) E(x) of `Batch.x_density`
    chains: Tensor | None = None  # (M,) the energy that chains move on, at the chains
    outliers: Tensor | None = None  # (O,) E(x) of `Batch.outliers`
    base_data: Tensor | float = 0.0  # (B',) log-density that `JEM.base` gives the data, detached:
    base_chains: Tensor | float = 0.0  # (M,) and the chains; E + it is the network's own energy


@dataclass(frozen=True)
class Terms:
    """What an objective says of a batch, in scalars.

    Attributes:
        loss: What is added to the cross-entropy, weights included.
        named: What the log shows beside it.
        gap: Mean energy of chains minus that of data, in nats, detached; None without chains. If
            it exceeds `Recipe.max_energy_gap`, the run has diverged.
    """

    loss: Tensor
    named: dict[str, Tensor] = field(default_factory=dict)
    gap: Tensor | None = None


class Objective(Protocol):
    """What trains the density. Any callable of this form can be given to `Trainer(objective=...)`.

    A new one that recipes can name is a dataclass in a file of its own and a line in
    `jem.objectives.OBJECTIVES`. Its fields that are called like fields of `Recipe` are taken from
    there.
    """

    @property
    def needs(self) -> frozenset[str]:
        """What it asks of training.

        - `chains`: persistent chains (and outliers) in `Energies`. If it needs nothing else, an
          update may be fused, for then the loss sees a chain through its energy alone.
        - `input_gradients`: a network that is differentiable in its inputs.
        - `curvature`: one that is so twice, with second derivatives that are not zero throughout.
        """

    def __call__(
        self,
        model: JEM,
        batch: Batch,
        energies: Energies,
        *,
        weight: float,
        generator: torch.Generator,
        mean: Mean,
    ) -> Terms:
        """Compute the loss and its terms for one batch.

        Args:
            model: The model, in training mode, for energies of other inputs than these.
            batch: The data.
            energies: What the forward passes of the update gave already.
            weight: Weight of the objective beside the cross-entropy, in this update.
            generator: Source of all randomness, on the model's device.
            mean: How values are averaged.
        """


@dataclass(frozen=True)
class NoObjective:
    """Nothing beside the cross-entropy: a plain classifier."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, model: JEM, batch: Batch, energies: Energies, **_: Any) -> Terms:  # noqa: ANN401
        """Give a loss of zero."""
        return Terms(torch.zeros((), device=energies.data.device))


# -- the classifier's part ------------------------------------------------------------------------


@dataclass(frozen=True)
class CrossEntropy:
    """Mean cross-entropy, -log p(y|x), with the weights and the smoothing of a run.

    With one class (K = 1) it is exactly zero, and so is its gradient: the model is trained on the
    density alone.

    Attributes:
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        class_weight: Weight of each class, shape (K,), or None.
    """

    label_smoothing: float = 0.0
    class_weight: Tensor | None = None

    def __call__(self, logits: Tensor, labels: Tensor, *, mean: Mean = torch.mean) -> Tensor:
        """Mean cross-entropy of this process's part of a batch, a scalar >= 0, in nats.

        Args:
            logits: f(x), shape (B, K).
            labels: Class indices, shape (B,).
            mean: How values are averaged; for a run in several processes, over all of them.
        """
        if logits.shape[1] == 1:
            return logits.sum() * 0.0
        weight = None if self.class_weight is None else self.class_weight.to(logits)
        smoothing = self.label_smoothing
        loss = F.cross_entropy(logits, labels, weight=weight, label_smoothing=smoothing)
        if weight is None:
            return loss
        own = weight[labels].sum()
        return loss * (own / mean(own))  # a process with heavier examples counts more


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
