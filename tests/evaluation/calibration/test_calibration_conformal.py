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


def test_sets_hold_the_classes_above_the_threshold():
    probabilities, labels = predictions(50, 0)
    sets = ConformalSets(0.8).fit(torch.tensor(probabilities), torch.tensor(labels))
    scores = np.sort(1 - probabilities[np.arange(50), labels])
    assert sets.threshold == scores[41 - 1]  # ceil(51 * 0.8) = 41
    for rows in (probabilities, torch.tensor(probabilities)):
        np.testing.assert_array_equal(sets.predict(rows), 1 - probabilities <= scores[40])


@pytest.mark.parametrize(("coverage", "least"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.99, 99)])
def test_the_least_number_of_inputs_is_enough_and_one_fewer_is_not(coverage, least):
    probabilities, labels = predictions(least, 0)
    ConformalSets(coverage).fit(probabilities, labels)
    if least > 1:
        with pytest.raises(InputError, match=f"at least {least} "):
            ConformalSets(coverage).fit(probabilities[1:], labels[1:])


def test_misuse_is_refused():
    probabilities, labels = predictions(50, 0)
    with pytest.raises(InputError, match="coverage"):
        ConformalSets(1.0)
    with pytest.raises(InputError, match="call `fit`"):
        ConformalSets().predict(probabilities)
    with pytest.raises(InputError, match="`probabilities`"):
        ConformalSets().fit(2 * probabilities / 3, labels)
