"""Chain health, on energies whose chains are known on paper."""

import json
import math
from dataclasses import fields

import pytest
import torch
from torch import nn

from jem.errors import InputError
from jem.evaluation.chains import (
    VERDICTS,
    ChainHealth,
    chain_health,
    judge_gap,
    share_at_bounds,
)
from jem.model import JEM
from jem.networks import mlp
from jem.sampling.base_distributions import UniformBase
from jem.sampling.langevin import LangevinStep
from jem.sampling.settings import SamplerSettings


class Energy(nn.Module):
    """Logits that are minus given energies: (B, 2) -> (B, K)."""

    def __init__(self, *energies):
        super().__init__()
        self.energies = energies

    def forward(self, x):
        return -torch.stack([energy(x) for energy in self.energies], dim=1)


def bowl(x):
    return x.square().sum(dim=1) / 2


def wells(x):
    """A well of depth 0 at -3 and one of depth -4 above it at 3, with a wall between."""
    return torch.minimum(5 * (x + 3).square().sum(dim=1), 5 * (x - 3).square().sum(dim=1) + 4)


def model_of(*energies, step_size=0.1, temperature=1.0, domain=None):
    model = JEM(Energy(*energies), input_shape=(2,), domain=domain)
    model.sampler = settings(len(energies), step_size, math.sqrt(2 * step_size * temperature))
    return model


def settings(num_classes=1, step_size=0.1, noise_std=0.1):
    init = UniformBase(-1.0, 1.0, (2,))
    frequencies = torch.full((num_classes,), 1 / num_classes)
    return SamplerSettings(init, 10, LangevinStep(step_size, noise_std), frequencies)


def normal(num, seed=0, shift=0.0, scale=1.0):
    return torch.randn(num, 2, generator=torch.Generator().manual_seed(seed)) * scale + shift


@pytest.fixture(scope="module")
def at_rest():
    """Chains of the standard normal, started in it: x' = 0.9 x + noise, of variance 1 / 0.95."""
    return chain_health(model_of(bowl), normal(4000), normal(64, 1), num_steps=3000, seed=0)


def test_chains_at_rest_are_level_and_mix_as_the_formula_says(at_rest):
    assert at_rest.verdict == "level"
    assert (at_rest.num_data, at_rest.num_chains, at_rest.num_steps) == (4000, 64, 3000)
    assert abs(at_rest.gap_start.value) < 4 * at_rest.gap_start.std_error
    assert at_rest.energy_data.value == pytest.approx(1, abs=0.06)  # |x|^2 / 2 in the plane
    assert at_rest.energy_data_std == pytest.approx(1, abs=0.08)
    later = at_rest.gaps[1500:]
    assert len(at_rest.gaps) == 3001
    assert sum(later) / len(later) == pytest.approx(1 / 0.95 - 1, abs=0.06)
    # Coordinates have rho_t = 0.9^t; the slowest of 16 directions is a little slower by chance.
    assert at_rest.position.autocorrelation_time == pytest.approx(19, rel=0.15)
    assert at_rest.position.autocorrelation[:5] == pytest.approx(
        [0.9**t for t in range(5)], abs=0.02
    )
    # Squares have rho_t = 0.81^t.
    assert at_rest.energy.autocorrelation_time == pytest.approx(1.81 / 0.19, rel=0.15)
    assert at_rest.energy.effective_size == pytest.approx(64 * 1500 * 0.19 / 1.81, rel=0.15)
    assert at_rest.energy.resolved


def test_mixing_of_positions_is_that_of_the_slowest_direction():
    # One coordinate has rho_t = (-0.8)^t and forgets at once, the other 0.9^t.
    model = model_of(lambda x: 9 * x[:, 0].square() + x[:, 1].square() / 2)
    found = chain_health(model, normal(50), normal(64, 1), num_steps=2000, seed=0)
    assert found.position.autocorrelation_time == pytest.approx(19, rel=0.2)


def test_a_gap_that_closes_is_lag():
    found = chain_health(
        model_of(bowl), normal(500), normal(40, 1, shift=5.0), num_steps=200, seed=0
    )
    assert found.verdict == "lag"
    assert found.gap_start.value == pytest.approx(25, abs=3)
    assert abs(found.gap_end.value) < found.tolerance
    assert found.gaps[0] == pytest.approx(found.gap_start.value)
    assert found.gaps[-1] == pytest.approx(found.gap_end.value)


