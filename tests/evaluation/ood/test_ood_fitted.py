"""The combined score: its promise, its maps to p-values, and the reasons of its verdicts."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from jem.evaluation.ood import SCORES, OODDetector
from jem.model import JEM
from jem.networks import mlp

LOGITS = JEM(nn.Identity())
"""Inputs are their own logits."""


def logits_of(density, odds):
    """Two classes with this log-density and these log-odds of the first."""
    density, odds = (torch.as_tensor(v, dtype=torch.float64) for v in (density, odds))
    log_p = torch.stack([nn.functional.logsigmoid(odds), nn.functional.logsigmoid(-odds)], dim=1)
    return density[:, None] + log_p


def data(num, seed, dtype=torch.float64):
    """Log-densities and confidences that depend on each other, as those of a classifier do."""
    rng = np.random.default_rng(seed)
    density = rng.gumbel(size=num)
    return logits_of(-density, np.abs(rng.normal(8 - density, 2))).to(dtype)


def terms_of(density, odds, reference):
    return terms(OODDetector(LOGITS, validation=reference), logits_of(density, odds))


def terms(detector, x):
    """Logarithms of the p-values of the density and of the confidence."""
    fitted = detector.fitted_score
    return fitted.score(fitted.views(x))


def share_accepted(num_reference, num_calibration, acceptance_rate, draws=300):
    shares = []
    for seed in range(draws):
        x = data(num_reference + num_calibration + 100, seed)
        x, test = x[:-100], x[-100:]
        validation = x[:num_reference] if num_reference else None
        detector = OODDetector(LOGITS, validation=validation)
        detector.fit(x[num_reference:], acceptance_rate=acceptance_rate)
        shares.append(float((~detector.is_ood(test)).double().mean()))
    return np.mean(shares), np.std(shares) / math.sqrt(draws)


@pytest.mark.parametrize(
    ("num_reference", "num_calibration", "rate", "num_behind_threshold"),
    [(20, 19, 0.95, 19), (3, 60, 0.95, 60), (200, 99, 0.9, 99), (0, 38, 0.95, 19)],
)  # without a reference half of the calibration inputs are it
def test_over_calibration_sets_the_promised_share_is_accepted(
    num_reference, num_calibration, rate, num_behind_threshold
):
    share, error = share_accepted(num_reference, num_calibration, rate)
    rank = math.floor((1 - rate) * (num_behind_threshold + 1) + 1e-9)
    assert abs(share - (1 - rank / (num_behind_threshold + 1))) < 4 * error


def test_a_second_fit_makes_its_own_maps():
    first, second = data(60, seed=0), data(60, seed=1)
    detector = OODDetector(LOGITS).fit(first)
    expected = OODDetector(LOGITS).fit(second)
    again = OODDetector(LOGITS).load_state_dict(detector.state_dict())
    for each in (detector, again):
        assert each.fit(second).threshold == expected.threshold


@pytest.mark.parametrize("num_reference", [19, 1000])
def test_far_rows_are_flagged_however_confident_and_dense_rows_between_classes_too(num_reference):
    reference, calibration = data(num_reference, seed=0), data(200, seed=1)
    detector = OODDetector(LOGITS, validation=reference).fit(calibration)
    density, odds = calibration.logsumexp(dim=1), calibration[:, 0] - calibration[:, 1]
    typical, sure = float(density.median()), float(odds.max())
    x = logits_of([-1e12, -1e4, -40.0, typical, float(density.max()), -1e4, typical],
                  [sure, sure, sure, sure, 0.0, 0.0, float(odds.median())])  # fmt: skip
    assert detector.is_ood(x).tolist() == [True, True, True, False, True, True, False]
    far, between = "unlike the data", "between classes"
    assert detector.reason(x) == [far, far, far, "", between, "both", ""]
    assert detector.score(x).isfinite().all()
    assert detector.score(x).argsort()[:3].tolist() == [0, 5, 1]


def test_a_p_value_is_the_smoothed_share_of_the_reference_below():
    reference = data(5000, seed=0)
    scores = reference.logsumexp(dim=1).numpy()
    at = np.quantile(scores, [0.01, 0.05, 0.3, 0.5, 0.9])
    found = terms_of(at, np.full(5, 3.0), reference)[:, 0].exp()
    scale = (np.median(scores) - np.quantile(scores, 0.05)) / math.log(10)
    smooth = [stats.logistic.cdf(value, scores, scale).mean() for value in at]
    np.testing.assert_allclose(found, smooth, rtol=0.02, atol=0.004)


def test_maps_rise_strictly_and_go_on_falling_below_the_reference():
    reference = data(30, seed=0)
    at = np.linspace(-60, 6, 2000)
    log_p = terms_of(at, np.full(2000, 3.0), reference)[:, 0]
    assert (log_p.diff() > 0).all()
    assert (log_p < 0).all()
    lowest = log_p[at < -30]
    slopes = lowest.diff() / (at[1] - at[0])
    torch.testing.assert_close(slopes, slopes.mean().expand_as(slopes), rtol=1e-3, atol=0)
    single = [terms_of([value], [3.0], reference)[0, 0] for value in (-1e30, -1e12, -1e6)]
    assert all(value.isfinite() for value in single)
    assert single == sorted(single)


def test_confident_inputs_do_not_tie():
    odds = torch.tensor([20.0, 40.0, 80.0], dtype=torch.float32)
    logits = torch.stack([odds, torch.zeros(3)], dim=1)
    assert (SCORES["max_probability"].function(logits) == 1).all()
    reference = torch.stack([torch.linspace(10, 90, 50), torch.zeros(50)], dim=1)
    confidence = terms(OODDetector(LOGITS, validation=reference), logits)[:, 1]
    assert (confidence.diff() > 0).all()


def test_infinite_logits_have_a_verdict():
    inf = float("inf")
    reference = torch.cat([data(60, seed=0), torch.full((1, 2), -inf, dtype=torch.float64)])
    detector = OODDetector(LOGITS, validation=reference).fit(data(60, seed=1))
    x = torch.tensor([[-inf, -inf], [inf, 0.0], [0.0, -inf]], dtype=torch.float64)
    assert detector.is_ood(x).tolist() == [True, False, False]
    assert detector.reason(x)[0] in ("unlike the data", "both")


@pytest.mark.parametrize(
    ("name", "why"),
    [("log_density", "unlike the data"), ("max_logit", "unlike the data"),
     ("entropy", "between classes"), ("max_probability", "between classes")],
)  # fmt: skip
def test_a_single_score_has_one_reason(name, why):
    x = data(200, seed=0)
    detector = OODDetector(LOGITS, name).fit(x, acceptance_rate=0.8)
    flagged = detector.is_ood(x)
    assert flagged.any()
    assert detector.reason(x) == [why if flag else "" for flag in flagged]


@pytest.mark.parametrize("rate", [0.95, 0.5, 0.1])
def test_every_flagged_input_has_a_reason_and_no_other_has(rate):
    torch.manual_seed(0)
    model = JEM(mlp((2,), 3, width=8, depth=1))
    detector = OODDetector(model).fit(torch.randn(200, 2), acceptance_rate=rate)
    x = 3 * torch.randn(1000, 2)
    assert [bool(why) for why in detector.reason(x)] == detector.is_ood(x).tolist()
    small = terms(detector, x) < detector.threshold / 2
    for why, (unlike, between), flagged in zip(
        detector.reason(x), small.tolist(), detector.is_ood(x).tolist(), strict=True
    ):
        if flagged:
            assert why == {(1, 0): "unlike the data", (0, 1): "between classes"}.get(
                (unlike, between), "both"
            )


def test_one_output_leaves_the_order_of_the_log_density():
    x = torch.randn(500, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    detector = OODDetector(LOGITS, validation=x[:100]).fit(x[100:200])
    by_density = OODDetector(LOGITS, "log_density").fit(x[100:200])
    assert detector.is_ood(x).equal(by_density.is_ood(x))
    assert detector.reason(x) == by_density.reason(x)
    assert detector.score(x).argsort().equal(x[:, 0].argsort())
