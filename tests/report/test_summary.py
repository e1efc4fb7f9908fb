"""What a summary calls seen."""

from dataclasses import replace

import pytest
import torch

from jem import JEM, networks
from jem.data.arrays import from_arrays
from jem.report.summary import (
    BEYOND,
    FOREIGN_SIZE,
    NOISE,
    SHUFFLED,
    make_ood_sets,
    seen_in_training,
    summarise,
)
from jem.sampling import GaussianBase, LangevinStep, SamplerSettings, UniformBase

SHAPE = (1, 8, 8)


def model_with(init, outliers=False, noise=None):
    model = JEM(networks.mlp(SHAPE, 2, width=4, depth=1))
    frequencies = torch.full((2,), 0.5)
    settings = SamplerSettings(init, 3, LangevinStep(1.0, 0.01), frequencies)
    model.sampler = replace(settings, trained_on_outliers=outliers, trained_on_noise=noise)
    return model


OUTLIERS = {"uniform_noise", "gaussian_noise", "constant_images"}
UNIFORM = UniformBase(-1.0, 1.0, SHAPE)
GAUSSIAN = GaussianBase.fit(torch.randn(20, *SHAPE), torch.arange(20) % 2, 2)


@pytest.mark.parametrize(
    ("init", "outliers", "noise", "seen"),
    [
        (UNIFORM, False, None, {NOISE, "uniform_noise"}),
        (UNIFORM, False, False, set()),
        (GAUSSIAN, False, None, set()),
        (GAUSSIAN, False, True, {NOISE, "uniform_noise"}),
        (GAUSSIAN, True, False, {*OUTLIERS, NOISE, SHUFFLED, "letters"}),
    ],
)
def test_kinds_that_training_held_against_the_data_are_seen(init, outliers, noise, seen):
    model = model_with(init, outliers, noise)
    made = [NOISE, "uniform_noise", "gaussian_noise", "constant_images", SHUFFLED, BEYOND]
    kinds = [*made, "letters", "my.npz"]
    assert {kind for kind in kinds if seen_in_training(kind, model)} == seen
    assert not any(seen_in_training(kind, model, trained=False) for kind in kinds)


def test_a_plain_classifier_has_seen_nothing():
    assert not seen_in_training(NOISE, JEM(networks.mlp(SHAPE, 2, width=4, depth=1)))


def table(num_columns):
    """Rows whose columns are copies of each other, but for their scale."""
    x = torch.linspace(1, 2, 80)[:, None] * torch.arange(1.0, num_columns + 1)
    return from_arrays(x, torch.arange(80) % 2, seed=0)


def test_foreign_rows_are_what_they_are_called():
    splits = table(3)
    sets = make_ood_sets(splits, seed=1)
    assert list(sets) == [NOISE, SHUFFLED, BEYOND]
    assert all(x.shape == (FOREIGN_SIZE, 3) for x in sets.values())
    shuffled, x = sets[SHUFFLED], splits.test.x
    for column in range(3):  # every value is a real one, but not beside those of its row
        assert torch.isin(shuffled[:, column], x[:, column]).all()
    torch.testing.assert_close(x[:, 0], x[:, 1])
    assert (shuffled[:, 0] - shuffled[:, 1]).abs().gt(0.01).double().mean() > 0.8
    low, high = splits.train.x.min(0).values, splits.train.x.max(0).values
    below, above = sets[BEYOND] < low, sets[BEYOND] > high
    assert (below | above).all()
    assert below.any()
    assert above.any()
    again, other = make_ood_sets(splits, seed=1), make_ood_sets(splits, seed=2)
    assert all(again[name].equal(sets[name]) for name in sets)
    assert not any(other[name].equal(sets[name]) for name in sets)


def test_a_single_column_cannot_be_shuffled():
    assert list(make_ood_sets(table(1))) == [NOISE, BEYOND]


def test_a_network_as_given_has_seen_nothing():
    splits = table(2)
    model = JEM(networks.mlp((2,), 2, width=4, depth=1))
    model.sampler = replace(model_with(GAUSSIAN).sampler, init=UniformBase(-1.0, 1.0, (2,)))
    ood_sets = make_ood_sets(splits)
    seen = [
        [row["seen"] for row in summarise(model, splits, ood_sets, trained=t)["auroc"].values()]
        for t in (True, False)
    ]
    assert seen == [[True, False, False], [False, False, False]]


def test_a_set_is_seen_however_its_name_is_written():
    model = model_with(UNIFORM, outliers=True)
    for name in ("gaussian_noise", "constant_images", "uniform_noise"):
        assert seen_in_training(name, model)
        assert seen_in_training(name.replace("_", " "), model)
    assert not seen_in_training("photo patches", model)