def test_a_gap_that_the_energy_holds_open_is_landscape():
    model = model_of(wells, step_size=0.01, temperature=0.05)
    data, chains = normal(300, 0, -3.0, 0.1), normal(40, 1, 3.0, 0.1)
    found = chain_health(model, data, chains, num_steps=200, seed=0)
    assert found.verdict == "landscape"
    assert found.gap_end.value == pytest.approx(4, abs=0.1)
    assert chain_health(model, data, -chains, num_steps=200, seed=0).verdict == "level"


def test_chains_that_seek_minima_overshoot():
    model = model_of(bowl, temperature=1e-4)
    found = chain_health(model, normal(300), normal(40, 1), num_steps=200, seed=0)
    assert abs(found.gap_start.value) < found.tolerance
    assert found.verdict == "overshoot"
    assert found.gap_end.value == pytest.approx(-found.energy_data.value, abs=1e-3)


@pytest.mark.parametrize(
    ("start", "end", "verdict"),
    [
        (0.5, -0.5, "level"),
        (1.0, 1.0, "level"),
        (1.1, 1.0, "lag"),
        (8.0, 4.0, "lag"),
        (8.0, 4.1, "landscape"),
        (8.0, -2.0, "overshoot"),
        (0.0, 3.0, "landscape"),
        (0.0, -3.0, "overshoot"),
        (-8.0, -3.0, "lag"),
        (-8.0, 0.0, "lag"),
        (-8.0, -7.0, "overshoot"),
        (-8.0, 3.0, "landscape"),
    ],
)
def test_verdicts_by_hand(start, end, verdict):
    assert judge_gap(start, end, 1.0) == verdict
    assert verdict in VERDICTS


def test_figures_of_the_start_by_hand():
    data, chains = normal(50, 0), normal(20, 1, shift=1.0)
    found = chain_health(model_of(bowl), data, chains, num_steps=16, seed=0)
    e_data, e_chains = bowl(data), bowl(chains)
    assert found.gap_start.value == pytest.approx(float(e_chains.mean() - e_data.mean()), rel=1e-5)
    variance = e_chains.var() / 20 + e_data.var() / 50
    assert found.gap_start.std_error == pytest.approx(math.sqrt(variance), rel=1e-5)
    widest = max(
        0.5 * found.energy_data_std, 2 * found.gap_start.std_error, 2 * found.gap_end.std_error
    )
    assert found.tolerance == widest


def test_conditional_chains_move_on_the_energy_of_their_class():
    def well(centre, floor):
        return lambda x: 3 * (x - centre).square().sum(dim=1) + floor

    model = model_of(well(-2.0, 0.0), well(2.0, 4.0), step_size=0.02, temperature=0.01)
    data, chains = normal(200, 0, -2.0, 0.1), normal(20, 1, -2.0, 0.1)
    ends = {}
    for label in (0, 1):
        labels = torch.full((20,), label)
        found = chain_health(model, data, chains, labels=labels, num_steps=150, seed=0)
        assert found.conditional
        assert found.gap_start.value == pytest.approx(0, abs=0.05)  # E(x, 1) is 100 there
        ends[label] = found.gap_end.value
    # The gap is that of E(x): at the centre of class 1 that is its floor.
    assert ends[0] == pytest.approx(0, abs=0.1)
    assert ends[1] == pytest.approx(4, abs=0.1)
    marginal = chain_health(model, data, chains, num_steps=150, seed=0)
    assert not marginal.conditional
    assert marginal.gap_end.value == pytest.approx(0, abs=0.1)


def test_labels_stay_with_their_chains_when_only_some_are_run():
    def well(centre):
        return lambda x: 3 * (x - centre).square().sum(dim=1)

    model = model_of(well(-2.0), well(2.0), step_size=0.02, temperature=1e-4)
    labels = torch.arange(300) % 2
    chains = (labels * 4.0 - 2.0)[:, None].repeat(1, 2)  # each in the well of its class
    found = chain_health(
        model, chains[:50], chains, labels=labels, num_steps=16, max_chains=30, seed=0
    )
    assert found.num_chains == 30
    assert found.gap_end.value == pytest.approx(0, abs=0.05)


