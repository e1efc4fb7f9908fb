"""Denoising score matching against closed forms: Gaussian data, quadratic energies."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import jem
from jem import RECIPES, networks
from jem.errors import InputError
from jem.objectives import (
    ScoreMatching,
    contrastive_loss,
    curvature_error,
    difference_error,
    score_error,
)

COVARIANCE = torch.tensor([[1.5, 0.6], [0.6, 0.8]], dtype=torch.float64)
PRECISION = torch.tensor([[1.1, -0.3], [-0.3, 1.7]], dtype=torch.float64)
EYE = torch.eye(2, dtype=torch.float64)


def normal(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def exact_sample(count=1000):
    """Data and noise whose joint second moments are exact: a quadratic has no sampling error."""
    z = normal(count, 4)
    z = z - z.mean(dim=0)
    z = z @ torch.linalg.inv(torch.linalg.cholesky(z.T @ z / count)).T
    return z[:, :2] @ torch.linalg.cholesky(COVARIANCE).T, z[:, 2:]


def quadratic(a):
    return lambda x: (x.flatten(1) @ a * x.flatten(1)).sum(dim=1) / 2


def mean_error(a, std):
    x, noise = exact_sample()
    return score_error(quadratic(a), x, noise, torch.full((len(x),), std).double()).mean()


@pytest.mark.parametrize(("std", "loss"), [(0.5, 3.398), (0.1, 98.884)])
def test_its_value_for_a_quadratic_energy_is_the_closed_form(std, loss):
    vincent = mean_error(PRECISION, std) / std**2  # 2 sigma^2 / D times it, with D = 2
    assert vincent.item() == pytest.approx(loss, abs=1e-3)
    assert mean_error(torch.zeros(2, 2).double(), std).item() == pytest.approx(1.0)


@pytest.mark.parametrize("std", [0.5, 0.1])
def test_its_minimum_is_the_precision_of_the_data_with_noise(std):
    best = torch.linalg.inv(COVARIANCE + std**2 * EYE)
    a = best.clone().requires_grad_()
    loss = mean_error(a, std)
    (slope,) = torch.autograd.grad(loss, a)
    assert slope.norm() < 1e-10  # the loss is convex in it
    assert loss.item() == pytest.approx(1 - std**2 * best.trace().item() / 2)


AXES = [torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.0, 1.0]]).double()]


def implicit(a, x, directions):
    """Hyvarinen's objective of each row: the curvature form without noise, on its scale."""
    std = torch.ones(len(x)).double()
    return curvature_error(quadratic(a), x, torch.zeros_like(x), std, directions) - 1


def test_the_form_of_curvatures_is_implicit_score_matching_and_its_minimum():
    x, _ = exact_sample()
    assert implicit(PRECISION, x, AXES).mean().item() == pytest.approx(-1.137, abs=1e-9)
    a = torch.linalg.inv(COVARIANCE).requires_grad_()
    loss = implicit(a, x, AXES).mean()
    (slope,) = torch.autograd.grad(loss, a)
    assert slope.norm() < 1e-10
    assert loss.item() == pytest.approx(-1.369048, abs=1e-6)


def test_random_signs_measure_the_trace_and_vary_as_they_should():
    x = normal(100_000, 2) @ torch.linalg.cholesky(COVARIANCE).T
    signs = normal(100_000, 2, seed=2).sign()
    sliced = implicit(PRECISION, x, [signs])
    assert sliced.mean().item() == pytest.approx(-1.137, abs=0.02)
    assert sliced.std().item() == pytest.approx(1.80, abs=0.02)
    every = torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double()  # -v gives what v gives
    mean = sum(implicit(PRECISION, x, [v[None]]) for v in every) / 2
    torch.testing.assert_close(mean, implicit(PRECISION, x, AXES))


@pytest.mark.parametrize("std", [0.5, 0.1])
def test_curvatures_give_the_error_of_denoising_in_the_mean(std):
    x, noise = exact_sample()
    sizes = torch.full((len(x),), std).double()
    errors = curvature_error(quadratic(PRECISION), x, noise, sizes, AXES)
    assert errors.mean().item() == pytest.approx(mean_error(PRECISION, std).item(), rel=1e-9)


@pytest.mark.parametrize(("size", "ratio"), [(0.5, 1.442), (0.1, 1.0177), (0.02, 1.0007)])
def test_a_step_of_a_chain_from_the_data_contrasts_as_curvatures_do(size, ratio):
    """CD-1 (Song and Kingma 2021, section 5), for E = a x^2 / 2 and data of variance 1.3."""
    x, noise = (v[:, :1] for v in exact_sample())
    x = x * math.sqrt(1.3 / 1.5)
    a = torch.tensor([[0.7]], dtype=torch.float64, requires_grad=True)
    energy = quadratic(a)
    moved = (x - size**2 / 2 * 0.7 * x + size * noise).detach()
    (contrast,) = torch.autograd.grad(contrastive_loss(energy(x), energy(moved)), a)
    (slope,) = torch.autograd.grad(implicit_1d(a, x), a)
    assert (contrast / (size**2 / 2 * slope)).item() == pytest.approx(ratio, abs=1e-3)


