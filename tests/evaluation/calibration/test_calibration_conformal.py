import numpy as np
import pytest
import torch

from jem.errors import InputError
from jem.evaluation.calibration.conformal import ConformalSets


def predictions(num_samples, seed, sharpen=2.0):
    """Overconfident probabilities: coverage must not depend on their being right."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(num_samples, 6)) * 1.5
    labels = (logits + generator.gumbel(size=logits.shape)).argmax(axis=1)
    probabilities = np.exp(sharpen * logits)
    return probabilities / probabilities.sum(axis=1, keepdims=True), labels


def test_lac_sets_hold_the_classes_above_the_threshold():
    probabilities, labels = predictions(50, 0)
    sets = ConformalSets("lac", 0.8).fit(probabilities, labels)
    scores = np.sort(1 - probabilities[np.arange(50), labels])
    assert sets.threshold == scores[41 - 1]  # ceil(51 * 0.8) = 41
    np.testing.assert_array_equal(sets.predict(probabilities), 1 - probabilities <= scores[40])


def test_aps_sets_hold_the_most_probable_classes():
    probabilities, labels = predictions(200, 0, sharpen=0.5)
    sets = ConformalSets("aps", 0.8).fit(probabilities, labels)
    member = sets.predict(probabilities)
    lowest_in = np.where(member, probabilities, 2).min(axis=1)
    highest_out = np.where(member, -1, probabilities).max(axis=1)
    assert (lowest_in > highest_out).all()
    mass = (probabilities * member).sum(axis=1)
    one_more = np.sort(np.where(member, 0, probabilities), axis=1)[:, -1]
    assert (mass + one_more >= sets.threshold - 1e-9).all()


@pytest.mark.parametrize("method", ["lac", "aps"])
def test_equal_calls_give_equal_sets_on_tensors_too(method):
    probabilities, labels = predictions(200, 0)
    sets = ConformalSets(method, seed=1).fit(torch.tensor(probabilities), torch.tensor(labels))
    first = sets.predict(probabilities)
    np.testing.assert_array_equal(first, sets.predict(torch.tensor(probabilities)))
    again = ConformalSets(method, seed=1).fit(probabilities, labels)
    assert again.threshold == sets.threshold
    assert first.dtype == bool
    assert first.shape == (200, 6)


@pytest.mark.parametrize(("coverage", "least"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.99, 99)])
def test_the_least_number_of_inputs_is_enough_and_one_fewer_is_not(coverage, least):
    probabilities, labels = predictions(least, 0)
    ConformalSets("lac", coverage).fit(probabilities, labels)
    if least > 1:
        with pytest.raises(InputError, match=f"at least {least} "):
            ConformalSets("lac", coverage).fit(probabilities[1:], labels[1:])


def test_misuse_is_refused():
    probabilities, labels = predictions(50, 0)
    for wrong, settings in (
        ("method", {"method": "raps"}), ("seed", {"seed": -1}), ("coverage", {"coverage": 1.0}),
    ):  # fmt: skip
        with pytest.raises(InputError, match=wrong):
            ConformalSets(**settings)
    with pytest.raises(InputError, match="call `fit`"):
        ConformalSets().predict(probabilities)
    with pytest.raises(InputError, match="`probabilities`"):
        ConformalSets().fit(2 * probabilities / 3, labels)
