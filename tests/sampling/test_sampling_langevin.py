import inspect
import math

import pytest
import torch
from torch import nn

from jem import JEM
from jem.errors import InputError
from jem.sampling import (
    ContrastBase,
    GaussianBase,
    LangevinStep,
    MixtureBase,
    ReplayBuffer,
    UniformBase,
    blur,
    clip_to_bounds,
    energy_and_gradient,
    langevin_update,
    sgld_chain,
    sgld_step,
)

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


def fresh(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=fresh(seed))


# -- one update


def test_no_gradient_and_no_noise_leave_x_unchanged(generator):
    x = normal(5, 2, 3)
    moved = langevin_update(
        x, torch.zeros_like(x), step_size=1.0, noise_std=0.0, generator=generator
    )
    assert torch.equal(moved, x)
    assert moved.dtype == x.dtype


def test_no_noise_is_the_hand_computed_descent_and_draws_nothing(generator):
    x, grad, state = normal(5, 3), normal(5, 3, seed=2), generator.get_state()
    moved = langevin_update(x, grad, step_size=0.25, noise_std=0.0, generator=generator)
    torch.testing.assert_close(moved, x - 0.25 * grad)
    assert torch.equal(generator.get_state(), state)


def test_noise_is_one_standard_normal_draw_times_its_std():
    x, grad = normal(4, 16), normal(4, 16, seed=2)
    moved = langevin_update(x, grad, step_size=0.5, noise_std=0.1, generator=fresh(3))
    noise = torch.empty_like(x).normal_(generator=fresh(3))
    torch.testing.assert_close(moved, x - 0.5 * grad + 0.1 * noise)


def test_noise_is_drawn_even_where_bounds_cut_it_off():
    x = torch.ones(2, 8, dtype=torch.float64)
    free, bound = fresh(), fresh()
    langevin_update(x, 0 * x, step_size=1.0, noise_std=1.0, generator=free)
    langevin_update(x, 0 * x, step_size=1.0, noise_std=1.0, generator=bound, bounds=(1.0, 1.0))
    assert torch.equal(free.get_state(), bound.get_state())


@pytest.mark.parametrize("as_tensor", [False, True])
def test_bounds_clip_the_position_after_the_noise(as_tensor):
    bounds = (torch.tensor(-0.2), torch.tensor(0.3)) if as_tensor else (-0.2, 0.3)
    x = normal(100, 4)
    moved = langevin_update(x, x, step_size=0.1, noise_std=1.0, generator=fresh(), bounds=bounds)
    unbound = langevin_update(x, x, step_size=0.1, noise_std=1.0, generator=fresh())
    torch.testing.assert_close(moved, unbound.clamp(*(float(torch.as_tensor(b)) for b in bounds)))
    assert moved.dtype == torch.float64


def test_bounds_may_differ_by_component():
    low, high = torch.tensor([-1.0, 0.0]), torch.tensor([0.0, 2.0])
    clipped = clip_to_bounds(torch.tensor([[-5.0, -5.0], [5.0, 5.0]]), (low, high))
    assert torch.equal(clipped, torch.tensor([[-1.0, 0.0], [0.0, 2.0]]))


def test_bounds_do_not_hide_a_nan(generator):
    x = torch.tensor([[math.nan, 0.5]])
    for bounds in [(-1.0, 1.0), (torch.tensor(-1.0), torch.tensor(1.0))]:
        moved = langevin_update(
            x, 0 * x, step_size=1.0, noise_std=0.0, generator=generator, bounds=bounds
        )
        assert moved[0, 0].isnan()


def test_grad_clamp_limits_each_component_before_the_step_size(generator):
    grad = torch.tensor([[5.0, -0.5, -7.0]], dtype=torch.float64)
    moved = langevin_update(
        torch.zeros_like(grad), grad, step_size=0.1, noise_std=0.0, generator=generator,
        grad_clamp=1.0,
    )  # fmt: skip
    torch.testing.assert_close(moved, torch.tensor([[-0.1, 0.05, 0.1]], dtype=torch.float64))


