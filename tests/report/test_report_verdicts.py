"""Verdicts follow their rules: reports with figures as wanted, not measured."""

from types import SimpleNamespace as Of

import pytest

from jem.evaluation.chains import MEANINGS
from jem.evaluation.fidelity.report import Filling
from jem.evaluation.statistics import Estimate
from jem.report.verdicts import LEAST_RISE, verdicts
from jem.training import validation


def estimate(value, low=float("nan"), high=float("nan")):
    return Estimate(value, float("nan"), low, high)


def probabilities(ece=0.02):
    return Of(accuracy=0.9, num_samples=100, ece=ece, if_calibrated={"ece": 0.03})


def classified(difference=(-0.005, 0.005), before=0.02, after=0.02, improved=True):
    own = Of(before=probabilities(before), after=probabilities(after), improved=improved)
    found = Of(model=own, control=None, accuracy_difference=None, majority=estimate(0.5))
    if difference is not None:
        found.control, found.accuracy_difference = own, estimate(0.0, *difference)
    return found


def ood_set(name, low, high, used=False):
    return Of(name=name, auroc=estimate((low + high) / 2, low, high), used_in_training=used)


def detected(*sets):
    return Of(sets=list(sets), num_test=45)


def drawn(agreement=(0.93, 0.97), diversity=(0.7, 0.9), recall=0.6, frechet=6.3, judge=0.8):
    row = Of(
        num=50,
        agreement=estimate(0.95, *agreement),
        diversity=estimate(0.8, *diversity),
        recall=estimate(recall),
        frechet=estimate(frechet),
    )
    real = Of(recall=estimate(0.8), agreement=estimate(judge), frechet=estimate(0.3))
    return Of(fresh=Of(samples=row, real=real, num_features=64))


def trained(recoveries=0, recorded=True, overfits=(False, False), last=0.505):
    nll = Of(
        best=(3, 0.5), last=(9, last), kept=(3, 0.5), last_overfits=overfits[0],
        kept_overfits=overfits[1],
    )  # fmt: skip
    return Of(num_recoveries=recoveries, recorded=recorded, overfitting=nll)


def chains(verdict, start=0.1):
    return Of(verdict=verdict, gap_start=estimate(start), tolerance=1.0)


def report(**changes):
    found = {
        "classification": classified(),
        "ood": detected(ood_set("noise", 0.98, 1.0)),
        "samples": drawn(),
        "completions": None,
        "chains": chains("level"),
        "training": trained(),
        "left_out": {},
        "run": Of(as_given=""),
    }
    return Of(**found | changes)


def answers(**changes):
    return [verdict.answer for verdict in verdicts(report(**changes))]


def test_a_good_report_has_six_times_yes():
    assert answers() == ["yes"] * 6


@pytest.mark.parametrize(
    ("difference", "answer"),
    [
        ((-0.005, 0.005), "yes"),
        ((0.01, 0.03), "yes"),
        ((-0.05, -0.01), "no"),
        ((-0.005, -0.001), "no"),
        ((-0.08, 0.02), "cannot tell"),
        (None, "cannot tell"),
    ],
)
def test_accuracy_is_judged_by_the_interval_of_the_difference(difference, answer):
    assert answers(classification=classified(difference))[0] == answer


def test_a_classifier_that_knows_no_more_than_the_most_frequent_class_is_not_accurate():
    found = classified()
    found.majority = estimate(0.9)
    assert answers(classification=found)[0] == "no"


@pytest.mark.parametrize(
    ("before", "after", "answer"),
    [(0.02, 0.02, "yes"), (0.05, 0.02, "partly"), (0.05, 0.05, "no")],
)
def test_calibration_is_judged_by_what_chance_does(before, after, answer):
    assert answers(classification=classified(before=before, after=after))[1] == answer


def test_an_ood_set_is_recognised_or_not_by_its_whole_interval():
    good, bad = ood_set("noise", 0.96, 1.0), ood_set("letters", 0.8, 0.94)
    unclear, used = ood_set("beyond", 0.92, 1.0), ood_set("noise", 0.96, 1.0, used=True)
    for sets, answer in (
        ([good], "yes"),
        ([bad], "no"),
        ([unclear], "cannot tell"),
        ([good, bad], "partly"),
        ([good, unclear], "cannot tell"),
        ([bad, unclear], "cannot tell"),
        ([good, bad, unclear], "partly"),
        ([used, bad], "no"),
        ([used], "cannot tell"),
    ):
        assert answers(ood=detected(*sets))[2] == answer
    because = verdicts(report(ood=detected(good, unclear)))[2].because
    assert because.startswith("recognised: noise; for beyond the 45 test inputs are too few")


