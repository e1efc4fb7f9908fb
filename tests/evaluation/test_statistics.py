"""Intervals and estimates by definition: likelihoods maximised on a grid, exact coverage."""

import math

import numpy as np
import pytest
import torch
from scipy.special import xlogy

from jem.evaluation.statistics import (
    difference_estimate,
    error_interval,
    mean_estimate,
    paired_interval,
    resampling_counts,
    share_estimate,
    wilson_interval,
)


def score_statistic(gained, lost, count, difference):
    """How many standard errors the counts lie from a difference, at its likeliest shares."""
    share_lost = np.linspace(max(0, -difference), (1 - difference) / 2, 400_001)
    share_gained = share_lost + difference
    same = np.clip(1 - share_lost - share_gained, 0, 1)
    likelihood = xlogy(gained, np.maximum(share_gained, 0)) + xlogy(lost, share_lost)
    likelihood += xlogy(count - gained - lost, same)
    best = share_lost[likelihood.argmax()]
    variance = count * (2 * best + difference - difference**2)
    return (gained - lost - count * difference) / math.sqrt(variance)


@pytest.mark.parametrize(
    ("gained", "lost", "count"), [(12, 2, 50), (0, 0, 30), (5, 0, 20), (1, 7, 8), (40, 39, 360)]
)
def test_ends_of_the_paired_interval_are_where_the_score_test_turns(gained, lost, count):
    low, high = paired_interval(gained, lost, count, 0.9)
    assert low < (gained - lost) / count < high
    assert score_statistic(gained, lost, count, low) == pytest.approx(1.644854, abs=1e-3)
    assert score_statistic(gained, lost, count, high) == pytest.approx(-1.644854, abs=1e-3)


def test_estimates_never_claim_what_a_sample_cannot_know():
    same = torch.ones(360, dtype=torch.bool)
    found = difference_estimate(same, same)
    reach = 1.959964**2 / (360 + 1.959964**2)
    assert (found.low, found.value, found.high) == pytest.approx((-reach, 0, reach))
    assert share_estimate(same).low < 1
    for values in (torch.zeros(9), torch.ones(1)):
        assert all(math.isnan(part) for part in mean_estimate(values)[1:])
    assert mean_estimate(torch.tensor([0.0, 2.0])).std_error == pytest.approx(1)


def test_difference_is_that_of_paired_shares():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 50, generator=generator) < torch.tensor([[0.9], [0.7]])
    found, gain = difference_estimate(first, second), first.double() - second.double()
    assert found.value == pytest.approx(float(gain.mean()))
    assert found.std_error == pytest.approx(float(gain.std(correction=0)) / math.sqrt(50))


def test_wilson_interval_solves_its_equation():
    hits = np.arange(41)
    low, high = wilson_interval(hits, np.full(41, 40), 0.95)
    for ends, inner in ((low, hits > 0), (high, hits < 40)):
        spread = 1.959963984540054 * np.sqrt(ends * (1 - ends) / 40)
        np.testing.assert_allclose(abs(ends - hits / 40)[inner], spread[inner])
    assert wilson_interval(0, 0, 0.95) == (0.0, 1.0)


def test_resampling_draws_each_input_as_often_and_repeats_with_its_seed():
    counts = np.concatenate(list(resampling_counts(50, 2000, seed=3)))
    assert counts.shape == (2000, 50)
    assert (counts.sum(axis=1) == 50).all()
    assert abs(counts.mean(axis=0) - 1).max() < 5 / np.sqrt(2000)
    assert counts.var() == pytest.approx(1 - 1 / 50, abs=0.03)
    np.testing.assert_array_equal(counts, np.concatenate(list(resampling_counts(50, 2000, 3))))


def test_error_interval_holds_the_estimate_and_stays_between_zero_and_one():
    assert error_interval(0.1, np.linspace(0.2, 0.4, 101), 0.9) == pytest.approx((0, 0.39))
    low, high = error_interval(0.8, np.linspace(0.5, 1, 101), 0.9)
    assert low <= 0.8 <= high == 1
