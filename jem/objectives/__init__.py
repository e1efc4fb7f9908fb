"""What training minimises: cross-entropy, and beside it an objective for the density."""

from collections.abc import Callable

from jem.objectives.base import NEEDS as NEEDS
from jem.objectives.base import Batch as Batch
from jem.objectives.base import CrossEntropy as CrossEntropy
from jem.objectives.base import Energies as Energies
from jem.objectives.base import NoObjective as NoObjective
from jem.objectives.base import Objective as Objective
from jem.objectives.base import Terms as Terms
from jem.objectives.base import balanced_class_weights as balanced_class_weights
from jem.objectives.contrastive import Adversarial as Adversarial
from jem.objectives.contrastive import Contrastive as Contrastive
from jem.objectives.contrastive import bounded_contrast as bounded_contrast
from jem.objectives.contrastive import contrastive_loss as contrastive_loss
from jem.objectives.contrastive import outlier_loss as outlier_loss
from jem.objectives.noise_contrastive import NoiseContrastive as NoiseContrastive
from jem.objectives.noise_contrastive import noise_contrastive_loss as noise_contrastive_loss
from jem.objectives.score_matching import ScoreMatching as ScoreMatching
from jem.objectives.score_matching import curvature_error as curvature_error
from jem.objectives.score_matching import difference_error as difference_error
from jem.objectives.score_matching import score_error as score_error

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "none": NoObjective,
    "contrastive": Contrastive,
    "adversarial": Adversarial,
    "dsm": ScoreMatching,
    "nce": NoiseContrastive,
}
"""Objectives by the name that `Recipe.objective` gives them."""