def test_share_at_bounds_is_counted_beside_that_of_the_data():
    model = model_of(lambda x: -10 * x[:, 0] + x[:, 1].square(), domain=(-1.0, 1.0))
    data = torch.tensor([[-1.0, 0.0], [0.5, 1.0], [0.1, 0.1], [-1.0, 1.0]])
    found = chain_health(model, data, torch.zeros(10, 2), num_steps=20, seed=0)
    assert found.at_bounds_data == 0.5
    assert found.at_bounds_start == 0
    assert 0.5 <= found.at_bounds_end < 0.8  # the first coordinate is pulled to its bound
    energy_data = (-10 * data[:, 0] + data[:, 1].square()).mean()
    assert found.gap_end.value == pytest.approx(-10 - float(energy_data), abs=0.6)  # no further
    assert share_at_bounds(data, None) == 0
    low, high = torch.tensor([-1.0, -2.0]), torch.tensor([0.5, 1.0])
    assert share_at_bounds(data, (low, high)) == pytest.approx(5 / 8)


def test_the_model_is_left_as_it_was(global_rng_untouched):
    with torch.random.fork_rng(devices=[]):
        layers = nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)
    network = nn.Sequential(*layers)
    model = JEM(network, input_shape=(2,), domain=(-1.0, 1.0)).train()
    network[3].weight.requires_grad_(False)
    model.sampler = settings(3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data, chains = normal(30).clamp(-1, 1), normal(20, 1).clamp(-1, 1)
    kept = chains.clone()
    first = chain_health(model, data, chains, num_steps=20, seed=0)
    assert all(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()].count(False) == 1
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert chains.equal(kept)
    assert chain_health(model, data, chains, num_steps=20, seed=0) == first
    assert chain_health(model, data, chains, num_steps=20, seed=1) != first


def test_the_answer_is_the_same_in_inference_mode_and_in_double_precision():
    model = JEM(mlp((2,), 3, width=8, depth=1), input_shape=(2,), domain=(-2.0, 2.0))
    model.sampler = settings(3)
    labels = torch.arange(20) % 3
    expected = chain_health(model, normal(30), normal(20, 1), labels=labels, num_steps=20, seed=0)
    with torch.inference_mode():
        data, chains, labels = normal(30), normal(20, 1), torch.arange(20) % 3
        found = chain_health(model, data, chains, labels=labels, num_steps=20, seed=0)
    assert found == expected
    wide = chain_health(model.double(), data, chains, labels=labels, num_steps=20, seed=0)
    assert wide.gap_start.value == pytest.approx(expected.gap_start.value, abs=1e-5)


def test_figures_fit_json(at_rest):
    written = json.loads(json.dumps(at_rest.to_dict(), allow_nan=False))
    assert set(written) == {f.name for f in fields(ChainHealth)} | {"meaning"}
    assert written["meaning"] == VERDICTS["level"]
    assert written["energy"]["r_hat"] == pytest.approx(1, abs=0.05)
    still = model_of(lambda x: 0 * x.sum(dim=1), step_size=0.1, temperature=0.0)
    found = chain_health(still, normal(30), torch.zeros(5, 2), num_steps=16, seed=0).to_dict()
    json.dumps(found, allow_nan=False)
    assert found["position"]["effective_size"] is None


def test_misuse_gets_one_clear_line():
    model, data, chains = model_of(bowl), normal(30), normal(20, 1)
    bad = chains.clone()
    bad[7, 1] = float("nan")
    labels = torch.zeros(20, dtype=torch.long)
    for args, options, match in [
        ((data, bad), {}, "`chains` must be finite, but input 7"),
        ((data * math.inf, chains), {}, "`x_data` must be finite"),
        ((data, chains[:, :1]), {}, r"`chains` must be of shape \(B, 2\)"),
        ((data[:0], chains), {}, "`x_data` must be of shape"),
        ((data[:1], chains), {}, "at least 2 data inputs and 2 chains, but got 1 and 20"),
        ((data, chains[:1]), {}, "but got 30 and 1"),
        ((data, chains), {"num_steps": 15}, "`num_steps` must be at least 16"),
        ((data, chains), {"max_chains": 1}, "`max_chains` must be at least 2"),
        ((data, chains), {"max_chains": 0}, "must be at least 1"),
        ((data, chains), {"labels": labels + 1}, "`labels`"),
        ((data, chains), {"labels": labels[:-1]}, "`labels`"),
    ]:
        with pytest.raises(InputError, match=match) as error:
            chain_health(model, *args, **{"num_steps": 16, "seed": 0, **options})
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="no sampler settings"):
        chain_health(JEM(Energy(bowl)), data, chains, seed=0)


def test_chains_that_blow_up_are_not_hidden():
    with pytest.raises(InputError, match=r"left the finite numbers before move .*step_size"):
        chain_health(model_of(bowl, step_size=30.0), normal(30), normal(20, 1), seed=0)
