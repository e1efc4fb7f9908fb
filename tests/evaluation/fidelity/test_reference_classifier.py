"""The reference classifier: learns, repeats itself, keeps to itself, and says who it is."""

import pytest
import torch

import jem
from jem.evaluation.fidelity.reference_classifier import (
    ReferenceClassifier,
    train_reference_classifier,
)


@pytest.fixture(scope="module")
def digits():
    return jem.data.load("digits")


@pytest.fixture(scope="module")
def reference(digits):
    return train_reference_classifier(digits.train.x, digits.train.y, 10, seed=0, data="digits")


def blobs(num=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % 3
    return torch.randn(num, 2, generator=generator) * 0.3 + labels[:, None], labels


def test_it_learns_digits_that_it_has_not_seen(reference, digits):
    right = reference.predict(digits.test.x) == digits.test.y
    assert right.double().mean() > 0.95
    assert reference.name == "digits, 1,237 training inputs, seed 0"


def test_features_are_standardised_on_what_it_learned_from(reference, digits):
    z = reference.features(digits.train.x)
    assert z.shape == (1237, 64)
    assert z.dtype == torch.float64
    torch.testing.assert_close(z.mean(0), torch.zeros(64).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(64).double(), atol=1e-4, rtol=0)
    # The last layer reads the same features, before they were standardised.
    raw = (z * reference.scale + reference.mean).float()
    said = reference.head(raw.relu()).argmax(1)
    assert (said == reference.predict(digits.train.x)).double().mean() > 0.999


def test_it_can_be_trained_and_asked_in_inference_mode():
    x, y = blobs()
    expected = train_reference_classifier(x, y, 3, seed=0).features(x)
    with torch.inference_mode():
        x, y = blobs()
        reference = train_reference_classifier(x, y, 3, seed=0)
        said = reference.predict(x)
    assert reference.features(x).equal(expected)
    assert (said == y).double().mean() > 0.95
    assert not reference.features(x).requires_grad
    assert not reference.training
    assert not any(p.requires_grad for p in reference.parameters())


@pytest.mark.parametrize(
    ("shape", "features"),
    [((1, 8, 8), 64), ((3, 9, 40), 64), ((1, 100, 33), 64), ((1, 4, 4), 16), ((5,), 16)],
)
def test_any_shape_of_input(shape, features):
    network = ReferenceClassifier(shape, 4)
    x = torch.zeros(2, *shape)
    assert network.features(x).shape == (2, features)
    assert network(x).shape == (2, 4)


def test_features_that_never_change_stay_finite():
    reference = train_reference_classifier(torch.zeros(40, 2), torch.arange(40) % 2, 2, seed=0)
    assert reference.features(torch.zeros(3, 2)).abs().max() < 1e-3
