"""Precision, recall, density, coverage, nearest neighbours and diversity, against plain loops."""

import math

import numpy as np
import pytest
import torch

from jem.errors import InputError
from jem.evaluation import statistics as intervals
from jem.evaluation.fidelity.neighbours import (
    diversity,
    mean_pair_distance,
    nearest_distances,
    prdc,
    probability_nearer,
    squared_distances,
)
from jem.evaluation.statistics import Estimate, mean_estimate, normal_estimate, plain


def normal(num, width, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, width, generator=generator, dtype=torch.float64) * scale


def prdc_by_loops(real, fake, k):
    real, fake = real.numpy(), fake.numpy()

    def radius(i, points):
        others = np.delete(points, i, axis=0)
        return np.sort(np.linalg.norm(others - points[i], axis=1))[k - 1]

    radii_real = [radius(i, real) for i in range(len(real))]
    radii_fake = [radius(j, fake) for j in range(len(fake))]
    in_real = np.array(
        [
            [np.linalg.norm(f - r) <= reach for r, reach in zip(real, radii_real, strict=True)]
            for f in fake
        ]
    )
    in_fake = np.array(
        [
            [np.linalg.norm(f - r) <= reach for r in real]
            for f, reach in zip(fake, radii_fake, strict=True)
        ]
    )
    return {
        "precision": in_real.any(axis=1).mean(),
        "recall": in_fake.any(axis=0).mean(),
        "density": in_real.sum() / (k * len(fake)),
        "coverage": in_real.any(axis=0).mean(),
    }


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("scale", [0.5, 1.5])
def test_prdc_is_that_of_the_definition(k, scale, monkeypatch):
    real, fake = normal(40, 3, 1), normal(25, 3, 2, scale) + 0.5
    expected = prdc_by_loops(real, fake, k)
    for entries in (2_000_000, 60):  # in one block, and in many
        monkeypatch.setattr(intervals, "BLOCK_ENTRIES", entries)
        found = prdc(real, fake, k)._asdict()
        assert {name: e.value for name, e in found.items()} == pytest.approx(expected)


def test_each_figure_sees_its_own_failure():
    real = normal(300, 2)
    collapsed = real[:1] + normal(300, 2, 5, 1e-3)
    found = prdc(real, collapsed)
    assert found.precision.value == 1  # looks real, reaches nothing
    assert found.recall.value < 0.05
    assert found.coverage.value < 0.1
    assert found.density.value > 0.3  # says nothing of reach
    spread = prdc(real, normal(300, 2, 6, 5.0))
    assert spread.precision.value < 0.5 < spread.recall.value
    same_law = prdc(real, normal(300, 2, 7))
    assert same_law.coverage.value == pytest.approx(
        1 - 0.5**5, abs=0.05
    )  # Naeem et al., for N = M
    assert same_law.density.value == pytest.approx(1, abs=0.1)
    assert all(e.low <= e.value <= e.high for e in same_law)


def test_copies_are_inside_even_balls_of_no_size():
    real = torch.full((8, 3), 1e4 / 3).double()
    assert [e.value for e in prdc(real, real.clone(), k=2)[:2]] == [1, 1]
    away = prdc(real, real + 1e-3, k=2)
    assert [e.value for e in away] == [0, 0, 0, 0]


def test_balls_are_closed_whatever_the_last_digit_says():
    """Points of a lattice: many lie exactly on the edge of a ball, and centring rounds."""
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randint(0, 4, (2, 60, 3), generator=generator).double()
    within = torch.cdist(real, real).round(decimals=9).sort(dim=1).values[:, 3]  # itself is first
    away = torch.stack([(real - row).square().sum(dim=1) for row in fake])  # exact
    inside = away <= within.square().round()
    figures = prdc(real, fake, k=3)
    assert figures.density.value == pytest.approx(float(inside.double().sum(dim=1).mean() / 3))
    assert figures.coverage.value == pytest.approx(float(inside.any(dim=0).double().mean()))


def test_squared_distances_keep_their_digits_far_from_the_origin():
    a, b = normal(10, 4, 1) + 1e6, normal(15, 4, 2) + 1e6
    (_, found), *rest = squared_distances(a, b)
    assert not rest
    exact = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("k", "match"), [(0, "`k`"), (5, "`k`"), (-1, "`k`")])
def test_a_neighbour_that_is_not_there_is_refused(k, match):
    with pytest.raises(InputError, match=match):
        prdc(normal(9, 2), normal(5, 2), k)
    with pytest.raises(InputError, match="finite"):
        prdc(normal(9, 2), normal(9, 2) * math.nan)


