"""Completion and denoising, on energies whose answer is known."""

import pytest
import torch
from torch import nn

import jem
from jem import JEM
from jem.errors import InputError
from jem.generation import BLOCK
from jem.sampling import LangevinStep, SamplerSettings, UniformBase

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


def settings(shape=(2,), num_classes=3, **changes):
    init, num_steps = UniformBase(-1.0, 1.0, shape), changes.pop("num_steps", 30)
    step = LangevinStep(**({"step_size": 0.2, "noise_std": 0.01} | changes))
    frequencies = torch.full((num_classes,), 1 / num_classes)
    return SamplerSettings(init, num_steps, step, frequencies, class_conditional_chains=True)


class Alike(nn.Module):
    """E(x) = 2 (x_1 - x_2)^2: both components want to be the same. One output."""

    def forward(self, x):
        return -2 * (x[:, :1] - x[:, 1:]).square()


class Wells(nn.Module):
    """E(x, y) = |x - centre_y|^2 / 2."""

    def __init__(self, centres):
        super().__init__()
        self.centres = nn.Parameter(torch.tensor(centres))

    def forward(self, x):
        return -(x[:, None, :] - self.centres[None, :, None]).square().sum(dim=2) / 2


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


# -- completion -----------------------------------------------------------------------------------


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
    pulled = jem.inpaint(model, points(21), FIRST, labels=labels, guidance=3.0)
    assert (pulled[labels == 2, 1] > done[labels == 2, 1] + 0.1).all()


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
    other = torch.cat([x[:1], x[5:]])
    assert torch.equal(jem.inpaint(pictures, other, known, seed=4)[0], many[0])
    same_input = jem.inpaint(pictures, x[:1].expand(3, -1, -1, -1), known, seed=4)
    assert len(same_input.unique(dim=0)) == 3
    assert not torch.equal(jem.inpaint(pictures, x, known, seed=5), many)


def test_masks_broadcast(pictures):
    x = torch.zeros(3, 1, 8, 8)
    plane = torch.arange(64).view(8, 8) % 2 == 0
    expected = jem.inpaint(pictures, x, plane)
    for known in (plane[None], plane[None, None], plane.expand(3, 1, 8, 8)):
        assert torch.equal(jem.inpaint(pictures, x, known), expected)


def test_a_mask_that_could_be_of_inputs_or_of_channels_is_refused():
    model = JEM(nn.Flatten(), input_shape=(3, 8, 8), domain=(-1.0, 1.0))
    model.sampler = settings((3, 8, 8), num_steps=2)
    x, known = torch.zeros(3, 3, 8, 8), torch.arange(192).view(3, 8, 8) % 5 < 2
    with pytest.raises(InputError, match=r"pass known\[:, None\] for inputs, known\[None\] for"):
        jem.inpaint(model, x, known)
    assert torch.equal(jem.inpaint(model, x[:2], known), jem.inpaint(model, x, known[None])[:2])


def test_all_known_and_nothing_known(model):
    x = points(3)
    assert torch.equal(jem.inpaint(model, x, torch.tensor(True)), x)
    drawn = jem.inpaint(model, x, torch.tensor(False))
    assert torch.equal(drawn, jem.inpaint(model, -x, torch.tensor(False)))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_restoring_works_in_any_gradient_mode(model, context):
    done, clean = jem.inpaint(model, points(3), FIRST), jem.denoise(model, points(3))
    with context():
        labels = torch.tensor([0, 1, 2])
        assert torch.equal(jem.inpaint(model, points(3), FIRST.clone()), done)
        assert torch.equal(jem.denoise(model, points(3)), clean)
        jem.inpaint(model, points(3), FIRST, labels=labels)
        jem.denoise(model, points(3), labels=labels, guidance=2.0)


