import itertools

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import binom
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import roc_auc_score

from jem.evaluation.calibration.errors import (
    Confidences,
    bin_index,
    bin_totals,
    binned_error,
    brier_parts,
    class_wise_error,
    debiased_rms_error,
    equal_mass_edges,
    equal_width_edges,
    group_by_confidence,
    maximum_error,
)
from jem.evaluation.calibration.selective import augrc, aurc, risk_coverage_curve
from jem.evaluation.calibration.smooth_error import smooth_error
from jem.evaluation.statistics import (
    error_interval,
    percentile_interval,
    resampling_counts,
    wilson_interval,
)


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
    edges = equal_width_edges(7)
    figures = [
        lambda groups: binned_error(bin_totals(groups, edges)),
        lambda groups: maximum_error(bin_totals(groups, edges)),
        lambda groups: debiased_rms_error(bin_totals(groups, edges)),
        lambda groups: np.concatenate(brier_parts(groups)),
        smooth_error,
        aurc,
        augrc,
    ]
    for figure in figures:
        np.testing.assert_allclose(figure(weighted), figure(repeated), atol=1e-12)


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


def test_ties_share_a_bin_of_equal_mass():
    confidence = np.array([0.5] * 9 + [0.9])
    assert set(bin_index(confidence, equal_mass_edges(confidence, 5))[:9]) == {0}


def test_binned_errors_equal_a_loop_over_bins():
    confidence, correct = pairs(300)
    edges = equal_width_edges(10)
    gaps, squares = [], 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if not inside.any():
            continue
        gap = abs(correct[inside].mean() - confidence[inside].mean())
        noise = correct[inside].var(ddof=1) / inside.sum()
        gaps.append((inside.mean(), gap))
        squares += inside.mean() * (gap**2 - noise)
    totals = bin_totals(group(confidence, correct), edges)
    assert binned_error(totals)[0] == pytest.approx(sum(share * gap for share, gap in gaps))
    assert maximum_error(totals)[0] == pytest.approx(max(gap for _, gap in gaps))
    assert debiased_rms_error(totals)[0] == pytest.approx(np.sqrt(max(squares, 0)))


def test_debiased_squared_error_is_unbiased():
    """The mean over every outcome of one bin of five equals the squared gap, 0.3^2."""
    hits = np.arange(6.0)[:, None]
    counts = np.full((6, 1), 5.0)
    accuracy = hits / 5
    squares = (accuracy - 0.9) ** 2 - accuracy * (1 - accuracy) / 4
    chance = binom.pmf(hits[:, 0], 5, 0.6)
    assert chance @ squares[:, 0] == pytest.approx(0.09)
    totals = bin_totals(Confidences(np.array([0.9]), counts, hits), equal_width_edges(1))
    np.testing.assert_allclose(
        debiased_rms_error(totals), np.sqrt(np.maximum(squares[:, 0], 0)), atol=1e-12
    )


@pytest.mark.parametrize(("norm", "figure"), [("l1", binned_error), ("max", maximum_error)])
def test_binned_errors_agree_with_torchmetrics(norm, figure):
    functional = pytest.importorskip("torchmetrics.functional.classification")
    probabilities = np.random.default_rng(0).dirichlet([0.4] * 4, 500)
    labels = np.random.default_rng(1).integers(0, 4, 500)
    theirs = functional.multiclass_calibration_error(
        torch.tensor(probabilities), torch.tensor(labels), 4, 15, norm
    )
    groups = group(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)
    ours = figure(bin_totals(groups, equal_width_edges(15)))
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


