"""Langevin steps: against descent by hand, moments of known densities, and autograd."""

import math

import pytest
import torch

from jem.errors import InputError
from jem.sampling import (
    LangevinStep,
    energy_and_gradient,
    run_chains,
)

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


def fresh(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=fresh(seed))


def update(x, grad, step_size=1.0, noise_std=0.0, generator=None, bounds=None, **words):
    step = LangevinStep(step_size, noise_std, **words)
    return step(x, grad, generator=generator or fresh(), bounds=bounds)


# -- one update


def test_no_noise_is_the_hand_computed_descent_and_draws_nothing(generator):
    x, grad, state = normal(5, 3), normal(5, 3, seed=2), generator.get_state()
    moved = update(x, grad, step_size=0.25, generator=generator)
    torch.testing.assert_close(moved, x - 0.25 * grad)
    assert torch.equal(update(x, 0 * grad, generator=generator), x)
    assert torch.equal(generator.get_state(), state)


def test_noise_is_one_standard_normal_draw_times_its_std():
    x, grad = normal(4, 16), normal(4, 16, seed=2)
    moved = update(x, grad, 0.5, 0.1, fresh(3))
    noise = torch.empty_like(x).normal_(generator=fresh(3))
    torch.testing.assert_close(moved, x - 0.5 * grad + 0.1 * noise)


@pytest.mark.parametrize("bounds", [(-0.2, 0.3), (torch.tensor([-1.0, 0.0]), torch.ones(2))])
def test_bounds_clip_the_position_after_the_noise(bounds):
    x, free, bound = normal(100, 2), fresh(), fresh()
    moved = update(x, x, 0.1, 1.0, bound, bounds=bounds)
    torch.testing.assert_close(
        moved, update(x, x, 0.1, 1.0, free).clamp(*map(torch.as_tensor, bounds))
    )
    assert moved.dtype == torch.float64
    assert torch.equal(free.get_state(), bound.get_state())  # noise is drawn where it is cut off
    assert update(x * math.nan, x, bounds=bounds).isnan().all()  # bounds hide no NaN


def test_grad_clamp_limits_each_component_before_the_step_size():
    grad = torch.tensor([[5.0, -0.5, -7.0]])
    moved = update(0 * grad, grad, 0.1, grad_clamp=1.0)
    torch.testing.assert_close(moved, torch.tensor([[-0.1, 0.05, 0.1]]))


def preconditioner(height, width, gradient_blur):
    """P as a matrix: what a blurred step makes of each single pixel."""
    pixels = torch.eye(height * width, dtype=torch.float64).view(-1, 1, height, width)
    return update(0 * pixels, pixels, step_size=-1.0, gradient_blur=gradient_blur).flatten(1)


def test_a_blurred_step_is_preconditioned():
    matrix = preconditioner(5, 4, 0.8)
    apart = [(torch.arange(n)[:, None] - torch.arange(n)).abs().double() for n in (5, 4)]
    # Weights 1-2-1 in both directions, zero beyond the border.
    blurred = torch.kron(*((2 - distance).clamp(min=0) for distance in apart)) / 16
    expected = 0.2 * torch.eye(20).double() + 0.8 * blurred @ blurred
    torch.testing.assert_close(matrix, expected)
    torch.testing.assert_close(matrix, matrix.T)
    eigenvalues = torch.linalg.eigvalsh(matrix)
    assert 0.2 < eigenvalues.min() < 0.21  # single pixels still move, a fifth as fast
    assert 0.5 < eigenvalues.max() < 1.0
    torch.testing.assert_close(preconditioner(5, 4, 0.0), torch.eye(20, dtype=torch.float64))


def test_blurring_does_not_change_what_a_chain_converges_to():
    precision = torch.tensor([1.0, 4.0, 1.0, 2.0], dtype=torch.float64)
    x = run_chains(
        torch.zeros(20_000, 1, 2, 2, dtype=torch.float64),
        lambda x: (precision * x.flatten(1).square()).sum(dim=1) / 2,
        [LangevinStep(0.02, math.sqrt(0.04), gradient_blur=0.8)] * 400, generator=fresh(),
    ).flatten(1)  # fmt: skip
    torch.testing.assert_close(x.T @ x / len(x), (1 / precision).diag(), rtol=0, atol=0.05)


