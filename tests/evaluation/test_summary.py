"""What a summary calls seen."""

from dataclasses import replace

import pytest
import torch

from jem import JEM, networks
from jem.evaluation.summary import NOISE, seen_in_training
from jem.sampling import ChainSettings, ClassGaussianStart, UniformStart

SHAPE = (1, 8, 8)


def model_with(start, outliers=False):
    model = JEM(networks.mlp(SHAPE, 2, width=4, depth=1))
    frequencies = torch.full((2,), 0.5)
    chain = ChainSettings(start, 3, 1.0, 0.01, None, None, False, frequencies)
    model.chain = replace(chain, outliers=outliers)
    return model


UNIFORM = UniformStart(-1.0, 1.0, SHAPE)
GAUSSIAN = ClassGaussianStart.fit(torch.randn(20, *SHAPE), torch.arange(20) % 2, 2)


@pytest.mark.parametrize(
    ("start", "outliers", "seen"),
    [
        (UNIFORM, False, {NOISE, "uniform_noise"}),
        (GAUSSIAN, False, set()),
        (GAUSSIAN, True, {NOISE, "uniform_noise", "gaussian_noise", "constant_images"}),
    ],
)
def test_kinds_that_training_held_against_the_data_are_seen(start, outliers, seen):
    model = model_with(start, outliers)
    kinds = [NOISE, "uniform_noise", "gaussian_noise", "constant_images", "letters", "my.npz"]
    assert {kind for kind in kinds if seen_in_training(kind, model)} == seen


def test_a_plain_classifier_has_seen_nothing():
    assert not seen_in_training(NOISE, JEM(networks.mlp(SHAPE, 2, width=4, depth=1)))
