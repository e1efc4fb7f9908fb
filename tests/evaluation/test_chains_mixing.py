"""Autocorrelation time and effective sample size, where a formula gives them."""

import math

import numpy as np
import pytest
import torch
from scipy.signal import lfilter

from jem.errors import InputError
from jem.evaluation.autocorrelation import autocorrelation, mixing


def ar1(phi, num_chains, num, seed=0):
    """x' = phi x + e, in its stationary law of variance 1: rho_t = phi^t."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(num_chains, num)) * math.sqrt(1 - phi**2)
    noise[:, 0] = rng.normal(size=num_chains)
    return lfilter([1.0], [1.0, -phi], noise, axis=1)


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9, -0.4])
def test_ar1_has_its_closed_form(phi):
    traces = ar1(phi, 8, 20_000)
    found = mixing(traces)
    tau = (1 + phi) / (1 - phi)
    assert found.autocorrelation_time == pytest.approx(tau, rel=0.08)
    assert found.effective_size == pytest.approx(traces.size / tau, rel=0.08)
    assert found.r_hat == pytest.approx(1, abs=0.01)
    assert found.resolved
    lags = np.arange(20)
    assert found.autocorrelation[:20] == pytest.approx(phi**lags, abs=0.03)
    assert len(found.autocorrelation) == 100
    assert len(mixing(traces, num_lags=7).autocorrelation) == 7


def test_effective_size_says_how_sure_a_mean_is():
    means, sizes = [], []
    for seed in range(200):
        traces = ar1(0.8, 4, 500, seed)
        means.append(traces.mean())
        sizes.append(mixing(traces).effective_size)
    assert np.var(means) == pytest.approx(1 / np.mean(sizes), rel=0.25)


def test_autocorrelation_is_that_of_its_formula():
    traces = ar1(0.6, 3, 12) + np.arange(3)[:, None]
    num_chains, num = traces.shape
    own = traces - traces.mean(axis=1, keepdims=True)
    within = traces.var(axis=1, ddof=1).mean()
    overall = within * (num - 1) / num + traces.mean(axis=1).var(ddof=1)
    for lag in range(1, num):
        covariance = sum(own[m, i] * own[m, i + lag] for m in range(3) for i in range(num - lag))
        expected = 1 - (within - covariance / (num * num_chains)) / overall
        assert autocorrelation(traces)[lag] == pytest.approx(expected)
    assert autocorrelation(torch.from_numpy(traces))[0] == 1


def test_chains_that_each_stay_in_a_place_of_their_own_are_worth_one_draw_each():
    traces = ar1(0.0, 10, 400) * 1e-3 + np.random.default_rng(1).normal(size=(10, 1))
    found = mixing(traces)
    assert found.effective_size == pytest.approx(10, rel=0.1)
    assert found.r_hat > 10
    assert not found.resolved


def test_a_drift_is_no_agreement():
    found = mixing(np.linspace(0, 3, 400) + ar1(0.0, 4, 400))
    assert found.r_hat > 1.2
    assert found.effective_size < 100


def test_chains_that_move_to_and_fro_have_a_floor():
    traces = ar1(-0.99, 2, 1000)
    assert mixing(traces).autocorrelation_time == pytest.approx(1 / math.log10(2000))


def test_a_quantity_that_never_changes_is_unknown():
    found = mixing(np.full((3, 40), 0.1))
    assert all(math.isnan(value) for value in found[:3])
    assert not found.resolved
    apart = mixing(np.repeat([[0.0], [1.0]], 40, axis=1))  # but in two places
    assert apart.r_hat == math.inf
    assert apart.effective_size == pytest.approx(2, abs=0.2)


def test_one_chain_alone():
    found = mixing(ar1(0.5, 1, 20_000))
    assert found.autocorrelation_time == pytest.approx(3, rel=0.1)


@pytest.mark.parametrize(
    ("traces", "match"),
    [
        (np.zeros((2, 7)), "at least 8"),
        (np.zeros(20), r"shape \(chains, positions\)"),
        (np.zeros((0, 20)), "shape"),
        (np.full((2, 20), math.nan), "finite"),
        ([["a"] * 20], "rectangle of numbers"),
        ([[1.0] * 20, [1.0]], "rectangle of numbers"),
    ],
)
def test_bad_traces_get_one_clear_line(traces, match):
    for function in (autocorrelation, mixing):
        with pytest.raises(InputError, match=match):
            function(traces)
