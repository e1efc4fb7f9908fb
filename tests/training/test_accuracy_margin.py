"""Fine-tuning a trained classifier: what the density may cost it, and what happens beyond."""

import itertools
import json
import re
from dataclasses import replace

import pytest
import torch
from test_trainer import SMALL, UNSTABLE, CrashError, assert_same_bits, blobs, model_of, weights

import jem
from jem import networks
from jem.errors import InputError
from jem.model import JEM
from jem.training import trainer as trainer_module
from jem.training import validation
from jem.training.monitor import read_metrics
from jem.training.trainer import Trainer
from jem.training.validation import EpochGuard

MARGIN = replace(SMALL, accuracy_margin=0.02, ema_decay=0.9)


def judged(accuracy, nll=0.0, se=0.0, train=0.0):
    """Figures of an epoch that a guard looks at."""
    found = {"valid_accuracy": accuracy, "valid_nll": nll, "valid_nll_se": se}
    return found | {"cross_entropy": train}


@pytest.fixture
def scripted(monkeypatch):
    """Validation that answers as a test says, by the iteration that it is asked at."""

    def script(accuracies):
        def validate(model, valid, batch_size, ranks):
            return judged(next(answers)) | {"valid_energy": 0.0}

        answers = iter(accuracies)
        for place in (trainer_module, validation):
            monkeypatch.setattr(place, "validate", validate)

    return script


class Recording(Trainer):
    """Keeps the average at the end of each epoch, and the weight of each update."""

    def fit(self, *args, **kwargs):
        self.averages, self.weights = [], []
        return super().fit(*args, **kwargs)

    def update(self, batch):
        outcome = super().update(batch)
        density = outcome.terms.loss - outcome.terms.named["regulariser"]
        self.weights.append((density / -outcome.terms.gap).item())
        return outcome

    def _end_epoch(self, valid):
        self.averages.append(weights(self.state.averaged_model))
        return super()._end_epoch(valid)


# -- the guard itself -----------------------------------------------------------------------------


def test_the_guard_takes_averages_within_the_margin_and_halves_after_others():
    layer = torch.nn.Linear(1, 1)
    guard = EpochGuard(0.02, 0.97, layer)
    first, as_given = weights(layer), guard.accepted
    for value, accuracy, within, scale in (
        (1.0, 0.95, True, 1.0),  # exactly at the margin: 0.97 - 0.02 in floating point is below
        (2.0, 0.949, False, 0.5),
        (3.0, 0.99, True, 0.5),
        (4.0, 0.0, False, 0.25),
    ):
        torch.nn.init.constant_(layer.weight, value)
        assert guard.judge(judged(accuracy), layer) == {
            "valid_accuracy_before": 0.97, "within_margin": within,
            "density_weight_scale": scale,
        }  # fmt: skip
        assert guard.weight_scale == scale
    assert guard.accepted["weight"].item() == 3.0
    assert (guard.kept, guard.epoch) == (3, 4)
    assert_same_bits(first, as_given)


def test_a_margin_that_rounding_makes_larger_is_still_met():
    layer = torch.nn.Linear(1, 1)
    for before in range(100):
        for margin in range(before + 1):
            guard = EpochGuard(margin / 100, before / 100, layer)
            assert guard.judge(judged((before - margin) / 100), layer)["within_margin"]
            assert not guard.judge(judged((before - margin) / 100 - 1e-5), layer)["within_margin"]


# -- in a run -------------------------------------------------------------------------------------


def test_the_last_average_within_the_margin_is_returned_and_kept(tmp_path, scripted, capsys):
    scripted([0.90, 0.89, 0.87, 0.95, 0.80])  # before, then four epochs
    model, run = model_of(), tmp_path / "run"
    trainer = Recording(model, MARGIN, run_dir=run, device="cpu", progress=True)
    result = trainer.fit(blobs(), blobs(seed=1))
    assert result.kept_epoch == 3
    assert "kept: epoch 3 of 4, the last within the accuracy margin" in capsys.readouterr().err
    assert_same_bits(weights(model), trainer.averages[2])
    assert_same_bits(weights(model), weights(jem.load(run)))
    weight = MARGIN.density_weight
    assert trainer.weights == pytest.approx([weight] * 12 + [weight / 2] * 12, abs=1e-3)
    records = read_metrics(run / "metrics.jsonl", "epoch")
    assert [r["within_margin"] for r in records] == [True, False, True, False]
    assert [r["density_weight_scale"] for r in records] == [1.0, 0.5, 0.5, 0.25]
    assert {r["valid_accuracy_before"] for r in records} == {0.9}
    assert [m["within_margin"] for m in result.epochs] == [True, False, True, False]
    assert result.as_given == ""
    assert "as_given" not in json.loads((run / "config.json").read_text())


