"""What training minimises: cross-entropy, and beside it an objective for the density."""

from collections.abc import Callable

from jem.objectives.base import NEEDS, Batch, Energies, NoObjective, Objective, Terms
from jem.objectives.classification import Classification, balanced_class_weights, cross_entropy
from jem.objectives.contrastive import Contrastive, generative_loss, outlier_loss

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "none": NoObjective,
    "contrastive": Contrastive,
}
"""Objectives by the name that `Recipe.objective` gives them."""

__all__ = [
    "NEEDS",
    "OBJECTIVES",
    "Batch",
    "Classification",
    "Contrastive",
    "Energies",
    "NoObjective",
    "Objective",
    "Terms",
    "balanced_class_weights",
    "cross_entropy",
    "generative_loss",
    "outlier_loss",
]
