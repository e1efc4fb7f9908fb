"""A new objective is one class: given to the trainer, or named in the table of objectives."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

import jem
from jem import RECIPES, networks
from jem.errors import InputError
from jem.objectives import OBJECTIVES, Terms


@dataclass(frozen=True)
class ScoreMatching:
    """Denoising score matching: the energy's gradient at noisy data points along the noise."""

    noise_std: float = 0.3
    needs: ClassVar[frozenset[str]] = frozenset({"input_gradients"})

    def __call__(self, model, batch, energies, *, weight, generator, mean):
        noise = torch.empty_like(batch.x_density).normal_(generator=generator)
        x = (batch.x_density + self.noise_std * noise).requires_grad_()
        (grad,) = torch.autograd.grad(model.energy(x).sum(), x, create_graph=True)
        match = mean((self.noise_std * grad - noise).square().sum(dim=1)) / 2
        return Terms(weight * match, {"score_matching": match})


RECIPE = replace(RECIPES["fast"], epochs=40, batch_size=16, learning_rate=1e-2)


def points(count=96):
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(count) % 2
    return (torch.randn(count, 2, generator=generator) * 0.1 + (y[:, None] - 0.5)).clamp(-1, 1), y


def model_of():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return jem.JEM(networks.mlp((2,), 2, width=32, depth=2))


def test_an_objective_of_your_own_trains_a_density_without_chains(tmp_path):
    recipe = replace(RECIPE, objective="none", density_weight=1.0, log_every=1)  # yours counts
    model = model_of()
    trainer = jem.Trainer(
        model, recipe, objective=ScoreMatching(), run_dir=tmp_path / "run", device="cpu"
    )
    trainer.fit(points())
    assert trainer.state.chains is None
    assert not trainer.context.fused
    assert (tmp_path / "run" / "samples.png").exists()
    assert "score_matching" in (tmp_path / "run" / "metrics.jsonl").read_text()
    x, y = points()
    assert (model.predict_proba(x).argmax(1) == y).float().mean() > 0.95
    between = torch.tensor([[0.5, -0.5], [-0.5, 0.5], [0.9, -0.9], [0.0, 0.0]])
    assert model.log_density(x).median() > model.log_density(between).max()
    assert jem.sample(model, [0, 1], num_steps=2).shape == (2, 2)


def test_a_line_in_the_table_makes_it_a_recipe(monkeypatch):
    with pytest.raises(InputError, match="`objective`"):
        replace(RECIPE, objective="score_matching")
    monkeypatch.setitem(OBJECTIVES, "score_matching", ScoreMatching)
    recipe = replace(RECIPE, objective="score_matching", noise_std=0.2, epochs=1)
    trainer = jem.Trainer(model_of(), recipe, device="cpu")
    trainer.fit(points())
    assert trainer.context.objective == ScoreMatching(noise_std=0.2)
