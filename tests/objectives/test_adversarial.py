"""The bounded contrast, training on attacked inputs, and the guard against its own failure."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import jem
from jem import RECIPES
from jem.attacks import n_fgsm, pgd
from jem.errors import TrainingDivergedError
from jem.objectives import bounded_contrast
from jem.sampling import LangevinStep
from jem.training.monitor import read_metrics

EPS = 16 / 255
"""8/255 of the range of a pixel, as images lie in [-1, 1]."""


def test_the_contrast_is_the_binary_cross_entropy_of_minus_the_energy(generator):
    data, chains = 5 * torch.randn(2, 30, generator=generator, dtype=torch.float64)
    logits, truth = torch.cat([-data, -chains]), torch.arange(60) < 30
    expected = 2 * F.binary_cross_entropy_with_logits(logits, truth.double())
    torch.testing.assert_close(bounded_contrast(data, chains), expected)


def test_the_contrast_is_least_at_the_log_ratio_of_the_densities():
    grid = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    p, q = (torch.distributions.Normal(m, s).log_prob(grid) for m, s in ((0.5, 1.0), (0.0, 2.0)))

    def risk(energy):
        never = torch.full_like(energy, torch.inf)  # an energy that the other term does not see
        data = bounded_contrast(energy, never, mean=lambda values: values)
        chains = bounded_contrast(-never, energy, mean=lambda values: values)
        return ((data * p.exp() + chains * q.exp()) * (grid[1] - grid[0])).sum()

    best = (q - p).requires_grad_()
    (slope,) = torch.autograd.grad(risk(best), best)
    assert slope.abs().max() < 1e-12
    assert risk(p - q) > risk(best) + 0.1  # the other sign


def test_a_descent_lowers_data_and_raises_chains_and_never_by_much():
    data = torch.tensor([-50.0, 0.0, 50.0], requires_grad=True)
    chains = torch.tensor([-50.0, 0.0, 50.0], requires_grad=True)
    bounded_contrast(data, chains).backward()
    assert data.grad.tolist() == pytest.approx([0, 1 / 6, 1 / 3])
    assert chains.grad.tolist() == pytest.approx([-1 / 3, -1 / 6, 0])


@pytest.mark.parametrize("steepness", [1e-3, 1.0, 1e4])
def test_a_step_of_the_normalize_gradient_has_the_length_of_the_step_size(steepness, generator):
    x, grad = torch.randn(2, 5, 1, 4, 4, generator=generator, dtype=torch.float64)
    step = LangevinStep(0.3, 0.0, normalize_gradient=True)
    moved = step(x, steepness * grad, generator=generator) - x
    size = moved.flatten(1).square().mean(dim=1).sqrt()
    torch.testing.assert_close(size, torch.full_like(size, 0.3))
    assert ((moved * grad).flatten(1).sum(dim=1) < 0).all()
    assert torch.equal(step(x, 0 * grad, generator=generator), x)


# -- attacks of one step --------------------------------------------------------------------------


def test_one_step_adds_noise_of_twice_the_size_and_the_worst_sign(generator):
    w = torch.randn(6, generator=generator, dtype=torch.float64)
    x, y = torch.zeros(2000, 6, dtype=torch.float64), torch.arange(2000) % 2

    def logits_fn(z):
        return torch.stack([z @ w, -z @ w], dim=1)

    attacked = n_fgsm(logits_fn, x, y, eps=0.1, generator=generator)
    noise = attacked - 0.1 * torch.where(y == 0, -1, 1)[:, None] * w.sign()
    assert noise.abs().max() <= 0.2 + 1e-9
    torch.testing.assert_close(
        noise.std(dim=0), torch.full_like(w, 0.4 / 12**0.5), rtol=0.05, atol=0
    )
    inside = n_fgsm(logits_fn, x, y, eps=0.1, bounds=(-0.05, 0.05), generator=generator)
    assert inside.abs().max() == 0.05


class Masked(nn.Module):
    """Wrong on a thin shell around each input, on which a single step hardly ever ends."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        shell = torch.exp(-(((x[:, 0].abs() - 0.5 * EPS) / (0.15 * EPS)) ** 2))
        margin = x[:, 1] * (1 - 2 * shell) * self.scale
        return torch.stack([-margin, margin], dim=1) * 5


def test_a_network_that_recognises_the_attack_of_training_is_not_kept(tmp_path):
    y = torch.arange(64) % 2
    x = torch.stack([torch.zeros(64), 2.0 * y - 1], dim=1)
    recipe = replace(RECIPES["plain"], attack_eps=EPS, epochs=1, learning_rate=1e-6)
    model = jem.JEM(Masked(), domain=(-2.0, 2.0))
    with pytest.raises(TrainingDivergedError, match="--attack-eps"):
        jem.Trainer(model, recipe, run_dir=tmp_path / "run", device="cpu").fit((x, y))
    sound = jem.JEM(nn.Linear(2, 2), domain=(-2.0, 2.0))
    fit = jem.Trainer(sound, replace(recipe, learning_rate=0.1, epochs=40), device="cpu").fit(
        (x, y)
    )
    assert fit.epochs[-1]["attacked_accuracy"] == 1


