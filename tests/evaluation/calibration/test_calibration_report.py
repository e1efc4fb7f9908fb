import json
import math

import numpy as np
import pytest
from matplotlib import pyplot as plt
from sklearn.metrics import brier_score_loss, log_loss

from jem.errors import InputError
from jem.evaluation.calibration.report import CALIBRATION_ERRORS, FIGURES, calibration_report
from jem.plotting import risk_coverage_plot


def predictions(num_samples=300, num_classes=4, seed=0, sharpen=1.0):
    """Probabilities with labels drawn from them; `sharpen` > 1 makes them overconfident."""
    generator = np.random.default_rng(seed)
    logits = 2 * generator.normal(size=(num_samples, num_classes))
    gumbel = generator.gumbel(size=logits.shape)
    probabilities = np.exp(sharpen * logits)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return probabilities, (logits + gumbel).argmax(axis=1)


def test_scores_agree_with_scikit_learn_and_their_definitions():
    probabilities, labels = predictions()
    report = calibration_report(probabilities, labels, num_bootstrap=0)
    predicted = probabilities.argmax(axis=1)
    one_hot = np.eye(4)[labels]
    assert report.num_samples == 300
    assert report.accuracy == np.mean(predicted == labels)
    assert report.nll == pytest.approx(log_loss(labels, probabilities))
    assert report.brier == pytest.approx(((probabilities - one_hot) ** 2).sum(axis=1).mean())
    report = calibration_report([[0.5, 0.5]] * 4, [0, 0, 0, 1], num_bootstrap=0)
    assert report.accuracy == 0.75  # tied probabilities predict the first class


def test_the_brier_score_of_two_classes_is_that_of_one_probability():
    probabilities, labels = predictions(num_classes=2)
    report = calibration_report(probabilities, labels, num_bootstrap=0)
    assert report.brier == pytest.approx(brier_score_loss(labels, probabilities[:, 1]))


def test_printed_it_is_a_table_of_all_figures():
    report = calibration_report(*predictions(), num_bootstrap=20)
    cells = {line.split()[0]: line.split()[1:] for line in str(report).splitlines()[1:]}
    assert tuple(cells) == FIGURES
    numbers = report.ece, *report.intervals["ece"], report.if_calibrated["ece"]
    assert [cell for cell in cells["ece"] if cell != "to"] == [f"{n:.4f}" for n in numbers]
    plain = str(calibration_report(*predictions(), num_bootstrap=0)).splitlines()
    assert {len(line.split()) for line in plain[1:]} == {2}


def test_bins_hold_every_input_once_and_say_nan_where_empty():
    probabilities, labels = predictions()
    report = calibration_report(probabilities, labels, num_bootstrap=0)
    bins = report.bins
    assert bins.edges.shape == (16,)
    assert bins.counts.sum() == 300
    assert (bins.counts == 0).any()
    empty = bins.counts == 0
    assert np.isnan(bins.accuracy[empty]).all()
    assert (bins.accuracy_low[empty] == 0).all()
    assert (bins.accuracy_high[empty] == 1).all()
    full = ~empty
    assert (bins.accuracy_low[full] <= bins.accuracy[full]).all()
    gap = bins.counts[full] @ abs(bins.accuracy[full] - bins.confidence[full]) / 300
    assert report.ece == pytest.approx(gap)


def test_intervals_hold_the_figures_and_repeat_with_their_seed():
    probabilities, labels = predictions()
    report = calibration_report(probabilities, labels, num_bootstrap=100, seed=5)
    assert set(report.intervals) == set(FIGURES)
    for name, (low, high) in report.intervals.items():
        assert low <= getattr(report, name) <= high, name
    again = calibration_report(probabilities, labels, num_bootstrap=100, seed=5)
    assert again.intervals == report.intervals
    assert again.if_calibrated == report.if_calibrated
    other = calibration_report(probabilities, labels, num_bootstrap=100, seed=6)
    assert other.intervals != report.intervals


def test_calibrated_predictions_stay_below_the_calibrated_level_as_often_as_said():
    below = dict.fromkeys(CALIBRATION_ERRORS, 0)
    for seed in range(60):
        report = calibration_report(
            *predictions(200, seed=seed), num_bootstrap=100, confidence=0.9, seed=seed
        )
        assert tuple(report.if_calibrated) == CALIBRATION_ERRORS
        for name, level in report.if_calibrated.items():
            below[name] += getattr(report, name) <= level
    assert all(46 <= count <= 60 for count in below.values()), below


def test_certain_and_right_is_perfect():
    report = calibration_report(np.eye(3), [0, 1, 2], num_bootstrap=20)
    for name in FIGURES:
        assert getattr(report, name) == pytest.approx(float(name == "accuracy"), abs=2e-6)
    assert report.bins.counts[-1] == 3
    assert report.intervals["accuracy"].low < 0.5  # three right answers prove little


def test_certain_and_wrong_costs_the_stated_nll():
    report = calibration_report(np.eye(2), [1, 0], num_bootstrap=0)
    assert report.nll == pytest.approx(-math.log(np.finfo(np.float64).tiny))
    assert report.nll == pytest.approx(708.4, abs=0.01)
    assert (report.brier, report.ece, report.aurc) == (1, 1, 1)


def test_dict_is_plain_json_and_keeps_every_figure():
    report = calibration_report(*predictions(), num_bootstrap=20)
    read = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    for name in FIGURES:
        assert read[name] == getattr(report, name)
    assert read["risk_coverage"]["coverage"] == report.risk_coverage.coverage.tolist()
    assert len(read["bins"]["accuracy"]) == 15
    assert None in read["bins"]["accuracy"]
    assert read["intervals"] == {name: list(ends) for name, ends in report.intervals.items()}


@pytest.mark.parametrize(
    ("probabilities", "labels", "wrong"),
    [
        ([[math.nan, 1.0]], [0], "`probabilities`"),
        (np.zeros((0, 3)), [], "`probabilities`"),
        ([[-0.1, 1.1]], [0], "`probabilities`"),
        ([[0.5, 0.5], [0.5, 0.6]], [0, 1], "`probabilities`"),
        ([[0.5, 0.5]], [2], "`labels`"),
        ([[0.5, 0.5]], [0.0], "`labels`"),
    ],
)
def test_what_is_no_prediction_is_refused_in_one_line(probabilities, labels, wrong):
    with pytest.raises(InputError, match=wrong) as caught:
        calibration_report(probabilities, labels)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="num_bins"):
        calibration_report([[0.5, 0.5]], [0], num_bins=0)


def test_figures_show_what_the_report_holds_and_leave_no_global_state():
    report = calibration_report(*predictions(), num_bootstrap=0)
    upper, lower = report.plot().axes
    drawn = upper.lines[1].get_xydata()
    filled = report.bins.counts > 0
    np.testing.assert_array_equal(drawn[:, 0], report.bins.confidence[filled])
    np.testing.assert_array_equal(drawn[:, 1], report.bins.accuracy[filled])
    assert [bar.get_height() for bar in lower.patches] == report.bins.counts.tolist()
    assert report.plot("Before").axes[0].get_title() == "Before"
    curve = report.risk_coverage
    (drawn,) = risk_coverage_plot(curve.coverage, curve.risk).axes[0].lines
    np.testing.assert_array_equal(drawn.get_ydata(), curve.risk)
    assert plt.get_fignums() == []