def implicit_1d(a, x):
    std = torch.full((len(x),), math.sqrt(0.5)).double()  # 2 sigma^2 / D is 1
    axis = [torch.ones(1, 1).double()]
    return curvature_error(quadratic(a), x, torch.zeros_like(x), std, axis).mean() - 1


def test_several_sizes_of_noise_learn_one_density_with_shares_as_their_squares():
    """Data at 0: the best score is that of a mixture of N(0, s) and N(0, 2 s), weights 1 to 4."""
    sizes, grid = (0.5, 1.0), torch.linspace(-2, 2, 9).double()
    mixture = [s**2 * torch.distributions.Normal(0, s).log_prob(grid).exp() for s in sizes]
    expected = sum(-grid / s**2 * p for s, p in zip(sizes, mixture, strict=True)) / sum(mixture)

    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(400_000, 1, dtype=torch.float64)
    noise = torch.randn(x.shape, dtype=torch.float64, generator=generator)
    std = torch.tensor(sizes).double()[torch.arange(len(x)) % 2]
    noisy = (std[:, None] * noise).squeeze(1)
    for point, score in zip(grid, expected, strict=True):
        near = (noisy - point).abs() < 0.05

        def error(s, near=near):
            rows = x[near], noise[near], std[near]
            return score_error(lambda z: -s * z.sum(dim=1), *rows).mean()

        s = score.clone().requires_grad_()
        (slope,) = torch.autograd.grad(error(s), s)
        curvature = 2 * std[near].square().mean()
        assert (slope / curvature).abs() < 0.08  # a Newton step from the best score leads nowhere


def test_more_curvature_at_the_data_lowers_the_error():
    c = torch.zeros((), dtype=torch.float64, requires_grad=True)
    x, noise, std = normal(500, 3), normal(500, 3, seed=2), torch.full((500,), 0.3).double()
    for form in (score_error, difference_error, curvature_error):
        extra = () if form is score_error else (normal(500, 3, seed=3),)
        extra = ([extra[0].sign()],) if form is curvature_error else extra
        loss = form(lambda z: c * z.square().sum(dim=1) / 2, x, noise, std, *extra).mean()
        assert torch.autograd.grad(loss, c)[0] < 0


def test_one_step_along_the_learned_score_takes_noise_away():
    """N(0, I) and sigma 0.5: the mean square of a component falls from 0.25 to 0.20."""
    a = EYE / (1 + 0.25)
    noise = normal(200_000, 2, seed=2)
    x = normal(200_000, 2)
    noisy = x + 0.5 * noise
    denoised = noisy - 0.25 * noisy @ a
    assert (noisy - x).square().mean().item() == pytest.approx(0.25, abs=2e-3)
    assert (denoised - x).square().mean().item() == pytest.approx(0.20, abs=2e-3)
    assert score_error(
        quadratic(a), x, noise, torch.full((len(x),), 0.5).double()
    ).mean().item() == (pytest.approx(1 - 0.25 * 0.8, abs=5e-3))


def smooth_network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 32), nn.SiLU(), nn.Linear(32, 4)).double()


def test_the_forms_agree_over_all_directions_in_value_and_in_gradient():
    network = smooth_network()
    x, noise, std = normal(5, 6), normal(5, 6, seed=2), torch.tensor([0.05, 0.1, 0.1, 0.2, 0.2])
    std = std.double()

    def energy(z):
        return -network(z).logsumexp(dim=1)

    exact = score_error(energy, x, noise, std)
    axes = [torch.eye(6).double()[i].expand(5, 6) for i in range(6)]  # their mean is that of all
    difference = sum(difference_error(energy, x, noise, std, axis) for axis in axes) / 6
    torch.testing.assert_close(difference, exact, rtol=1e-4, atol=0)
    parameters = list(network.parameters())
    slopes = [
        torch.cat([
            g.flatten()
            for g in torch.autograd.grad(e.sum(), parameters, materialize_grads=True)
        ])
        for e in (exact, difference)
    ]  # fmt: skip
    assert (slopes[0] - slopes[1]).norm() < 1e-3 * slopes[0].norm()


def test_an_image_counts_as_the_row_of_its_pixels():
    network = smooth_network()
    x, noise, std = normal(5, 6), normal(5, 6, seed=2), torch.full((5,), 0.2).double()

    def energy(z):
        return -network(z.flatten(1)).logsumexp(dim=1)

    images = [z.view(5, 1, 2, 3) for z in (x, noise, normal(5, 6, seed=3))]
    for form, count in ((score_error, 2), (difference_error, 3)):
        rows = [z.flatten(1) for z in images[:count]]
        of_images = form(energy, *images[:2], std, *images[2:count])
        assert torch.equal(of_images, form(energy, *rows[:2], std, *rows[2:]))
    of_images = curvature_error(energy, *images[:2], std, images[2:])
    rows = [z.flatten(1) for z in images]
    assert torch.equal(of_images, curvature_error(energy, *rows[:2], std, rows[2:]))


