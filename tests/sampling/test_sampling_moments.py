"""Moments of a class: the short way through a large covariance against its spectrum."""

import torch
from sklearn import covariance

from jem.sampling.moments import centred_by_class, ledoit_wolf, top_eigenpairs


def test_the_largest_directions_of_a_large_covariance_are_those_of_the_decomposition(generator):
    spectrum = (1 + torch.arange(600.0, dtype=torch.float64)) ** -1.2
    turned = torch.linalg.qr(torch.randn(600, 600, dtype=torch.float64, generator=generator)).Q
    matrix = turned @ spectrum.diag() @ turned.T
    values, vectors = top_eigenpairs(matrix, 16)
    torch.testing.assert_close(values, spectrum[:16].flip(0), rtol=1e-4, atol=0)
    whole = turned[:, :16] @ spectrum[:16].diag() @ turned[:, :16].T
    found = vectors @ values.diag() @ vectors.T
    assert (found - whole).norm() < 1e-3 * whole.norm()


def test_rows_of_classes_have_their_means_and_the_ledoit_wolf_covariance(generator):
    labels = torch.randint(3, (50,), generator=generator)
    x = torch.randn(50, 6, generator=generator) * torch.arange(1, 7) + 5 * labels[:, None]
    means, within, counts = centred_by_class(x, labels)
    assert counts.equal(labels.bincount())
    z = x.double().numpy()
    for k in range(3):
        z[labels == k] -= z[labels == k].mean(axis=0)
        torch.testing.assert_close(means[k], x[labels == k].double().mean(dim=0))
    expected, _ = covariance.ledoit_wolf(z, assume_centered=True)
    torch.testing.assert_close(ledoit_wolf(within), torch.from_numpy(expected))
