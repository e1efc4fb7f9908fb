"""Tests of annealed importance sampling against integrals that are known."""

import math

import pytest
import torch

from jem.sampling import GaussianBase
from jem.sampling.annealing import BoxGaussians, Path, anneal, bracket, log_z_bracket
from jem.sampling.mala import Points

BOX = (torch.tensor(-1.0), torch.tensor(1.0))


def uniform(size):
    return lambda count, generator: 2 * torch.rand(count, size, generator=generator) - 1


def path_in_box(terms, size):
    return Path(terms, uniform(size), size * math.log(2), BOX)


def gaussian_path(size, std):
    """From N(0, std^2 I) to N(0, I), both unnormalised, in double precision."""

    def terms(x):
        squares = x.square().sum(dim=1)
        return -squares / (2 * std**2), squares * (1 / (2 * std**2) - 1 / 2)

    def sample(count, generator):
        return std * torch.randn(count, size, generator=generator, dtype=torch.float64)

    return Path(terms, sample, size / 2 * math.log(2 * math.pi * std**2))


def run(path, num_chains=64, num_steps=200, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return log_z_bracket(
        path, num_chains=num_chains, num_steps=num_steps, repeats=3, generator=generator
    )


def holds(found, exact):
    """Whether the bracket at the end of the path holds a value, and is narrow enough to say so."""
    low = found.forward[-1] - 2 * found.forward_error[-1]
    high = found.backward[-1] + 2 * found.backward_error[-1]
    assert not found.crossed[-1]
    return bool(low <= exact <= high)


@pytest.mark.parametrize("size", [2, 50])
def test_a_normal_in_the_whole_space_has_its_integral(size):
    found = run(gaussian_path(size, 2.0), num_steps=300 if size == 50 else 100)
    assert holds(found, size / 2 * math.log(2 * math.pi))
    assert float(found.backward[-1] - found.forward[-1]) < 2


@pytest.mark.parametrize(
    ("precision", "exact"), [(1.0, 0.537223), (10.0, -0.233921), (100.0, -1.383647)]
)
@pytest.mark.parametrize("size", [1, 8])
def test_a_normal_cut_off_by_a_box_has_its_integral(precision, exact, size):
    path = path_in_box(lambda x: (-precision * x.square().sum(dim=1) / 2,), size)
    found = run(path)
    assert holds(found, size * exact)
    assert float(found.effective_size[-1]) > 20


def test_the_base_itself_has_equal_weights():
    def terms(x):
        return -x.square().sum(dim=1) / 2, 0.0 * x.sum(dim=1)

    found = run(Path(terms, gaussian_path(3, 1.0).sample, 0.0), num_steps=20)
    assert float(found.betas[-1]) == 1
    for log_z in (found.forward, found.backward):
        assert float(log_z.abs().max()) < 1e-6
    assert torch.allclose(found.effective_size, torch.tensor(192.0, dtype=torch.float64))
    assert float(found.forward_error.max()) < 1e-6


def test_a_plane_agrees_with_a_grid():
    def terms(x):
        return (2 * torch.sin(3 * x[:, 0]) * x[:, 1] + x[:, 0].exp() - 4 * x[:, 1] ** 4,)

    middle = (torch.arange(400) + 0.5) / 200 - 1
    grid = torch.cartesian_prod(middle, middle).double()
    exact = float(terms(grid)[0].logsumexp(dim=0)) + 2 * math.log(2 / 400)
    found = run(path_in_box(terms, 2), num_chains=1000, num_steps=60)
    assert float(found.forward[-1]) == pytest.approx(exact, abs=0.01)
    assert float(found.backward[-1]) == pytest.approx(exact, abs=0.01)


@pytest.mark.slow
def test_the_bracket_holds_the_truth_with_at_least_95_of_100_seeds():
    path = path_in_box(lambda x: (-5.0 * x.square().sum(dim=1),), 2)
    exact = 2 * -0.233921
    assert sum(holds(run(path, 32, 60, seed), exact) for seed in range(100)) >= 95


def test_beta_1_stays_among_the_temperatures_where_they_go_on():
    path = path_in_box(lambda x: (-50.0 * x.square().sum(dim=1),), 2)
    found = log_z_bracket(
        path,
        num_chains=32,
        num_steps=77,
        repeats=1,
        generator=torch.Generator().manual_seed(0),
        far_enough=lambda mean: mean > -0.2,
    )
    assert int((found.betas == 1).sum()) == 1
    assert float(found.betas[-1]) > 2  # the mean of g is -1 / beta there
    assert bool((found.betas.diff() > 0).all())


def test_gaussians_in_a_box_are_normalised_and_drawn_as_they_say(generator):
    means = torch.tensor([[[[-1.0, 0.2]]], [[[0.5, 2.0]]]])  # two classes of two pixels
    factors, variances = torch.full((2, 2, 1), 0.3), torch.tensor([[0.1, 0.5], [0.0, 0.04]])
    base = GaussianBase(means, factors, variances, torch.tensor([0.3, 0.7]))
    found = BoxGaussians(base, *(bound.expand(1, 1, 2) for bound in BOX))
    middle = (torch.arange(400) + 0.5) / 200 - 1
    grid = torch.cartesian_prod(middle, middle)
    density = found.log_prob(grid.view(-1, 1, 1, 2)).exp() * (2 / 400) ** 2
    assert float(density.sum()) == pytest.approx(1.0, abs=1e-3)
    x = found.sample(20_000, generator)
    assert x.shape == (20_000, 1, 1, 2)
    assert float(x.abs().max()) <= 1
    drawn = x.view(-1, 2).double()
    assert torch.allclose(drawn.mean(dim=0), density @ grid.double(), atol=0.02)
    assert torch.allclose(drawn.square().mean(dim=0), density @ grid.double() ** 2, atol=0.02)


# -- both directions, with a kernel of known properties -------------------------------------------


def both_ways(size, num_steps, start_std, *, backward, count):
    """Log-weights from N(0, 4 I) to N(0, I), with the kernel x' = x / 2 + sqrt(3) / 2 noise.

    It leaves the normal of each temperature as it is.
    """
    generator = torch.Generator().manual_seed(0)
    path = gaussian_path(size, 2.0)
    betas = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)

    def at(x):
        terms = torch.stack(path.terms(x))
        return Points(x, terms, terms[..., None].expand(2, *x.shape))

    def move(points, number):
        beta = float(betas[number])
        noise = torch.randn(points.x.shape, generator=generator, dtype=torch.float64)
        x = points.x / 2 + math.sqrt(0.75 / ((1 - beta) / 4 + beta)) * noise
        return at(x), torch.ones(len(x), dtype=torch.bool)

    x = start_std * torch.randn(count, size, generator=generator, dtype=torch.float64)
    weights, _, _ = anneal(at(x), betas, move, backward=backward)
    return weights, betas, path.log_z