def test_max_rms_caps_each_row_alone_and_keeps_its_direction(generator):
    grad = torch.stack(
        [normal(3, 2, seed=2) * 100, normal(3, 2, seed=3) * 1e-3, torch.zeros(3, 2)]
    )
    moved = langevin_update(
        torch.zeros_like(grad), grad, step_size=1.0, noise_std=0.0, generator=generator,
        max_rms=0.5,
    )  # fmt: skip
    rms = moved.flatten(1).square().mean(dim=1).sqrt()
    torch.testing.assert_close(rms[0], torch.tensor(0.5, dtype=torch.float64))
    torch.testing.assert_close(moved[1], -grad[1])
    assert torch.equal(moved[2], torch.zeros(3, 2, dtype=torch.float64))
    cosine = torch.nn.functional.cosine_similarity(moved[0].flatten(), -grad[0].flatten(), dim=0)
    torch.testing.assert_close(cosine, torch.tensor(1.0, dtype=torch.float64))


def preconditioner(height, width, gradient_blur):
    """P as a matrix: what a smoothed move makes of each single pixel."""
    pixels = torch.eye(height * width, dtype=torch.float64).view(-1, 1, height, width)
    moved = langevin_update(
        torch.zeros_like(pixels), pixels, step_size=-1.0, noise_std=0.0, generator=fresh(),
        gradient_blur=gradient_blur,
    )  # fmt: skip
    return moved.flatten(1)


def test_blur_weighs_neighbours_as_1_2_1_and_sees_zero_beyond_the_border():
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    x[0, 0, 0, 1] = 16.0
    expected = torch.zeros_like(x)
    expected[0, 0, :2, :3] = torch.tensor([[2.0, 4.0, 2.0], [1.0, 2.0, 1.0]])
    torch.testing.assert_close(blur(x), expected)


def test_a_smoothed_move_is_a_preconditioner():
    matrix = preconditioner(5, 4, 0.8)
    torch.testing.assert_close(matrix, matrix.T)
    eigenvalues = torch.linalg.eigvalsh(matrix)
    assert 0.2 < eigenvalues.min() < 0.21  # single pixels still move, a fifth as fast
    assert 0.5 < eigenvalues.max() < 1.0
    torch.testing.assert_close(preconditioner(5, 4, 0.0), torch.eye(20, dtype=torch.float64))


def test_the_noise_of_a_smoothed_move_has_the_preconditioner_as_its_covariance():
    x = torch.zeros(200_000, 1, 3, 3, dtype=torch.float64)
    moved = langevin_update(
        x, x, step_size=1.0, noise_std=2.0, generator=fresh(), gradient_blur=0.8
    ).flatten(1)
    covariance = moved.T @ moved / len(moved)
    torch.testing.assert_close(covariance, 4 * preconditioner(3, 3, 0.8), rtol=0, atol=0.04)


def test_smoothing_does_not_change_what_a_chain_converges_to():
    precision = torch.tensor([1.0, 4.0, 1.0, 2.0], dtype=torch.float64)

    def energy(x):
        return (precision * x.flatten(1).square()).sum(dim=1) / 2

    x = sgld_chain(
        torch.zeros(20_000, 1, 2, 2, dtype=torch.float64), energy,
        [LangevinStep(0.02, math.sqrt(0.04), gradient_blur=0.8)] * 400, generator=fresh(),
    )  # fmt: skip
    covariance = x.flatten(1).T @ x.flatten(1) / len(x)
    torch.testing.assert_close(covariance, torch.diag(1 / precision), rtol=0, atol=0.05)


def test_max_rms_does_not_cap_the_noise():
    x = torch.zeros(2000, 4, dtype=torch.float64)
    moved = langevin_update(x, x, step_size=1.0, noise_std=3.0, generator=fresh(), max_rms=0.01)
    assert moved.std() == pytest.approx(3.0, rel=0.05)


# -- energies and gradients


@pytest.mark.parametrize("energy", [lambda x: x[:, :1], lambda x: x.sum(), lambda x: x[:1, 0]])
def test_an_energy_that_is_not_one_number_a_row_is_refused(energy):
    with pytest.raises(InputError, match=r"must return shape \(7,\) for a batch of 7"):
        energy_and_gradient(normal(7, 2), energy)


