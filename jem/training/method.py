"""What steps are made of: what they see, what stays the same between them, what they compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from jem.model import JEM
from jem.objectives.classification import cross_entropy
from jem.objectives.contrastive import ContrastiveTerms, contrastive_loss
from jem.sampling.buffer import Draw, PersistentChains
from jem.training.clock import PhaseClock
from jem.training.distributed import Processes
from jem.training.recipe import Recipe


class Batch(NamedTuple):
    """What one step sees of the data."""

    x: Tensor  # (B, *shape) inputs of the classifier
    labels: Tensor  # (B,) class indices
    x_data: Tensor  # (B', *shape) inputs of the density; `x` itself when the streams are shared
    outliers: Tensor | None = None  # (O, *shape) made-up inputs that are to be unlikely


class Logits(NamedTuple):
    """Logits of one step's forwards."""

    labelled: Tensor  # (B, K)
    data: Tensor  # (B', K); `labelled` itself when the streams are shared
    unlikely: Tensor | None  # (M + O, K) of chains, then outliers; or None


Forward = Callable[[JEM, Batch, Tensor | None], Logits]


@dataclass(frozen=True)
class StepContext:
    """What stays the same from step to step.

    Attributes:
        recipe: The recipe.
        negatives: The chains; None for a plain classifier.
        class_weight: Weight of each class in the cross-entropy, shape (K,), or None.
        clock: Told when chains begin to move, and when parameters do.
        ranks: The processes of the run.
        forward: Logits of the model on a batch and on negatives (M, *shape) or None, all passes
            that are differentiated together; the usual one of the recipe's kind of step if left
            out.
    """

    recipe: Recipe
    negatives: PersistentChains | None = None
    class_weight: Tensor | None = None
    clock: PhaseClock = field(default_factory=PhaseClock)
    ranks: Processes = field(default_factory=Processes)
    forward: Forward | None = None

    @property
    def num_steps(self) -> int:
        """Langevin moves that a drawn chain makes, K."""
        assert self.recipe.num_steps is not None, "settled"
        return self.recipe.num_steps

    def classification_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy with the recipe's weights and smoothing."""
        loss = cross_entropy(
            logits,
            labels,
            class_weight=self.class_weight,
            label_smoothing=self.recipe.label_smoothing,
        )
        if self.class_weight is None or self.ranks.count == 1:
            return loss
        weight = self.class_weight[labels].sum()  # a process with heavier examples counts more
        return loss * weight / self.ranks.mean(weight)

    def contrast(
        self,
        energy_data: Tensor,
        energy_negative: Tensor,
        weight: float,
        energy_outlier: Tensor | None = None,
    ) -> ContrastiveTerms:
        """Contrastive objective with the recipe's penalties."""
        recipe = self.recipe
        return contrastive_loss(
            energy_data,
            energy_negative,
            weight=weight,
            energy_l2=recipe.energy_l2,
            mean_energy_l2=recipe.mean_energy_l2,
            gap_limit=recipe.gap_limit,
            energy_outlier=energy_outlier,
            outlier_weight=weight * recipe.outlier_weight,
            outlier_margin=recipe.outlier_margin,
            mean=self.ranks.mean,
        )


class ProposedChains(NamedTuple):
    """Chains after a step: proposals, until the trainer commits them."""

    draw: Draw
    x: Tensor  # (M, *shape) new positions
    moves: int  # Langevin moves made
    scored: Tensor  # (M, *shape) positions that the loss saw


class StepResult(NamedTuple):
    """What a step computed. The parameters' gradients are in their `.grad`."""

    loss: Tensor  # scalar that was differentiated
    classification: Tensor  # scalar, cross-entropy
    logits: Tensor  # (B, K) of the classification stream
    energy_data: Tensor | None = None  # (B',)
    energy_negative: Tensor | None = None  # (M,)
    terms: ContrastiveTerms | None = None
    moved: ProposedChains | None = None