# -- energies and gradients


@pytest.mark.parametrize("energy", [lambda x: x[:, :1], lambda x: x.sum(), lambda x: x[:1, 0]])
def test_an_energy_that_is_not_one_number_a_row_is_refused(energy):
    with pytest.raises(InputError, match=r"\(7,\)"):
        energy_and_gradient(normal(7, 2), energy)
    with pytest.raises(InputError, match=r"\(1, 1\)"):
        energy_and_gradient(normal(1, 2), lambda x: x[:, :1])


def test_gradient_matches_the_analytic_one(quadratic, skewed):
    x = normal(6, 2, 3)
    energy, grad = energy_and_gradient(x, quadratic)
    torch.testing.assert_close(energy, x.square().sum(dim=(1, 2)) / 2)
    torch.testing.assert_close(grad, x)
    torch.testing.assert_close(energy_and_gradient(x, skewed)[1], x.exp() - 1)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_chains_run_in_any_gradient_mode_and_touch_no_parameter(point_model, context):
    first, *others = point_model.parameters()
    first.grad = torch.full_like(first, 7.0)
    first.requires_grad_(False)
    steps = [LangevinStep(0.1, 0.1)] * 3
    expected = run_chains(torch.zeros(4, 2), point_model.energy, steps, generator=fresh())
    with context():
        x = torch.zeros(4, 2)  # an inference tensor in inference mode
        moved = run_chains(x, point_model.energy, steps, generator=fresh())
    assert torch.equal(moved, expected)
    assert torch.equal(first.grad, torch.full_like(first, 7.0))
    assert all(p.grad is None for p in others)
    assert [p.requires_grad for p in (first, *others)] == [False] + [True] * len(others)


# -- steps and chains


def test_a_step_leaves_x_as_it_was(quadratic, generator):
    x = normal(3, 2, 2).requires_grad_()
    before = x.detach().clone()
    moved = run_chains(x, quadratic, [LangevinStep(0.5, 0.0)], generator=generator)
    torch.testing.assert_close(moved, before / 2)
    assert torch.equal(x.detach(), before)
    assert x.grad is None
    assert not moved.requires_grad


def test_a_chain_is_its_steps_one_after_the_other(skewed):
    x, source = normal(5, 3), fresh()
    values = {"step_size": 0.1, "noise_std": 0.2, "grad_clamp": 1.5}
    bounds, seen = (-2.0, 2.0), []

    def record(moved):
        seen.append(moved)
        return moved

    steps = [LangevinStep(**values)] * 4
    run_chains(x, skewed, steps, generator=fresh(), bounds=bounds, after_step=record)
    assert len(seen) == 4
    for position in seen:
        _, grad = energy_and_gradient(x, skewed)
        x = steps[0](x, grad, generator=source, bounds=bounds)
        assert torch.equal(position, x)
    assert torch.equal(run_chains(x, skewed, [], generator=source), x)


def run(energy, step, num_steps, count):
    x = torch.zeros(count, 1, dtype=torch.float64)
    return run_chains(x, energy, [step] * num_steps, generator=fresh())


@pytest.mark.parametrize(("eta", "sigma", "steps"), [(0.5, 1.0, 40), (0.1, 0.05, 100)])
def test_chains_have_the_variance_of_their_temperature(quadratic, eta, sigma, steps):
    step = LangevinStep(eta, sigma)
    assert step.temperature == pytest.approx(sigma**2 / (2 * eta))
    x = run(quadratic, step, steps, count=20_000)
    # The unadjusted algorithm is off by a known factor; 4 % are four standard errors.
    assert x.var() == pytest.approx(step.temperature / (1 - eta / 2), rel=0.04)
    assert abs(x.mean()) < 0.04


def test_a_skewed_energy_is_sampled_the_right_way_round(skewed):
    x = run(skewed, LangevinStep(0.02, math.sqrt(0.04)), 600, count=4000)
    assert x.mean() == pytest.approx(-0.5772, abs=0.08)  # minus Euler's constant
    assert x.var() == pytest.approx(math.pi**2 / 6, rel=0.12)
    skewness = ((x - x.mean()) / x.std()).pow(3).mean()
    assert skewness == pytest.approx(-1.14, abs=0.3)
