"""OOD detection in a report: figures against scikit-learn, made-up sets, and which are new."""

from dataclasses import replace

import pytest
import torch
from sklearn.metrics import roc_auc_score

from jem import JEM, networks
from jem.data.arrays import from_arrays
from jem.evaluation.ood import OODDetector
from jem.report.ood import (
    BEYOND,
    NOISE,
    ONE_BEYOND,
    SET_SIZE,
    SHUFFLED,
    make_ood_sets,
    used_in_training,
)
from jem.sampling import GaussianBase, LangevinStep, SamplerSettings, UniformBase

pytestmark = pytest.mark.usefixtures("quick_reference_classifier")

SHAPE = (1, 8, 8)


def test_figures_are_those_of_independent_libraries(measured):
    of, report = measured
    ood = report.ood
    truth = torch.ones(len(of.splits.test))
    for each in ood.sets:
        labels = torch.cat([truth, torch.zeros(each.num)])
        scores = torch.cat([ood.scores, each.scores])
        assert each.auroc.value == pytest.approx(roc_auc_score(labels, scores))
        flagged = (each.scores.double() < ood.threshold).double().mean()
        assert each.flagged.value == pytest.approx(float(flagged))
    noise = {each.name: each for each in ood.sets}["gaussian noise"]
    given = of.ood_sets["gaussian noise"]
    labels = torch.cat([truth, torch.zeros(len(given))])
    for name, of_model, auroc in (
        ("combined", of.model, noise.auroc), ("combined", of.control, noise.control_auroc),
        ("log_density", of.model, noise.single["log_density"]),
        ("max_probability", of.model, noise.single["max_probability"]),
    ):  # fmt: skip
        detector = OODDetector(of_model, name, validation=of.splits.validation.x)
        scores = torch.cat([detector.score(x) for x in (of.splits.test.x, given)])
        assert auroc.value == pytest.approx(roc_auc_score(labels, scores))


def test_sets_say_how_far_they_are_and_whether_they_are_new(measured):
    sets = {each.name: each for each in measured[1].ood.sets}
    assert sets["letters"].kind == sets["rotated by 90 degrees"].kind == "near"
    assert sets["photo patches"].kind == sets["gaussian noise"].kind == "far"
    assert sets["mine.npz"].kind == "given"
    assert [name for name, each in sets.items() if each.used_in_training] == ["uniform noise"]


def test_pictured_inputs_are_the_ones_they_are_said_to_be(measured):
    of, report = measured
    ood = report.ood
    detector = OODDetector(of.model, validation=of.splits.validation.x)
    scores = ood.scores.sort().values
    for shown, expected in ((ood.highest, scores.flip(0)), (ood.lowest, scores)):
        torch.testing.assert_close(detector.score(shown.x), expected[: len(shown.x)])
    assert all(detector.score(ood.rejected.x).double() < ood.threshold)
    for shown in (ood.highest, ood.lowest):
        for x, line in zip(shown.x, shown.captions, strict=True):
            place = (of.splits.test.x == x).flatten(1).all(dim=1).nonzero()[0, 0]
            true = of.splits.classes[of.splits.test.y[place]]
            seen = of.splits.classes[of.model(x[None]).argmax()]
            assert line == (true if true == seen else f"{true}, taken for {seen}")
    for each in ood.sets:
        if len(each.accepted.x):
            passed = detector.score(each.accepted.x)
            assert (passed.double() >= ood.threshold).all()
            assert (passed.diff() <= 1e-6).all()  # the worst mistakes first


def model_with(init, outliers=False, noise=None):
    model = JEM(networks.mlp(SHAPE, 2, width=4, depth=1))
    frequencies = torch.full((2,), 0.5)
    settings = SamplerSettings(init, 3, LangevinStep(1.0, 0.01), frequencies)
    model.sampler = replace(settings, trained_on_outliers=outliers, trained_on_noise=noise)
    return model


OUTLIERS = {"uniform_noise", "gaussian_noise", "constant_images"}
UNIFORM = UniformBase(-1.0, 1.0, SHAPE)
GAUSSIAN = GaussianBase.fit(torch.randn(20, *SHAPE), torch.arange(20) % 2, 2)


@pytest.mark.parametrize(
    ("init", "outliers", "noise", "used"),
    [
        (UNIFORM, False, None, {NOISE, "uniform_noise"}),
        (UNIFORM, False, False, set()),
        (GAUSSIAN, False, None, set()),
        (GAUSSIAN, False, True, {NOISE, "uniform_noise"}),
        (GAUSSIAN, True, False, {*OUTLIERS, NOISE, SHUFFLED, "letters"}),
    ],
)
def test_kinds_that_training_contrasted_with_the_data_are_named(init, outliers, noise, used):
    model = model_with(init, outliers, noise)
    kinds = [NOISE, *OUTLIERS, SHUFFLED, BEYOND, "letters", "my.npz", "photo patches"]
    assert {kind for kind in kinds if used_in_training(kind, model)} == used


def test_a_plain_classifier_used_no_ood_set():
    assert not used_in_training(NOISE, JEM(networks.mlp(SHAPE, 2, width=4, depth=1)))


def table(num_columns):
    """Rows whose columns are copies of each other, but for their scale."""
    x = torch.linspace(1, 2, 80)[:, None] * torch.arange(1.0, num_columns + 1)
    return from_arrays(x, torch.arange(80) % 2, seed=0)


def test_ood_rows_are_what_they_are_called():
    splits = table(3)
    sets = make_ood_sets(splits, seed=1)
    assert list(sets) == [NOISE, SHUFFLED, ONE_BEYOND, BEYOND]
    assert all(x.shape == (SET_SIZE, 3) for x in sets.values())
    shuffled, x = sets[SHUFFLED], splits.test.x
    for column in range(3):  # every value is a real one, but not beside those of its row
        assert torch.isin(shuffled[:, column], x[:, column]).all()
    assert (shuffled[:, 0] - shuffled[:, 1]).abs().gt(0.01).double().mean() > 0.8
    low, high = splits.train.x.min(0).values, splits.train.x.max(0).values
    assert ((sets[BEYOND] < low) | (sets[BEYOND] > high)).all()
    low, high = splits.domain
    outside = (sets[ONE_BEYOND] < low) | (sets[ONE_BEYOND] > high)
    assert (outside.sum(dim=1) == 1).all()
    assert outside.any(dim=0).all()
    again, other = make_ood_sets(splits, seed=1), make_ood_sets(splits, seed=2)
    assert all(again[name].equal(sets[name]) for name in sets)
    assert not any(other[name].equal(sets[name]) for name in sets)


def test_a_single_column_cannot_be_shuffled():
    assert list(make_ood_sets(table(1))) == [NOISE, BEYOND]


def test_the_parts_of_a_one_hot_column_stay_together():
    kind = torch.arange(80) % 3
    x = torch.cat([torch.arange(80.0)[:, None], kind[:, None] == torch.arange(3)], dim=1)
    sets = make_ood_sets(from_arrays(x, torch.arange(80) % 2, seed=0))
    parts = sets[SHUFFLED][:, 1:] > 0
    assert (parts.sum(dim=1) == 1).all()
