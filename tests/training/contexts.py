"""Contexts of an update without a trainer, and a fixture for tests in double precision."""

import pytest
import torch

from jem.objectives import CrossEntropy
from jem.training.setup import make_objective
from jem.training.update import UpdateContext

KINDS = {"plain": {"objective": "none"}, "classic": {"fused": False}, "fused": {}}


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def context_of(recipe, chains=None, class_weight=None):
    cross_entropy = CrossEntropy(recipe.label_smoothing, class_weight)
    return UpdateContext(recipe, make_objective(recipe), cross_entropy, torch.Generator(), chains)
