"""The figures against scikit-learn and torchmetrics; the intervals by simulation."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve

from jem.errors import InputError
from jem.evaluation.ood import ood_metrics
from jem.evaluation.statistics import wilson_interval

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
    metrics = ood_metrics(scores_in, scores_out)
    assert metrics.auroc == pytest.approx(roc_auc_score(labels, scores))
    assert metrics.fpr95_in_positive == pytest.approx(fpr_at_95(labels, scores))
    assert metrics.fpr95_out_positive == pytest.approx(fpr_at_95(1 - labels, -scores))


def test_hand_computed_case_names_the_direction_of_fpr95():
    # 19 of 20 in-distribution inputs lie above the OOD ones, one lies below them all.
    metrics = ood_metrics([0.0] + [2.0] * 19, [1.0] * 10)
    assert metrics.fpr95_in_positive == 0.0  # a threshold of 2 accepts 95 % and no OOD
    assert metrics.fpr95_out_positive == 0.05  # catching the OOD at 1 flags the one at 0
    assert metrics.auroc == pytest.approx(0.95)


def test_equal_scores_are_chance_and_their_interval_is_wide():
    metrics = ood_metrics(torch.ones(8), torch.ones(5))
    assert metrics.auroc == 0.5
    assert metrics.fpr95_in_positive == metrics.fpr95_out_positive == 1.0
    low, high = wilson_interval(2.5, 5, 0.95)  # half of as many pairs as five inputs can make
    assert metrics.intervals["auroc"] == pytest.approx((float(low), float(high)))


def test_infinite_scores_are_the_outermost():
    finite = ood_metrics([1.0, 3.0, 4.0, 9.0], [-9.0, 2.0, 3.0])
    inf = float("inf")
    infinite = ood_metrics([1.0, 3.0, 4.0, inf], [-inf, 2.0, 3.0])
    assert infinite == finite


@pytest.mark.parametrize(
    ("scores_in", "scores_out", "message"),
    [
        ([1.0], [], "scores_out"),
        ([1.0, float("nan")], [1.0], "position 1"),
        ([[1.0], [2.0]], [1.0], "scores_in"),
        (["a"], [1.0], "scores_in"),
    ],
)
def test_mistakes_are_refused(scores_in, scores_out, message):
    with pytest.raises(InputError, match=message):
        ood_metrics(scores_in, scores_out)
    with pytest.raises(InputError, match="confidence"):
        ood_metrics([1.0], [0.0], confidence=1.0)


def test_perfect_separation_is_not_reported_as_certain():
    metrics = ood_metrics(np.arange(10.0) + 100, np.arange(30.0))
    assert metrics.auroc == 1.0
    assert metrics.intervals["auroc"] == pytest.approx((10 / (10 + 1.959964**2), 1.0))
    assert metrics.intervals["fpr95_in_positive"][1] > 0.1
    assert ood_metrics([1.0, 1.0], [2.0, 3.0]).intervals["auroc"].low == 0.0
    low, high = ood_metrics([1.5], [1.0, 2.0]).intervals["auroc"]
    assert low < 0.2
    assert high > 0.8  # one input has no variance to estimate


def test_delong_variance_equals_the_direct_quadratic_form():
    scores_in, scores_out = draw("ties", np.random.default_rng(11), 40, 25)
    wins = (scores_in[:, None] > scores_out) + 0.5 * (scores_in[:, None] == scores_out)
    auroc = wins.mean()
    variance = wins.mean(1).var(ddof=1) / 40 + wins.mean(0).var(ddof=1) / 25
    half = 1.959964 * np.sqrt(variance) / (auroc * (1 - auroc))
    logit = np.log(auroc / (1 - auroc))
    low, high = 1 / (1 + np.exp(-(logit - half))), 1 / (1 + np.exp(-(logit + half)))
    found = ood_metrics(scores_in, scores_out).intervals["auroc"]
    assert found == pytest.approx((low, high), abs=1e-6)


def test_same_seed_same_figures_and_the_global_state_stays():
    scores = draw("continuous", np.random.default_rng(4))
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = ood_metrics(*scores, seed=3)
    assert first == ood_metrics(*scores, seed=3)
    assert first.intervals != ood_metrics(*scores, seed=4).intervals
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_tensors_of_half_precision_are_taken():
    scores_in = torch.tensor([1.0, 2.0, float("inf")], dtype=torch.bfloat16, requires_grad=True)
    metrics = ood_metrics(scores_in, torch.zeros(4, dtype=torch.float16))
    assert (metrics.auroc, metrics.num_in, metrics.num_out) == (1.0, 3, 4)
