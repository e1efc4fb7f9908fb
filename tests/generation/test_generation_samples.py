"""Samples: chains on energies whose minima are known."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import jem
from jem import JEM
from jem.errors import InputError
from jem.generation import BLOCK
from jem.generation.samples import annealed, guided_energy, stable_step
from jem.networks import mlp
from jem.randomness import named_generator
from jem.sampling import GaussianBase, LangevinStep, MixtureBase, SamplerSettings, UniformBase
from jem.sampling.langevin import run_chains

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


def settings(init=None, frequencies=(0.5, 0.3, 0.2), num_steps=5, **changes):
    init = UniformBase(-1.0, 1.0, (2,)) if init is None else init
    step = replace(LangevinStep(step_size=0.1, noise_std=0.05), **changes)
    return SamplerSettings(init, num_steps, step, torch.tensor(frequencies))


@pytest.fixture
def model(point_model):
    point_model.sampler = settings()
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
    assert [len(jem.sample(model, count=count)) for count in (None, 3, 40)] == [16, 3, 40]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_corrected_samples_have_the_variance_of_their_temperature(temperature):
    step = {"step_size": 0.8 / temperature, "noise_std": 1.6**0.5}
    model = JEM(Wells([0.0]), input_shape=(2,))
    model.sampler = settings(frequencies=(1.0,), num_steps=30, **step)
    corrected = jem.sample(model, count=800, metropolis=True)  # 1,600 numbers: an error of 3.5 %
    assert float(corrected.var()) == pytest.approx(temperature, rel=0.13)
    assert float(jem.sample(model, count=800).var()) > 1.4 * temperature  # T / (1 - eta / 2)


def test_corrected_samples_do_not_depend_on_how_many_are_drawn(model):
    many = jem.sample(model, [0, 1, 2] * 10, metropolis=True)
    few = jem.sample(model, [0, 1, 2], metropolis=True)
    assert torch.equal(many[:3], few)
    assert many.abs().max() < 1
    assert not torch.equal(few, jem.sample(model, [0, 1, 2]))


def test_images_and_chains_without_noise_cannot_be_corrected(model, image_network):
    images = JEM(image_network, input_shape=(1, 8, 8), domain=(-1.0, 1.0))
    images.sampler = settings(UniformBase(-1.0, 1.0, (1, 8, 8)))
    with pytest.raises(InputError, match="corrected steps are for vectors"):
        jem.sample(images, metropolis=True)
    model.sampler = settings(noise_std=0.0)
    with pytest.raises(InputError, match="corrected steps need noise"):
        jem.sample(model, metropolis=True)


def test_without_labels_classes_come_at_their_frequencies():
    model = JEM(Wells([-3.0, 3.0]))
    model.sampler = settings(frequencies=(0.8, 0.2), num_steps=60)
    share = (jem.sample(model, count=800)[:, 0] > 0).double().mean()
    assert share == pytest.approx(0.2, abs=4 * (0.16 / 800) ** 0.5)


def test_a_step_that_overshoots_on_the_energy_of_a_class_is_made_smaller():
    model = JEM(Wells([-3.0, 3.0]))
    model.sampler = settings(
        frequencies=(0.5, 0.5), num_steps=20, step_size=2.5, noise_std=0.01
    )  # times a curvature of 1: x moves to -1.5 x
    y = torch.tensor([0, 1] * 8)
    assert (jem.sample(model, y) - torch.tensor([-3.0, 3.0])[y, None]).abs().max() < 0.1


@pytest.mark.parametrize(("curvature", "divided_by"), [(0.5, 1), (1.9, 1), (2.1, 2.1), (40, 40)])
def test_a_smaller_step_takes_the_slope_to_zero_at_the_same_temperature(curvature, divided_by):
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    step = LangevinStep(step_size=1.0, noise_std=0.1)
    found = stable_step(step, x, lambda x: curvature * x.square().sum(dim=1) / 2)
    assert found.step_size == pytest.approx(1 / divided_by, rel=1e-3)
    assert found.temperature == pytest.approx(step.temperature)


def bases():
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(1))
    gaussian = GaussianBase.fit(x, torch.arange(60) % 3, 3, rank=1)
    uniform = UniformBase(-1.0, 1.0, (2,))
    return [uniform, gaussian, MixtureBase([uniform, gaussian])]


@pytest.mark.parametrize("base", bases(), ids=lambda base: base.kind)
def test_sample_i_does_not_depend_on_how_many_are_drawn(model, base):
    model.sampler = settings(base)
    many = jem.sample(model, count=2 * BLOCK + 5, seed=3)
    labels = torch.arange(2 * BLOCK + 5) % 3
    named = jem.sample(model, labels, seed=3)
    for count in (1, 7, BLOCK, BLOCK + 1):
        assert torch.equal(jem.sample(model, count=count, seed=3), many[:count])
        few = jem.sample(model, labels[:count], seed=3)
        torch.testing.assert_close(few, named[:count], rtol=0, atol=1e-6)


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


def test_one_output_is_sampled_too():
    model = JEM(Wells([0.5]))
    model.sampler = settings(frequencies=(1.0,), num_steps=100)
    x = jem.sample(model)
    assert x.mean() == pytest.approx(0.5, abs=0.2)
    assert torch.equal(jem.sample(model, [0] * 16), x)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_sampling_works_in_any_gradient_mode_and_leaves_the_model_as_it_was(model, context):
    model.network.body.append(nn.Dropout(0.5))
    expected = jem.sample(model.eval(), [0, 1])  # chains run without dropout
    model.train()
    with context():
        assert torch.equal(jem.sample(model, torch.tensor([0, 1])), expected)
    assert all(m.training for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_noise_falls_evenly_to_that_of_training():
    step = LangevinStep(0.1, 0.1, grad_clamp=1.0)
    steps = annealed(step, 5, 0.5)
    assert [step.noise_std for step in steps] == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1])
    assert {step.step_size for step in steps} == {0.1}
    assert annealed(step, 3) == [step] * 3


@pytest.mark.parametrize("labels", [[0, 3], [-1], torch.tensor([True]), [[0], [1]], ["cat"]])
def test_labels_are_checked(model, labels):
    with pytest.raises(InputError, match="`labels` must"):
        jem.sample(model, labels)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("count", 0), ("num_steps", -1), ("guidance", -0.1),
        ("guidance", float("nan")), ("initial_noise", float("inf")),
    ],
)  # fmt: skip
def test_other_arguments_are_checked(model, argument, value):
    with pytest.raises(InputError, match=f"`{argument}` must"):
        jem.sample(model, **{argument: value})


def test_the_model_is_checked(model):
    with pytest.raises(InputError, match=r"be a jem\.JEM"):
        jem.sample(nn.Identity())
    model.sampler = None
    with pytest.raises(InputError, match="keeps no sampler settings"):
        jem.sample(model)


# -- guidance and schedules


def test_default_samples_are_plain_chains_on_the_joint_energy(model):
    labels = torch.arange(BLOCK) % 3
    generator = named_generator(7, "sample", 0)
    frequencies = model.sampler.class_frequencies
    torch.multinomial(frequencies, BLOCK, replacement=True, generator=generator)
    x = model.sampler.init.sample(BLOCK, labels, generator=generator)
    x = run_chains(
        x, lambda x: model.energy(x, labels), [LangevinStep(0.1, 0.05)] * 5, generator=generator,
        bounds=(-1.0, 1.0),
    )  # fmt: skip
    assert torch.equal(jem.sample(model, labels, seed=7), x)
    assert torch.equal(jem.sample(model, labels, seed=7, num_steps=5, guidance=1.0), x)


@pytest.mark.parametrize("head", ["joint", "factored"])
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, 4.0])
def test_guided_energy_is_that_of_the_density_times_a_power_of_the_class(head, strength):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = JEM(mlp((2,), 3, width=8, depth=2, head=head)).double()
    x = torch.linspace(-1, 1, 10, dtype=torch.float64).view(5, 2)
    y = torch.tensor([0, 1, 2, 1, 0])
    p_y = model.predict_proba(x)[torch.arange(5), y]
    expected = model.energy(x) - strength * p_y.log()
    torch.testing.assert_close(guided_energy(model, y, strength)(x), expected)


def test_more_guidance_makes_samples_surer_of_their_class():
    model = JEM(Wells([-0.5, 0.5]), domain=(-2.0, 2.0))
    model.sampler = settings(frequencies=(0.5, 0.5), num_steps=40, noise_std=0.2)
    labels = torch.arange(200) % 2
    drawn = [jem.sample(model, labels, guidance=s) for s in (0.0, 1.0, 4.0)]
    sure = [model.predict_proba(x)[torch.arange(200), labels].mean() for x in drawn]
    assert sure[0] == pytest.approx(0.5, abs=0.05)
    assert sure[0] < sure[1] - 0.05 < sure[2] - 0.1
    assert torch.equal(jem.sample(model, 1 - labels, guidance=0.0), drawn[0])


def test_progress_counts_the_steps_of_all_blocks(model):
    seen = []
    jem.sample(model, count=BLOCK + 1, num_steps=3, progress=lambda *steps: seen.append(steps))
    assert seen == [(done, 6) for done in range(1, 7)]
