"""Chain health, on energies whose chains are known on paper."""

import math

import numpy as np
import pytest
import torch
from scipy.signal import lfilter
from torch import nn

from jem.errors import InputError
from jem.evaluation.chains import MEANINGS, chain_health, gap_verdict, mixing, r_hat_and_size
from jem.model import JEM
from jem.sampling.base_distributions import SamplerSettings, UniformBase
from jem.sampling.langevin import LangevinStep


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


def test_chains_at_rest_are_level():
    found = chain_health(model_of(bowl), normal(4000), normal(64, 1), num_steps=300, seed=0)
    assert found.verdict == "level"
    assert (found.num_data, found.num_chains, found.num_steps) == (4000, 64, 300)
    assert abs(found.gap_start.value) < 4 * found.gap_start.std_error


def test_a_gap_that_closes_is_lag():
    found = chain_health(
        model_of(bowl), normal(500), normal(40, 1, shift=5.0), num_steps=200, seed=0
    )
    assert found.verdict == "lag"
    assert found.gap_start.value == pytest.approx(25, abs=3)
    assert abs(found.gap_end.value) < found.tolerance


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
    assert found.gap_end.value == pytest.approx(-float(bowl(normal(300)).mean()), abs=1e-3)


@pytest.mark.parametrize(
    ("start", "end", "verdict"),
    [
        (0.5, -0.5, "level"),
        (1.1, 1.0, "lag"),
        (8.0, 4.1, "landscape"),
        (8.0, -2.0, "overshoot"),
        (0.0, 3.0, "landscape"),
        (0.0, -3.0, "overshoot"),
        (-8.0, 0.0, "lag"),
        (-8.0, -7.0, "overshoot"),
    ],
)
def test_verdicts_by_hand(start, end, verdict):
    assert gap_verdict(start, end, 1.0) == verdict
    assert verdict in MEANINGS


def test_figures_of_the_start_by_hand():
    data, chains = normal(50, 0), normal(20, 1, shift=1.0)
    found = chain_health(model_of(bowl), data, chains, num_steps=16, seed=0)
    e_data, e_chains = bowl(data), bowl(chains)
    assert found.gap_start.value == pytest.approx(float(e_chains.mean() - e_data.mean()), rel=1e-5)
    variance = e_chains.var() / 20 + e_data.var() / 50
    assert found.gap_start.std_error == pytest.approx(math.sqrt(variance), rel=1e-5)
    errors = found.gap_start.std_error, found.gap_end.std_error
    assert found.tolerance == pytest.approx(
        max(0.5 * float(e_data.double().std()), 2 * max(errors))
    )


def test_chains_stay_inside_the_domain():
    model = model_of(lambda x: -10 * x[:, 0] + x[:, 1].square(), domain=(-1.0, 1.0))
    data = torch.tensor([[-1.0, 0.0], [0.5, 1.0], [0.1, 0.1], [-1.0, 1.0]])
    found = chain_health(model, data, torch.zeros(10, 2), num_steps=20, seed=0)
    energy_data = (-10 * data[:, 0] + data[:, 1].square()).mean()
    assert found.gap_end.value == pytest.approx(-10 - float(energy_data), abs=0.6)  # no further


def test_the_model_is_left_as_it_was(global_rng_untouched):
    with torch.random.fork_rng(devices=[]):
        layers = nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)
    model = JEM(nn.Sequential(*layers), input_shape=(2,), domain=(-1.0, 1.0)).train()
    layers[3].weight.requires_grad_(False)
    model.sampler = settings(3)
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    data, chains = normal(30).clamp(-1, 1), normal(20, 1).clamp(-1, 1)
    first = chain_health(model, data, chains, num_steps=20, seed=0)
    assert all(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()].count(False) == 1
    assert all(value.equal(before[name]) for name, value in model.network.state_dict().items())
    with torch.inference_mode():
        assert chain_health(model, data, chains, num_steps=20, seed=0) == first
    assert chain_health(model, data, chains, num_steps=20, seed=1) != first


def test_chains_without_settings_or_that_blow_up_are_refused():
    with pytest.raises(InputError, match="no sampler settings"):
        chain_health(JEM(Energy(bowl)), normal(30), normal(20, 1), seed=0)
    with pytest.raises(InputError, match=r"left the finite numbers at step .*step_size"):
        chain_health(model_of(bowl, step_size=30.0), normal(30), normal(20, 1), seed=0)


# -- corrected chains -----------------------------------------------------------------------------


def test_corrected_chains_that_mix_agree(global_rng_untouched):
    model = model_of(bowl, step_size=0.5, domain=(-3.0, 3.0))
    found = mixing(model, num_steps=400, seed=0)
    assert found.r_hat < 1.03
    assert 100 < found.effective_size < 16 * 200
    assert 0.7 < found.acceptance < 1
    assert found == mixing(model, num_steps=400, seed=0)


def test_chains_that_stay_in_wells_of_their_own_disagree():
    def two(x):
        return torch.minimum((x + 2).square().sum(dim=1), (x - 2).square().sum(dim=1)) * 20

    model = model_of(two, step_size=0.005, domain=(-3.0, 3.0))
    found = mixing(model, num_steps=100, seed=0)
    assert found.r_hat > 1.5
    assert found.effective_size < 50


def test_a_label_decides_which_well_corrected_chains_go_to():
    model = model_of(bowl, lambda x: 1e4 * bowl(x), step_size=0.5, domain=(-3.0, 3.0))
    assert mixing(model, 0, num_steps=40, seed=0).acceptance > 0.7
    assert (
        mixing(model, 1, num_steps=40, seed=0).acceptance
        != mixing(model, 0, num_steps=40, seed=0).acceptance
    )


def ar1(phi, num_chains, num, seed=0):
    """x' = phi x + e, in its stationary law of variance 1: rho_t = phi^t."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(num_chains, num)) * math.sqrt(1 - phi**2)
    noise[:, 0] = rng.normal(size=num_chains)
    return torch.from_numpy(lfilter([1.0], [1.0, -phi], noise, axis=1))


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9, -0.4])
def test_the_effective_size_of_an_autoregression_has_its_closed_form(phi):
    traces = ar1(phi, 8, 20_000)
    r_hat, size = r_hat_and_size(traces)
    assert size == pytest.approx(traces.numel() * (1 - phi) / (1 + phi), rel=0.08)
    assert 0.999 < r_hat < 1.005


def test_chains_that_each_stay_in_a_place_of_their_own_are_worth_one_draw_each():
    places = torch.randn(10, 1, generator=torch.Generator().manual_seed(1))
    r_hat, size = r_hat_and_size(ar1(0.0, 10, 400) * 0.1 + places)
    assert size == pytest.approx(10, rel=0.1)
    # Ten means of variance var(places), twice each, beside a variance of 0.01 within.
    between = float(places.repeat(2, 1).var())
    assert r_hat == pytest.approx(math.sqrt(1 + between / 0.01), rel=0.05)


def test_chains_that_move_to_and_fro_have_a_floor():
    assert r_hat_and_size(ar1(-0.99, 2, 1000))[1] == pytest.approx(2000 * math.log10(2000))


def test_chains_that_never_move_agree_on_nothing():
    assert r_hat_and_size(torch.full((3, 40), 0.1).double()) == (math.inf, 0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 10}, "`num_steps` must be a whole number of at least 40, got 10"),
        ({"num_chains": 1}, "`num_chains` must be a whole number of at least 2, got 1"),
    ],
)
def test_too_little_for_mixing_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        mixing(model_of(bowl), **{"seed": 0, **arguments})