def test_nearest_distances_over_batches_are_those_of_all():
    x, others = normal(20, 6, 1).float().view(20, 2, 3), normal(50, 6, 2).float().view(50, 2, 3)
    others[17] = x[3]
    found = nearest_distances(x, others.split(8))
    exact = torch.cdist(
        x.flatten(1).double(),
        others.flatten(1).double(),
        compute_mode="donot_use_mm_for_euclid_dist",
    ).amin(dim=1)
    torch.testing.assert_close(found, exact)
    assert found[3] == 0
    with pytest.raises(InputError, match="got none"):
        nearest_distances(x, [])


def test_probability_nearer_and_its_error_by_hand():
    near, far = torch.tensor([1.0, 2.0, 2.0, 7.0]), torch.tensor([2.0, 3.0, 5.0])
    pairs = np.array([[(a < b) + (a == b) / 2 for b in far.tolist()] for a in near.tolist()])
    found = probability_nearer(near, far)
    assert found.value == pytest.approx(pairs.mean()) == pytest.approx((3 + 2.5 + 2.5) / 12)
    variance = pairs.mean(axis=1).var(ddof=1) / 4 + pairs.mean(axis=0).var(ddof=1) / 3
    assert found.std_error == pytest.approx(math.sqrt(variance))
    assert 0 <= found.low < found.value < found.high <= 1
    assert probability_nearer(far, near).value == pytest.approx(1 - found.value)
    apart = probability_nearer(far + 100, near)
    assert apart.value == 0 < apart.high  # a share of 0 is not certain


def test_mean_pair_distance_and_its_jackknife():
    z = normal(12, 3)

    def mean(points):
        return torch.pdist(points).mean().item()

    found = mean_pair_distance(z)
    assert found.value == pytest.approx(mean(z))
    without = np.array([mean(torch.cat([z[:i], z[i + 1 :]])) for i in range(12)])
    assert found.std_error == pytest.approx(
        math.sqrt(11 / 12 * ((without - without.mean()) ** 2).sum())
    )
    assert mean_pair_distance(torch.ones(5, 2).double()).value == 0
    assert math.isnan(mean_pair_distance(z[:2]).value)


def test_diversity_is_the_ratio_of_spreads_in_each_class():
    real, fake = normal(400, 2, 1), normal(300, 2, 2)
    real_labels, fake_labels = torch.arange(400) % 4, torch.arange(300) % 3
    fake[fake_labels == 1] *= 0.1
    fake[fake_labels == 2] += 7  # where a class lies is not its spread
    found = diversity(real, real_labels, fake, fake_labels, 4)
    ratios = [e.value for e in found.by_class]
    assert ratios[:3] == pytest.approx([1, 0.1, 1], rel=0.15)
    assert math.isnan(ratios[3])  # no sample of it
    assert found.mean.value == pytest.approx(np.mean(ratios[:3]))
    # The delta method, by a bootstrap of class 0.
    rng, drawn = np.random.default_rng(0), []
    sets = fake[fake_labels == 0], real[real_labels == 0]
    for _ in range(200):
        one, two = (z[rng.integers(len(z), size=len(z))] for z in sets)
        drawn.append((torch.pdist(one).mean() / torch.pdist(two).mean()).item())
    assert found.by_class[0].std_error == pytest.approx(np.std(drawn), rel=0.25)
    errors = [e.std_error for e in found.by_class[:3]]
    assert found.mean.std_error == pytest.approx(np.linalg.norm(errors) / 3)


def test_diversity_without_anything_to_measure_is_unknown():
    z, labels = normal(4, 2), torch.arange(4) % 2
    assert math.isnan(diversity(z, labels, z, labels, 2).mean.value)
    flat = torch.zeros(6, 2).double()
    assert math.isnan(diversity(flat, torch.arange(6) % 2, flat, torch.arange(6) % 2, 2).mean[0])


def test_estimates_in_json():
    assert mean_estimate(torch.tensor([1.0, 2.0, 3.0]))[:2] == pytest.approx((2, 1 / math.sqrt(3)))
    assert math.isnan(mean_estimate(torch.tensor([1.0])).std_error)
    found = plain((normal_estimate(1.0, math.nan), {"a": math.inf, "b": (True, "c", 3)}))
    assert found[0] == {"value": 1.0, "std_error": None, "low": None, "high": None}
    assert found[1] == {"a": None, "b": [True, "c", 3]}
    assert Estimate._fields == tuple(found[0])
