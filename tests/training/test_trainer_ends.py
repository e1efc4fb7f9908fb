"""How a run begins and ends: what the data settle, no update at all, and a callback's word."""

import json
import os
import signal
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_trainer import SMALL, assert_same_bits, blobs, model_of, weights

import jem
from jem import networks
from jem.data import DataPart
from jem.errors import TrainingInterrupted
from jem.model import JEM
from jem.training.monitor import read_metrics
from jem.training.probe import seconds_per_update
from jem.training.process import stop_signals
from jem.training.recipe import Recipe
from jem.training.recipes import RECIPES, recipe_from
from jem.training.safeguards import why_doubted
from jem.training.trainer import Trainer


def images(count=32):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 1, 8, 8, generator=generator) * 2 - 1, torch.arange(count) % 2


def image_model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return JEM(networks.small_cnn((1, 8, 8), 2, width=4))


# -- what the data settle -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "fast"])
def test_images_are_trained_with_noise_and_tables_without(name):
    recipe = replace(RECIPES[name], epochs=1)
    trainers = [Trainer(model, recipe, device="cpu") for model in (image_model(), model_of())]
    for trainer, data, noise in zip(trainers, (images(), blobs()), (0.1, 0.0), strict=True):
        trainer.fit(data)
        assert trainer.context.recipe.augment_noise == noise
        (batch,) = list(trainer.batches.epoch(0, 0, generator=torch.Generator()))[:1]
        distance = torch.cdist(batch.x.flatten(1), data[0].flatten(1)).amin(1)
        components = batch.x[0].numel()
        assert float(distance.mean()) == pytest.approx(noise * components**0.5, rel=0.05, abs=1e-3)


def test_one_trainer_settles_afresh_for_other_data():
    trainer = Trainer(model_of(), replace(SMALL, epochs=None), device="cpu")
    trainer.model.domain = torch.tensor(-1.0), torch.tensor(1.0)
    for count, epochs in ((32, 100), (4096, 8)):
        seconds_per_update(trainer, blobs(count), updates=1)
        assert trainer.context.recipe.epochs == trainer.num_epochs == epochs


def test_an_update_on_large_inputs_is_timed_on_fewer_of_them(monkeypatch):
    monkeypatch.setattr("jem.training.probe.TIMED", 8)  # numbers: four points of the plane
    model, seen = model_of(), []
    model.network.register_forward_hook(lambda _, x, __: seen.append(len(x[0])))
    trainer = Trainer(model, replace(SMALL, batch_size=32, num_chains=16), device="cpu")
    assert seconds_per_update(trainer, blobs(64), updates=1) > 0
    assert max(seen) == 4 + 2  # an eighth of batch and chains


def test_the_configuration_holds_what_was_settled_and_can_be_taken_back(tmp_path):
    recipe = replace(SMALL, epochs=None, batch_size=64)
    first, second = model_of(), model_of()
    Trainer(first, recipe, run_dir=tmp_path / "run", device="cpu").fit(blobs(128))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["recipe"]["augment_noise"] == 0.0
    assert config["recipe"]["epochs"] == config["epochs"] == 100
    again = recipe_from(Recipe(), config["recipe"])
    Trainer(second, again, device="cpu").fit(blobs(128))
    assert_same_bits(weights(first), weights(second))


# -- no update ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "fast"])
def test_no_epoch_keeps_the_network_as_given_and_what_it_needs(tmp_path, name, capsys):
    recipe = replace(RECIPES[name], epochs=0, sample_steps=2)
    model, run = model_of(), tmp_path / "run"
    before = weights(model)
    trainer = Trainer(model, recipe, run_dir=run, device="cpu", progress=True)
    result = trainer.fit(blobs(), blobs(seed=1))
    assert (result.iterations, result.epochs) == (0, [])
    assert result.as_given == "0 updates were made"
    assert_same_bits(before, weights(model))
    loaded = jem.load(run)
    assert_same_bits(before, weights(loaded))
    assert loaded.input_shape == (2,)
    assert loaded.domain is not None
    assert loaded.sampler is None
    assert [r["kind"] for r in read_metrics(run / "metrics.jsonl")] == ["end"]
    assert json.loads((run / "config.json").read_text())["iterations"] == 0
    assert not (run / "samples.png").exists()
    again = model_of(seed=4)
    Trainer(again, recipe, run_dir=run, device="cpu").fit(blobs(), resume=True)
    assert_same_bits(before, weights(again))
    assert seconds_per_update(trainer, blobs(), updates=1) > 0


