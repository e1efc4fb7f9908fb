"""The figures against scikit-learn and torchmetrics; the intervals by simulation."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from jem.errors import InputError
from jem.evaluation.ood.metrics import Figures, ood_metrics
from jem.evaluation.statistics import wilson_interval

FEW = {"num_bootstrap": 20}
KINDS = ["continuous", "ties", "inverted", "separate"]


def draw(kind, rng, size_in=200, size_out=90):
    scores_in, scores_out = rng.normal(1, 1, size_in), rng.normal(0, 1.5, size_out)
    if kind == "ties":
        return np.round(scores_in), np.round(scores_out)
    if kind == "inverted":
        return -scores_in, -scores_out
    if kind == "separate":
        return scores_in + 50, scores_out
    return scores_in, scores_out


def joined(scores_in, scores_out):
    labels = np.r_[np.ones(len(scores_in)), np.zeros(len(scores_out))]
    return labels, np.r_[scores_in, scores_out]


def fpr_at_95(labels, scores):
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    return fpr[np.argmax(tpr >= 0.95 - 1e-12)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_figures_equal_those_of_scikit_learn(kind, seed):
    scores_in, scores_out = draw(kind, np.random.default_rng(seed))
    labels, scores = joined(scores_in, scores_out)
    metrics = ood_metrics(scores_in, scores_out, **FEW)
    assert metrics.auroc == pytest.approx(roc_auc_score(labels, scores))
    assert metrics.aupr_in == pytest.approx(average_precision_score(labels, scores))
    assert metrics.aupr_out == pytest.approx(average_precision_score(1 - labels, -scores))
    assert metrics.fpr95_in_positive == pytest.approx(fpr_at_95(labels, scores))
    assert metrics.fpr95_out_positive == pytest.approx(fpr_at_95(1 - labels, -scores))
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert metrics.detection_error == pytest.approx((1 - tpr + fpr).min() / 2)


def test_figures_equal_those_of_torchmetrics():
    classification = pytest.importorskip("torchmetrics.functional.classification")
    scores_in, scores_out = draw("continuous", np.random.default_rng(7))
    labels, scores = (torch.tensor(a) for a in joined(scores_in, scores_out))
    metrics = ood_metrics(scores_in, scores_out, **FEW)
    scores = scores.sigmoid()  # torchmetrics wants them in [0, 1]
    auroc = classification.binary_auroc(scores, labels.long())
    precision = classification.binary_average_precision(scores, labels.long())
    assert metrics.auroc == pytest.approx(float(auroc), abs=1e-5)
    assert metrics.aupr_in == pytest.approx(float(precision), abs=1e-4)


def test_pytorch_ood_finds_the_same_figures_with_ood_positive():
    theirs = pytest.importorskip("pytorch_ood.metrics").OODMetrics()
    scores_in, scores_out = draw("continuous", np.random.default_rng(8))
    labels, scores = joined(scores_in, scores_out)
    theirs.update(-torch.tensor(scores), torch.tensor(2 * labels - 1))
    found, metrics = theirs.compute(), ood_metrics(scores_in, scores_out, **FEW)
    assert metrics.auroc == pytest.approx(float(found["AUROC"]), abs=1e-4)
    assert metrics.fpr95_out_positive == pytest.approx(float(found["FPR95TPR"]), abs=1e-4)


def test_hand_computed_case_names_the_direction_of_fpr95():
    # 19 of 20 in-distribution inputs lie above the OOD ones, one lies below them all.
    metrics = ood_metrics([0.0] + [2.0] * 19, [1.0] * 10, **FEW)
    assert metrics.fpr95_in_positive == 0.0  # a threshold of 2 accepts 95 % and no OOD
    assert metrics.fpr95_out_positive == 0.05  # catching the OOD at 1 flags the one at 0
    assert metrics.detection_error == pytest.approx(0.025)
    assert metrics.auroc == pytest.approx(0.95)


def test_equal_scores_are_chance_and_no_threshold_helps():
    metrics = ood_metrics(torch.ones(8), torch.ones(5), **FEW)
    assert metrics.auroc == 0.5
    assert metrics.detection_error == 0.5
    assert metrics.fpr95_in_positive == metrics.fpr95_out_positive == 1.0
    assert metrics.aupr_in == pytest.approx(8 / 13)
    assert metrics.aupr_out == pytest.approx(5 / 13)


def test_infinite_scores_are_the_outermost():
    finite = ood_metrics([1.0, 3.0, 4.0, 9.0], [-9.0, 2.0, 3.0], **FEW)
    inf = float("inf")
    infinite = ood_metrics([1.0, 3.0, 4.0, inf], [-inf, 2.0, 3.0], **FEW)
    assert infinite == finite


def test_monotone_maps_of_the_scores_change_nothing():
    scores_in, scores_out = draw("continuous", np.random.default_rng(3))
    mapped = ood_metrics(np.exp(scores_in), np.exp(scores_out), **FEW)
    assert mapped == ood_metrics(scores_in, scores_out, **FEW)


@pytest.mark.parametrize(
    ("scores_in", "scores_out", "message"),
    [
        ([], [1.0], "scores_in"),
        ([1.0], [], "scores_out"),
        ([1.0, float("nan")], [1.0], "NaN, first at position 1"),
        ([[1.0], [2.0]], [1.0], "shape"),
        (["a"], [1.0], "real numbers"),
    ],
)
def test_bad_scores_are_refused(scores_in, scores_out, message):
    with pytest.raises(InputError, match=message):
        ood_metrics(scores_in, scores_out)


@pytest.mark.parametrize("option", [{"confidence": 1.0}, {"num_bootstrap": 0}, {"seed": -1}])
def test_bad_options_are_refused(option):
    with pytest.raises(InputError, match=next(iter(option))):
        ood_metrics([1.0], [0.0], **option)


@pytest.mark.parametrize("kind", KINDS)
def test_every_figure_has_an_interval_around_it(kind):
    scores_in, scores_out = draw(kind, np.random.default_rng(5))
    metrics = ood_metrics(scores_in, scores_out, num_bootstrap=200)
    assert set(metrics.intervals) == set(Figures._fields)
    for name, (low, high) in metrics.intervals.items():
        assert 0 <= low <= high <= 1
        assert low - 1e-9 <= getattr(metrics, name) <= high + 1e-9


def test_perfect_separation_is_not_reported_as_certain():
    metrics = ood_metrics(np.arange(10.0) + 100, np.arange(30.0), **FEW)
    assert metrics.auroc == 1.0
    assert metrics.intervals["auroc"] == pytest.approx((0.025**0.1, 1.0))
    assert metrics.intervals["fpr95_in_positive"][1] > 0.1
    lost, above = 1 - 0.025**0.1, 1 - 0.025 ** (1 / 30)  # of 10 in, of 30 out
    precision = 10 * (1 - lost) / (10 * (1 - lost) + 30 * above)
    assert metrics.intervals["aupr_in"] == pytest.approx(((1 - lost) * precision, 1.0))
    wilson = 1.959964**2 / (np.array([10, 30]) + 1.959964**2)  # upper ends at 0 of 10, 0 of 30
    high = np.sqrt((wilson**2).sum()) / 2
    assert metrics.intervals["detection_error"] == pytest.approx((0.0, high))
    assert ood_metrics([1.0, 1.0], [2.0, 3.0], **FEW).intervals["auroc"][0] == 0.0
    assert ood_metrics([1.5], [1.0, 2.0], **FEW).intervals["auroc"] == (0.0, 1.0)


def test_delong_variance_equals_the_direct_quadratic_form():
    scores_in, scores_out = draw("ties", np.random.default_rng(11), 40, 25)
    wins = (scores_in[:, None] > scores_out) + 0.5 * (scores_in[:, None] == scores_out)
    auroc = wins.mean()
    variance = wins.mean(1).var(ddof=1) / 40 + wins.mean(0).var(ddof=1) / 25
    half = 1.959964 * np.sqrt(variance) / (auroc * (1 - auroc))
    logit = np.log(auroc / (1 - auroc))
    low, high = 1 / (1 + np.exp(-(logit - half))), 1 / (1 + np.exp(-(logit + half)))
    found = ood_metrics(scores_in, scores_out, **FEW).intervals["auroc"]
    assert found == pytest.approx((low, high), abs=1e-6)


def test_interval_of_detection_error_by_hand():
    scores_in, scores_out = np.repeat([2.0, 1.0, 0.0], [16, 3, 1]), np.repeat([2.0, 0.0], [2, 48])
    metrics = ood_metrics(scores_in, scores_out, num_bootstrap=400)
    assert metrics.detection_error == pytest.approx((1 / 20 + 2 / 50) / 2)
    ends = [wilson_interval(1, 20, 0.95), wilson_interval(2, 50, 0.95)]
    low = 0.045 - np.hypot(0.05 - ends[0][0], 0.04 - ends[1][0]) / 2
    high = 0.045 + np.hypot(ends[0][1] - 0.05, ends[1][1] - 0.04) / 2
    found = metrics.intervals["detection_error"]
    assert found.low == pytest.approx(low)
    assert high <= found.high < high + 0.01  # raised by what choosing the threshold gains


def test_interval_of_average_precision_is_normal_on_the_logit_scale():
    rng = np.random.default_rng(0)
    scores = rng.normal(1, 1, 100), rng.normal(0, 1, 60)
    metrics = ood_metrics(*scores, num_bootstrap=2000)
    drawn = []
    for _ in range(500):
        again = rng.choice(scores[0], 100), rng.choice(scores[1], 60)
        drawn.append(average_precision_score(*joined(*again)))
    spread = np.std(np.log(drawn) - np.log1p(-np.array(drawn)))
    low, high = metrics.intervals["aupr_in"]
    logits = [np.log(v / (1 - v)) for v in (low, metrics.aupr_in, high)]
    assert logits[2] - logits[1] == pytest.approx(logits[1] - logits[0])
    assert logits[2] - logits[1] == pytest.approx(1.96 * spread, rel=0.1)


def normal_cdf(z):
    return float(torch.special.ndtr(torch.tensor(z, dtype=torch.float64)))


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.5])
def test_delong_interval_covers_the_true_area(shift):
    rng, truth, covered = np.random.default_rng(0), normal_cdf(shift / 2**0.5), 0
    for _ in range(400):
        scores = rng.normal(shift, 1, 60), rng.normal(0, 1, 40)
        low, high = ood_metrics(*scores, num_bootstrap=1).intervals["auroc"]
        covered += low <= truth <= high
    assert 0.92 <= covered / 400 <= 0.985  # 0.95 within three standard errors


def test_bootstrap_interval_covers_a_true_fpr95():
    rng, truth, covered = np.random.default_rng(1), 1 - normal_cdf(2 - 1.644854), 0
    for _ in range(100):
        scores = rng.normal(2, 1, 150), rng.normal(0, 1, 150)
        low, high = ood_metrics(*scores, num_bootstrap=100).intervals["fpr95_in_positive"]
        covered += low <= truth <= high
    assert covered >= 88


def test_intervals_shrink_with_more_scores_and_widen_with_confidence():
    rng = np.random.default_rng(2)
    sets = draw("continuous", rng, 2000, 2000)
    small = ood_metrics(*draw("continuous", rng, 100, 100), num_bootstrap=100).intervals
    large = ood_metrics(*sets, num_bootstrap=100).intervals
    sure = ood_metrics(*sets, num_bootstrap=100, confidence=0.99).intervals
    for name in Figures._fields:
        widths = [kept[name].high - kept[name].low for kept in (large, sure, small)]
        assert widths[0] < widths[1]
        assert widths[0] < widths[2]


def test_same_seed_same_figures_and_the_global_state_stays():
    scores = draw("continuous", np.random.default_rng(4))
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = ood_metrics(*scores, num_bootstrap=50, seed=3)
    assert first == ood_metrics(*scores, num_bootstrap=50, seed=3)
    assert first.intervals != ood_metrics(*scores, num_bootstrap=50, seed=4).intervals
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_to_dict_is_json_and_tensors_of_half_precision_are_taken():
    scores_in = torch.tensor([1.0, 2.0, float("inf")], dtype=torch.bfloat16, requires_grad=True)
    metrics = ood_metrics(scores_in, torch.zeros(4, dtype=torch.float16), **FEW)
    figures = json.loads(json.dumps(metrics.to_dict(), allow_nan=False))
    assert figures["auroc"] == 1.0
    assert (figures["num_in"], figures["num_out"]) == (3, 4)
    assert figures["intervals"]["auroc"] == list(metrics.intervals["auroc"])


def test_an_interval_holds_its_own_estimate_with_few_positives():
    low, high = ood_metrics(np.zeros(1), np.linspace(-1, 1, 500), **FEW).intervals["aupr_in"]
    assert (low, high) == (0, 1)
    for few in (2, 4):
        metrics = ood_metrics(np.zeros(few) - 5, np.linspace(0, 1, 500), **FEW)
        low, high = metrics.intervals["aupr_in"]
        assert low - 1e-9 <= metrics.aupr_in <= high + 1e-9 < 0.05


def test_scores_that_are_all_one_leave_the_area_open():
    low, high = ood_metrics(np.zeros(5), np.zeros(5), **FEW).intervals["auroc"]
    tied = 0.025 ** (1 / 5)  # the share of ties that five ties in five leave plausible
    assert (low, high) == pytest.approx((tied / 2, 1 - tied / 2))
