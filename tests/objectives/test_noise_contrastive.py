"""Noise contrastive estimation against closed forms, and the normalised density that it learns."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import jem
from jem import RECIPES, networks
from jem.objectives import noise_contrastive_loss
from jem.training.monitor import read_metrics

GRID = torch.linspace(-20, 20, 40_001, dtype=torch.float64)


def normal(x, mean, std):
    return -((x - mean) ** 2) / (2 * std**2) - math.log(std) - math.log(2 * math.pi) / 2


def risk(a, b, c, mean, std, nu):
    """The loss of the model -a (x - b)^2 / 2 + c on N(0, 1), by integrals on a grid."""
    noise = normal(GRID, mean, std)
    ratio = -a * (GRID - b) ** 2 / 2 + c - noise
    data_term, noise_term = noise_contrastive_loss(ratio, ratio, nu)
    return torch.trapezoid(data_term * normal(GRID, 0, 1).exp() + noise_term * noise.exp(), GRID)


@pytest.mark.parametrize(
    ("mean", "std", "nu", "least"),
    [(0, 1, 1, 1.38629), (0, 2, 1, 1.20083), (0, 1, 10, 3.35100), (0, 2, 10, 3.05615),
     (4, 1, 1, 0.12085)],
)  # fmt: skip
def test_it_is_least_at_the_density_of_the_data_with_its_constant(mean, std, nu, least):
    truth = torch.tensor([1.0, 0.0, -math.log(2 * math.pi) / 2], dtype=torch.float64)
    values = truth.requires_grad_()
    loss = risk(*values, mean, std, nu)
    (slope,) = torch.autograd.grad(loss, values)
    assert loss.item() == pytest.approx(least, abs=2e-5)
    assert slope.abs().max() < 1e-6
    for change in ([0.1, 0, 0], [0, 0.1, 0], [0, 0, 0.1], [0, 0, -0.1]):
        assert risk(*(truth + torch.tensor(change)), mean, std, nu) > loss


def test_with_the_cross_entropy_it_is_that_of_the_classes_and_noise_as_one_more():
    generator = torch.Generator().manual_seed(0)
    logits, noise_logits = torch.randn(2, 50, 4, generator=generator, dtype=torch.float64)
    log_q, noise_log_q = torch.randn(2, 50, generator=generator, dtype=torch.float64)
    y, nu = torch.arange(50) % 4, 2.0
    data, noise = noise_contrastive_loss(
        logits.logsumexp(dim=1) - log_q, noise_logits.logsumexp(dim=1) - noise_log_q, nu
    )
    apart = F.cross_entropy(logits, y, reduction="none") + data

    def more(values, q):
        return torch.cat([values, q[:, None] + math.log(nu)], dim=1)

    torch.testing.assert_close(
        apart, F.cross_entropy(more(logits, log_q), y, reduction="none"), rtol=0, atol=1e-12
    )
    last = torch.full_like(y, 4)
    one_more = F.cross_entropy(more(noise_logits, noise_log_q), last, reduction="none")
    torch.testing.assert_close(noise, nu * one_more, rtol=0, atol=1e-12)


def rings(count=3000):
    """Two classes on rings of radius 1 and 2, which no Gaussian fits."""
    rng = np.random.default_rng(0)
    y, angle = np.arange(count) % 2, rng.uniform(0, 2 * np.pi, count)
    radius = 1 + y + rng.normal(0, 0.15, count)
    return jem.data.from_arrays(
        np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1), y
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    data = rings()
    model = jem.JEM(
        networks.mlp((2,), 2, width=64), classes=data.classes, domain=data.domain,
        scaling=data.scaling,
    )  # fmt: skip
    recipe = replace(RECIPES["nce"], epochs=25, learning_rate=5e-3)
    folder = tmp_path_factory.mktemp("nce")
    trainer = jem.Trainer(model, recipe, run_dir=folder, seed=0, device="cpu")
    trainer.fit(data.train, data.validation)
    return data, model, read_metrics(folder / "metrics.jsonl", "update")


def test_the_density_is_normalised_and_is_that_of_the_data(trained):
    data, model, metrics = trained
    side = torch.linspace(-3, 3, 200)
    points = torch.cartesian_prod(side, side)
    with torch.no_grad():
        log_p = model.log_density(points) - model.base.log_z
        on_test = float(model.log_density(data.test.x).mean()) - model.base.log_z
        gaussians = model.base.tempered_log_q(data.test.x).mean() - model.base.log_z
    mass = float(log_p.double().exp().mean() * 36)
    assert mass == pytest.approx(1.0, abs=0.1)
    assert on_test > float(gaussians) + 0.3  # the rings, not only the Gaussians around them
    accuracy = (model(data.test.x).argmax(dim=1) == data.test.y).float().mean()
    assert accuracy > 0.97
    assert 0.5 < metrics[-1]["noise_accuracy"] < 0.95


def test_draws_of_the_base_have_its_moments(trained, generator):
    _, model, _ = trained
    base = model.base
    x = base.sample(20_000, generator).double()
    shares = base.log_weights.exp()
    mean = shares @ base.means.double()
    inverse = torch.linalg.inv(base.whitening.double())
    within = inverse.T @ inverse
    away = base.means.double() - mean
    torch.testing.assert_close(x.mean(dim=0), mean, rtol=0, atol=0.03)
    torch.testing.assert_close(
        x.T.cov(), within + (shares[:, None] * away).T @ away, rtol=0.05, atol=0.03
    )


def test_images_are_refused_with_the_recipes_to_take():
    data = jem.data.from_arrays(np.random.default_rng(0).random((60, 8, 8)), np.arange(60) % 2)
    model = jem.JEM(networks.network_for(data.input_shape, 2), domain=data.domain)
    with pytest.raises(jem.InputError, match=r"vectors.*'dsm' or 'fast'"):
        jem.Trainer(model, replace(RECIPES["nce"], epochs=1), device="cpu").fit(data.train)
