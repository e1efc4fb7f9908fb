"""Frechet distance against torchmetrics; precision, recall and diversity against plain loops."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance, _compute_fid

from jem.evaluation.fidelity.distances import (
    diversity,
    frechet_distance,
    nearest_distances,
    precision_recall,
)


def normal(num, width, seed=0, scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, width, generator=generator, dtype=torch.float64) * scale + shift


def mixed(num, width, seed):
    """Correlated features of unequal scales."""
    mixing = normal(width, width, 100)
    return normal(num, width, seed) @ mixing + torch.arange(width)


def test_frechet_distance_is_that_of_torchmetrics():
    real, fake = mixed(200, 6, 1), mixed(150, 6, 2) * 1.2 + 0.5
    expected = _compute_fid(real.mean(0), real.T.cov(), fake.mean(0), fake.T.cov())
    assert frechet_distance(real, fake, num_bootstrap=0).value == pytest.approx(float(expected))

    class Pixels(nn.Module):
        num_features = 12

        def forward(self, x):
            return x.flatten(1).double()

    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(high, (60, 3, 2, 2), generator=generator) for high in (256, 200)]
    metric = FrechetInceptionDistance(Pixels(), input_img_size=(3, 2, 2))
    metric.set_dtype(torch.float64)
    metric.update(images[0].byte(), real=True)
    metric.update(images[1].byte(), real=False)
    found = frechet_distance(images[0].flatten(1), images[1].flatten(1), num_bootstrap=0)
    assert found.value == pytest.approx(float(metric.compute()), rel=1e-6)
    assert np.isnan(found[1:]).all()


def test_frechet_distance_does_not_see_where_the_origin_is_or_how_axes_are_turned():
    real, fake = mixed(100, 4, 1), mixed(100, 4, 2) + 1
    value = frechet_distance(real, fake, num_bootstrap=0).value
    turn = torch.linalg.qr(normal(4, 4, 5)).Q
    for move in (lambda z: z + 1e6, lambda z: z @ turn):
        moved = frechet_distance(move(real), move(fake), num_bootstrap=0).value
        assert moved == pytest.approx(value, rel=1e-6)
    assert frechet_distance(fake, real, num_bootstrap=0).value == pytest.approx(value)
    assert frechet_distance(real, real, num_bootstrap=0).value == pytest.approx(0, abs=1e-6)
    flat = torch.cat([real, torch.zeros(100, 1)], dim=1)  # a constant feature: singular
    assert frechet_distance(flat, flat + 2, num_bootstrap=0).value == pytest.approx(20, rel=1e-6)


def test_standard_error_is_the_spread_over_fresh_sets():
    found = [
        frechet_distance(normal(150, 3, 2 * i), normal(100, 3, 2 * i + 1, 1.3, 0.5))
        for i in range(60)
    ]
    spread = np.std([estimate.value for estimate in found], ddof=1)
    stated = np.mean([estimate.std_error for estimate in found])
    assert 0.75 < stated / spread < 1.35
    first = found[0]
    assert first.low < first.value < first.high
    assert first.high - first.value == pytest.approx(1.96 * first.std_error, rel=1e-3)


def by_loops(real, fake, k):
    real, fake = real.numpy(), fake.numpy()

    def radius(i, points):
        others = np.delete(points, i, axis=0)
        return np.sort(np.linalg.norm(others - points[i], axis=1))[k - 1]

    radii_real = [radius(i, real) for i in range(len(real))]
    radii_fake = [radius(j, fake) for j in range(len(fake))]
    away = np.array([[np.linalg.norm(f - r) for r in real] for f in fake])
    in_real, in_fake = away <= np.array(radii_real), away <= np.array(radii_fake)[:, None]
    return {
        "precision": in_real.any(axis=1).mean(),
        "recall": in_fake.any(axis=0).mean(),
    }


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("scale", [0.5, 1.5])
def test_precision_and_recall_are_those_of_the_definition(k, scale):
    real, fake = normal(40, 3, 1), normal(25, 3, 2, scale) + 0.5
    expected = by_loops(real, fake, k)
    found = precision_recall(real, fake, k)._asdict()
    assert {name: e.value for name, e in found.items()} == pytest.approx(expected)


def test_copies_are_inside_even_balls_of_no_size():
    real = torch.full((8, 3), 1e4 / 3).double()
    assert [e.value for e in precision_recall(real, real.clone(), k=2)] == [1, 1]
    away = precision_recall(real, real + 1e-3, k=2)
    assert [e.value for e in away] == [0, 0]


def test_balls_are_closed_whatever_the_last_digit_says():
    """Points of a lattice: many lie exactly on the edge of a ball, and centring rounds."""
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randint(0, 7, (2, 60, 3), generator=generator).double()
    within = torch.cdist(real, real).round(decimals=9).sort(dim=1).values[:, 1]  # itself is first
    away = torch.stack([(real - row).square().sum(dim=1) for row in fake])  # exact
    inside = away <= within.square().round()
    assert (away == within.square().round()).any()
    figures = precision_recall(real, fake, k=1)
    assert figures.precision.value == pytest.approx(float(inside.any(dim=1).double().mean()))
    assert 0.2 < figures.precision.value < 0.95


def test_nearest_distances_over_batches_are_those_of_all():
    x, others = normal(20, 6, 1).float().view(20, 2, 3), normal(50, 6, 2).float().view(50, 2, 3)
    others[17] = x[3]
    found = nearest_distances(x, others.split(8))
    exact = (x[:, None].double() - others.double()).flatten(2).norm(dim=2).amin(dim=1)
    torch.testing.assert_close(found, exact)
    assert found[3] == 0


def test_diversity_is_the_mean_ratio_of_spreads_within_classes():
    real, fake = normal(400, 2, 1), normal(300, 2, 2)
    real_labels, fake_labels = torch.arange(400) % 4, torch.arange(300) % 3  # none of class 3
    fake[fake_labels == 1] *= 0.1
    fake[fake_labels == 2] += 7  # where a class lies is not its spread
    found = diversity(real, real_labels, fake, fake_labels, 4)
    ratios = [
        torch.pdist(fake[fake_labels == k]).mean() / torch.pdist(real[real_labels == k]).mean()
        for k in range(3)
    ]
    assert found.value == pytest.approx(float(np.mean(ratios)))
    # The delta method, by a bootstrap of the two sets of a single class.
    zero = torch.zeros(100, dtype=torch.long)
    sets = fake[fake_labels == 0], real[real_labels == 0]
    alone = diversity(sets[1], zero, sets[0], zero, 1)
    rng, drawn = np.random.default_rng(0), []
    for _ in range(200):
        one, two = (z[rng.integers(len(z), size=len(z))] for z in sets)
        drawn.append((torch.pdist(one).mean() / torch.pdist(two).mean()).item())
    assert alone.std_error == pytest.approx(np.std(drawn), rel=0.25)


def test_diversity_without_anything_to_measure_is_unknown():
    z, labels = normal(4, 2), torch.arange(4) % 2
    assert math.isnan(diversity(z, labels, z, labels, 2).value)
    flat = torch.zeros(6, 2).double()
    assert math.isnan(diversity(flat, torch.arange(6) % 2, flat, torch.arange(6) % 2, 2).value)
