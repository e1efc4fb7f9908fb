"""Contexts of a step without a trainer."""

import torch

from jem.objectives import Classification
from jem.training.setup import make_objective
from jem.training.steps import StepContext

KINDS = {"plain": {"objective": "none"}, "classic": {"fused": False}, "fused": {}}


def context_of(recipe, chains=None, class_weight=None):
    classification = Classification(recipe.label_smoothing, class_weight)
    return StepContext(recipe, make_objective(recipe), classification, torch.Generator(), chains)
