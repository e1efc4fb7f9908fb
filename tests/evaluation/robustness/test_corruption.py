"""Figures along corruption severity, against the same computed by hand in one piece."""

import json
from itertools import product

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from torch import nn

from jem.data import CORRUPTIONS, corrupt, load
from jem.errors import InputError
from jem.evaluation.calibration.temperature import TemperatureScaling
from jem.evaluation.ood.detector import OODDetector
from jem.evaluation.robustness.corruption import corruption_curves
from jem.evaluation.statistics import wilson_interval
from jem.model import JEM
from jem.networks import mlp
from jem.randomness import derive_seed

DIGITS = load("digits")
X, Y = DIGITS.test.x[:150], DIGITS.test.y[:150]


@pytest.fixture(scope="module")
def model():
    """A linear classifier of digits by least squares."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    x = torch.cat([DIGITS.train.x.flatten(1), torch.ones(len(DIGITS.train), 1)], dim=1).double()
    wanted = 12 * nn.functional.one_hot(DIGITS.train.y, 10).double() - 4
    solved = torch.linalg.solve(x.T @ x + 10 * torch.eye(65), x.T @ wanted).T.float()
    with torch.no_grad():
        network[1].weight.copy_(solved[:, :64])
        network[1].bias.copy_(solved[:, 64])
    return JEM(network, input_shape=(1, 8, 8), domain=(-1.0, 1.0))


@pytest.fixture(scope="module")
def fitted(model):
    with torch.no_grad():
        logits = model.logits(DIGITS.validation.x)
    temperature = TemperatureScaling().fit(logits, DIGITS.validation.y)
    return temperature, OODDetector(model).fit(DIGITS.calibration.x, acceptance_rate=0.9)


def test_rows_equal_figures_computed_in_one_piece(model, fitted):
    temperature, detector = fitted
    rows = corruption_curves(model, X, Y, temperature, detector, seed=3)
    assert [(row["kind"], row["severity"]) for row in rows] == [*product(CORRUPTIONS, range(6))]
    for row in rows:
        x, kind, severity = X, row["kind"], row["severity"]
        if severity:
            x = corrupt(X, kind, severity, seed=derive_seed(3, "corruption", 0))
        with torch.no_grad():
            logits = model.logits(x).double()
        p, scaled = logits.softmax(1).numpy(), (logits / temperature.temperature).softmax(1)
        assert row["num_samples"] == 150
        assert row["accuracy"] == pytest.approx(np.mean(p.argmax(1) == Y.numpy()))
        assert row["nll"] == pytest.approx(log_loss(Y, p, labels=range(10)), rel=1e-5)
        assert row["calibrated_nll"] == pytest.approx(
            log_loss(Y, scaled.numpy(), labels=range(10)), rel=1e-5
        )
        assert row["ece"] == pytest.approx(ece(p), abs=1e-6)
        assert row["calibrated_ece"] == pytest.approx(ece(scaled.numpy()), abs=1e-6)
        assert row["mean_score"] == pytest.approx(float(logits.logsumexp(1).mean()), rel=1e-5)
        assert row["share_flagged"] == pytest.approx(float(detector.is_ood(x).float().mean()))
        hits = row["accuracy"] * 150
        low, high = map(float, wilson_interval(hits, 150, 0.95))
        assert row["intervals"]["accuracy"] == pytest.approx([low, high])
        assert set(row["intervals"]) == {"accuracy", "share_flagged"}
    assert json.loads(json.dumps(rows)) == rows


def ece(p):
    confidence, right = p.max(1), p.argmax(1) == Y.numpy()
    which = np.ceil(confidence * 15).astype(int)
    gaps = [abs((right - confidence)[which == b].sum()) for b in range(1, 16)]
    return sum(gaps) / len(p)


def test_severity_costs_accuracy_and_is_flagged(model, fitted):
    rows = {(r["kind"], r["severity"]): r for r in corruption_curves(model, X, Y, *fitted)}
    for kind in CORRUPTIONS:
        assert rows[kind, 0] == {**rows["noise", 0], "kind": kind}
        assert rows[kind, 5]["nll"] > rows[kind, 0]["nll"]
        assert rows[kind, 5]["accuracy"] <= rows[kind, 1]["accuracy"]
    assert rows["noise", 5]["accuracy"] < 0.9 * rows["noise", 0]["accuracy"]


def test_only_a_batch_of_damaged_images_is_held(model, monkeypatch):
    from jem.evaluation.robustness import corruption

    sizes, seeds = [], []

    def counted(x, kind, severity, *, seed):
        sizes.append(len(x))
        seeds.append(seed)
        return corrupt(x, kind, severity, seed=seed)

    monkeypatch.setattr(corruption, "corrupt", counted)
    words = {"kinds": ["contrast"], "severities": [0, 2, 3]}
    rows = corruption_curves(model, X, Y, batch_size=40, **words)
    assert sizes == [40, 40, 40, 30] * 2
    assert seeds[:4] == seeds[4:]  # the same damage, only more
    assert len(set(seeds)) == 4  # no batch like another
    for row, whole in zip(rows, corruption_curves(model, X, Y, **words), strict=True):
        assert row["nll"] == pytest.approx(whole["nll"])
        assert row["accuracy"] == whole["accuracy"]
        assert row["mean_score"] == pytest.approx(whole["mean_score"])


def test_bootstrap_gives_intervals_and_what_is_missing_is_none(model):
    (row,) = corruption_curves(
        model, X, Y, kinds=["blur"], severities=[2], num_bootstrap=50, confidence=0.8
    )
    assert row["calibrated_nll"] is row["calibrated_ece"] is row["share_flagged"] is None
    assert row["score"] == "log_density"
    for name in ("nll", "ece", "accuracy"):
        low, high = row["intervals"][name]
        assert low <= row[name] <= high


def test_a_score_that_needs_the_network_is_taken(model):
    detector = OODDetector(model, "approximate_mass").fit(DIGITS.calibration.x)
    (row,) = corruption_curves(model, X, Y, None, detector, kinds=["noise"], severities=[4])
    x = corrupt(X, "noise", 4, seed=derive_seed(0, "corruption", 0))
    assert row["mean_score"] == pytest.approx(float(detector.score(x).mean()), rel=1e-5)
    assert row["score"] == "approximate_mass"


def test_images_of_another_domain_are_damaged_alike(model):
    class Shifted(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x):
            return self.network(2 * x - 1)

    own = JEM(Shifted(model.network), domain=(0.0, 1.0))
    rows = corruption_curves(own, (X + 1) / 2, Y, severities=[0, 3])
    for row, expected in zip(rows, corruption_curves(model, X, Y, severities=[0, 3]), strict=True):
        assert row["nll"] == pytest.approx(expected["nll"], rel=1e-4)
        assert row["accuracy"] == expected["accuracy"]


def test_the_model_is_left_as_it_was(model):
    model.train()
    try:
        corruption_curves(model, X, Y, kinds=["noise"], severities=[1])
        assert model.training
        assert all(p.grad is None for p in model.parameters())
    finally:
        model.eval()


def test_mistakes_are_refused(model):
    with pytest.raises(InputError, match=r"for images \(N, C, H, W\), but got \(5, 4\)"):
        corruption_curves(JEM(mlp((4,), 3)), torch.zeros(5, 4), torch.zeros(5).long())
    with pytest.raises(InputError, match="got 'fog'"):
        corruption_curves(model, X, Y, kinds=["fog"])
    with pytest.raises(InputError, match="`batch_size`"):
        corruption_curves(model, X, Y, batch_size=0)
    with pytest.raises(InputError, match="severity"):
        corruption_curves(model, X, Y, severities=[6])
    with pytest.raises(InputError, match="labels"):
        corruption_curves(model, X, Y[:-1])