def test_one_row_with_an_energy_of_shape_1_1_is_refused_too():
    with pytest.raises(InputError, match=r"got \(1, 1\)"):
        energy_and_gradient(normal(1, 2), lambda x: x[:, :1])


def test_gradient_matches_the_analytic_one(quadratic, skewed):
    x = normal(6, 2, 3)
    energy, grad = energy_and_gradient(x, quadratic)
    torch.testing.assert_close(energy, x.square().sum(dim=(1, 2)) / 2)
    torch.testing.assert_close(grad, x)
    torch.testing.assert_close(energy_and_gradient(x, skewed)[1], x.exp() - 1)
    assert not energy.requires_grad
    assert not grad.requires_grad


def test_x_is_neither_changed_nor_kept_in_the_graph(quadratic, generator):
    x = normal(4, 2).requires_grad_()
    before = x.detach().clone()
    moved, info = sgld_step(x, quadratic, step_size=0.1, noise_std=0.1, generator=generator)
    assert torch.equal(x, before)
    assert x.grad is None
    assert not moved.requires_grad
    assert not info.energy.requires_grad


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_steps_work_in_any_gradient_mode_and_give_the_same(point_model, context):
    x = torch.zeros(4, 2)
    steps = [LangevinStep(0.1, 0.1)] * 3
    expected = sgld_chain(x, point_model.energy, steps, generator=fresh())
    with context():
        start = torch.zeros(4, 2)  # an inference tensor in inference mode
        moved = sgld_chain(start, point_model.energy, steps, generator=fresh())
    assert torch.equal(moved, expected)


def test_parameters_keep_the_gradients_and_flags_they_had(point_model, generator):
    first, *others = point_model.parameters()
    first.grad = torch.full_like(first, 7.0)
    first.requires_grad_(False)
    sgld_chain(
        torch.zeros(4, 2), point_model.energy, [LangevinStep(0.1, 0.1)] * 2, generator=generator
    )
    assert torch.equal(first.grad, torch.full_like(first, 7.0))
    assert all(p.grad is None for p in others)
    assert [p.requires_grad for p in (first, *others)] == [False] + [True] * len(others)


# -- steps and chains


def test_step_reports_energy_and_gradient_norm_before_the_move(quadratic, generator):
    x = normal(3, 2, 2)
    moved, info = sgld_step(x, quadratic, step_size=0.5, noise_std=0.0, generator=generator)
    torch.testing.assert_close(info.energy, quadratic(x))
    torch.testing.assert_close(info.grad_norm, x.flatten(1).norm(dim=1))
    torch.testing.assert_close(moved, x / 2)


def test_a_chain_is_its_steps_one_after_the_other(skewed):
    x, source = normal(5, 3), fresh()
    values = {"step_size": 0.1, "noise_std": 0.2, "grad_clamp": 1.5, "max_rms": 0.08}
    bounds, seen = (-2.0, 2.0), []

    def record(moved):
        seen.append(moved)
        return moved

    chain = sgld_chain(
        x, skewed, [LangevinStep(**values)] * 4, generator=fresh(), bounds=bounds,
        after_step=record,
    )  # fmt: skip
    for position in seen:
        x, _ = sgld_step(x, skewed, generator=source, bounds=bounds, **values)
        assert torch.equal(position, x)
    assert len(seen) == 4
    assert torch.equal(chain, x)


def test_chains_go_on_from_where_they_are_put_after_a_step(quadratic, generator):
    steps = [LangevinStep(0.5, 0.0), LangevinStep(0.25, 0.0)]
    x = sgld_chain(
        normal(2, 2), quadratic, steps, generator=generator, after_step=lambda x: 0 * x + 4
    )
    assert torch.equal(x, torch.full_like(x, 4.0))
    halved = sgld_chain(
        normal(2, 2), quadratic, steps, generator=generator, after_step=lambda x: x / 2
    )
    torch.testing.assert_close(halved, normal(2, 2) * (0.5 / 2) * (0.75 / 2))


def test_temperature_is_sigma2_over_2_eta():
    assert LangevinStep(step_size=0.1, noise_std=0.05).temperature == pytest.approx(0.0125)
    assert LangevinStep(step_size=2.0, noise_std=2.0).temperature == 1.0


