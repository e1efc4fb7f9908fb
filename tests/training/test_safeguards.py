import math
from dataclasses import replace

import pytest
import torch
from contexts import context_of
from torch import nn

from jem.data.batches import BatchStream, as_part
from jem.errors import InputError, TrainingDivergedError
from jem.model import JEM
from jem.objectives import Energies, Terms
from jem.sampling.buffer import Draw
from jem.training.recipe import Recipe
from jem.training.recipes import RECIPES
from jem.training.safeguards import check_modes, give_up, is_healthy, mask_gradients
from jem.training.trainer import Trainer
from jem.training.update import ProposedChains, UpdateResult
from jem.training.validation import why_useless

BAD = [math.nan, math.inf, -math.inf]


def result_of(loss=1.0, energy_data=0.0, energy_negative=1.0, chain=0.5):
    data, negative = torch.tensor([energy_data, 0.0]), torch.tensor([energy_negative, 1.0])
    x = torch.tensor([[chain, 0.0], [0.0, 0.0]])
    draw = Draw(torch.arange(2), torch.zeros(2, 2), torch.zeros(2, dtype=torch.int64))
    total, terms = torch.tensor(loss), Terms(torch.zeros(()), gap=negative.mean() - data.mean())
    proposed = ProposedChains(draw, x, 1, x)
    return UpdateResult(total, total, terms, torch.zeros(2, 3), Energies(data, negative), proposed)


def plain(loss=1.0):
    total = torch.as_tensor(loss)
    return UpdateResult(total, total, Terms(total), torch.zeros(2, 3), Energies(torch.zeros(2)))


def healthy(max_energy_gap=100.0, grad_norm=1.0, **changes):
    return bool(is_healthy(result_of(**changes), torch.tensor(grad_norm), max_energy_gap))


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
    recipe = replace(RECIPES["fast"], learning_rate=4e-3, num_steps=3, density_weight=0.3)
    recipe = recipe.resolved((2,), 1)
    error = give_up(context_of(recipe), 120)
    assert isinstance(error, TrainingDivergedError)
    advice = (
        "--learning-rate 0.001",
        "--num-steps 6",
        "--density-weight 0.1",
        "--energy-l2 0.09",
    )
    for part in ("update 120 after 5 recoveries", *advice):
        assert part in str(error)
    plain = str(give_up(context_of(Recipe(objective="none").resolved((2,), 1)), 1))
    assert "--learning-rate" in plain
    assert "--num-steps" not in plain


# -- what is learned in training mode alone -------------------------------------------------------

LABELS = torch.arange(64) % 4
INPUTS = 3 * nn.functional.one_hot(LABELS, 4).float()


class InEvaluation(nn.Module):
    """Multiplies logits in evaluation mode, and adds to them."""

    def __init__(self, factor=1.0, shift=0.0):
        super().__init__()
        self.factor, self.shift = factor, shift
        self.norm, self.weight = nn.BatchNorm1d(4, affine=False), nn.Parameter(torch.ones(()))

    def forward(self, x):
        factor, shift = (1.0, 0.0) if self.training else (self.factor, self.shift)
        self.norm(x)
        return self.weight * factor * nn.functional.dropout(x, 0.1, self.training) + shift


def check(model, name, x=INPUTS, labels=LABELS, epoch=1):
    recipe = replace(RECIPES[name], epochs=1).resolved((4,), 1)
    stream = BatchStream(as_part((x, labels)), 64, seed=0, name="labelled")
    check_modes(model, stream, context_of(recipe), epoch)


