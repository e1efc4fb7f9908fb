"""Sampler settings and base distributions go through files of tensors and plain values."""

import io

import pytest
import torch

from jem.errors import InputError
from jem.sampling import (
    ContrastBase,
    GaussianBase,
    LangevinStep,
    MixtureBase,
    SamplerSettings,
    UniformBase,
    base_from_state,
)

SHAPE = (1, 4, 6)


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def bases():
    uniform, contrast = UniformBase(-1.0, 2.0, SHAPE), ContrastBase(-1.0, 2.0, SHAPE)
    x = torch.randn(40, *SHAPE, generator=torch.Generator().manual_seed(1))
    bounds = torch.tensor(-1.0), torch.tensor(2.0)
    gaussian = GaussianBase.fit(x, torch.arange(40) % 2, 2, rank=2, bounds=bounds)
    nested = MixtureBase([MixtureBase([uniform, gaussian]), contrast])
    return [uniform, contrast, gaussian, nested]


@pytest.mark.parametrize("base", bases(), ids=lambda base: base.kind)
def test_base_distributions_come_back_equal(base):
    again = base_from_state(through_a_file(base.state()))
    x, y = (b.sample(20, generator=torch.Generator().manual_seed(2)) for b in (base, again))
    assert type(again) is type(base)
    assert torch.equal(x, y)


def test_an_unknown_kind_is_refused():
    with pytest.raises(InputError, match="'beta'"):
        base_from_state({"kind": "beta"})


def test_settings_come_back_equal():
    settings = SamplerSettings(
        bases()[-1],
        7,
        LangevinStep(0.1, 0.01, None, 0.5, 0.8),
        torch.tensor([0.25, 0.75]),
        trained_on_outliers=True,
    )
    again = SamplerSettings.from_state(through_a_file(settings.state_dict()))
    assert again.step == settings.step
    assert torch.equal(again.class_frequencies, settings.class_frequencies)
    for name in ("num_steps", "trained_on_outliers", "trained_on_noise"):
        assert getattr(again, name) == getattr(settings, name)
    pair = (settings.init, again.init)
    x, y = (init.sample(4, generator=torch.Generator().manual_seed(2)) for init in pair)
    assert torch.equal(x, y)
