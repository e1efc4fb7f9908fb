from dataclasses import replace

import pytest
import torch
from torch import nn

import jem
from jem import JEM
from jem.errors import InputError
from jem.generation import BLOCK
from jem.sampling import ChainSettings, ClassGaussianStart, MixtureStart, UniformStart

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


def settings(start=None, frequencies=(0.5, 0.3, 0.2), **changes):
    chain = ChainSettings(
        UniformStart(-1.0, 1.0, (2,)) if start is None else start,
        num_steps=5, step_size=0.1, noise_std=0.05, grad_clamp=None, max_rms=None,
        conditional=True, class_frequencies=torch.tensor(frequencies),
    )  # fmt: skip
    return replace(chain, **changes)


@pytest.fixture
def model(point_model):
    point_model.chain = settings()
    return point_model


class Wells(nn.Module):
    """E(x, y) = |x - centre_y|^2 / 2 with the centres on a line."""

    def __init__(self, centres):
        super().__init__()
        self.centres = nn.Parameter(torch.tensor(centres))

    def forward(self, x):
        return -(x[:, None, :] - self.centres[None, :, None]).square().sum(dim=2) / 2


def test_samples_have_the_shape_of_inputs_and_stay_in_the_domain(model):
    x = jem.sample(model, [0, 1, 2, 0])
    assert x.shape == (4, 2)
    assert x.abs().max() <= 1
    assert not x.requires_grad


def test_without_labels_16_are_drawn_or_as_many_as_asked_for(model):
    assert jem.sample(model).shape == (16, 2)
    assert jem.sample(model, count=3).shape == (3, 2)
    assert jem.sample(model, count=40).shape == (40, 2)


def test_samples_are_of_the_classes_named():
    model = JEM(Wells([-3.0, 0.0, 3.0]))
    model.chain = settings(num_steps=100, step_size=0.1)
    labels = torch.tensor([2, 0, 1] * 10)
    x = jem.sample(model, labels)
    centres = model.network.centres.detach()[labels]
    torch.testing.assert_close(x, centres[:, None].expand(30, 2), rtol=0, atol=0.5)


def test_without_labels_classes_come_at_their_frequencies():
    model = JEM(Wells([-3.0, 3.0]))
    model.chain = settings(frequencies=(0.8, 0.2), num_steps=60, step_size=0.1)
    share = (jem.sample(model, count=800)[:, 0] > 0).double().mean()
    assert share == pytest.approx(0.2, abs=4 * (0.16 / 800) ** 0.5)


def gaussian():
    source = torch.Generator().manual_seed(1)
    x = torch.randn(60, 2, generator=source)
    return ClassGaussianStart.fit(x, torch.arange(60) % 3, 3, rank=1)


@pytest.mark.parametrize("kind", ["uniform", "gaussian", "mixture"])
def test_sample_i_does_not_depend_on_how_many_are_drawn(model, kind):
    uniform = UniformStart(-1.0, 1.0, (2,))
    mixture = MixtureStart([uniform, gaussian()], [0.5, 0.5])
    model.chain = settings({"uniform": uniform, "gaussian": gaussian(), "mixture": mixture}[kind])
    many = jem.sample(model, count=2 * BLOCK + 5, seed=3)
    for count in (1, 7, BLOCK, BLOCK + 1):
        assert torch.equal(jem.sample(model, count=count, seed=3), many[:count])
    labels = torch.arange(2 * BLOCK + 5) % 3
    many = jem.sample(model, labels, seed=3)
    for count in (1, 7, BLOCK, BLOCK + 1):
        torch.testing.assert_close(
            jem.sample(model, labels[:count], seed=3), many[:count], rtol=0, atol=1e-6
        )


def test_sample_i_depends_on_no_other_label(model):
    first = jem.sample(model, [1, 0, 2, 2])
    second = jem.sample(model, [1, 2, 2, 0])
    assert torch.equal(first[[0, 2]], second[[0, 2]])
    assert not torch.equal(first[1], second[1])


def test_all_samples_differ_also_between_blocks_and_seeds(model):
    x = jem.sample(model, count=3 * BLOCK)
    assert len(x.unique(dim=0)) == 3 * BLOCK
    assert torch.equal(x, jem.sample(model, count=3 * BLOCK))
    assert not torch.equal(x, jem.sample(model, count=3 * BLOCK, seed=1))


def test_labels_may_be_a_list_or_a_tensor_of_any_integer_type(model):
    expected = jem.sample(model, [0, 2])
    for dtype in (torch.int32, torch.uint8, torch.int64):
        assert torch.equal(jem.sample(model, torch.tensor([0, 2], dtype=dtype)), expected)


def test_number_of_steps_can_be_given(model):
    start = jem.sample(model, [0, 1], num_steps=0)
    assert not torch.equal(start, jem.sample(model, [0, 1]))
    assert torch.equal(jem.sample(model, [0, 1], num_steps=5), jem.sample(model, [0, 1]))


def test_one_output_is_sampled_too():
    model = JEM(Wells([0.5]))
    model.chain = settings(frequencies=(1.0,), num_steps=100)
    x = jem.sample(model)
    assert x.shape == (16, 2)
    assert x.mean() == pytest.approx(0.5, abs=0.2)
    assert torch.equal(jem.sample(model, [0] * 16), x)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_sampling_works_in_any_gradient_mode(model, context):
    expected = jem.sample(model, [0, 1])
    with context():
        inside = jem.sample(model, torch.tensor([0, 1]))
    assert torch.equal(inside, expected)


def test_sampling_leaves_the_model_as_it_was(model):
    model.network.body.append(nn.Dropout(0.5))
    model.train()
    x = jem.sample(model, [0, 1])
    assert all(m.training for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(x, jem.sample(model.eval(), [0, 1]))  # chains ran without dropout


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 3], r"`labels` must lie in 0\.\.2, but got 0\.\.3"),
        ([-1], r"`labels` must lie in 0\.\.2, but got -1\.\.-1"),
        ([], "must be class indices"),
        ([0.0, 1.0], "must be class indices of shape .* got torch.float32"),
        (torch.tensor([True]), "must be class indices of shape .* got torch.bool"),
        (torch.zeros(2, 1, dtype=torch.int64), r"of shape \(2, 1\)"),
        (torch.tensor(1), r"of shape \(\)"),
        (["cat"], "must be class indices, but got"),
    ],
)
def test_labels_are_checked(model, labels, message):
    with pytest.raises(InputError, match=message):
        jem.sample(model, labels)


def test_count_steps_and_model_are_checked(model):
    with pytest.raises(InputError, match="`count` must be at least 1, but got 0"):
        jem.sample(model, count=0)
    with pytest.raises(InputError, match="`num_steps` must be at least 0, but got -1"):
        jem.sample(model, num_steps=-1)
    model.chain = None
    with pytest.raises(InputError, match="keeps no sampler settings"):
        jem.sample(model)
