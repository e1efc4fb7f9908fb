"""Figures of a report against independent ones, and what is left out for which reason."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss

import jem
from jem.data.arrays import from_arrays
from jem.data.splits import DataPart
from jem.evaluation.likelihood import log_partition
from jem.networks import mlp
from jem.report.measure import SCHEMA_VERSION, Subject, measure
from jem.report.verdicts import verdicts

pytestmark = pytest.mark.usefixtures("quick_reference_classifier")


def exact_logits(model, x):
    with torch.no_grad():
        return model.logits(x).double()


def test_classification_is_that_of_independent_libraries(measured):
    of, report = measured
    x, y = of.splits.test[:]
    probabilities = exact_logits(of.model, x).softmax(dim=1).numpy()
    found = report.classification
    accuracy = accuracy_score(y, probabilities.argmax(1))
    assert found.model.before.num_samples == len(x)
    assert found.model.before.accuracy == pytest.approx(accuracy)
    assert found.model.before.nll == pytest.approx(log_loss(y, probabilities))
    others = exact_logits(of.control, x).argmax(1)
    assert found.accuracy_difference.value == pytest.approx(accuracy - accuracy_score(y, others))


@pytest.mark.parametrize("which", ["model", "control"])
def test_threshold_and_temperature_are_those_of_production_to_the_bit(measured, which):
    of, report = measured
    model = getattr(of, which)
    scorer = jem.fit_scorer(model, of.splits)
    assert getattr(report.classification, which).temperature == scorer.temperature.temperature
    if which == "model":
        assert report.ood.threshold == scorer.detector.threshold
        assert report.ood.acceptance_rate == scorer.detector.acceptance_rate
        predicted = scorer.predict(of.splits.test.x)
        assert torch.equal(report.ood.scores, predicted.score)
        assert report.ood.accepted.value == 1 - float(predicted.is_ood.double().mean())


def test_the_control_keeps_its_own_temperature(measured):
    of, report = measured
    own = report.classification.model.temperature, report.classification.control.temperature
    swapped = measure(replace(of, model=of.control, control=of.model))
    found = swapped.classification
    assert (found.control.temperature, found.model.temperature) == own


def test_report_is_plain_and_complete(measured):
    again = json.loads(json.dumps(measured[1].to_dict(), allow_nan=False))
    assert again["schema_version"] == SCHEMA_VERSION
    assert set(again) == {
        "schema_version", "run", "data", "left_out", "classification", "ood", "samples",
        "completions", "chains", "corruption", "training",
    }  # fmt: skip
    assert again["left_out"] == {}
    assert again["data"]["sizes"]["test"] == 48
    assert again["ood"]["sets"][0]["auroc"]["value"] == measured[1].ood.sets[0].auroc.value


def test_training_is_told_from_its_records(measured):
    training = measured[1].training
    assert training.gap == [(0, 0.1)]
    assert training.validation_nll == [(20, 0.5)]
    assert training.recoveries == [15]


@pytest.mark.parametrize(
    ("records", "recoveries"),
    [
        ([{"kind": "epoch", "iteration": 1, "recoveries": n} for n in (0, 2)], 2),
        ([{"kind": "recovery", "iteration": 1, "back_to": 0}], 1),
        ([], 0),
    ],
)
def test_recoveries_are_known_from_epochs_too(measured, records, recoveries):
    of = replace(measured[0], run=replace(measured[0].run, records=records), control=None)
    report = measure(of)
    assert report.training.num_recoveries == recoveries


def test_a_network_as_given_used_nothing_and_was_not_trained(measured, make_subject):
    of = make_subject(kind="table", control=False, as_given="0 updates were made")
    looked_at = []
    report = measure(of, progress=looked_at.append)
    assert looked_at == ["classification and calibration", "OOD sets", "corruption"]
    why = "nothing was trained: 0 updates were made"
    for name in ("samples", "completions", "chains"):
        assert report.left_out[name] == why
        assert getattr(report, name) is None
    assert not any(each.used_in_training for each in report.ood.sets)
    assert verdicts(report)[3].because == why
    assert (verdicts(report)[4].answer, verdicts(report)[4].because) == ("cannot tell", why)


def test_tables_and_plain_models_leave_out_what_does_not_apply(make_subject):
    report = measure(make_subject(kind="table", control=False))
    assert set(report.left_out) == {"completions", "corruption"}
    assert "of images" in report.left_out["completions"]
    assert report.classification.control is None
    untrained = measure(make_subject(trained=False, control=False))
    assert set(untrained.left_out) == {"samples", "completions", "chains"}
    assert "draws no samples" in untrained.left_out["samples"]


def test_one_class_and_few_calibration_inputs(make_subject):
    alone = make_subject(num_classes=1, trained=False, control=False)
    few = DataPart(*alone.splits.calibration[:5])
    report = measure(replace(alone, splits=replace(alone.splits, calibration=few)))
    assert "K = 1" in report.left_out["classification"]
    assert report.ood.acceptance_rate == pytest.approx(5 / 6)  # as much as five can promise
    assert report.ood.num_calibration == 5
    assert [v.answer for v in verdicts(report)][:2] == ["cannot tell", "cannot tell"]


@pytest.fixture
def quick_attacks(monkeypatch):
    """Attacks that try for a moment."""
    monkeypatch.setattr("jem.report.measure.MOST_ATTACKED", 12)
    monkeypatch.setattr("jem.evaluation.robustness.report.NUM_QUERIES", 5)
    monkeypatch.setattr("jem.evaluation.robustness.report.IMAGE_EPS", (0.01, 0.5))
    monkeypatch.setattr("jem.evaluation.robustness.report.REFINED_STEPS", 3)


def test_attacks_are_measured_where_they_are_asked_for(measured, quick_attacks):
    of, without = measured
    looked_at = []
    report = measure(replace(of, ood_sets={}), attack=True, progress=looked_at.append)
    x, y = of.splits.test[:12]
    for model, name in ((of.model, "accuracy"), (of.control, "plain_accuracy")):
        right = exact_logits(model, x).argmax(1) == y
        found = [getattr(point, name).value for point in report.attack.points]
        assert found[0] == float(right.double().mean())
        assert found[-1] == 0  # all images can become the same grey one
    assert report.attack.num == 12
    assert report.attack.refine_steps == 5
    assert looked_at[-1] == "attacks, part 8 of 8"
    again = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert [point["eps"] for point in again["attack"]["points"]] == [0, 0.01, 0.5]
    assert without.attack is None
    assert "attacks" not in without.left_out


@pytest.fixture
def quick_annealing(monkeypatch):
    few = partial(log_partition, num_steps=10, num_chains=16)
    monkeypatch.setattr("jem.report.measure.log_partition", few)


def test_bits_are_measured_where_they_are_asked_for(measured, quick_annealing):
    of, without = measured
    looked_at = []
    report = measure(replace(of, ood_sets={}), likelihood=True, progress=looked_at.append)
    assert report.likelihood.num_test == len(of.splits.test)
    assert report.likelihood.base_bits.value == pytest.approx(1.0)  # of the range of two
    assert report.likelihood.chosen.trusted  # validation inputs chose it
    assert looked_at[-1].startswith("likelihood, step ")
    again = json.loads(json.dumps(report.to_dict(), allow_nan=False))["likelihood"]
    assert again["at_one"]["log_z"] == report.likelihood.log_z
    assert again["at_one"]["bits_per_dim"]["value"] == report.likelihood.at_one.bits_per_dim.value
    assert again["doubt"] == report.likelihood.doubt
    assert without.likelihood is None
    assert "likelihood" not in without.left_out


def test_a_density_that_nobody_trained_has_no_bits(make_subject):
    report = measure(make_subject(trained=False, control=False), likelihood=True)
    assert report.likelihood is None
    assert "trained" in report.left_out["likelihood"]


def test_rows_with_text_are_not_attacked():
    rows = pd.DataFrame({"size": np.arange(60.0), "colour": ["red", "blue", "green"] * 20})
    splits = from_arrays(rows, np.arange(60) % 2, name="made up", seed=0)
    model = jem.JEM(mlp(splits.input_shape, 2, width=4), domain=splits.domain)
    report = measure(Subject(model, splits), attack=True)
    assert report.attack is None
    assert "columns of text" in report.left_out["attacks"]
