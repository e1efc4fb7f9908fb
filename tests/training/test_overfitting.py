"""Which epoch training keeps, and when it ends, where its last epochs overfit."""

from dataclasses import replace

import pytest
import torch
from test_trainer import SMALL, model_of

from jem.model import JEM
from jem.networks import mlp
from jem.training.monitor import read_metrics
from jem.training.trainer import Trainer
from jem.training.validation import EpochGuard, validate

RECIPE = replace(
    SMALL, objective="none", fused=False, epochs=60, learning_rate=5e-3, batch_size=32, ema_decay=0
)


def noise(seed, count=64):
    """Inputs whose labels are drawn by chance: all that can be learned of them is wrong."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 12, generator=generator)
    return x, torch.randint(0, 2, (count,), generator=generator)


def network():
    torch.manual_seed(0)
    return JEM(mlp((12,), 2, width=32))


def judge(guard, nll, train, value):
    layer = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(layer.weight, value)
    figures = {"valid_accuracy": 0.5, "valid_nll": nll, "valid_nll_se": 0.1}
    return guard.judge(figures | {"cross_entropy": train}, layer)["overfits"]


@pytest.mark.parametrize(
    ("last", "train", "overfits"),
    [
        (0.59, 0.2, False),  # above the lowest, 0.5, by less than its standard error
        (0.61, 0.2, True),
        (0.61, 0.4, False),  # training got worse too: something else than overfitting
    ],
)
def test_an_epoch_overfits_where_validation_alone_gets_worse(last, train, overfits):
    guard = EpochGuard(None, 0.0, torch.nn.Linear(1, 1), patience=2)
    assert not judge(guard, 0.7, 0.6, 1.0)
    assert not judge(guard, 0.5, 0.3, 2.0)
    assert judge(guard, last, train, 3.0) is overfits
    assert guard.kept == (2 if overfits else 3)
    assert guard.accepted["weight"].item() == guard.kept
    assert not guard.stops
    judge(guard, last, train, 4.0)
    assert guard.stops is overfits
    assert not judge(guard, 0.55, 0.1, 5.0)  # it has come back
    assert guard.kept == 5
    assert not guard.stops


def test_training_ends_and_returns_the_epoch_of_the_lowest_validation_nll(tmp_path, capsys):
    model, run = network(), tmp_path / "run"
    trainer = Trainer(model, RECIPE, run_dir=run, device="cpu", progress=True)
    result = trainer.fit(noise(0), noise(1))
    nll = [metrics["valid_nll"] for metrics in result.epochs]
    assert result.kept_epoch - 1 == nll.index(min(nll))
    assert len(nll) < 40
    assert nll[-1] > min(nll) + result.epochs[result.kept_epoch - 1]["valid_nll_se"]
    found = validate(model, torch.utils.data.TensorDataset(*noise(1)), 64)
    assert found["valid_nll"] == pytest.approx(min(nll), rel=1e-5)
    assert f"kept: epoch {result.kept_epoch} of {len(nll)}" in capsys.readouterr().err
    assert read_metrics(run / "metrics.jsonl", "end")[0]["kept_epoch"] == result.kept_epoch


def test_the_last_epoch_is_returned_where_validation_does_not_get_worse():
    model = model_of()
    x = torch.linspace(-1, 1, 64).view(32, 2)
    data = x, (x[:, 0] > 0).long()
    result = Trainer(model, SMALL, device="cpu").fit(data, data)
    assert result.kept_epoch == len(result.epochs) == SMALL.epochs
