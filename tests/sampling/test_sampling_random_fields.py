"""Smooth random fields: what is drawn, against dense Gaussians."""

import pytest
import torch

from jem.sampling.random_fields import CONTRASTS, LEVELS, SmoothNoiseBase, smooth_fields

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


def fresh(seed=0):
    return torch.Generator().manual_seed(seed)


def dense_covariance(spectrum):
    """Covariance of a periodic field from its eigenvalues, by the dense Fourier matrix."""
    height, width = spectrum.shape
    size = height * width
    basis = torch.fft.fft2(torch.eye(size, dtype=torch.float64).view(size, height, width))
    basis = basis.view(size, size)
    middle = torch.diag(spectrum.double().flatten()).to(basis.dtype)
    return (basis.conj().T @ middle @ basis).real / size


def test_every_field_has_marginal_variance_one():
    for spectrum in SmoothNoiseBase(0.0, 1.0, (1, 12, 8)).spectra:
        assert torch.allclose(dense_covariance(spectrum).diagonal(), torch.ones(96).double())
    x = smooth_fields(20_000, 6, 6, generator=fresh())
    torch.testing.assert_close(x.square().mean(dim=0), torch.ones(6, 6), rtol=0, atol=0.05)


def test_samples_have_the_second_moments_of_the_clipped_mixture():
    base = SmoothNoiseBase(-1.0, 1.0, (1, 6, 6))
    x = base.sample(40_000, generator=fresh()).flatten(1)
    pairs = []
    for level in LEVELS:
        for contrast in CONTRASTS:
            for spectrum in base.spectra:
                near = dense_covariance(spectrum)[:2, :2] * contrast**2
                normal = torch.randn(2000, 2, dtype=torch.float64, generator=fresh(len(pairs)))
                pair = level + normal @ torch.linalg.cholesky(near).T
                pairs.append(pair.clamp(-1, 1))
    expected = torch.cat(pairs)
    found = x[:, :2].double()
    for moment in (lambda p: p[:, 0].square(), lambda p: p[:, 0] * p[:, 1]):
        assert moment(found).mean() == pytest.approx(float(moment(expected).mean()), rel=0.03)


def test_samples_stay_in_the_domain_repeat_and_do_not_look_at_labels():
    base = SmoothNoiseBase(0.0, 1.0, (3, 8, 8))
    x = base.sample(64, generator=fresh(1))
    assert x.shape == (64, 3, 8, 8)
    assert x.min() >= 0
    assert x.max() <= 1
    again = base.sample(64, torch.ones(64, dtype=torch.long), generator=fresh(1))
    assert torch.equal(x, again)
    assert not torch.equal(x, base.sample(64, generator=fresh(2)))
