"""Completion, on energies whose answer is known."""

import pytest
import torch
from test_generation_samples import Wells
from torch import nn

import jem
from jem import JEM
from jem.errors import InputError
from jem.generation import BLOCK
from jem.sampling import LangevinStep, SamplerSettings, UniformBase

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


def settings(shape=(2,), num_classes=3, num_steps=30, step_size=0.2, noise_std=0.01):
    init, step = UniformBase(-1.0, 1.0, shape), LangevinStep(step_size, noise_std)
    return SamplerSettings(init, num_steps, step, torch.full((num_classes,), 1 / num_classes))


class Alike(nn.Module):
    """E(x) = 2 (x_1 - x_2)^2: both components want to be the same. One output."""

    def forward(self, x):
        return -2 * (x[:, :1] - x[:, 1:]).square()


@pytest.fixture
def model(point_model):
    point_model.sampler = settings()
    return point_model


@pytest.fixture
def pictures(image_network):
    model = JEM(image_network, input_shape=(1, 8, 8), domain=(-1.0, 1.0))
    model.sampler = settings((1, 8, 8), num_steps=3, step_size=1.0)
    return model


def points(count, seed=0):
    return torch.rand(count, 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1


FIRST = torch.tensor([True, False])


# -- completion


def test_the_rest_is_drawn_given_what_is_known():
    model = JEM(Alike(), domain=(-1.0, 1.0))
    model.sampler = settings(num_classes=1)
    x = points(40)
    done = jem.inpaint(model, x, FIRST)
    assert torch.equal(done[:, 0], x[:, 0])
    torch.testing.assert_close(done[:, 1], x[:, 0], rtol=0, atol=0.1)


def test_a_class_that_is_known_decides():
    model = JEM(Wells([-0.5, 0.0, 0.5]), domain=(-1.0, 1.0))
    model.sampler = settings(step_size=0.5)
    labels = torch.tensor([0, 1, 2] * 7)
    done = jem.inpaint(model, points(21), FIRST, labels=labels)
    wanted = model.network.centres.detach()[labels]
    torch.testing.assert_close(done[:, 1], wanted, rtol=0, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_known_places_are_kept_to_the_bit_also_outside_the_domain(model, dtype):
    x = (3 * points(BLOCK + 3).double()).to(dtype)
    known = torch.arange(2 * len(x)).view(-1, 2) % 3 != 0
    done = jem.inpaint(model, x, known)
    assert done.dtype == dtype
    assert torch.equal(done[known], x[known])
    assert done[~known].abs().max() <= 1
    assert (done[~known] != x[~known]).all()


def test_what_stands_in_unknown_places_is_never_looked_at(model):
    x = points(5)
    with_gaps = x.clone()
    with_gaps[:, 1] = torch.tensor([torch.nan, torch.inf, 7.0, -1e30, 0.0])
    assert torch.equal(jem.inpaint(model, with_gaps, FIRST), jem.inpaint(model, x, FIRST))


def test_completion_i_does_not_depend_on_the_batch(pictures):
    x = torch.rand(BLOCK + 5, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    known = torch.zeros(8, 8, dtype=torch.bool)
    known[:4] = True
    many = jem.inpaint(pictures, x, known, seed=4)
    for count in (1, 7, BLOCK, BLOCK + 1):
        assert torch.equal(jem.inpaint(pictures, x[:count], known, seed=4), many[:count])
    same_input = jem.inpaint(pictures, x[:1].expand(3, -1, -1, -1), known, seed=4)
    assert len(same_input.unique(dim=0)) == 3
    assert not torch.equal(jem.inpaint(pictures, x, known, seed=5), many)


def test_masks_broadcast_unless_their_first_axis_could_be_inputs_or_channels(pictures):
    x = torch.zeros(3, 1, 8, 8)
    plane = torch.arange(64).view(8, 8) % 2 == 0
    expected = jem.inpaint(pictures, x, plane)
    for known in (plane[None], plane[None, None], plane.expand(3, 1, 8, 8)):
        assert torch.equal(jem.inpaint(pictures, x, known), expected)
    model = JEM(nn.Flatten(), input_shape=(3, 8, 8), domain=(-1.0, 1.0))
    model.sampler = settings((3, 8, 8), num_steps=2)
    x, known = torch.zeros(3, 3, 8, 8), torch.arange(192).view(3, 8, 8) % 5 < 2
    with pytest.raises(InputError, match=r"known\[:, None\]"):
        jem.inpaint(model, x, known)
    assert torch.equal(jem.inpaint(model, x[:2], known), jem.inpaint(model, x, known[None])[:2])


def test_all_known_and_nothing_known(model):
    x = points(3)
    assert torch.equal(jem.inpaint(model, x, torch.tensor(True)), x)
    drawn = jem.inpaint(model, x, torch.tensor(False))
    assert torch.equal(drawn, jem.inpaint(model, -x, torch.tensor(False)))


@pytest.mark.parametrize(
    ("x", "known", "words", "name"),
    [
        (points(3), torch.ones(2), {}, "known"),
        (points(3), torch.ones(5, dtype=torch.bool), {}, "known"),
        (points(3).long(), FIRST, {}, "x"),
        (points(3) / 0, FIRST, {}, "known values of x"),
        (points(3), FIRST, {"labels": [0, 1, 3]}, "labels"),
        (points(3), FIRST, {"num_steps": -1}, "num_steps"),
    ],
)
def test_arguments_of_a_completion_are_checked(model, x, known, words, name):
    with pytest.raises(InputError, match=f"`{name}` must"):
        jem.inpaint(model, x, known, **words)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_completion_works_in_any_gradient_mode_and_leaves_the_model_as_it_was(model, context):
    model.network.body.append(nn.Dropout(0.5))
    model.eval()  # chains run without dropout
    done = jem.inpaint(model, points(3), FIRST)
    x, before = points(3).requires_grad_(), points(3)
    model.train()
    with context():
        assert torch.equal(jem.inpaint(model, x, FIRST.clone()), done)
        jem.inpaint(model, x, FIRST, labels=torch.tensor([0, 1, 2]))
    assert all(m.training for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(x.detach(), before)
    assert not done.requires_grad
