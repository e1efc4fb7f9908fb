"""What training minimises, as functions of logits and energies."""

from jem.objectives.classification import balanced_class_weights, cross_entropy
from jem.objectives.contrastive import (
    contrastive_loss,
    energy_gap,
    generative_loss,
    outlier_loss,
)

__all__ = [
    "balanced_class_weights",
    "contrastive_loss",
    "cross_entropy",
    "energy_gap",
    "generative_loss",
    "outlier_loss",
]