def test_the_model_as_given_is_returned_if_no_epoch_was_within_the_margin(tmp_path, scripted):
    scripted([0.90, 0.1, 0.3, 0.1, 0.1, 0.9])
    model, run = model_of(), tmp_path / "run"
    given = weights(model)
    trainer = Recording(model, MARGIN, run_dir=run, device="cpu")
    why = (
        "no epoch stayed within the accuracy margin of 0.02 (before 0.9, best 0.3 in epoch 2, "
        "which a margin of 0.6 would have kept)"
    )
    with pytest.warns(UserWarning, match=re.escape(f"{why}, so the model is unchanged; train")):
        result = trainer.fit(blobs(), blobs(seed=1))
    assert result.as_given == why
    assert_same_bits(weights(result.refused), trainer.averages[1])
    assert json.loads((run / "config.json").read_text())["as_given"] == why
    assert not (run / "samples.png").exists()
    assert_same_bits(given, weights(model))
    assert_same_bits(given, weights(jem.load(run)))
    again = Trainer(model_of(), MARGIN, run_dir=run, device="cpu")
    with pytest.warns(UserWarning, match="the model is unchanged"):
        result = again.fit(blobs(), blobs(seed=1), resume=True)
    assert result.as_given == why


@pytest.mark.parametrize("lost", [0.0, 1e-4, 0.0012, 0.31, 0.9])
def test_the_margin_that_is_named_would_have_kept_the_epoch_and_a_smaller_one_not(lost):
    layer = torch.nn.Linear(1, 1)
    guard = EpochGuard(-1.0, 0.9, layer)
    guard.judge(judged(0.9 - lost), layer)
    named = float(re.search(r"a margin of (\S+) would", guard.why_as_given)[1])
    for margin, kept in ((named, 1), (named - 2e-4, 0)):
        other = EpochGuard(margin, 0.9, layer)
        other.judge(judged(0.9 - lost), layer)
        assert other.kept == kept


def test_resume_keeps_what_was_accepted_and_halved(tmp_path, scripted):
    answers = {0: 0.90, 6: 0.89, 12: 0.1, 18: 0.1, 24: 0.1}
    whole, cut, run = model_of(), model_of(), tmp_path / "run"
    scripted(answers.values())
    Trainer(whole, MARGIN, run_dir=tmp_path / "whole", device="cpu").fit(blobs(), blobs(seed=1))

    def crash(metrics):
        if metrics["epoch"] == 3:
            raise CrashError

    scripted(answers.values())
    with pytest.raises(CrashError):
        Trainer(cut, MARGIN, run_dir=run, device="cpu").fit(blobs(), blobs(seed=1), on_epoch=crash)
    scripted([0.0, 0.1, 0.1])  # what it is now before training is not asked; epochs 3 and 4
    resumed = Trainer(model_of(seed=4), MARGIN, run_dir=run, device="cpu")
    resumed.fit(blobs(), blobs(seed=1), resume=True)
    assert resumed.state.guard.halvings == 3
    assert resumed.state.guard.before == 0.9
    assert_same_bits(weights(whole), weights(resumed.model))
    final, expected = (
        torch.load(path / "checkpoints" / "00000024.pt", weights_only=True)
        for path in (run, tmp_path / "whole")
    )
    assert_same_bits(final["modules"]["model"], expected["modules"]["model"])


def test_a_wide_margin_changes_nothing(scripted):
    without, wide = model_of(), model_of()
    Trainer(without, replace(MARGIN, accuracy_margin=None), device="cpu").fit(blobs())
    Trainer(wide, replace(MARGIN, accuracy_margin=1.0), device="cpu").fit(blobs(), blobs(seed=1))
    assert_same_bits(weights(without), weights(wide))


def test_the_guard_goes_back_with_the_rest_when_a_run_diverges(scripted):
    scripted(itertools.cycle([0.9, 0.9, 0.1]))
    recipe = replace(UNSTABLE, accuracy_margin=0.0)
    model = model_of()
    trainer = Trainer(model, recipe, device="cpu")
    result = trainer.fit(blobs(), blobs(seed=1))
    assert result.recoveries >= 1
    ends = [m["within_margin"] for m in result.epochs]
    assert len(ends) == 25
    assert 0 < trainer.state.guard.halvings == ends.count(False)
    assert result.epochs[-1]["valid_accuracy_before"] == trainer.state.guard.before


# -- bad input ------------------------------------------------------------------------------------


def test_a_margin_needs_validation_examples():
    with pytest.raises(InputError, match=r"`accuracy_margin` needs validation examples"):
        Trainer(model_of(), MARGIN, device="cpu").fit(blobs())


def test_a_margin_needs_classes():
    model = JEM(networks.mlp((2,), 1, width=4))
    x, y = blobs()
    data = x, torch.zeros_like(y)
    with pytest.raises(InputError, match=r"`accuracy_margin` needs classes"):
        Trainer(model, MARGIN, device="cpu").fit(data, data)
