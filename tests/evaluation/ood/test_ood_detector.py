"""The detector: what its threshold and p-values promise, and that it can be saved."""

import numpy as np
import pytest
import torch
from torch import nn

from jem.data import from_arrays
from jem.errors import InputError
from jem.evaluation.ood import SCORES, OODDetector
from jem.model import JEM
from jem.networks import FactoredHead, mlp
from jem.serving.export import PytorchOODAdapter


class FirstColumn(nn.Module):
    """K = 1 with log p(x) = x[0]: inputs are their own scores."""

    def forward(self, x):
        return x[:, :1]


def detector_on(scores, acceptance_rate=0.95):
    return OODDetector(JEM(FirstColumn()), "log_density").fit(
        column(scores), acceptance_rate=acceptance_rate
    )


def column(scores):
    return torch.as_tensor(scores, dtype=torch.float64)[:, None]


@pytest.mark.parametrize(
    ("acceptance_rate", "needed"),
    [(0.95, 19), (0.9, 9), (0.99, 99), (0.999, 999), (0.8, 4), (0.7, 3), (0.5, 1), (2 / 3, 2)],
)
def test_fewest_calibration_inputs(acceptance_rate, needed):
    detector = detector_on(range(needed), acceptance_rate)
    # The lowest score has p = 1 / (n + 1), and so is just accepted; anything lower is flagged.
    assert detector.is_ood(column([-1.0, 0.0])).tolist() == [True, False]
    if needed > 1:
        with pytest.raises(InputError, match=f"at least {needed} "):
            detector_on(range(needed - 1), acceptance_rate)


@pytest.mark.parametrize("acceptance_rate", [0.95, 0.9, 0.7, 0.5, 0.1, 1 / 3])
@pytest.mark.parametrize("num", [19, 20, 39, 59, 99, 100])
def test_flags_say_what_the_p_values_say(acceptance_rate, num):
    rng = np.random.default_rng(num)
    detector = detector_on(np.round(rng.normal(size=num), 1), acceptance_rate)  # with ties
    x = column(np.round(rng.normal(size=300), 1))
    p = detector.p_value(x)
    assert p.dtype == torch.float64
    assert p.min() >= 1 / (num + 1) - 1e-12
    assert detector.is_ood(x).equal(p <= 1 - acceptance_rate + 1e-9)


def test_p_values_by_hand():
    detector = detector_on([3.0, 1.0, 2.0, 2.0], acceptance_rate=0.5)
    found = detector.p_value(column([0.0, 1.0, 1.5, 2.0, 9.0]))
    assert found.tolist() == pytest.approx([0.2, 0.4, 0.4, 0.8, 1.0])
    assert detector.threshold == pytest.approx(2.0, rel=1e-5)  # r = 2: the second lowest


@pytest.mark.parametrize("seed", range(4))
def test_a_copy_of_a_calibration_input_gets_its_verdict_in_a_batch_of_any_size(seed):
    """Matrix products of other sizes round otherwise; eight distinct rows, so ties decide."""
    generator = torch.Generator().manual_seed(seed)
    distinct = torch.randn(8, 30, generator=generator)
    x = distinct[torch.randint(8, (200,), generator=generator)]
    detector = OODDetector(JEM(mlp((30,), 2))).fit(x, acceptance_rate=0.95)
    alone = torch.cat([detector.p_value(row[None]) for row in distinct])
    together = detector.p_value(distinct[torch.arange(800) % 8])
    assert together.equal(alone.repeat(100))
    assert alone.equal(detector.verdict(detector.score(distinct).double()).p_value)
    assert detector.is_ood(x).sum() <= 0.05 * 201


def test_infinite_scores_are_ordered_like_numbers():
    inf = float("inf")
    detector = detector_on([-inf, *range(18), inf], acceptance_rate=0.9)  # r = 2
    assert detector.threshold == pytest.approx(0.0, abs=1e-5)
    assert detector.is_ood(column([-inf, 0.0, inf])).tolist() == [True, False, False]
    assert detector.p_value(column([-inf, inf])).tolist() == pytest.approx([2 / 21, 1.0])
    lenient = detector_on([-inf] * 2 + list(range(17)), acceptance_rate=0.9)
    assert not lenient.is_ood(column([-inf]))


def test_scores_that_are_mostly_the_same_are_doubted():
    with pytest.warns(UserWarning, match="17 of 30 calibration scores are equal"):
        detector_on([1.0] * 17 + list(range(2, 15)))
    detector_on([1.0] * 13 + list(range(2, 19)))