@pytest.mark.parametrize(
    ("factor", "shift", "complaint"),
    [
        (1.0, 0.0, None), (1.0, 3.0, None), (0.0, 0.0, "accuracy 0.250"),
        (-1.0, 0.0, "accuracy 0.000"), (1.0, 9.0, "nats apart"), (1.0, math.nan, "nan nats"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["fast", "plain"])
def test_what_evaluation_mode_loses_ends_the_run(factor, shift, complaint, name):
    model = JEM(InEvaluation(factor, shift))
    state, random = model.network.state_dict(), torch.get_rng_state()
    before = {name: value.clone() for name, value in state.items()}
    if complaint is None or (complaint == "nats apart" and name == "plain"):
        check(model, name)
    else:
        with pytest.raises(TrainingDivergedError, match=complaint):
            check(model, name)
    assert all(torch.equal(value, before[name]) for name, value in state.items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("right", [32, 60])
def test_a_classifier_that_is_as_bad_in_both_modes_goes_on(right):
    """Labels at random, or classes of unequal size, are no fault of the network."""
    labels = torch.where(torch.arange(64) < right, 0, torch.arange(64) % 4)
    check(JEM(InEvaluation()), "fast", torch.eye(4)[torch.zeros(64).long()], labels)


@pytest.mark.parametrize("name", ["plain", "fast"])
def test_a_run_whose_network_forgets_in_evaluation_mode_ends_with_an_error(name, tmp_path):
    recipe = replace(RECIPES[name], epochs=20, learning_rate=0.01)
    trainer = Trainer(JEM(InEvaluation(0.0)), recipe, run_dir=tmp_path / "run", device="cpu")
    with pytest.raises(TrainingDivergedError, match="works only in training mode"):
        trainer.fit((INPUTS, LABELS), (INPUTS, LABELS))
    assert trainer.state.progress.epoch == 10  # half of the run: early averages lag behind


def test_a_run_in_evaluation_mode_is_not_asked_for_what_training_mode_gives():
    recipe = replace(RECIPES["fast"], epochs=1, freeze_norm_and_dropout=True)
    result = Trainer(JEM(InEvaluation(0.0)), recipe, device="cpu").fit((INPUTS, LABELS))
    assert len(result.epochs) == 1


class Always(nn.Module):
    """The same logits for every input, and the input added to them."""

    def __init__(self, logits, factor=0.0):
        super().__init__()
        self.logits, self.factor = nn.Parameter(torch.tensor(logits)), factor

    def forward(self, x):
        return self.logits + self.factor * x


@pytest.mark.parametrize(
    ("logits", "factor", "useless"),
    [
        ([0.0, 0.0, 0.0, 0.1], 0.0, True), ([9.0, 0.0, 0.0, 0.0], 0.0, True),
        ([0.0, 0.0, 0.0, 0.1], 0.1, False), ([0.0, 0.0, 0.0, 2.8], 1.0, False),
    ],
)  # fmt: skip
def test_a_classifier_that_knows_class_frequencies_alone_is_called_useless(
    logits, factor, useless
):
    """The last may miss what is rare, and still says more of its inputs than frequencies do."""
    labels = torch.where(torch.arange(64) < 50, 3, LABELS)
    x = nn.functional.one_hot(labels, 4).float()
    found = why_useless(JEM(Always(logits, factor)), as_part((x, labels)))
    assert bool(found) is useless
    if useless:
        assert "class frequencies alone give" in found
    assert not why_useless(JEM(nn.Linear(4, 1)), as_part((x, 0 * labels)))


# -- what cannot be trained beside chains ---------------------------------------------------------


class Together(nn.Module):
    """Subtracts the mean of the batch in training, as a layer of your own may do."""

    def forward(self, x):
        return x - x.mean(dim=0) if self.training else x


@pytest.mark.parametrize(
    ("layer", "complaint"),
    [
        (nn.InstanceNorm1d(4, track_running_stats=True), "track_running_stats=False"),
        (Together(), "use torch's own batch normalisation"),
    ],
)
def test_layers_that_chains_cannot_go_through_are_refused_before_anything_is_written(
    layer, complaint, tmp_path
):
    network = nn.Sequential(layer, nn.Flatten(), nn.Linear(8, 4))
    x = torch.stack([INPUTS, INPUTS.flip(1)], dim=2) + torch.linspace(0, 1, 64)[:, None, None]
    run = tmp_path / "run"
    with pytest.raises(InputError, match=complaint):
        Trainer(JEM(network), "fast", run_dir=run, device="cpu").fit((x, LABELS))
    assert not (run / "config.json").exists()
    for name, changes in (("plain", {}), ("fast", {"freeze_norm_and_dropout": True})):
        recipe = replace(RECIPES[name], epochs=1, **changes)
        Trainer(JEM(network), recipe, device="cpu").fit((x, LABELS))
