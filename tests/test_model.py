import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from jem import JEM
from jem.data import Scaling, from_arrays
from jem.errors import InputError
from jem.model import batched_logits, energy_of, evaluation_mode, log_density


def normal(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


class Fixed(nn.Module):
    """Returns what it was given, whatever the input."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output


# -- energies


def test_energy_is_minus_log_sum_exp_of_the_logits_and_that_of_a_class_minus_its_logit():
    logits, y = normal(5, 4), torch.tensor([0, 3, 1, 1, 2])
    assert torch.equal(energy_of(logits, y), -logits[torch.arange(5), y])
    torch.testing.assert_close(energy_of(logits), -logits.exp().sum(dim=1).log())
    assert torch.equal(log_density(logits), -energy_of(logits))


def test_energy_of_large_logits_does_not_overflow():
    assert energy_of(torch.full((1, 4), 1e4)).item() == pytest.approx(-1e4 - math.log(4))


def test_one_output_is_the_plain_energy_based_model():
    logits = normal(5, 1)
    torch.testing.assert_close(energy_of(logits), -logits[:, 0])
    assert torch.equal(energy_of(logits, torch.zeros(5, dtype=torch.int64)), -logits[:, 0])


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.zeros(2, 1, dtype=torch.int64), r"shape \(2,\)"),
        (torch.tensor([0.0, 1.0]), r"got torch\.float32"),
        ([0, 1], "got list"),
        (torch.tensor([0, 3]), r"lie in 0\.\.2, got 0\.\.3"),
    ],
)
def test_class_indices_are_whole_and_one_a_row(y, message):
    with pytest.raises(InputError, match=f"`y` must.*{message}"):
        energy_of(torch.zeros(2, 3), y)


@pytest.mark.parametrize(
    ("x", "got"),
    [
        (torch.zeros(3, 2, dtype=torch.uint8), r"torch\.uint8: `model\.preprocess` makes one"),
        (np.zeros((3, 2)), "ndarray"),
        (torch.zeros(3, 4), r"\(3, 4\)"),
        (torch.zeros(2), r"\(2,\)"),
    ],
)
def test_inputs_that_the_network_was_not_made_for_are_refused(x, got):
    model = JEM(nn.Linear(2, 3), input_shape=(2,), scaling=Scaling.of_table(np.ones((2, 2))))
    for use in (model, model.energy, model.log_density, model.predict_proba):
        with pytest.raises(InputError, match=f"`x` must .*, got {got}"):
            use(x)


def test_model_gives_energies_of_its_networks_logits(point_model):
    x, y = normal(6, 2).float(), torch.arange(6) % 3
    logits = point_model.network(x)
    assert torch.equal(point_model(x), logits)
    assert torch.equal(point_model.logits(x), logits)
    assert torch.equal(point_model.energy(x), energy_of(logits))
    assert torch.equal(point_model.energy(x, y), energy_of(logits, y))
    assert torch.equal(point_model.log_density(x), -point_model.energy(x))
    assert point_model.energy(x).requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_widened_before_the_energy(dtype):
    logits = torch.tensor([[32.0, 31.0]], dtype=dtype)
    energy = JEM(Fixed(logits)).energy(torch.zeros(1, 2))
    assert energy.dtype == torch.float32
    torch.testing.assert_close(energy, -logits.float().logsumexp(dim=1), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("output", "named"),
    [(torch.zeros(5), r"\(5,\)"), (torch.zeros(5, 3, 1, 1), r"\(5, 3, 1, 1\)"), ((1, 2), "tuple")],
)
def test_a_network_that_returns_no_logits_is_named(output, named):
    with pytest.raises(InputError, match=rf"must return logits of shape \(B, K\).*{named}"):
        JEM(Fixed(output)).logits(torch.zeros(5, 2))
    with pytest.raises(InputError, match="`network` must be"):
        JEM(lambda x: x)


# -- modes


def mixed():
    """A network whose submodules are in different modes."""
    network = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
    network[1].eval()
    return network


def modes(module):
    return [m.training for m in module.modules()]


def test_evaluation_mode_gives_each_submodule_its_own_mode_back_also_nested_and_after_an_error():
    network = mixed()
    before = modes(network)
    assert len(set(before)) == 2
    with evaluation_mode(network), evaluation_mode(network):
        assert not any(modes(network))
    assert modes(network) == before
    with pytest.raises(RuntimeError), evaluation_mode(network):
        raise RuntimeError
    assert modes(network) == before


# -- many inputs


def test_logits_in_batches_are_those_at_once_on_plain_tensors():
    model = JEM(mixed())
    x = normal(7, 2).float()
    expected = copy.deepcopy(model).eval()(x).detach()
    with torch.inference_mode():
        logits = batched_logits(model, x.double(), batch_size=3)
    assert not logits.is_inference()
    assert not logits.requires_grad
    torch.testing.assert_close(logits, expected)
    assert batched_logits(model, x[:0]).shape == (0, 3)
    x[4, 1] = math.nan
    with pytest.raises(InputError, match="NaN for input 4"):
        batched_logits(model, x, batch_size=3)


def test_a_network_that_works_in_place_does_not_reach_the_inputs():
    x = torch.full((3, 2), -1.0)
    batched_logits(JEM(nn.ReLU(inplace=True)), x)
    assert torch.equal(x, torch.full((3, 2), -1.0))


def test_probabilities_are_those_of_evaluation_mode_and_leave_the_model_alone():
    model = JEM(mixed())
    before, statistics = modes(model), model.network[1].running_mean.clone()
    x = normal(6, 2).float()
    first, second = model.predict_proba(x), model.predict_proba(x)
    assert torch.equal(first, second)  # no dropout
    torch.testing.assert_close(first.sum(dim=1), torch.ones(6))
    assert not first.requires_grad
    assert modes(model) == before
    assert torch.equal(model.network[1].running_mean, statistics)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    torch.testing.assert_close(first, copy.deepcopy(model).eval()(x).softmax(dim=1))


def test_probabilities_of_a_model_without_classes_are_refused():
    with pytest.raises(InputError, match=r"K = 1.*use `log_density`"):
        JEM(nn.Linear(2, 1)).predict_proba(torch.zeros(3, 2))


# -- what a model keeps


def test_domain_takes_numbers_or_tensors_and_gives_tensors():
    model = JEM(nn.Linear(2, 3), domain=(-1, 1))
    assert [float(b) for b in model.domain] == [-1.0, 1.0]
    model.domain = (torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 2.0], dtype=torch.float64))
    low, high = model.bounds()
    assert low.dtype == high.dtype == torch.float32
    assert high.tolist() == [1.0, 2.0]
    model.domain = None
    assert model.domain is None
    assert model.bounds() is None


@pytest.mark.parametrize("bounds", [(1, -1), (0, 0), (math.nan, 1), (torch.zeros(2), 0.0)])
def test_a_domain_without_room_is_refused(bounds):
    with pytest.raises(InputError, match="`domain` must be"):
        JEM(nn.Linear(2, 3), domain=bounds)


def test_settings_are_in_the_state_and_weights_alone_leave_them(point_model):
    point_model.scaling = Scaling.of_table(np.arange(6.0).reshape(3, 2))
    state = point_model.state_dict()
    twin = JEM(copy.deepcopy(point_model.network))
    twin.load_state_dict(state)
    assert twin.classes == point_model.classes
    assert [float(bound) for bound in twin.domain] == [-1.0, 1.0]
    assert torch.equal(twin.scaling.shift, point_model.scaling.shift)
    twin.classes = ("other", "names", "now")
    twin.load_state_dict({k: v for k, v in state.items() if k.startswith("network.")})
    twin.network.load_state_dict(point_model.network.state_dict())
    assert twin.classes == ("other", "names", "now")
    with pytest.raises(RuntimeError, match="Missing key"):
        twin.load_state_dict({"_extra_state": state["_extra_state"]})
    assert copy.deepcopy(point_model).classes == point_model.classes


def test_raw_inputs_go_through_the_models_scaling():
    model = JEM(nn.Flatten(), scaling=Scaling.of_bytes((1, 2, 2), "channels_first"))
    x = model.preprocess(np.array([[0, 255], [255, 0]], dtype=np.uint8))
    assert torch.equal(x, torch.tensor([[[[-1.0, 1.0], [1.0, -1.0]]]]))
    with pytest.raises(InputError, match="keeps no input scaling"):
        JEM(nn.Linear(2, 3)).preprocess(np.zeros((1, 2)))


def test_class_indices_of_inference_mode_do_not_stop_gradients():
    with torch.inference_mode():
        y = torch.tensor([0, 2])
    logits = normal(2, 3).requires_grad_()
    energy_of(logits, y).sum().backward()
    assert torch.equal(logits.grad, -torch.eye(3, dtype=torch.float64)[[0, 2]])
    with pytest.raises(InputError, match=r"lie in 0\.\.2, got 0\.\.3"):
        energy_of(logits, torch.tensor([0, 3]))


def test_inputs_in_other_units_are_doubted_where_they_are_converted():
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8))
    splits = from_arrays(images, [0, 1] * 20)
    model = JEM(nn.Flatten(), domain=splits.domain, scaling=splits.scaling)
    with pytest.warns(UserWarning, match="in the same units") as caught:
        model.preprocess(np.random.default_rng(1).random((1, 8, 8)))
    assert caught[0].filename == __file__