def test_nan_scores_are_refused():
    detector = detector_on(range(30))
    bad = column([0.0, float("nan")])
    for method in (detector.score, detector.is_ood, detector.p_value):
        with pytest.raises(InputError, match="input 1"):
            method(bad)
    with pytest.raises(InputError, match="NaN"):
        detector_on([float("nan")] * 30)
    with pytest.raises(InputError, match="input 1"):  # which no comparison would flag
        detector.verdict(bad[:, 0])


@pytest.mark.parametrize("name", [*SCORES, "combined", "knn+max_probability"])
def test_detector_survives_saving(name, tmp_path):
    torch.manual_seed(0)
    model, x = JEM(mlp((2,), 3, width=8, depth=1)), torch.randn(60, 2)
    options = {"k": 3} if "knn" in name else {}
    detector = OODDetector(model, name, (x[:30], torch.arange(30) % 3), **options)
    with torch.inference_mode():
        detector.fit(x[30:], acceptance_rate=0.8)
    torch.save(detector.state_dict(), tmp_path / "detector.pt")
    state = torch.load(tmp_path / "detector.pt", weights_only=True)
    loaded = OODDetector(model).load_state_dict(state)
    assert loaded.threshold == detector.threshold
    assert (loaded.score_name, loaded.acceptance_rate) == (name, 0.8)
    for method in ("score", "p_value", "is_ood"):
        assert getattr(loaded, method)(x).equal(getattr(detector, method)(x))


def test_scores_at_hand_fit_and_judge_as_inputs_do():
    torch.manual_seed(0)
    model, x = JEM(mlp((2,), 3, width=8, depth=1)), torch.randn(90, 2)
    for name in SCORES:
        reference = (x[:30], torch.arange(30) % 3)
        by_input = OODDetector(model, name, reference).fit(x[30:60], acceptance_rate=0.9)
        by_score = OODDetector(model, name, reference)
        by_score.fit_threshold(by_score.score(x[30:60]), acceptance_rate=0.9)
        assert by_score.threshold == by_input.threshold
        assert by_score.num_calibration == 30
        verdict = by_score.verdict(by_input.score(x[60:]))
        assert verdict.p_value.equal(by_input.p_value(x[60:]))
        assert verdict.is_ood.equal(by_input.is_ood(x[60:]))


