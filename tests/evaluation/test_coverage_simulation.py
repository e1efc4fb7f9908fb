"""What is promised of p-values, accepted shares, prediction sets and intervals, by simulation.

Every promise is on average over calibration sets, so these are redrawn many times; bounds are at
least three standard errors of the simulation wide.
"""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from jem.evaluation.calibration.conformal import ConformalSets
from jem.evaluation.calibration.report import CALIBRATION_ERRORS, calibration_report
from jem.evaluation.ood import OODDetector, ood_metrics
from jem.evaluation.statistics import largest_acceptance_rate
from jem.model import JEM

DETECTOR = OODDetector(JEM(nn.Identity()))


def fitted(scores, acceptance_rate):
    return DETECTOR.fit_threshold(torch.as_tensor(scores), acceptance_rate)


# -- p-values and the threshold -------------------------------------------------------------------


@pytest.mark.parametrize("num", [19, 50, 200])
@pytest.mark.parametrize("law", ["normal", "ties", "some infinite"])
def test_p_values_are_super_uniform(num, law):
    rng, draws = np.random.default_rng(num), 1500
    draw = {
        "normal": lambda n: rng.normal(size=n),
        "ties": lambda n: rng.integers(0, 4, n).astype(float),
        "some infinite": lambda n: np.where(rng.random(n) < 0.2, -np.inf, rng.normal(size=n)),
    }[law]
    levels = np.linspace(0.01, 0.99, 99)
    below = np.zeros(99)
    for _ in range(draws):
        detector = fitted(draw(num), 0.5)
        # One new input a calibration set: the draws are independent.
        p = float(detector.verdict(torch.as_tensor(draw(1))).p_value)
        below += p <= levels + 1e-12
    error = np.sqrt(levels * (1 - levels) / draws)
    assert (below / draws <= levels + 4 * error).all()
    if law == "normal":  # not more careful than a multiple of 1 / (n + 1) makes it
        exact = np.floor(levels * (num + 1) + 1e-9) / (num + 1)
        assert (np.abs(below / draws - exact) <= 4.5 * np.sqrt(exact / draws) + 1e-3).all()


@pytest.mark.parametrize(
    ("num", "acceptance_rate"), [(100, 0.95), (15, None), (360, 0.99), (1000, 0.9)]
)
def test_accepted_counts_follow_their_beta_binomial_law(num, acceptance_rate):
    acceptance_rate = largest_acceptance_rate(num) if acceptance_rate is None else acceptance_rate
    rank = int(np.floor((1 - acceptance_rate) * (num + 1) + 1e-9))
    rng, draws, new = np.random.default_rng(num), 2000, 300
    accepted = np.empty(draws)
    for row in range(draws):
        detector = fitted(rng.normal(size=num), acceptance_rate)
        flags = detector.verdict(torch.as_tensor(rng.normal(size=new))).is_ood
        accepted[row] = new - int(flags.sum())
    law = stats.betabinom(new, num + 1 - rank, rank)
    assert abs(accepted.mean() - law.mean()) < 4 * law.std() / np.sqrt(draws)
    assert accepted.mean() / new >= acceptance_rate - 4 * law.std() / new / np.sqrt(draws)
    for level in (0.025, 0.25, 0.75, 0.975):
        edge = law.ppf(level)
        share, expected = (accepted <= edge).mean(), law.cdf(edge)
        assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / draws) + 1e-3


# -- prediction sets ------------------------------------------------------------------------------


@pytest.mark.parametrize(("num", "coverage"), [(100, 0.9), (19, 0.95), (300, 0.8), (99, 0.5)])
@pytest.mark.parametrize("sharpen", [1.0, 4.0])  # right, and far too confident
def test_prediction_sets_cover_as_promised(num, coverage, sharpen):
    rng, draws, new = np.random.default_rng(num), 250, 100
    rank = int(np.ceil((num + 1) * coverage - 1e-9))
    law = stats.betabinom(new, rank, num + 1 - rank)
    covered = np.empty(draws)
    for row in range(draws):
        probabilities, labels = answers(rng, num + new, sharpen)
        sets = ConformalSets(coverage).fit(probabilities[:num], labels[:num])
        member = sets.predict(probabilities[num:])
        covered[row] = member[np.arange(new), labels[num:]].sum()
    assert abs(covered.mean() - law.mean()) < 4 * law.std() / np.sqrt(draws)
    low, high = law.ppf([0.005, 0.995])
    assert ((covered >= low) & (covered <= high)).mean() >= 0.97


def answers(rng, num, sharpen=1.0, num_classes=4):
    """Class probabilities, and labels for which those of `sharpen` 1 are right."""
    logits = 2 * rng.normal(size=(num, num_classes))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    exponent = np.exp(sharpen * logits)
    return exponent / exponent.sum(axis=1, keepdims=True), labels


# -- intervals ------------------------------------------------------------------------------------


SHIFTS = (0.0, 1.0, 2.5, 4.0)  # the last separates one sample in three without an error


def truth_of(shift, size_in, size_out):
    """Figures of N(shift, 1) against N(0, 1) in these proportions, from a great many draws."""
    rng, scale = np.random.default_rng(123), 400_000 // max(size_in, size_out)
    drawn = rng.normal(shift, 1, scale * size_in), rng.normal(0, 1, scale * size_out)
    return ood_metrics(*drawn)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("sizes", [(50, 50), (360, 100), (100, 360)])
def test_intervals_of_ood_figures_cover(shift, sizes):
    truth, rng, draws = truth_of(shift, *sizes), np.random.default_rng(0), 300
    missed = dict.fromkeys(("auroc", "fpr95_in_positive", "fpr95_out_positive"), 0)
    for _ in range(draws):
        scores = rng.normal(shift, 1, sizes[0]), rng.normal(0, 1, sizes[1])
        for name, (low, high) in ood_metrics(*scores).intervals.items():
            missed[name] += not low - 1e-3 <= getattr(truth, name) <= high + 1e-3
    # 300 draws know a coverage to 1.3 points; the worst of 36 lies further off.
    assert all(1 - count / draws >= 0.90 for count in missed.values()), missed


def coverage_of_report(sharpen, num, draws, num_bootstrap):
    truth = calibration_report(
        *answers(np.random.default_rng(9), 200_000, sharpen), num_bootstrap=0
    )
    rng, covered = np.random.default_rng(1), {}
    for seed in range(draws):
        report = calibration_report(
            *answers(rng, num, sharpen), num_bootstrap=num_bootstrap, seed=seed
        )
        for name, (low, high) in report.intervals.items():
            inside = low - 1e-3 <= getattr(truth, name) <= high + 1e-3
            covered.setdefault(name, []).append(inside)
    return {name: float(np.mean(inside)) for name, inside in covered.items()}


@pytest.mark.parametrize("sharpen", [1.0, 2.0])
def test_intervals_of_calibration_figures_cover(sharpen):
    covered = coverage_of_report(sharpen, 200, draws=50, num_bootstrap=50)
    assert {*CALIBRATION_ERRORS, "nll", "brier", "accuracy", "aurc"} <= set(covered)
    # 5 % of 50 misses, and what an error's interval lacks on samples of this size.
    low = {name: share for name, share in covered.items() if share < 0.84}
    assert not low
