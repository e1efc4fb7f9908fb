"""Smooth random fields: what is drawn, and a log-density against dense Gaussians."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from jem.errors import InputError
from jem.sampling.base_distributions import base_from_state
from jem.sampling.random_fields import CONTRASTS, LEVELS, SmoothNoiseBase


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def dense_covariance(spectrum):
    """Covariance of a periodic field from its eigenvalues, by the dense Fourier matrix."""
    height, width = spectrum.shape
    size = height * width
    basis = torch.fft.fft2(torch.eye(size, dtype=torch.float64).view(size, height, width))
    basis = basis.view(size, size)
    middle = torch.diag(spectrum.double().flatten()).to(basis.dtype)
    return (basis.conj().T @ middle @ basis).real / size


def test_log_density_equals_the_mixture_of_dense_gaussians():
    start = SmoothNoiseBase(-1.0, 3.0, (2, 4, 5))
    x = torch.randn(3, 2, 4, 5, dtype=torch.float64, generator=generator())
    given = []
    for level in LEVELS:
        for contrast in CONTRASTS:
            for spectrum in start.spectra:
                mean = torch.full((20,), 1.0 + 2.0 * level, dtype=torch.float64)
                covariance = (2.0 * contrast) ** 2 * dense_covariance(spectrum)
                gaussian = MultivariateNormal(mean, covariance)
                given.append(gaussian.log_prob(x.view(3, 2, 20)).sum(dim=1))
    expected = torch.logsumexp(torch.stack(given), dim=0) - math.log(len(given))
    torch.testing.assert_close(start.log_prob(x), expected, rtol=1e-6, atol=1e-6)


def test_every_field_has_marginal_variance_one():
    start = SmoothNoiseBase(0.0, 1.0, (1, 12, 8))
    torch.testing.assert_close(start.spectra.mean(dim=(1, 2)), torch.ones(len(start.spectra)))
    for spectrum in start.spectra:
        assert torch.allclose(dense_covariance(spectrum).diagonal(), torch.ones(96).double())


def test_fields_have_the_second_moments_of_the_mixture():
    start = SmoothNoiseBase(-1.0, 1.0, (1, 6, 6))
    x = start._fields(40_000, generator())
    mean_level = sum(level**2 for level in LEVELS) / len(LEVELS)
    mean_contrast = sum(contrast**2 for contrast in CONTRASTS) / len(CONTRASTS)
    neighbour = torch.stack([dense_covariance(s)[0, 1] for s in start.spectra]).mean()
    flat = x.flatten(1)
    assert flat.square().mean() == pytest.approx(mean_level + mean_contrast, rel=0.03)
    expected = mean_level + mean_contrast * float(neighbour)
    assert (flat[:, 0] * flat[:, 1]).mean() == pytest.approx(expected, rel=0.05)


def test_samples_stay_in_the_domain_repeat_and_do_not_look_at_labels():
    start = SmoothNoiseBase(0.0, 1.0, (3, 8, 8))
    x = start.sample(64, generator=generator(1))
    assert x.shape == (64, 3, 8, 8)
    assert x.min() >= 0
    assert x.max() <= 1
    again = start.sample(64, torch.ones(64, dtype=torch.long), generator=generator(1))
    assert torch.equal(x, again)
    assert not torch.equal(x, start.sample(64, generator=generator(2)))


def test_fields_range_from_flat_to_cut_at_the_bounds():
    x = SmoothNoiseBase(-1.0, 1.0, (1, 28, 28)).sample(400, generator=generator())
    spread = x.flatten(1).std(dim=1)
    at_bounds = (x.abs() == 1).float().flatten(1).mean(dim=1)
    assert spread.min() < 0.1
    assert spread.max() > 0.8
    assert at_bounds.max() > 0.9
    assert at_bounds.min() == 0


def test_state_makes_an_equal_start():
    start = SmoothNoiseBase(-1.0, 2.0, (1, 8, 6))
    again = base_from_state(start.state_dict())
    assert isinstance(again, SmoothNoiseBase)
    x = start.sample(5, generator=generator(3))
    assert torch.equal(x, again.sample(5, generator=generator(3)))
    assert torch.equal(start.log_prob(x), again.log_prob(x))


def test_mistakes_are_named():
    with pytest.raises(InputError, match=r"images \(C, H, W\), but got \(4,\)"):
        SmoothNoiseBase(-1.0, 1.0, (4,))
    with pytest.raises(InputError, match="`low` below `high`"):
        SmoothNoiseBase(1.0, 1.0, (1, 8, 8))