def test_logits_at_hand_spare_the_network():
    class Once(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return x @ torch.ones(2, 3)

    network = Once()
    detector = OODDetector(JEM(network), "entropy")
    detector.score(torch.zeros(5, 2), logits=torch.randn(5, 3))
    assert network.calls == 0
    with pytest.raises(InputError, match="`logits`"):
        detector.score(torch.zeros(200, 2), torch.zeros(3, 3))


def test_the_threshold_moves_to_another_share_by_the_same_calibration():
    detector = detector_on(range(99), acceptance_rate=0.9)
    assert detector.threshold == pytest.approx(9.0, rel=1e-5)
    fitted = detector_on(range(99), acceptance_rate=0.95)
    assert detector.set_acceptance_rate(0.95).threshold == fitted.threshold
    with pytest.raises(InputError, match="at least 999 "):
        detector.set_acceptance_rate(0.999)
    assert (detector.acceptance_rate, detector.threshold) == (0.95, pytest.approx(4.0, rel=1e-5))
    with pytest.raises(InputError, match="call `fit"):
        OODDetector(JEM(FirstColumn())).set_acceptance_rate(0.9)
    with pytest.raises(InputError, match="shape"):
        detector.fit_threshold(torch.zeros(30, 2))
    assert detector.fit_threshold(list(range(99)), 0.95).threshold == fitted.threshold


def test_misuse_is_refused():
    model, x = JEM(FirstColumn()), torch.randn(30, 1)
    unfitted = OODDetector(model, "log_density")
    for method in (unfitted.is_ood, unfitted.p_value, unfitted.reason):
        with pytest.raises(InputError, match="call `fit"):
            method(x)
    for acceptance_rate in (0.0, 1.0, float("nan")):
        with pytest.raises(InputError, match="`acceptance_rate`"):
            OODDetector(model).fit(x, acceptance_rate=acceptance_rate)
    with pytest.raises(InputError, match="K = 1"):
        OODDetector(model, "gen").fit(x)
    with pytest.raises(InputError, match="shape"):
        OODDetector(model, "log_density").fit(x).score(torch.zeros(2, 3))
    for no_model in (nn.Linear(2, 3), "model"):
        with pytest.raises(InputError, match=r"jem\.JEM"):
            OODDetector(no_model)


def test_the_combined_score_says_what_it_lacks():
    model, x = JEM(FirstColumn()), torch.randn(38, 1)
    with pytest.raises(InputError, match="pass validation=x"):
        OODDetector(model).score(x)
    with pytest.raises(InputError, match=r"at least 38 inputs .* half as many will do"):
        OODDetector(model).fit(x[:37])
    assert OODDetector(model).fit(x).num_calibration == 19
    assert OODDetector(model, validation=x).fit(x[:19]).num_calibration == 19


def test_calibration_inputs_in_other_units_are_refused():
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    detector = OODDetector(JEM(network, domain=(-1, 1)))
    raw = torch.arange(40 * 16).remainder(256).float().view(40, 1, 4, 4)
    with pytest.raises(InputError, match="`x_calibration`"):
        detector.fit(raw)
    few_broken = raw / 255
    few_broken[:10] = 255  # what most of them say counts
    assert detector.fit(few_broken).threshold is not None


def test_adapter_speaks_the_protocol_of_pytorch_ood():
    torch.manual_seed(0)
    model, x = JEM(mlp((2,), 3, width=8, depth=1)), torch.randn(40, 2)
    labels = torch.arange(40) % 4 - 1  # every fourth is OOD by their rule
    loader = [(x[:25], labels[:25]), (x[25:], labels[25:])]
    known = (x[labels >= 0], labels[labels >= 0])
    for name in SCORES:
        adapter = PytorchOODAdapter(model, name).fit(loader)
        expected = -OODDetector(model, name, known).score(x)
        torch.testing.assert_close(adapter.predict(x), expected)
        torch.testing.assert_close(adapter(x), expected)
    with pytest.raises(InputError, match="reference="):
        PytorchOODAdapter(model, "knn").predict(x)
    with pytest.raises(InputError, match="`reference`"):
        PytorchOODAdapter(model, "knn").fit([])


def test_adapter_gives_the_scores_of_pytorch_ood():
    theirs = pytest.importorskip("pytorch_ood.detector")
    torch.manual_seed(0)
    model, x = JEM(mlp((2,), 5, width=8, depth=1)).eval(), torch.randn(40, 2)
    for name, detector, factor in (
        ("log_density", theirs.EnergyBased, 1), ("max_probability", theirs.MaxSoftmax, 1),
        ("max_logit", theirs.MaxLogit, 1), ("entropy", theirs.Entropy, 1),
        ("gen", theirs.GEN, 5),  # they average over the classes; the paper sums
    ):  # fmt: skip
        expected = factor * detector(model).predict(x).detach()
        torch.testing.assert_close(PytorchOODAdapter(model, name).predict(x), expected)


def test_many_skewed_columns_are_no_other_units():
    rows = np.random.default_rng(0).lognormal(0, 1.5, (300, 1000))
    splits = from_arrays(rows, np.arange(300) % 2)
    model = JEM(nn.Linear(1000, 2), domain=splits.domain)
    low, high = splits.domain
    far = (splits.calibration.x > 2 * high - low).any(dim=1)
    assert far.float().mean() > 0.5  # a value far out in most rows
    assert OODDetector(model, "max_logit").fit(splits.calibration.x).threshold is not None
    with pytest.raises(InputError, match="`x_calibration`"):
        OODDetector(model).fit(splits.calibration.x * 1000)


@pytest.mark.parametrize("last", [nn.LogSoftmax(dim=1), nn.Softmax(dim=1)])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_network_that_ends_in_a_softmax_has_no_density(last, frozen):
    network = nn.Sequential(nn.Linear(2, 3), last).requires_grad_(not frozen)
    x = torch.randn(40, 2)
    with pytest.raises(InputError, match="must return logits, but ends in a softmax"):
        OODDetector(JEM(network)).fit(x)
    assert OODDetector(JEM(network), "max_logit").fit(x).threshold is not None
    head = FactoredHead(2, 3)
    with torch.no_grad():  # log p(x) begins as a constant
        head.linear.weight[-1:], head.linear.bias[-1:] = 0, 0
    detector = OODDetector(JEM(head), "log_density").fit(x)
    assert detector.threshold == pytest.approx(0, abs=1e-5)
