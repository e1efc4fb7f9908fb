"""Certified radii against closed forms."""

import math

import pytest
import torch
from scipy.stats import binomtest

from jem.evaluation.robustness import certify
from jem.evaluation.robustness.smoothing import certified_radius


@pytest.mark.parametrize(
    ("count", "radius"), [(100, 1.5005), (1000, 2.4633), (10_000, 3.1986), (100_000, 3.8115)]
)
def test_all_votes_for_one_class_give_the_radius_of_a_power_of_alpha(count, radius):
    assert certified_radius(count, count, 1.0, 0.001) == pytest.approx(radius, abs=5e-5)
    assert certified_radius(count, count, 0.25, 0.001) == pytest.approx(radius / 4, abs=5e-5)


@pytest.mark.parametrize(("hits", "count"), [(60, 100), (900, 1000), (999, 1000), (0, 10)])
def test_the_bound_is_that_of_clopper_and_pearson(hits, count):
    low = binomtest(hits, count).proportion_ci(0.998, "exact").low  # two sides of 0.001 each
    radius = certified_radius(hits, count, 2.0, 0.001)
    if low <= 0.5:
        assert radius == 0
    else:
        assert 0.5 * (1 + math.erf(radius / 2 / math.sqrt(2))) == pytest.approx(low)


def linear(x):
    score = 3 * x[:, 0] - 4 * x[:, 1] + 1
    return torch.stack([score, -score], dim=1)


def test_no_radius_of_a_linear_classifier_reaches_its_boundary(generator, global_rng_untouched):
    x = torch.randn(100, 2, generator=generator)
    away = (3 * x[:, 0] - 4 * x[:, 1] + 1) / 5
    found = certify(linear, x, noise_std=0.5, generator=generator)
    answers = found.class_index >= 0
    assert torch.equal(found.class_index[answers], (away < 0).long()[answers])
    assert (found.radius <= away.abs() + 1e-6).all()
    middle = (away.abs() > 0.2) & (away.abs() < 0.8)  # beyond, 1,000 votes say no more
    assert (found.radius[middle] > away.abs()[middle] - 0.16).all()
    assert 0 < (~answers).sum() < 20
    assert (found.radius[~answers] == 0).all()


def test_radii_grow_with_the_units_of_the_inputs():
    x = torch.tensor([[0.3, 0.1], [-0.5, 0.4]])
    one, two = (
        certify(
            lambda z, scale=scale: linear(z / scale), scale * x, noise_std=0.25 * scale,
            batch_size=batch_size, generator=torch.Generator().manual_seed(0),
        )
        for scale, batch_size in ((1, 256), (2, 256))
    )  # fmt: skip
    assert torch.equal(one.class_index, two.class_index)
    torch.testing.assert_close(2 * one.radius, two.radius)
