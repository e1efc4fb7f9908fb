import itertools

import numpy as np
import pytest
from test_calibration_errors import group, pairs

from jem.evaluation.calibration.errors import aurc, risk_coverage_curve


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