# -- the recipe -----------------------------------------------------------------------------------


def robust_accuracy(model, x, y, eps):
    attacked = pgd(
        model.logits, x, y, eps=eps, num_steps=10, bounds=model.bounds(),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return float((model(attacked).argmax(dim=1) == y).float().mean())


def test_it_learns_from_columns_that_an_attack_cannot_turn(tmp_path, generator):
    """One column gives the class in nine of ten rows; twenty weak ones together nearly always."""
    y = torch.arange(600) % 2
    side = 2.0 * y - 1
    strong = side * torch.where(torch.rand(600, generator=generator) < 0.9, 1.0, -1.0)
    weak = 0.15 * side[:, None] + 0.3 * torch.randn(600, 20, generator=generator)
    x = torch.cat([strong[:, None], weak.clamp(-1, 1)], dim=1).float()

    def trained(name, folder=None):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = jem.JEM(jem.networks.mlp((21,), 2, width=32), domain=(-1.5, 1.5))
        recipe = replace(
            RECIPES[name], epochs=8, learning_rate=0.01, log_every=1, num_chains=32,
            attack_eps=0.3 * (name == "adversarial"),
        )  # fmt: skip
        jem.Trainer(model, recipe, run_dir=folder, device="cpu").fit((x[:400], y[:400]))
        return model

    plain, model = trained("plain"), trained("adversarial", tmp_path / "run")
    rows, labels = x[400:], y[400:]
    assert robust_accuracy(plain, rows, labels, 0.3) < 0.6
    assert robust_accuracy(model, rows, labels, 0.3) > 0.8
    noise = torch.rand(200, 21, generator=generator).float() * 3 - 1.5
    assert model.log_density(rows).median() > model.log_density(noise).quantile(0.75)
    assert jem.sample(model, [0, 1], num_steps=2).shape == (2, 21)
    update = read_metrics(tmp_path / "run" / "metrics.jsonl", "update")[-1]
    assert {"bounded_contrast", "gap", "accuracy", "move_rms"} <= update.keys()
    assert "attacked_accuracy" in read_metrics(tmp_path / "run" / "metrics.jsonl", "epoch")[-1]


@pytest.mark.slow
def test_on_digits_it_withstands_more_than_plain():
    """Of 8x8 pixels with 17 grey levels, to which 8/255 hardly matters, 16/255 does."""
    data = jem.data.load("digits", seed=0)
    accuracy = {}
    for name in ("plain", "adversarial"):
        head = RECIPES[name].head
        network = jem.networks.make_network(None, data.input_shape, 10, head, seed=0)
        model = jem.JEM(network, classes=data.classes, domain=data.domain, scaling=data.scaling)
        recipe = replace(RECIPES[name], epochs=20)
        jem.Trainer(model, recipe, seed=0, device="cpu").fit(data.train)
        accuracy[name] = robust_accuracy(model, *data.test[:360], 2 * EPS)
    assert accuracy["adversarial"] > accuracy["plain"] + 0.02


def test_a_run_that_was_stopped_ends_in_the_same_bits(tmp_path):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(96, 3, generator=generator)
    y = (x[:, 0] > 0).long()
    recipe = replace(
        RECIPES["adversarial"], epochs=3, batch_size=32, checkpoint_every=2, num_chains=16
    )

    def model_of():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return jem.JEM(nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 2)))

    whole, parts, folder = model_of(), model_of(), tmp_path / "run"
    jem.Trainer(whole, recipe, device="cpu").fit((x, y))
    first = jem.Trainer(parts, recipe, run_dir=folder, device="cpu")
    with pytest.raises(jem.errors.TrainingInterrupted):
        first.fit((x, y), on_epoch=lambda metrics: first._stop.set())
    second = model_of()
    jem.Trainer(second, recipe, run_dir=folder, device="cpu").fit((x, y), resume=True)
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_without_classes_it_trains_the_density_alone():
    generator = torch.Generator().manual_seed(0)
    angle = 6.28 * torch.rand(256, generator=generator)
    x = torch.stack([angle.cos(), angle.sin()], dim=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = jem.JEM(jem.networks.mlp((2,), 1))
    recipe = replace(RECIPES["adversarial"], epochs=30, learning_rate=0.01)
    fit = jem.Trainer(model, recipe, device="cpu").fit((x, torch.zeros(256, dtype=torch.long)))
    assert "attacked_accuracy" not in fit.epochs[-1]
    assert model.log_density(x).mean() > model.log_density(torch.zeros(1, 2)) + 0.5