def bracket_of(size, num_steps, start_std, count=20_000):
    up, betas, log_z = both_ways(size, num_steps, 2.0, backward=False, count=count)
    down, _, _ = both_ways(size, num_steps, start_std, backward=True, count=count)
    return bracket(betas, up, down, log_z, torch.zeros(len(betas)), 1), up[-1] + log_z


def test_many_temperatures_waste_fewer_chains_than_few():
    few, log_weights = bracket_of(50, 5, 1.0)
    assert float(few.forward[-1]) == pytest.approx(45.25, abs=0.6)
    assert float(log_weights.mean()) == pytest.approx(36.27, abs=0.1)  # looser than their log-mean
    many, _ = bracket_of(50, 50, 1.0, count=5000)
    assert float(many.forward[-1]) == pytest.approx(45.9469, abs=0.1)
    assert float(few.effective_size[-1]) < 100 < 500 < float(many.effective_size[-1])


def test_exact_and_cold_ends_give_an_upper_bound():
    exact, _ = bracket_of(2, 5, 1.0)
    assert float(exact.backward[-1]) == pytest.approx(1.837877, abs=0.05)
    # The mean of exp(-w) is a Gaussian integral, worked out for chains that begin at N(0, 0.09 I).
    cold, _ = bracket_of(2, 5, 0.3)
    assert float(cold.backward[-1]) == pytest.approx(2.0651, abs=0.05)
    colder, _ = bracket_of(50, 5, 0.3)
    assert float(colder.backward[-1]) > 50
    assert not exact.crossed[-1]
    assert not cold.crossed[-1]


@pytest.mark.parametrize("size", [2, 50])
def test_ends_that_are_too_hot_give_no_upper_bound_and_are_found_out(size):
    hot, _ = bracket_of(size, 5, 2.0)
    assert float(hot.backward[-1]) < size / 2 * math.log(2 * math.pi) - 1
    assert hot.crossed[-1]


def test_equal_seeds_give_equal_bits_and_leave_the_global_generator(global_rng_untouched):
    path = path_in_box(lambda x: (-x.square().sum(dim=1),), 2)
    first, second, other = (run(path, 8, 20, seed) for seed in (3, 3, 4))
    assert torch.equal(first.forward, second.forward)
    assert torch.equal(first.backward, second.backward)
    assert not torch.equal(first.forward, other.forward)
