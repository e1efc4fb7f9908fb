import itertools

import numpy as np
import pytest
import torch

from jem.evaluation.calibration.errors import (
    aurc,
    bin_index,
    bin_totals,
    binned_error,
    class_wise_error,
    equal_mass_edges,
    group_by_confidence,
    risk_coverage_curve,
)


def equal_width_edges(num_bins):
    return np.arange(num_bins + 1) / num_bins


def pairs(num_samples, seed=0, levels=None):
    """Overconfident pairs; with `levels`, confidences are rounded so that many tie."""
    generator = np.random.default_rng(seed)
    confidence = generator.uniform(0.3, 1, num_samples)
    if levels:
        confidence = np.round(confidence * levels) / levels
    return confidence, generator.random(num_samples) < confidence**1.5


def group(confidence, correct):
    return group_by_confidence(confidence, correct, np.ones((1, len(confidence))))


@pytest.mark.parametrize("levels", [None, 5])
def test_a_weight_is_the_same_as_repeating_the_input(levels):
    confidence, correct = pairs(40, levels=levels)
    weights = np.random.default_rng(1).integers(0, 4, (1, 40))
    repeated = group(np.repeat(confidence, weights[0]), np.repeat(correct, weights[0]))
    weighted = group_by_confidence(confidence, correct, weights.astype(float))
    np.testing.assert_allclose(aurc(weighted), aurc(repeated), atol=1e-12)
    both = [bin_totals(groups, equal_width_edges(7)) for groups in (weighted, repeated)]
    np.testing.assert_allclose(*map(binned_error, both), atol=1e-12)


def test_bins_are_open_below_and_closed_above_and_zero_is_in_the_first():
    edges = equal_width_edges(15)
    values = np.array([0.0, 1 / 15, 3 / 15, 0.2, 0.2000001, 1.0])
    assert bin_index(values, edges).tolist() == [0, 0, 2, 2, 3, 14]


@pytest.mark.parametrize(("num_samples", "num_bins"), [(100, 7), (5, 15), (1, 3)])
def test_bins_of_equal_mass_differ_by_one_at_most(num_samples, num_bins):
    confidence, _ = pairs(num_samples)
    index = bin_index(confidence, equal_mass_edges(confidence, num_bins))
    counts = np.bincount(index, minlength=num_bins)
    assert counts.sum() == num_samples
    assert counts.max() - counts.min() <= 1


def test_binned_error_agrees_with_torchmetrics():
    functional = pytest.importorskip("torchmetrics.functional.classification")
    probabilities = np.random.default_rng(0).dirichlet([0.4] * 4, 500)
    labels = np.random.default_rng(1).integers(0, 4, 500)
    theirs = functional.multiclass_calibration_error(
        torch.tensor(probabilities), torch.tensor(labels), 4, 15
    )
    groups = group(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)
    ours = binned_error(bin_totals(groups, equal_width_edges(15)))
    assert ours[0] == pytest.approx(float(theirs), abs=1e-6)


def test_class_wise_error_is_the_mean_of_the_errors_of_each_class():
    generator = np.random.default_rng(0)
    probabilities, labels = generator.dirichlet([1, 1, 1], 200), generator.integers(0, 3, 200)
    edges = equal_width_edges(8)
    each = [
        binned_error(bin_totals(group(probabilities[:, k], labels == k), edges))[0]
        for k in range(3)
    ]
    ours = class_wise_error(probabilities, labels, np.ones((1, 200)), edges)
    assert ours[0] == pytest.approx(np.mean(each))


def test_aurc_equals_the_mean_over_all_orders_of_tied_inputs():
    confidence = np.array([0.9, 0.9, 0.9, 0.7, 0.5, 0.5])
    correct = np.array([True, False, True, True, False, True])
    risks = []
    for order in itertools.permutations(range(6)):
        if (np.diff(confidence[list(order)]) > 0).any():
            continue
        wrong = np.cumsum(~correct[list(order)])
        risks.append(np.mean(wrong / np.arange(1, 7)))
    assert len(risks) == 12
    assert aurc(group(confidence, correct))[0] == pytest.approx(np.mean(risks))


def test_curve_says_what_each_threshold_does():
    confidence, correct = pairs(1000, levels=300)
    curve = risk_coverage_curve(group(confidence, correct))
    assert 100 < len(curve.threshold) <= 200
    assert curve.coverage[-1] == 1
    for threshold, coverage, risk in zip(*curve, strict=True):
        answered = confidence >= threshold
        assert coverage == pytest.approx(answered.mean())
        assert risk == pytest.approx(1 - correct[answered].mean())
