"""Tests of the corrected Langevin step: what it leaves as it is, at the faces of a box too."""

import math

import pytest
import torch

from jem.sampling import LangevinStep, Points, mala_step, run_chains
from jem.sampling.mala import reflect

BOX = (torch.tensor(-1.0), torch.tensor(1.0))


def normal(x):
    return (-x.square().flatten(1).sum(dim=1) / 2,)


def skewed(x):
    """The logarithm of a unit exponential: mean -0.5772, variance pi^2 / 6."""
    return ((x - x.exp()).flatten(1).sum(dim=1),)


def run(x, terms, step_size, num_steps, generator, bounds=None):
    points, moved = Points.at(x, terms), []
    for _ in range(num_steps):
        points, accepted = mala_step(
            points, terms, [1.0], step_size, generator=generator, bounds=bounds
        )
        moved.append(accepted.double().mean())
    return points.x, float(torch.stack(moved).mean())


def test_long_steps_keep_the_variance_which_uncorrected_ones_double(generator):
    x = torch.randn(20_000, 1, generator=generator)
    corrected, share = run(x, normal, math.sqrt(2), 20, generator)
    uncorrected = run_chains(
        x,
        lambda x: -normal(x)[0],
        [LangevinStep(step_size=1.0, noise_std=math.sqrt(2))] * 20,
        generator=generator,
    )
    assert 0.3 < share < 0.9
    assert float(corrected.var()) == pytest.approx(1.0, abs=0.04)
    assert float(uncorrected.var()) == pytest.approx(2.0, abs=0.08)


def test_a_skewed_density_has_its_mean_so_the_gradient_has_its_sign(generator):
    x, _ = run(torch.zeros(10_000, 1), skewed, 0.8, 40, generator)
    assert float(x.mean()) == pytest.approx(-0.5772, abs=0.05)
    assert float(x.var()) == pytest.approx(math.pi**2 / 6, abs=0.15)


def test_points_that_bounce_off_the_faces_stay_uniform(generator):
    x = 2 * torch.rand(20_000, 1, generator=generator) - 1
    x, share = run(x, lambda x: (0.0 * x.sum(dim=1),), 1.5, 5, generator, BOX)
    assert share == 1.0
    counts = torch.histc(x, bins=10, min=-1, max=1)
    assert float((counts / 2000 - 1).abs().max()) < 0.08  # 3.5 standard errors
    assert float(x.abs().max()) <= 1.0


def test_a_normal_cut_off_by_the_box_has_its_variance(generator):
    x = 2 * torch.rand(20_000, 1, generator=generator) - 1
    x, _ = run(x, normal, 1.0, 10, generator, BOX)
    density = math.exp(-0.5) / math.sqrt(2 * math.pi)
    exact = 1 - 2 * density / math.erf(1 / math.sqrt(2))
    assert float(x.var()) == pytest.approx(exact, abs=0.01)
    assert int((x.abs() == 1).sum()) == 0  # clipped chains would have a seventh of all points here


def test_weights_of_terms_make_a_density_of_another_temperature(generator):
    x, terms = torch.randn(20_000, 2, generator=generator), lambda x: normal(x) + normal(x)
    points = Points.at(x, terms)
    for _ in range(10):
        points, _ = mala_step(points, terms, [1.0, 3.0], 0.5, generator=generator)
    assert float(points.x.var()) == pytest.approx(0.25, abs=0.01)
    again = Points.at(points.x, terms)
    assert torch.equal(again.terms, points.terms)
    assert torch.equal(again.grads, points.grads)


def test_a_proposal_without_a_density_is_refused(generator):
    def half(x):
        return (torch.where(x[:, 0] > 0, 0.0 * x[:, 0], math.nan),)

    x, share = run(torch.full((1000, 1), 0.1), half, 1.0, 10, generator)
    assert share < 0.9
    assert bool((x > 0).all())


def test_steps_leave_the_start_and_the_global_generator(generator, global_rng_untouched):
    x = torch.ones(3, 2)
    first, _ = run(x, normal, 0.5, 4, torch.Generator().manual_seed(1))
    second, _ = run(x, normal, 0.5, 4, torch.Generator().manual_seed(1))
    assert torch.equal(x, torch.ones(3, 2))
    assert torch.equal(first, second)


def test_points_fold_at_either_face_as_often_as_needed():
    low, high = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 4.0])
    x, turned = reflect(torch.tensor([[0.5, 3.0], [1.5, -1.0], [-3.5, 9.0]]), low, high)
    assert x.tolist() == [[0.5, 3.0], [0.5, 1.0], [0.5, 1.0]]
    assert turned.tolist() == [[False, False], [True, True], [False, False]]