def reflected_smooth_error(confidence, correct):
    """The definition by quadrature: the Gaussian's images at 2m + p and 2m - p."""
    images = np.arange(-4, 5)[:, None] * 2

    def smoothed(sigma):
        def density(t):
            offsets = np.stack([images + confidence - t, images - confidence - t])
            kernel = np.exp(-0.5 * (offsets / sigma) ** 2).sum(axis=(0, 1)) / sigma
            return abs(np.mean((correct - confidence) * kernel)) / np.sqrt(2 * np.pi)

        return quad(density, 0, 1, limit=200, points=np.linspace(0.1, 0.9, 9), epsabs=1e-7)[0]

    return brentq(lambda sigma: smoothed(sigma) - sigma, 0.01, 1, xtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_smooth_error_equals_its_definition_by_quadrature(seed):
    confidence, correct = pairs(60, seed)
    expected = reflected_smooth_error(confidence, correct)
    assert smooth_error(group(confidence, correct))[0] == pytest.approx(expected, abs=1e-4)


def test_smooth_error_at_the_ends_of_the_range():
    certain = np.array([0.0, 1.0, 1.0])
    right = np.array([False, True, True])
    assert smooth_error(group(certain, right))[0] < 2e-6
    assert smooth_error(group(certain, ~right))[0] > 0.3


@pytest.mark.parametrize("seed", range(3))
def test_smooth_error_agrees_with_relplot(seed):
    relplot = pytest.importorskip("relplot")
    confidence, correct = pairs(800, seed)
    theirs = relplot.smECE(f=confidence, y=correct.astype(float))
    assert smooth_error(group(confidence, correct))[0] == pytest.approx(theirs, abs=2e-3)


@pytest.mark.parametrize("levels", [None, 6])
def test_brier_parts_equal_those_of_scikit_learn_isotonic_regression(levels):
    confidence, correct = pairs(150, levels=levels)
    outcome = correct.astype(float)
    fitted = IsotonicRegression(y_min=0, y_max=1).fit_transform(confidence, outcome)
    score, best = np.mean((confidence - outcome) ** 2), np.mean((fitted - outcome) ** 2)
    parts = brier_parts(group(confidence, correct))
    assert parts.score[0] == pytest.approx(score)
    assert parts.miscalibration[0] == pytest.approx(score - best)
    assert parts.discrimination[0] == pytest.approx(outcome.var() - best)
    assert parts.uncertainty[0] == pytest.approx(outcome.var())
    total = parts.miscalibration - parts.discrimination + parts.uncertainty
    np.testing.assert_allclose(parts.score, total)


def test_parts_vanish_where_they_should():
    recalibrated = group(np.repeat([0.5, 0.75], 4), np.array([1, 0, 1, 0, 1, 1, 1, 0]) == 1)
    assert brier_parts(recalibrated).miscalibration[0] == pytest.approx(0, abs=1e-12)
    constant = group(np.full(8, 0.9), np.arange(8) < 3)
    assert brier_parts(constant).discrimination[0] == pytest.approx(0, abs=1e-12)
    nearly = group(1 - np.array([1e-9, 3e-9]), np.array([True, True]))
    assert brier_parts(nearly).score[0] == pytest.approx(5e-18, rel=1e-6)


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


@pytest.mark.parametrize("levels", [None, 5])
def test_augrc_equals_its_form_in_auroc_and_accuracy(levels):
    confidence, correct = pairs(200, levels=levels)
    accuracy = correct.mean()
    expected = (1 - roc_auc_score(correct, confidence)) * accuracy * (1 - accuracy)
    expected += (1 - accuracy) ** 2 / 2
    assert augrc(group(confidence, correct))[0] == pytest.approx(expected)


def test_uninformative_confidence_gives_the_error_rate_and_half_of_it():
    groups = group(np.full(10, 0.7), np.arange(10) < 7)
    assert aurc(groups)[0] == pytest.approx(0.3)
    assert augrc(groups)[0] == pytest.approx(0.15)


def test_curve_says_what_each_threshold_does():
    confidence, correct = pairs(1000, levels=300)
    curve = risk_coverage_curve(group(confidence, correct))
    assert 100 < len(curve.threshold) <= 200
    assert curve.coverage[-1] == 1
    for threshold, coverage, risk, generalized in zip(*curve, strict=True):
        answered = confidence >= threshold
        assert coverage == pytest.approx(answered.mean())
        assert risk == pytest.approx(1 - correct[answered].mean())
        assert generalized == pytest.approx((answered & ~correct).mean())


def test_wilson_interval_solves_its_equation_and_covers_at_its_level():
    hits = np.arange(41)
    low, high = wilson_interval(hits, np.full(41, 40), 0.95)
    for ends, inner in ((low, hits > 0), (high, hits < 40)):
        spread = 1.959963984540054 * np.sqrt(ends * (1 - ends) / 40)
        np.testing.assert_allclose(abs(ends - hits / 40)[inner], spread[inner])
    coverage = [
        binom.pmf(hits, 40, share)[(low <= share) & (share <= high)].sum()
        for share in np.linspace(0.02, 0.98, 97)
    ]
    assert np.mean(coverage) == pytest.approx(0.95, abs=0.01)
    assert min(coverage) > 0.83
    assert wilson_interval(0, 0, 0.95) == (0.0, 1.0)


def test_resampling_draws_each_input_as_often_and_repeats_with_its_seed():
    counts = np.concatenate(list(resampling_counts(50, 2000, seed=3)))
    assert counts.shape == (2000, 50)
    assert (counts.sum(axis=1) == 50).all()
    assert abs(counts.mean(axis=0) - 1).max() < 5 / np.sqrt(2000)
    assert counts.var() == pytest.approx(1 - 1 / 50, abs=0.03)
    np.testing.assert_array_equal(counts, np.concatenate(list(resampling_counts(50, 2000, 3))))


def test_percentile_interval_covers_a_mean_at_its_level():
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(300):
        sample = generator.exponential(size=80)
        (weights,) = resampling_counts(80, 200, seed)
        low, high = percentile_interval(weights @ sample / 80, 0.9)
        covered += low <= 1 <= high
    assert 0.82 < covered / 300 < 0.94


def test_error_interval_holds_the_estimate_and_never_falls_below_zero():
    assert error_interval(1.0, np.linspace(2, 4, 101), 0.9) == pytest.approx((0, 3.9))
    low, high = error_interval(3.0, np.linspace(2, 5, 101), 0.9)
    assert low <= 3 <= high
