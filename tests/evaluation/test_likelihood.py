"""Tests of log Z and of bits of models, against integrals that are known."""

import math

import pytest
import torch
from torch import nn

import jem
from jem import InputError
from jem.sampling import BaseDensity, GaussianBase, LangevinStep, SamplerSettings


class Bowl(nn.Module):
    """A log-density -a |x|^2 / 2 + shift with one output."""

    def __init__(self, precision, shift=0.0):
        super().__init__()
        self.precision = nn.Parameter(torch.tensor(float(precision)))
        self.shift = shift

    def forward(self, x):
        return self.shift - self.precision * x.flatten(1).square().sum(dim=1, keepdim=True) / 2


def bowl(precision, shape, domain=(-1.0, 1.0), shift=0.0):
    return jem.JEM(Bowl(precision, shift), input_shape=shape, domain=domain)


def cut_off(precision, size, count, seed=0):
    """Draws of the normal of a precision inside the box."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4 * count, size, generator=generator) / math.sqrt(precision)
    return x[(x.abs() < 1).all(dim=1)][:count]


@pytest.mark.parametrize(
    ("precision", "exact"), [(1.0, 0.537223), (10.0, -0.233921), (100.0, -1.383647)]
)
def test_a_normal_in_the_domain_has_its_log_z(precision, exact):
    found = jem.log_partition(bowl(precision, (4,), shift=3.0), seed=0, num_steps=100)
    assert found.interval.low <= 4 * exact + 3 <= found.interval.high
    assert found.interval.high - found.interval.low < 0.6
    assert found.doubt == ""
    assert found.log_z == found.at_one.log_z
    assert found.bits_per_dim is found.chosen is found.largest_saving is None


def test_bits_are_those_of_the_density_and_validation_finds_its_temperature():
    x = cut_off(10.0, 2, 800)
    model = bowl(5.0, (2,))  # twice as wide as the data, so the best inverse temperature is 2
    found = jem.log_partition(model, seed=0, num_steps=100, test=x[:400], validation=x[400:])
    assert found.chosen.beta == pytest.approx(2.0, abs=0.5)
    exact = (5 * x[:400].square().sum(dim=1).mean() / 2 - 0.233921) / math.log(2)
    assert found.bits_per_dim.low <= exact <= found.bits_per_dim.high
    assert found.bits_per_dim.value < found.at_one.bits_per_dim.value < found.base_bits.value
    assert found.base_bits.value == 1.0
    saved = found.base_bits.value - found.at_one.bits_per_dim.value
    assert saved < found.largest_saving.low
    assert found.num_test == 400


@pytest.mark.parametrize(
    ("top", "domain", "bits"),
    [
        (255, (-1.0, 1.0), 8.0),
        (255, (0.0, 1.0), 8.0),
        (16, (-1.0, 1.0), 4.087463),
        (1, (0, 1), 1.0),
    ],
)
def test_images_cost_the_bits_of_their_levels_under_a_uniform_model(top, domain, bits):
    generator = torch.Generator().manual_seed(0)
    shares = torch.randint(0, top + 1, (50, 1, 8, 8), generator=generator) / top
    x = domain[0] + shares * (domain[1] - domain[0])
    found = jem.log_partition(bowl(0.0, (1, 8, 8), domain), seed=0, num_steps=10, test=x)
    assert found.levels == top + 1
    assert found.bits_per_dim.value == pytest.approx(bits, abs=1e-6)
    assert found.at_one.effective_size == pytest.approx(192)
    assert found.log_z == pytest.approx(64 * math.log(domain[1] - domain[0]), abs=1e-5)
    assert found.largest_saving.value == 0


def test_noise_stays_within_the_level_so_images_of_one_level_cost_no_more_than_it_holds():
    x = torch.full((200, 1, 2, 2), -1.0)
    x[0, 0, 0] = torch.tensor([1.0, -1 + 2 / 255])  # shows that there are 256 levels
    # A density that halves from one level to the next: the lowest one holds half of a pixel.
    slope = 128 * math.log(2)

    class Falls(nn.Module):
        def forward(self, x):
            return -slope * (x + 1).flatten(1).sum(dim=1, keepdim=True)

    model = jem.JEM(Falls(), input_shape=(1, 2, 2), domain=(-1.0, 1.0))
    found = jem.log_partition(model, seed=0, num_steps=100, test=x[1:])
    assert found.levels == 2  # one level says nothing of others
    found = jem.log_partition(model, seed=0, num_steps=100, test=x)
    assert found.levels == 256
    exact = -4 * math.log(slope)
    assert found.interval.low <= exact <= found.interval.high
    # -log2 of the geometric mean of the density in the lowest level, times the level's width
    bits = slope / 256 / math.log(2) + (math.log2(1 / slope) + 7)
    assert found.at_one.bits_per_dim.low - 0.05 <= bits <= found.at_one.bits_per_dim.high + 0.05


@pytest.mark.parametrize(
    ("temperature", "base"), [(1.0, "class Gaussians"), (0.1, "uniform noise")]
)
def test_images_whose_samples_begin_at_gaussians_at_temperature_1_begin_there(temperature, base):
    model = bowl(10.0, (1, 2, 2))
    generator = torch.Generator().manual_seed(0)
    x = (0.5 * torch.randn(200, 1, 2, 2, generator=generator)).clamp(-1, 1)
    init = GaussianBase.fit(x, torch.arange(200) % 2, 2)
    step = LangevinStep(0.005 / temperature, 0.1)
    model.sampler = SamplerSettings(init, 10, step, torch.tensor([0.5, 0.5]))
    found = jem.log_partition(model, seed=0, num_steps=60)
    assert found.base == base
    assert found.interval.low <= 4 * -0.233921 <= found.interval.high
    assert found.interval.high - found.interval.low < 0.6


def vectors_with_base(temperature):
    """A model whose network adds nothing to the Gaussians of its base density."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(200) % 2
    x = torch.randn(200, 2, generator=generator) * 0.3 + (2.0 * y[:, None] - 1)
    model = jem.JEM(Bowl(0.0), input_shape=(2,), domain=(-3.0, 3.0))
    step = LangevinStep(0.005 / temperature, 0.1)
    model.base = BaseDensity.fit(x, y, (torch.full((2,), -3.0), torch.full((2,), 3.0)), step)
    return model.eval(), x