def test_a_chain_of_no_steps_stays(quadratic, generator):
    x = normal(2, 2)
    assert torch.equal(sgld_chain(x, quadratic, [], generator=generator), x)


def test_one_chain_moves_like_the_first_of_many_under_the_same_noise(skewed):
    x = normal(64, 16)  # 16 components: torch then draws row 0 alike for any number of rows
    move = {"step_size": 0.1, "noise_std": 0.3}
    many, _ = sgld_step(x, skewed, generator=fresh(), **move)
    one, _ = sgld_step(x[:1], skewed, generator=fresh(), **move)
    torch.testing.assert_close(one, many[:1], rtol=1e-12, atol=0)


def run(energy, eta, sigma, steps, count, dim=1):
    x = torch.zeros(count, dim, dtype=torch.float64)
    return sgld_chain(x, energy, [LangevinStep(eta, sigma)] * steps, generator=fresh())


def test_stationary_variance_of_the_unadjusted_algorithm(quadratic):
    eta = 0.5
    x = run(quadratic, eta, math.sqrt(2 * eta), steps=40, count=20_000)
    assert x.var() == pytest.approx(1 / (1 - eta / 2), rel=0.04)  # 4/3: four standard errors
    assert abs(x.mean()) < 0.04


def test_other_pairs_sample_at_temperature_sigma2_over_2_eta(quadratic):
    eta, sigma = 0.1, 0.05
    x = run(quadratic, eta, sigma, steps=100, count=20_000)
    temperature = LangevinStep(eta, sigma).temperature
    assert x.var() == pytest.approx(temperature / (1 - eta / 2), rel=0.04)


def test_a_skewed_energy_is_sampled_the_right_way_round(skewed):
    eta = 0.02
    x = run(skewed, eta, math.sqrt(2 * eta), steps=600, count=4000)
    assert x.mean() == pytest.approx(-0.5772, abs=0.08)  # minus Euler's constant
    assert x.var() == pytest.approx(math.pi**2 / 6, rel=0.12)
    skewness = ((x - x.mean()) / x.std()).pow(3).mean()
    assert skewness == pytest.approx(-1.14, abs=0.3)


def test_the_proximal_move_is_the_inner_loop_of_jem_plus_plus():
    """N inner moves of size h through an affine first layer are one move of N h."""
    source = fresh(5)
    first = nn.utils.skip_init(nn.Linear, 6, 8, dtype=torch.float64)
    last = nn.utils.skip_init(nn.Linear, 8, 3, dtype=torch.float64)
    for parameter in (*first.parameters(), *last.parameters()):
        parameter.data = torch.randn(parameter.shape, dtype=torch.float64, generator=source)
    x = torch.rand(10, 6, dtype=torch.float64, generator=source) * 2 - 1
    inner_steps, size = 5, 0.2

    hidden = first(x)
    density = torch.logsumexp(last(torch.tanh(hidden)), dim=1)
    (costate,) = torch.autograd.grad(density.sum(), hidden)
    moved = x
    for _ in range(inner_steps):
        leaf = moved.detach().requires_grad_()
        (grad,) = torch.autograd.grad((first(leaf) * costate).sum(), leaf)
        moved = (moved + size * grad.clamp(-1, 1)).clamp(-1, 1)

    energy = JEM(nn.Sequential(first, nn.Tanh(), last)).energy
    jem_pp, info = sgld_step(
        x, energy, step_size=inner_steps * size, noise_std=0.0, generator=source,
        bounds=(-1.0, 1.0), grad_clamp=1.0,
    )  # fmt: skip
    torch.testing.assert_close(jem_pp, moved, rtol=1e-12, atol=1e-12)
    assert (jem_pp.abs() == 1).any()  # the bounds did bite
    assert (info.grad_norm > 1).any()


@pytest.mark.parametrize(
    "function",
    [
        langevin_update, sgld_step, sgld_chain, ReplayBuffer.from_init, ReplayBuffer.draw,
        UniformBase.sample, ContrastBase.sample, GaussianBase.sample, MixtureBase.sample,
    ],
)  # fmt: skip
def test_random_functions_take_their_generator_by_name_and_have_no_default(function):
    parameter = inspect.signature(function).parameters["generator"]
    assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
    assert parameter.default is inspect.Parameter.empty
