"""Robust accuracy against classifiers whose distance to the boundary is known."""

import numpy as np
import pytest
import torch
from torch import nn

import jem
from jem.evaluation.robustness import report, robustness_report
from jem.sampling import LangevinStep, SamplerSettings, UniformBase

EPS = (0.05, 0.2, 0.6)


class Known(nn.Module):
    """Linear class probabilities, and a level that is given."""

    def __init__(self, weight, level=lambda x: 0 * x.flatten(1).sum(dim=1)):
        super().__init__()
        self.weight, self.level = nn.Parameter(weight), level

    def forward(self, x):
        return (x.flatten(1) @ self.weight.T).log_softmax(dim=1) + self.level(x)[:, None]


class Rounded(nn.Module):
    """Takes inputs in steps of 0.01: its gradients are zero."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(0 * x + 0.01 * (100 * x).round())


class Everything:
    """A detector that rejects every input with a positive first component."""

    def is_ood(self, x):
        return x[:, 0] > 0


@pytest.fixture(autouse=True)
def few_queries(monkeypatch):
    monkeypatch.setattr(report, "NUM_QUERIES", 60)


@pytest.fixture
def problem(generator):
    """Weights (3, 4), inputs, and classes of which some are wrong."""
    weight = 50 * torch.randn(3, 4, generator=generator)
    x = torch.randn(60, 4, generator=generator)
    y = (x @ weight.T).argmax(dim=1)
    y[::10] = (y[::10] + 1) % 3
    return weight, x, y


def distances(weight, x, y, norm):
    """From each input to the nearest other class; negative where it is in another class."""
    gaps = (weight[y][:, None] - weight).numpy().astype(float)
    order = {"linf": 1, "l2": 2}[norm]
    with np.errstate(invalid="ignore"):
        away = np.einsum("nkd,nd->nk", gaps, x.numpy()) / np.linalg.norm(gaps, order, axis=2)
    return np.nanmin(away, axis=1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_robust_accuracy_of_a_linear_classifier_is_exact(norm, problem):
    weight, x, y = problem
    found = robustness_report(jem.JEM(Known(weight)), x, y, eps=EPS, norm=norm)
    away = distances(weight, x, y, norm)
    assert [point.eps for point in found.points] == [0, *EPS]
    assert [p.accuracy.value for p in found.points] == [np.mean(away > e) for e in (0, *EPS)]
    assert found.points[0].accuracy.value == 0.9
    assert 0.05 < found.points[-1].accuracy.value < 0.5
    assert found.found_by["none needed"] == pytest.approx(0.1)
    assert sum(found.found_by.values()) == pytest.approx(1 - found.points[-1].accuracy.value)
    assert not found.gradients_mislead
    assert found.unit == "the units of the network"


def test_images_count_eps_in_the_range_of_a_pixel(problem, generator):
    weight = torch.randn(3, 16, generator=generator)
    x = torch.rand(40, 1, 4, 4, generator=generator)
    y = (x.flatten(1) @ weight.T).argmax(dim=1)
    shifted = Known(weight / 2, lambda x: 0 * x.flatten(1).sum(dim=1))
    one = robustness_report(jem.JEM(Known(weight), domain=(0, 1)), x, y, eps=(0.1, 0.3))
    offset = weight.sum(dim=1) / 2
    shifted.register_forward_hook(lambda _, __, out: (out + offset).log_softmax(dim=1))
    two = robustness_report(jem.JEM(shifted, domain=(-1, 1)), 2 * x - 1, y, eps=(0.1, 0.3))
    assert one.unit == two.unit == "the range of a pixel"
    assert [p.accuracy for p in one.points] == [p.accuracy for p in two.points]
    assert 1 == one.points[0].accuracy.value > one.points[2].accuracy.value > 0


def test_attacks_on_another_model_are_tried_on_this_one(problem):
    weight, x, y = problem
    model = jem.JEM(Known(weight))
    same = robustness_report(model, x, y, eps=EPS, plain=model)
    exact = [np.mean(distances(weight, x, y, "linf") > e) for e in (0, *EPS)]
    assert [p.plain_accuracy.value for p in same.points] == exact
    transferred = [p.transfer_accuracy.value for p in same.points]
    assert transferred[0] == 0.9
    assert all(a <= b <= a + 0.2 for a, b in zip(exact, transferred, strict=True))
    # What makes the opposite of two classes likelier makes this classifier surer.
    two = jem.JEM(Known(weight[:2]))
    y = (x @ weight[:2].T).argmax(dim=1)
    other = robustness_report(two, x, y, eps=(0.6,), plain=jem.JEM(Known(-weight[:2])))
    assert [p.transfer_accuracy.value for p in other.points] == [1, 1]
    assert other.points[1].accuracy.value < 0.9


def test_gradients_that_lead_nowhere_are_reported(problem):
    weight, x, y = problem
    found = robustness_report(jem.JEM(Rounded(Known(weight))), x, y, eps=EPS)
    assert found.gradients_mislead
    assert found.found_by["square"] > 0.2
    assert found.points[3].accuracy.value < 0.9


@pytest.mark.parametrize("sign", [1, -1])
def test_density_and_verdicts_are_those_of_inputs_that_attacks_turned_wrong(sign, problem):
    _, x, _ = problem
    weight = torch.tensor([[50.0, 0, 0, 0], [-50.0, 0, 0, 0]])
    y = (x[:, 0] < 0).long()
    model = jem.JEM(Known(weight, lambda x: -sign * x[:, 0] ** 2))
    found = robustness_report(model, x, y, eps=(1e-6, 0.6), detector=Everything())
    none, some = found.points[1:]
    assert np.isnan([none.rejected.value, none.log_density_change.value]).all()
    # They end just beyond the boundary, where the first component is about 0.
    turned = x[:, 0].abs() < 0.6
    assert sign * some.log_density_change.value > 0
    expected = sign * float(x[turned, 0].square().mean())
    assert some.log_density_change.value == pytest.approx(expected, abs=0.1)
    assert some.rejected.value == pytest.approx(float((x[turned, 0] < 0).float().mean()))
    assert found.clean_rejected.value == pytest.approx(float((x[:, 0] > 0).float().mean()))


def test_gradients_go_through_the_steps_of_refinement(generator):
    """A step mirrors the first component and removes the second: attacks must know it."""
    centre, factors = torch.tensor([0.2, -0.1, 0.0, 0.0]), torch.tensor([-1.0, 0.0, 0.5, 1.0])

    def level(x):
        return -((1 - factors) * (x - centre).square()).sum(dim=1) / 2

    weight = 50 * torch.randn(3, 4, generator=generator)
    model = jem.JEM(Known(weight, level))
    step = LangevinStep(step_size=1.0, noise_std=0.0)
    init = UniformBase(-1.0, 1.0, (4,))
    model.sampler = SamplerSettings(init, 1, step, torch.ones(3) / 3)
    x = torch.randn(60, 4, generator=generator)
    refined = centre + factors * (x - centre)
    y = (refined @ weight.T).argmax(dim=1)
    found = robustness_report(model, x, y, eps=EPS, norm="l2", refine_steps=1)
    gaps = (weight[y][:, None] - weight).numpy().astype(float)
    with np.errstate(invalid="ignore"):
        away = np.einsum("nkd,nd->nk", gaps, refined.numpy())
        away = np.nanmin(away / np.linalg.norm(gaps * factors.numpy(), axis=2), axis=1)
    exact = [np.mean(away[:50] > e) for e in (0, *EPS)]  # of those that are refined
    shares = [p.refined_accuracy.value for p in found.points]
    assert shares == pytest.approx(exact, abs=0.03)  # one input
    assert shares[0] == 1 > shares[1] > shares[3] > 0
    assert found.num_refined == 50


def test_a_report_repeats_itself_and_counts(problem):
    weight, x, y = problem
    calls = []
    model, plain = jem.JEM(Known(weight)).train(), jem.JEM(Known(weight.flip(0)))
    reports = [
        robustness_report(
            model, x[:20], y[:20], eps=EPS, plain=plain, num_steps=5, seed=3,
            progress=lambda *so_far: calls.append(so_far),
        )
        for _ in range(2)
    ]  # fmt: skip
    assert str(reports[0]) == str(reports[1])
    assert calls[:9] == [(i, 9) for i in range(1, 10)]
    assert model.training


@pytest.mark.parametrize(
    ("words", "message"),
    [({"eps": (0.1, 0.0)}, "`eps` must be above 0"), ({"norm": "l1"}, "`norm` must be one of")],
)
def test_what_does_not_fit_is_refused(words, message, problem):
    weight, x, y = problem
    with pytest.raises(jem.InputError, match=message):
        robustness_report(jem.JEM(Known(weight)), x, y, **words)


def test_a_classifier_without_gradients_is_refused(problem):
    weight, x, y = problem
    both = jem.companion(lambda x: x @ weight.T, input_shape=(4,), num_classes=3)
    with pytest.raises(jem.InputError, match="need a classifier with gradients"):
        robustness_report(jem.JEM(both), x, y)
