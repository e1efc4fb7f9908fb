"""Frechet and kernel distance: closed forms, torchmetrics, and how sure they say they are."""

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance, _compute_fid
from torchmetrics.image.kid import poly_mmd

from jem.evaluation.fidelity.distances import (
    frechet_distance,
    kernel_distance,
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


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_standard_error_is_the_spread_over_fresh_sets(distance):
    found = [
        distance(normal(150, 3, 2 * i), normal(100, 3, 2 * i + 1, 1.3, 0.5)) for i in range(60)
    ]
    spread = np.std([estimate.value for estimate in found], ddof=1)
    stated = np.mean([estimate.std_error for estimate in found])
    assert 0.75 < stated / spread < 1.35
    first = found[0]
    assert first.low < first.value < first.high
    assert first.high - first.value == pytest.approx(1.96 * first.std_error, rel=1e-3)


def test_kernel_distance_is_that_of_torchmetrics():
    real, fake = mixed(90, 5, 1) / 5, mixed(90, 5, 2) / 5 + 0.3
    expected = float(poly_mmd(real, fake))
    for seed in (0, 1):  # groups change the error alone
        assert kernel_distance(real, fake, seed=seed).value == pytest.approx(expected)
    errors = {kernel_distance(real, fake, seed=seed).std_error for seed in (0, 1)}
    assert len(errors) == 2
    assert kernel_distance(real, fake, seed=1) == kernel_distance(real, fake, seed=1)