@pytest.mark.parametrize(
    ("agreement", "diversity", "answer"),
    [
        ((0.93, 0.97), (0.2, 0.4), "partly"),
        ((0.5, 0.7), (0.2, 0.4), "no"),
        ((0.55, 0.99), (0.2, 1.6), "cannot tell"),
        ((0.55, 0.99), (0.2, 0.4), "cannot tell"),
    ],
)
def test_samples_are_judged_by_whole_intervals(agreement, diversity, answer):
    assert answers(samples=drawn(agreement, diversity))[3] == answer


NOT_HELPED = {"classification": classified(improved=False)}
INVERTED = {
    "ood": detected(ood_set("noise", 0.0, 0.1, used=True), ood_set("letters", 0.97, 1.0)),
}


@pytest.mark.parametrize(
    ("changes", "place", "answer", "said"),
    [
        ({"samples": drawn(recall=0.39)}, 3, "yes", "recall 0.39, real inputs 0.80"),
        ({"samples": drawn(frechet=6.5)}, 3, "partly", "Frechet distance 6.5, real inputs 0.3"),
        ({"samples": drawn(judge=0.68)}, 3, "cannot tell", "weak: accuracy 0.68"),
        (INVERTED, 2, "yes", "(AUROC below 0.5): noise (0.05)"),
        (NOT_HELPED, 1, "yes", "did not help"),
    ],
)
def test_what_stands_beside_an_answer_is_said(changes, place, answer, said):
    found = verdicts(report(**changes))[place]
    assert found.answer == answer
    assert said in found.because
    good = report(samples=drawn(recall=0.4, frechet=float("nan")))  # too few to measure it
    assert verdicts(good)[place].answer == "yes"
    assert said.split()[0] not in verdicts(good)[place].because


@pytest.mark.parametrize(
    ("overfits", "answer"),
    [((False, False), "yes"), ((True, False), "partly"), ((True, True), "no")],
)
def test_overfitting_is_judged_by_the_last_epoch_and_the_one_kept(overfits, answer):
    found = verdicts(report(training=trained(overfits=overfits)))[5]
    assert found.answer == answer
    assert "0.500 in epoch 3" in found.because
    assert ("What helps" in found.because) is overfits[0]


def test_a_rise_that_may_be_chance_is_not_called_kept_from_overfitting():
    found = verdicts(report(training=trained(last=0.52)))[5]
    assert found.answer == "cannot tell"
    assert "too few to judge the rise" in found.because
    assert LEAST_RISE == validation.LEAST_RISE  # what the page calls a rise, training does


def test_recoveries_and_chains_decide_about_training():
    once = trained(1, True)
    assert answers(training=once)[4] == "partly"
    assert answers(training=once, chains=chains("landscape"))[4] == "no"
    assert answers(chains=None)[4] == "yes"
    assert answers(training=once, chains=None)[4] == "partly"
    nothing = trained(0, False)
    assert answers(training=nothing, chains=None)[4] == "cannot tell"


@pytest.mark.parametrize(
    ("kind", "start", "answer", "advice"),
    [
        ("level", 0.1, "yes", ""),
        ("overshoot", 0.9, "yes", "own number of steps"),
        ("overshoot", -2.0, "partly", "--noise-std"),
        ("landscape", 0.1, "partly", "--density-weight"),
        ("lag", 2.0, "partly", "--num-steps"),
    ],
)
def test_what_to_do_about_chains_is_said(kind, start, answer, advice):
    found = verdicts(report(chains=chains(kind, start)))[4]
    assert found.answer == answer
    assert MEANINGS[kind] in found.because
    assert advice in found.because
    assert ("What to do" in found.because) is bool(advice)


@pytest.mark.parametrize(
    ("over_mean", "over_nearest", "answer"),
    [
        ((0.2, 0.1, 0.3), (0.05, -0.05, 0.15), "yes"),
        ((0.2, 0.1, 0.3), (-0.15, -0.2, -0.1), "no"),
        ((0.05, -0.05, 0.15), (0.05, -0.05, 0.15), "cannot tell"),
        ((-0.2, -0.3, -0.1), (-0.4, -0.5, -0.3), "no"),
    ],
)
def test_completions_are_compared_with_the_mean_and_the_nearest_input(
    over_mean, over_nearest, answer
):
    shares = {"mean fill": 0.5, "nearest neighbour": 0.8, "original": 0.98}
    fillings = {name: Filling(estimate(share), 0.0) for name, share in shares.items()}
    gains = estimate(*over_mean), estimate(*over_nearest)
    fillings["one completion"] = Filling(estimate(0.7), 0.0, *gains)
    found = verdicts(report(completions=Of(fillings=fillings, num_inputs=128)))[-1]
    assert found.answer == answer
    fillings["original"] = Filling(estimate(0.66), 0.0)
    weak = verdicts(report(completions=Of(fillings=fillings, num_inputs=128)))[-1]
    assert weak.answer == ("cannot tell" if answer == "yes" else answer)
    assert "one completion 0.700, mean fill 0.500, nearest neighbour 0.800" in found.because