# -- a callback that has seen enough --------------------------------------------------------------


def enough_after(epoch):
    return lambda metrics: metrics["epoch"] == epoch


def test_true_from_a_callback_ends_the_run_as_its_last_epoch_would(tmp_path):
    model, run = model_of(), tmp_path / "run"
    trainer = Trainer(model, SMALL, run_dir=run, device="cpu")
    result = trainer.fit(blobs(), blobs(seed=1), on_epoch=enough_after(2))
    assert result.iterations == 12
    assert [m["epoch"] for m in result.epochs] == [1, 2]
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    assert_same_bits(weights(model), weights(jem.load(run)))
    assert_same_bits(weights(model), weights(trainer.state.averaged_model))
    assert [r["iteration"] for r in read_metrics(run / "metrics.jsonl", "end")] == [12]
    assert (run / "samples.png").exists()


def test_a_density_that_hardly_knows_data_from_noise_is_doubted_when_training_ends():
    angles = torch.linspace(0, 2 * torch.pi, 96)
    ring = torch.stack([angles.cos(), angles.sin()], dim=1), torch.arange(96) % 2
    with pytest.warns(UserWarning, match=r"from uniform noise \(AUROC 0\.[0-7].*; train longer"):
        Trainer(model_of(), SMALL, device="cpu").fit(ring)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Trainer(model_of(), SMALL, device="cpu").fit(blobs())


@pytest.mark.parametrize(("shape", "doubted"), [((64,), False), ((1, 8, 8), True)])
def test_more_is_asked_of_a_density_of_images(shape, doubted):
    """Noise has a mean of 0.5: four examples of five are above it, and the AUROC is 0.8."""

    class Mean(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1).mean(dim=1, keepdim=True)

    x = torch.where(torch.arange(100) % 5 > 0, 0.9, 0.0).view(-1, *[1] * len(shape))
    examples = DataPart(x.expand(-1, *shape), torch.zeros(100, dtype=torch.long))
    model = JEM(Mean(), classes=[""], domain=(torch.tensor(0.0), torch.tensor(1.0)))
    found = why_doubted(model, SimpleNamespace(trains_density=True), "", examples)
    assert bool(found) == doubted


def test_a_callback_that_returns_nothing_or_false_ends_nothing():
    seen = []
    trainer = Trainer(model_of(), SMALL, device="cpu")
    assert trainer.fit(blobs(), on_epoch=seen.append).iterations == 24
    assert trainer.fit(blobs(), on_epoch=lambda _: False).iterations == 24
    assert [m["epoch"] for m in seen] == [1, 2, 3, 4]


def test_a_run_that_was_ended_stays_ended_when_resumed(tmp_path):
    first, again = model_of(), model_of(seed=7)
    run = tmp_path / "run"
    Trainer(first, SMALL, run_dir=run, device="cpu").fit(blobs(), on_epoch=enough_after(2))
    result = Trainer(again, SMALL, run_dir=run, device="cpu").fit(blobs(), resume=True)
    assert result.epochs == []
    assert result.iterations == 12
    assert_same_bits(weights(first), weights(again))


# -- the end of an epoch is not lost --------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_last_validation_is_heard(number, tmp_path):
    class Held(torch.utils.data.Dataset):
        x, y = blobs()
        seen = 0

        def __len__(self):
            return len(self.x)

        def __getitem__(self, index):
            self.seen += 1
            if self.seen == 60:
                os.kill(os.getpid(), number)
            return self.x[index], self.y[index]

    recipe, held = replace(SMALL, epochs=1), Held()
    with pytest.raises(TrainingInterrupted, match="update 6 of 6; the state is in"):
        Trainer(model_of(), recipe, run_dir=tmp_path, device="cpu").fit(blobs(), held)
    resumed = Trainer(model_of(), recipe, run_dir=tmp_path, device="cpu")
    assert resumed.fit(blobs(), held, resume=True).kept_epoch == 1


def test_a_second_signal_of_a_kind_ends_what_hangs(request):
    # What a shell starts in the background ignores the signal of Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with stop_signals() as stop:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
            assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