# -- in training

RECIPE = replace(
    RECIPES["dsm"], epochs=1, batch_size=32, learning_rate=1e-2, log_every=1, sample_steps=20
)


def ring(count=96):
    """Points of two classes on two arcs."""
    angle = math.tau * (torch.arange(count) + 0.5) / count
    generator = torch.Generator().manual_seed(0)
    points = torch.stack([angle.cos(), angle.sin()], dim=1)
    return points + 0.05 * torch.randn(count, 2, generator=generator), (angle > math.pi).long()


def model_of(classes=2, activation=nn.SiLU):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Linear(2, 64), activation(), nn.Linear(64, 64), activation()
        return jem.JEM(networks.factored(nn.Sequential(*layers, nn.Linear(64, classes))))


@pytest.mark.parametrize(
    ("classes", "form"), [(2, "exact"), (1, "difference"), (2, "sliced"), (1, "trace")]
)
def test_it_trains_a_density_with_and_without_classes(classes, form, tmp_path):
    x, y = ring()
    model = model_of(classes)
    recipe = replace(RECIPE, score_form=form, epochs=60)
    trainer = jem.Trainer(model, recipe, run_dir=tmp_path / "run", device="cpu")
    trainer.fit((x, y if classes == 2 else torch.zeros_like(y)))
    assert trainer.state.chains is None
    assert '"score_error": ' in (tmp_path / "run" / "metrics.jsonl").read_text()
    away = torch.tensor([[0.0, 0.0], [0.3, -0.2], [1.3, 1.3], [-1.3, 1.2]])
    assert model.log_density(x).median() > model.log_density(away).max()
    if classes == 2:
        assert (model.predict_proba(x).argmax(dim=1) == y).float().mean() > 0.95
    assert jem.sample(model, [0, 0], num_steps=2).shape == (2, 2)


def test_a_run_that_was_stopped_ends_in_the_same_bits(tmp_path):
    recipe = replace(RECIPE, epochs=3, checkpoint_every=2)
    runs = [tmp_path / "whole", tmp_path / "parts"]
    jem.Trainer(whole := model_of(), recipe, run_dir=runs[0], device="cpu").fit(ring())
    first = jem.Trainer(model_of(), recipe, run_dir=runs[1], device="cpu")

    def interrupt(metrics):
        first._stop.set()

    with pytest.raises(jem.errors.TrainingInterrupted):
        first.fit(ring(), on_epoch=interrupt)
    second = jem.Trainer(parts := model_of(), recipe, run_dir=runs[1], device="cpu")
    second.fit(ring(), resume=True)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("head", ["plain", "factored"])
@pytest.mark.parametrize("form", ["exact", "sliced", "trace", "difference"])
def test_a_piecewise_linear_network_is_refused_by_the_exact_form(head, form):
    model = model_of(activation=nn.LeakyReLU)
    if head == "plain":
        model = jem.JEM(nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2)))
    trainer = jem.Trainer(model, replace(RECIPE, score_form=form), device="cpu")
    if form == "difference":
        trainer.fit(ring())
        return
    with pytest.raises(InputError, match=r"piecewise linear .* SiLU"):
        trainer.fit(ring())


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad


class OnlyOnce(nn.Module):
    def forward(self, x):
        return Once.apply(x)


def test_a_network_without_second_derivatives_is_told_of_the_other_form():
    model = model_of(activation=OnlyOnce)
    with pytest.raises(InputError, match="`score_form` to 'difference'"):
        jem.Trainer(model, RECIPE, device="cpu").fit(ring())


def test_the_exact_trace_is_for_few_numbers():
    network = nn.Sequential(nn.Linear(65, 8), nn.SiLU(), nn.Linear(8, 2))
    trainer = jem.Trainer(jem.JEM(network), replace(RECIPE, score_form="trace"), device="cpu")
    with pytest.raises(InputError, match=r"at most 64 numbers .* got 65: take 'sliced'"):
        trainer.fit((torch.rand(64, 65), torch.arange(64) % 2))


def test_the_recipe_ssm_learns_the_density_of_dsm():
    x, y = ring()
    found = []
    for name in ("dsm", "ssm"):
        model = model_of()
        changes = {"epochs": 60, "batch_size": 32, "learning_rate": 1e-2}
        jem.Trainer(model, replace(RECIPES[name], **changes), device="cpu").fit((x, y))
        found.append(model.log_density(x + 0.3).detach())
    assert torch.corrcoef(torch.stack(found))[0, 1] > 0.9


def test_its_noise_comes_from_the_recipe():
    recipe = replace(RECIPE, score_noise=[0.2, 0.5])
    trainer = jem.Trainer(model_of(), recipe, device="cpu")
    trainer.fit(ring())
    assert trainer.context.objective == ScoreMatching((0.2, 0.5))
    for noise in ((), (0.1, 0.0), 0.1):
        with pytest.raises(InputError, match="`score_noise`"):
            replace(recipe, score_noise=noise)
