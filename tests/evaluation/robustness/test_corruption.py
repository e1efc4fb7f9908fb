"""Figures along corruption severity, against the same computed by hand in one piece."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from jem.data import CORRUPTIONS, corrupt, load
from jem.evaluation.calibration.temperature import TemperatureScaling
from jem.evaluation.ood.detector import OODDetector
from jem.evaluation.robustness import corruption
from jem.evaluation.robustness.corruption import corruption_curves
from jem.model import JEM
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


def test_curves_equal_figures_computed_in_one_piece(model, fitted):
    temperature, detector = fitted
    curves = corruption_curves(model, X, Y, temperature, detector, seed=3)
    assert curves.severities == [*range(6)]
    assert list(curves.accuracy) == list(curves.ece) == list(CORRUPTIONS)
    for kind, severity in product(CORRUPTIONS, range(6)):
        x = X
        if severity:
            x = corrupt(X, kind, severity, seed=derive_seed(3, "corruption", 0))
        with torch.no_grad():
            logits = model.logits(x).double()
        p = (logits / temperature.temperature).softmax(1).numpy()
        flagged = float(detector.is_ood(x).float().mean())
        assert curves.accuracy[kind][severity] == pytest.approx(np.mean(p.argmax(1) == Y.numpy()))
        assert curves.ece[kind][severity] == pytest.approx(ece(p), abs=1e-6)
        assert curves.share_flagged[kind][severity] == pytest.approx(flagged)


def ece(p):
    confidence, right = p.max(1), p.argmax(1) == Y.numpy()
    which = np.ceil(confidence * 15).astype(int)
    gaps = [abs((right - confidence)[which == b].sum()) for b in range(1, 16)]
    return sum(gaps) / len(p)


def test_only_a_batch_of_damaged_images_is_held(model, fitted, monkeypatch):
    sizes, seeds = [], []

    def counted(x, kind, severity, *, seed):
        sizes.append(len(x))
        seeds.append(seed)
        return x

    monkeypatch.setattr(corruption, "corrupt", counted)
    monkeypatch.setattr(corruption, "BATCH_SIZE", 40)
    corruption_curves(model, X, Y, *fitted)
    assert sizes == [40, 40, 40, 30] * 20
    assert seeds[:4] == seeds[4:8]  # the same damage, only more
    assert len(set(seeds)) == 4  # no batch like another


def test_images_of_another_domain_are_damaged_alike(model, fitted):
    class Shifted(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x):
            return self.network(2 * x - 1)

    own = JEM(Shifted(model.network), domain=(0.0, 1.0))
    detector = OODDetector(own).fit((DIGITS.calibration.x + 1) / 2, acceptance_rate=0.9)
    curves = corruption_curves(own, (X + 1) / 2, Y, fitted[0], detector)
    expected = corruption_curves(model, X, Y, *fitted)
    assert curves.accuracy == expected.accuracy
    for kind in CORRUPTIONS:
        assert curves.ece[kind] == pytest.approx(expected.ece[kind], rel=1e-3)
