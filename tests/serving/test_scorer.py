"""Detector and temperature together: one table, one file, the same verdicts after loading."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import jem
from jem import networks
from jem.data.splits import DataPart, LazyPart
from jem.errors import InputError, RunFolderError
from jem.evaluation.calibration.temperature import TemperatureScaling
from jem.evaluation.ood import SCORES, OODDetector
from jem.model import JEM
from jem.serving.scorer import fit_scorer, load_scorer
from jem.training.trainer import Trainer


@pytest.fixture(scope="module")
def iris():
    return jem.data.load("iris")


@pytest.fixture(scope="module")
def model(iris):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = networks.mlp((4,), 3, width=16, depth=2)
    model = JEM(network, classes=iris.classes, domain=iris.domain, scaling=iris.scaling)
    recipe = replace(jem.RECIPES["plain"], epochs=30)
    Trainer(model, recipe, device="cpu").fit(iris.train)
    return model


@pytest.fixture(scope="module")
def lazy(iris):
    """The same data, read one by one."""
    parts = ("train", "validation", "calibration")
    held = {name: getattr(iris, name) for name in parts}
    return replace(
        iris, **{name: LazyPart(list(part.x), part.y, torch.clone) for name, part in held.items()}
    )


@pytest.mark.parametrize("name", [*SCORES, "combined", "knn+max_probability"])
def test_table_says_what_its_parts_say(name, model, iris):
    scorer = fit_scorer(model, iris, score=name, acceptance_rate=0.8)
    x = iris.test.x
    table = scorer.predict(x)
    detector = OODDetector(model, name, iris.train[:], validation=iris.validation.x)
    detector.fit(iris.calibration.x, acceptance_rate=0.8)
    torch.testing.assert_close(table.score, detector.score(x))
    torch.testing.assert_close(table.p_value, detector.p_value(x))
    assert table.reason == detector.reason(x)
    assert [bool(why) for why in table.reason] == table.is_ood.tolist()
    assert table.is_ood.equal(detector.is_ood(x))
    torch.testing.assert_close(table.log_density, model.log_density(x).detach())
    probabilities = model.predict_proba(x)
    torch.testing.assert_close(table.probability, probabilities.amax(dim=1))
    assert table.class_index.equal(probabilities.argmax(dim=1))
    with torch.no_grad():
        temperature = TemperatureScaling().fit(model.logits(iris.validation.x), iris.validation.y)
        scaled = temperature.transform(model.logits(x)).softmax(dim=1)
    assert scorer.temperature.temperature == pytest.approx(temperature.temperature)
    torch.testing.assert_close(table.calibrated_probability, scaled.amax(dim=1))


def test_the_parts_have_one_purpose_each(model, iris):
    moved = replace(iris, train=None, test=None)  # not looked at
    scorer = fit_scorer(model, moved, score="combined")
    assert scorer.detector.num_calibration == len(iris.calibration)
    other = replace(iris, validation=iris.test)
    first, second = (fit_scorer(model, of, score="entropy") for of in (iris, other))
    assert first.detector.threshold == second.detector.threshold
    assert first.temperature.nll_before != second.temperature.nll_before


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_batches_single_inputs_and_gradient_modes_change_nothing(context, model, iris):
    scorer = fit_scorer(model, iris)
    expected = scorer.predict(iris.test.x)
    small = fit_scorer(model, iris, batch_size=7)
    with context():
        for found in (scorer.predict(iris.test.x), small.predict(iris.test.x.numpy())):
            assert found.reason == expected.reason
            for column, wanted in zip(found[:-1], expected[:-1], strict=True):
                assert not column.requires_grad
                torch.testing.assert_close(column, wanted, rtol=1e-5, atol=1e-4)
        single = scorer.predict(iris.test.x[3])
        for column, wanted in zip(single[:-1], expected[:-1], strict=True):
            torch.testing.assert_close(column, wanted[3:4])


def test_the_model_is_left_as_it_was(iris):
    model = JEM(nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))).train()
    scorer = fit_scorer(model, iris, score="max_logit")
    assert scorer.predict(iris.test.x).score.equal(scorer.predict(iris.test.x).score)
    assert all(m.training for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_a_small_calibration_part_accepts_what_it_can_promise(model, iris):
    assert len(iris.calibration) == 15
    assert fit_scorer(model, iris).detector.acceptance_rate == 15 / 16
    assert fit_scorer(model, iris, acceptance_rate=0.9).detector.acceptance_rate == 0.9
    with pytest.raises(InputError, match=r"at least 19 inputs .* got 15"):
        fit_scorer(model, iris, acceptance_rate=0.95)
    digits = jem.data.load("digits")
    network = networks.network_for(digits.input_shape, 10)
    assert fit_scorer(JEM(network), digits).detector.acceptance_rate == 0.95


@pytest.mark.parametrize("name", ["log_density", "knn", "mahalanobis"])
def test_data_read_one_by_one_give_the_same(name, model, iris, lazy):
    expected = fit_scorer(model, iris, score=name).predict(iris.test.x)
    found = fit_scorer(model, lazy, score=name, batch_size=11).predict(iris.test.x)
    for column, wanted in zip(found[:-1], expected[:-1], strict=True):
        torch.testing.assert_close(column, wanted, rtol=1e-5, atol=1e-4)


def test_classes_in_another_order_are_refused(model, iris, tmp_path):
    swapped = JEM(model.network, classes=iris.classes[::-1])
    more = JEM(model.network, classes=[*iris.classes, "lilac"])
    for other, message in ((swapped, "class 0 must be 'setosa'"), (more, "class 3 must be None")):
        with pytest.raises(InputError, match=message):
            fit_scorer(other, iris)
        with pytest.raises(InputError, match=message):
            jem.write_report(other, iris, tmp_path)
        with pytest.raises(InputError, match=message):
            jem.write_report(model, iris, tmp_path, control=other)
    numbered = JEM(model.network, classes=["0", "1", "2"])  # as training names those without names
    assert fit_scorer(numbered, iris).detector.num_calibration == len(iris.calibration)


@pytest.mark.parametrize("part", ["test", "calibration"])
def test_an_empty_part_is_named(part, model, iris, tmp_path):
    lacking = replace(iris, **{part: DataPart(*getattr(iris, part)[:0])})
    message = f"the {part} part of `iris` must hold examples, but is empty"
    with pytest.raises(InputError, match=message):
        jem.write_report(model, lacking, tmp_path)


def test_without_a_validation_part_maps_are_fitted_on_training_inputs(model, iris):
    """Not on the calibration part: the threshold would promise more than it keeps."""
    lacking = replace(iris, validation=DataPart(*iris.validation[:0]))
    scorer = fit_scorer(model, lacking, score="combined")
    expected = OODDetector(model, validation=iris.train.x).fit(iris.calibration.x, 15 / 16)
    assert scorer.detector.threshold == pytest.approx(expected.threshold)
    assert scorer.detector.num_calibration == 15
    judge = replace(iris, validation=iris.calibration)
    assert scorer.temperature.temperature == fit_scorer(model, judge).temperature.temperature


def test_calibration_inputs_in_other_units_are_refused(model, iris):
    far = replace(iris.calibration, x=1000 * iris.calibration.x)
    with pytest.raises(InputError, match="`x_calibration`"):
        fit_scorer(model, replace(iris, calibration=far))


def test_without_a_density_features_and_confidence_decide(model, iris):
    """How many training inputs there are for each feature decides how features are compared."""
    assert len(iris.train) > 2 * model.network.features(iris.test.x).shape[1]
    assert fit_scorer(model, iris).detector.score_name == "mahalanobis+max_probability"
    few = replace(iris, train=DataPart(*iris.train[:20]))
    assert fit_scorer(model, few).detector.score_name == "knn+max_probability"
    featureless = JEM(Islands())
    assert fit_scorer(featureless, iris).detector.score_name == "combined"
    recipe = replace(jem.RECIPES["fast"], epochs=1)
    trained = JEM(networks.mlp((4,), 3, width=8, depth=1))
    Trainer(trained, recipe, device="cpu").fit(iris.train)
    assert fit_scorer(trained, iris).detector.score_name == "combined"


class Islands(nn.Module):
    """Logits without a linear layer: minus the distances to three points."""

    def forward(self, x):
        return -torch.cdist(x, 2 * torch.eye(3, 4).to(x))


def test_a_scorer_needs_a_model_with_a_density(model, iris):
    with pytest.raises(InputError, match=r"be a jem\.JEM, got Network: wrap it"):
        fit_scorer(model.network, iris)


def test_a_model_of_one_output_needs_no_temperature(iris):
    torch.manual_seed(0)
    model = JEM(networks.mlp((4,), 1, width=8, depth=1))
    table = fit_scorer(model, iris).predict(iris.test.x)
    assert (table.class_index == 0).all()
    assert (table.calibrated_probability == 1).all()
    by_density = fit_scorer(model, iris, score="log_density").predict(iris.test.x)
    # The order is the same; what counts as a tie with one of the 15 differs by a rounding.
    torch.testing.assert_close(table.p_value, by_density.p_value, rtol=0, atol=1 / 16)
    assert table.is_ood.equal(by_density.is_ood)
    assert table.reason == by_density.reason


def test_a_run_keeps_its_scorer(iris, tmp_path):
    model = JEM(networks.mlp((4,), 3, width=16, depth=2), scaling=iris.scaling)
    recipe = replace(jem.RECIPES["plain"], epochs=2)
    Trainer(model, recipe, run_dir=tmp_path, device="cpu").fit(iris.train)
    scorer = fit_scorer(model, iris)
    with pytest.raises(RunFolderError, match="holds no detector"):
        load_scorer(tmp_path)
    jem.save(
        model, tmp_path / "model.pt", detector=scorer.detector, temperature=scorer.temperature
    )
    loaded = load_scorer(tmp_path)
    raw = np.array([[5.0, 3.4, 1.5, 0.2], [60, 40, 20, 10]])
    table = loaded.predict(loaded.model.preprocess(raw))
    expected = scorer.predict(model.preprocess(raw))
    assert table.reason == expected.reason
    for column, wanted in zip(table[:-1], expected[:-1], strict=True):
        assert column.equal(wanted)


def test_nan_from_the_network_is_named(model, iris):
    scorer = fit_scorer(model, iris)
    x = iris.test.x[:10].clone()
    x[4, 1] = float("nan")
    with pytest.raises(InputError, match="NaN for input 4"):
        scorer.predict(x)
    with pytest.raises(InputError, match="shape"):
        scorer.predict(torch.zeros(3, 5))
