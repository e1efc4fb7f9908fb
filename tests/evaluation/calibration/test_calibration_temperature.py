import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from jem.errors import InputError
from jem.evaluation.calibration.temperature import TemperatureScaling


def labelled_logits(num_samples, temperature, seed=0):
    """Logits that are right once divided by `temperature`."""
    generator = np.random.default_rng(seed)
    logits = 2 * generator.normal(size=(num_samples, 5))
    labels = (logits + generator.gumbel(size=logits.shape)).argmax(axis=1)
    return temperature * logits, labels


@pytest.mark.parametrize("temperature", [0.05, 0.3, 0.8, 1.5, 4.0, 40.0])
def test_recovers_the_temperature_of_synthetic_logits(temperature):
    scaling = TemperatureScaling().fit(*labelled_logits(20_000, temperature))
    assert scaling.temperature == pytest.approx(temperature, rel=0.03)
    assert scaling.improved
    assert scaling.nll_after < scaling.nll_before


def test_no_temperature_of_a_fine_grid_is_better():
    logits, labels = labelled_logits(500, 2.0)
    logits, labels = torch.tensor(logits), torch.tensor(labels)
    grid = np.geomspace(0.01, 100, 4001)
    losses = np.array([functional.cross_entropy(logits / t, labels).item() for t in grid])
    scaling = TemperatureScaling(math.inf).fit(logits, labels)
    assert scaling.nll_after <= losses.min() + 1e-12
    penalised = 500 * losses + np.log(grid) ** 2 / (2 * 0.5**2)
    with_prior = TemperatureScaling(prior_std=0.5).fit(logits, labels)
    assert with_prior.temperature == pytest.approx(grid[penalised.argmin()], rel=0.0015)
    assert abs(math.log(with_prior.temperature)) < abs(math.log(scaling.temperature))
    assert scaling.nll_before == pytest.approx(functional.cross_entropy(logits, labels).item())


def test_keeps_one_when_the_logits_are_right():
    kept = [TemperatureScaling().fit(*labelled_logits(200, 1.0, seed)) for seed in range(50)]
    unmoved = [scaling for scaling in kept if not scaling.improved]
    assert len(unmoved) >= 35  # P(chi-squared of one degree < 2) = 0.84
    assert all(scaling.temperature == 1 for scaling in unmoved)
    assert all(scaling.nll_after == scaling.nll_before for scaling in unmoved)


def test_a_temperature_that_one_half_asks_for_and_the_other_pays_for_is_refused():
    labels = np.arange(60) % 2
    logits = 5 * np.eye(2)[labels]
    assert TemperatureScaling().fit(logits, labels).temperature == 1  # nothing to gain
    logits[0] = [0.0, 12.0]  # one mistake, and a sure one
    fitted = TemperatureScaling().fit(logits, labels)
    softer = functional.cross_entropy(torch.tensor(logits / 1.6), torch.tensor(labels))
    assert 60 * (fitted.nll_before - softer) > 1  # all 60 together would take it
    assert (fitted.temperature, fitted.improved) == (1.0, False)


def test_halves_hold_every_class_however_rows_are_ordered():
    logits, labels = labelled_logits(400, 2.0)
    temperatures = {
        round(TemperatureScaling().fit(logits[order], labels[order]).temperature, 6)
        for order in (np.arange(400), labels.argsort(), labels.argsort()[::-1])
    }
    assert len(temperatures) == 1
    assert temperatures.pop() > 1.5


def test_the_temperature_stays_in_its_range():
    wrong = TemperatureScaling(math.inf).fit(10 * np.eye(4), [1, 2, 3, 0])
    assert wrong.temperature == pytest.approx(100, rel=1e-5)


def test_transform_keeps_kind_and_dtype_and_predicted_class():
    logits, labels = labelled_logits(1000, 3.0)
    scaling = TemperatureScaling().fit(logits, labels)
    tensor = torch.tensor(logits, requires_grad=True)
    scaled = scaling.transform(tensor)
    assert scaled.dtype == torch.float64
    assert scaled.requires_grad
    assert torch.equal(scaled.argmax(1), tensor.argmax(1))
    array = logits.astype(np.float32)
    assert scaling.transform(array).dtype == np.float32
    np.testing.assert_allclose(scaling.transform(array), array / scaling.temperature, rtol=1e-6)


def test_misuse_is_refused():
    with pytest.raises(InputError, match="`prior_std`"):
        TemperatureScaling(0.0)
    with pytest.raises(InputError, match="call `fit`"):
        TemperatureScaling().transform(np.eye(2))
    for logits in ([[math.nan, 0.0]], [[0.0]], [0.0, 1.0]):
        with pytest.raises(InputError, match="`logits`"):
            TemperatureScaling().fit(logits, [0])
    with pytest.raises(InputError, match="`labels`"):
        TemperatureScaling().fit([[0.0, 1.0]], [2])
    with pytest.raises(InputError, match="`temperature`"):
        TemperatureScaling().load_state_dict({"temperature": -1.0})