def test_a_base_density_alone_is_its_own_partition_function():
    model, x = vectors_with_base(1.0)
    found = jem.log_partition(model, seed=0, num_steps=20, test=x)
    assert found.base == "class Gaussians"
    assert found.log_z == pytest.approx(model.base.log_z, abs=1e-6)
    assert found.at_one.effective_size == pytest.approx(192)
    assert found.bits_per_dim.value == pytest.approx(found.base_bits.value, abs=1e-6)
    with torch.no_grad():
        normalised = (model.log_density(x) - found.log_z).mean() / (2 * math.log(2))
    assert found.bits_per_dim.value == pytest.approx(-float(normalised), abs=1e-6)


def test_what_a_network_adds_to_a_base_density_is_integrated_at_the_temperature_of_its_chains():
    model, x = vectors_with_base(0.5)
    model.network = Bowl(0.5)
    found = jem.log_partition(model, seed=0, num_steps=100, test=x)
    assert found.temperature == pytest.approx(0.5)
    middle = (torch.arange(500) + 0.5) / 500 * 8 - 4
    with torch.no_grad():
        grid = model.log_density(torch.cartesian_prod(middle, middle)) / 0.5
    exact = float(grid.logsumexp(dim=0)) + 2 * math.log(8 / 500)
    assert found.interval.low - 0.01 <= exact <= found.interval.high + 0.01
    assert found.interval.high - found.interval.low < 0.2


def test_chains_that_cannot_follow_are_told():
    model, far = bowl(1e6, (30,)), torch.zeros(10, 30)
    found = jem.log_partition(model, seed=0, num_steps=20, num_chains=16, validation=far, test=far)
    assert found.doubt
    assert "num_steps" in found.doubt or "crossed" in found.doubt
    assert found.chosen.trusted
    assert found.chosen.beta < 1


def test_equal_seeds_give_equal_figures_and_leave_the_model_alone(
    point_model, global_rng_untouched
):
    point_model.train()
    before = {name: value.clone() for name, value in point_model.named_parameters()}
    first, second, other = (
        jem.log_partition(point_model, seed=seed, num_steps=20) for seed in (1, 1, 2)
    )
    assert first == second or str(first) == str(second)
    assert first.log_z != other.log_z
    assert point_model.training
    for name, value in point_model.named_parameters():
        assert torch.equal(value, before[name])
        assert value.grad is None


def test_progress_counts_up_to_all_steps(point_model):
    seen = []
    jem.log_partition(point_model, seed=0, num_steps=20, progress=lambda *at: seen.append(at))
    done, totals = zip(*seen, strict=True)
    assert list(done) == sorted(done)
    assert done[-1] <= totals[-1]
    assert len(set(totals)) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"domain": None}, "`model` must have a domain or a base density, got None: set"),
        ({"input_shape": None}, "`model` must know its `input_shape`, got None"),
    ],
)
def test_a_model_that_does_not_say_where_its_inputs_are_is_refused(point_model, change, message):
    for name, value in change.items():
        setattr(point_model, name, value)
    with pytest.raises(InputError, match=message):
        jem.log_partition(point_model, seed=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 5}, "`num_steps` must be a whole number of at least 10, got 5"),
        ({"num_chains": 1}, "`num_chains` must be a whole number of at least 16, got 1"),
        ({"test": torch.zeros(3, 5)}, "`test` must have shape"),
        ({"validation": [[0.0, 1.0]]}, "`validation` must be a tensor of floats"),
        ({"seed": -1}, "`seed` must be"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(point_model, arguments, message):
    with pytest.raises(InputError, match=message):
        jem.log_partition(point_model, **{"seed": 0, **arguments})


def test_a_network_in_place_of_a_model_is_refused():
    with pytest.raises(InputError, match=r"`model` must be a jem.JEM, got Linear: wrap it"):
        jem.log_partition(nn.Linear(2, 2), seed=0)
