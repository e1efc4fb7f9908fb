import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from jem.errors import TrainingDivergedError
from jem.objectives import Energies, Terms
from jem.sampling.buffer import Draw
from jem.training.recipe import Recipe
from jem.training.recipes import RECIPES
from jem.training.safeguards import give_up, is_healthy, mask_gradients
from jem.training.steps import ProposedChains, StepResult

BAD = [math.nan, math.inf, -math.inf]


def step_result(loss=1.0, energy_data=0.0, energy_negative=1.0, chain=0.5):
    data, negative = torch.tensor([energy_data, 0.0]), torch.tensor([energy_negative, 1.0])
    x = torch.tensor([[chain, 0.0], [0.0, 0.0]])
    draw = Draw(torch.arange(2), torch.zeros(2, 2), None, torch.zeros(2, dtype=torch.int64))
    terms = Terms(torch.tensor(loss), {"gap": negative.mean() - data.mean()})
    proposed = ProposedChains(draw, x, 1, x)
    return StepResult(terms, torch.zeros(2, 3), Energies(data, negative), proposed)


def plain(loss=1.0):
    terms = Terms(torch.as_tensor(loss))
    return StepResult(terms, torch.zeros(2, 3), Energies(torch.zeros(2)))


def healthy(max_energy_gap=100.0, grad_norm=1.0, **changes):
    return bool(is_healthy(step_result(**changes), torch.tensor(grad_norm), max_energy_gap))


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("what", ["loss", "energy_data", "energy_negative", "chain", "grad_norm"])
def test_anything_that_is_not_finite_is_seen(what, bad):
    assert healthy()
    assert not healthy(**{what: bad})


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_gap_beyond_the_largest_is_seen_in_both_directions(sign):
    assert healthy(energy_negative=sign * 190.0, max_energy_gap=100.0)
    assert not healthy(energy_negative=sign * 210.0, max_energy_gap=100.0)


@pytest.mark.parametrize("bad", BAD)
def test_a_plain_step_is_judged_by_its_loss_and_gradient(bad):
    assert bool(is_healthy(plain(), torch.tensor(1.0), 1.0))
    assert not bool(is_healthy(plain(), torch.tensor(bad), 1.0))
    assert not bool(is_healthy(plain(bad), torch.tensor(1.0), 1.0))


def test_gradients_of_an_unhealthy_step_become_zero_even_if_nan():
    layer = nn.utils.skip_init(nn.Linear, 2, 2)
    layer.weight.grad = torch.tensor([[1.0, math.nan], [math.inf, 2.0]])
    mask_gradients(layer, torch.tensor(True))
    assert layer.weight.grad[1, 1] == 2.0
    assert layer.weight.grad[0, 1].isnan()
    mask_gradients(layer, torch.tensor(False))
    assert torch.equal(layer.weight.grad, torch.zeros(2, 2))
    assert layer.bias.grad is None


def test_giving_up_names_where_how_often_and_what_to_try():
    recipe = replace(RECIPES["fast"], learning_rate=4e-3, num_steps=3, generative_weight=0.3)
    recipe = recipe.resolved((2,), 1)
    error = give_up(recipe, 120)
    assert isinstance(error, TrainingDivergedError)
    message = str(error)
    assert "iteration 120 after 5 recoveries" in message
    assert "--learning-rate 0.001" in message
    assert "--num-steps 6" in message
    assert "--generative-weight 0.1" in message
    assert "--energy-l2 0.09" in message


def test_a_plain_recipe_gets_no_advice_about_chains():
    message = str(give_up(Recipe(objective="none").resolved((2,), 1), 1))
    assert "--learning-rate" in message
    assert "--max-grad-norm 1" in message
    assert "--num-steps" not in message