def test_restoring_leaves_model_and_inputs_as_they_were(model):
    model.network.body.append(nn.Dropout(0.5))
    model.train()
    x = points(3).requires_grad_()
    before = x.detach().clone()
    done, clean = jem.inpaint(model, x, FIRST), jem.denoise(model, x)
    assert all(m.training for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(x.detach(), before)
    assert not done.requires_grad
    assert torch.equal(done, jem.inpaint(model.eval(), x, FIRST))  # chains ran without dropout
    assert torch.equal(clean, jem.denoise(model, x))


def test_progress_counts_moves(model):
    told = []
    jem.inpaint(model, points(20), FIRST, num_steps=2, progress=lambda *m: told.append(m))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(
    ("x", "known", "message"),
    [
        (points(3), torch.ones(2), "`known` must be a tensor of booleans.* got torch.float32"),
        (points(3), [True, False], "`known` must be a tensor of booleans.* got list"),
        (points(3), torch.ones(5, dtype=torch.bool), r"must broadcast to .*\(3, 2\).* \(5,\)"),
        (points(3)[:, :1], FIRST, r"`x` must be of shape \(B, 2\), B >= 1, but got \(3, 1\)"),
        (points(3)[0], FIRST, r"`x` must be of shape"),
        (points(0), FIRST, r"`x` must be of shape .* but got \(0, 2\)"),
        (points(3).long(), FIRST, "`x` must be a tensor of floats .* got torch.int64"),
        ([[0.0, 1.0]], FIRST, "`x` must be a tensor of floats .* got list"),
        (points(3) / 0, FIRST, "known values of `x` must be finite"),
    ],
)
def test_completion_checks_inputs_and_mask(model, x, known, message):
    with pytest.raises(InputError, match=message):
        jem.inpaint(model, x, known)


def test_other_arguments_of_a_completion_are_checked(model):
    for words, message in [
        ({"labels": [0]}, "`labels` must be 3, one an input, but got 1"),
        ({"labels": [0, 1, 3]}, r"`labels` must lie in 0\.\.2"),
        ({"num_steps": -1}, "`num_steps` must be"),
        ({"initial_noise": -1.0}, "`initial_noise` must be at least 0"),
        ({"labels": [0, 1, 2], "guidance": -1.0}, "`guidance` must be at least 0"),
    ]:
        with pytest.raises(InputError, match=message):
            jem.inpaint(model, points(3), FIRST, **words)
    model.sampler = None
    with pytest.raises(InputError, match="keeps no sampler settings"):
        jem.inpaint(model, points(3), FIRST)


# -- denoising ------------------------------------------------------------------------------------


def well(step_size=0.1, noise_std=0.0):
    """E(x) = |x|^2 / 2 of two components."""
    model = JEM(Wells([0.0]), domain=(-1.0, 1.0))
    model.sampler = settings(num_classes=1, step_size=step_size, noise_std=noise_std)
    return model


def test_denoising_goes_down_the_energy_as_far_as_the_noise_allows():
    x = torch.tensor([[0.6, 0.8], [0.3, -0.4]])
    one = jem.denoise(well(), x, noise_std=10.0, num_steps=1)
    torch.testing.assert_close(one, 0.9 * x)
    # Each input lies 1 and 0.5 from the bottom; the way is cut at a root mean square of 0.1.
    many = jem.denoise(well(), x, noise_std=0.2, num_steps=200)
    radius = 0.1 * 2**0.5
    torch.testing.assert_close(many, x * (1 - radius / x.norm(dim=1, keepdim=True)))


def test_denoising_brings_noisy_points_nearer_to_where_they_came_from():
    model = JEM(Wells([-0.5, 0.0, 0.5]), domain=(-1.0, 1.0))
    model.sampler = settings(step_size=0.3)
    labels = torch.arange(300) % 3
    clean = model.network.centres.detach()[labels, None].expand(-1, 2)
    noise = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    noisy = (clean + 0.2 * noise).clamp(-1, 1)
    cleaned = jem.denoise(model, noisy, noise_std=0.2, labels=labels)
    assert (cleaned - clean).square().mean() < 0.6 * (noisy - clean).square().mean()


def test_denoising_stays_in_the_ball_and_in_the_domain(pictures):
    x = 1.2 * torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    clean = jem.denoise(pictures, x, noise_std=0.3)
    assert clean.abs().max() <= 1
    rms = (clean - x.clamp(-1, 1)).flatten(1).square().mean(dim=1).sqrt()
    assert rms.max() <= 0.15 + 1e-6
    assert rms.min() > 0
    assert torch.equal(jem.denoise(pictures, x, noise_std=0.0), x.clamp(-1, 1))


def test_denoising_of_input_i_does_not_depend_on_the_batch(pictures):
    x = torch.rand(BLOCK + 2, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    many = jem.denoise(pictures, x, seed=1)
    for count in (1, BLOCK, BLOCK + 1):
        assert torch.equal(jem.denoise(pictures, x[:count], seed=1), many[:count])
    assert not torch.equal(jem.denoise(pictures, x, seed=2), many)


def test_arguments_of_denoising_are_checked(model):
    for x, words, message in [
        (points(3), {"noise_std": -0.1}, "`noise_std` must be at least 0"),
        (points(3), {"noise_std": float("nan")}, "`noise_std` must be at least 0"),
        (points(3), {"labels": [0]}, "`labels` must be 3"),
        (points(3) * torch.nan, {}, "`x` must be finite, but input 0 is not"),
        (points(3)[0], {}, "`x` must be of shape"),
    ]:
        with pytest.raises(InputError, match=message):
            jem.denoise(model, x, **words)
