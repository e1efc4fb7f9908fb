"""Intervals and estimates by definition: likelihoods maximised on a grid, exact coverage."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import xlogy

from jem.errors import InputError
from jem.evaluation.statistics import difference_estimate, mean_estimate, share_estimate
from jem.evaluation.statistics import (
    error_interval,
    paired_interval,
    percentile_interval,
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


def test_paired_interval_mirrors_and_ends_at_certainty():
    low, high = paired_interval(3, 9, 40, 0.95)
    assert paired_interval(9, 3, 40, 0.95) == pytest.approx((-high, -low))
    all_gained = paired_interval(10, 0, 10, 0.95)
    assert all_gained.high == 1
    assert all_gained.low == pytest.approx((10 - 1.959964**2) / (10 + 1.959964**2), abs=1e-5)


@pytest.mark.parametrize("shares", [(0.004, 0.004), (0.03, 0.0), (0.02, 0.05), (0.2, 0.1)])
def test_paired_interval_covers_at_its_level(shares):
    """Summed over all outcomes of a hundred inputs: no simulation, no error of one."""
    count, covered = 100, 0.0
    truth = shares[0] - shares[1]
    for gained in range(count + 1):
        for lost in range(count + 1 - gained):
            chance = stats.multinomial.pmf(
                [gained, lost, count - gained - lost], count, [*shares, 1 - sum(shares)]
            )
            if chance > 1e-9:
                low, high = paired_interval(gained, lost, count, 0.95)
                covered += chance * (low <= truth <= high)
    assert 0.935 <= covered <= 1


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


def test_an_error_that_has_a_largest_value_has_an_interval_that_ends_there():
    replicates = np.linspace(0.5, 1.0, 101)
    assert error_interval(0.8, replicates, 0.9).high > 1
    assert error_interval(0.8, replicates, 0.9, largest=1.0).high == 1


def test_what_is_no_count_and_no_level_is_refused():
    nothing = torch.empty(0, dtype=torch.bool)
    for call, message in [
        (lambda: wilson_interval(5, 3, 0.95), "`hits` must lie between"),
        (lambda: wilson_interval(1, 3, 1.0), r"`confidence` must lie in \(0, 1\)"),
        (lambda: paired_interval(1, 0, 0, 0.95), "at most n >= 1"),
        (lambda: paired_interval(2, 2, 3, 0.95), "got 2 and 2 of 3"),
        (lambda: paired_interval(1, 0, 2, 0.0), "`confidence`"),
        (lambda: percentile_interval(np.ones(3), math.nan), "`confidence`"),
        (lambda: mean_estimate(nothing), "at least one value"),
        (lambda: share_estimate(nothing), "at least one value"),
        (lambda: difference_estimate(nothing, nothing), "at least one value"),
        (lambda: difference_estimate(torch.ones(2) > 0, torch.ones(3) > 0), "got 2 and 3"),
    ]:
        with pytest.raises(InputError, match=message):
            call()
