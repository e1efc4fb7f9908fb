import math

import pytest
import torch
from torch.nn import functional as F

from jem.objectives import (
    Contrastive,
    CrossEntropy,
    Energies,
    balanced_class_weights,
    contrastive_loss,
    outlier_loss,
)


def terms_of(data, chains, outliers=None, *, weight, **penalties):
    energies = Energies(data, chains, outliers)
    return Contrastive(**penalties)(
        None, None, energies, weight=weight, generator=None, mean=torch.mean
    )


def normal(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


# -- cross-entropy


def test_cross_entropy_by_hand():
    logits, labels = normal(6, 3), torch.tensor([0, 1, 2, 2, 0, 1])
    by_hand = -torch.stack([logits[i].softmax(0)[y].log() for i, y in enumerate(labels)])
    torch.testing.assert_close(CrossEntropy()(logits, labels), by_hand.mean())
    weight = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    weighted = (weight[labels] * by_hand).sum() / weight[labels].sum()
    torch.testing.assert_close(CrossEntropy(class_weight=weight)(logits, labels), weighted)
    target = 0.7 * F.one_hot(labels, 3) + 0.3 / 3
    expected = -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(CrossEntropy(0.3)(logits, labels), expected)


def test_cross_entropy_of_one_class_is_zero_with_zero_gradient():
    logits = normal(4, 1).requires_grad_()
    loss = CrossEntropy()(logits, torch.zeros(4, dtype=torch.int64))
    assert loss.item() == 0
    loss.backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))
    hidden = torch.tensor([[math.nan], [1.0]])
    assert CrossEntropy()(hidden, torch.zeros(2, dtype=torch.int64)).isnan()


def test_balanced_weights_have_mean_one_over_examples_and_equal_sums_over_classes():
    labels = torch.tensor([0] * 6 + [2] * 3 + [3])
    weights = balanced_class_weights(labels, 5)
    assert weights[labels].mean() == pytest.approx(1.0)
    sums = torch.zeros(5).index_add_(0, labels, weights[labels])
    torch.testing.assert_close(sums, torch.tensor([10 / 3, 0.0, 10 / 3, 10 / 3, 0.0]))
    assert weights[[1, 4]].tolist() == [0.0, 0.0]


# -- the contrastive objective


def test_outlier_loss_by_hand_and_its_gradient_fades_beyond_the_margin():
    data = torch.tensor([1.0, 3.0], dtype=torch.float64, requires_grad=True)
    outliers = torch.tensor([-40.0, 7.0, 60.0], dtype=torch.float64, requires_grad=True)
    loss = outlier_loss(data, outliers, margin=5.0)
    by_hand = [math.log1p(math.exp(5 + 2 - energy)) for energy in (-40.0, 7.0, 60.0)]
    assert float(loss.detach()) == pytest.approx(sum(by_hand) / 3)
    loss.backward()
    assert outliers.grad.tolist() == pytest.approx([-1 / 3, -1 / 6, 0.0], abs=1e-12)
    assert data.grad.tolist() == pytest.approx([1 / 4, 1 / 4])


def test_its_gradient_is_that_of_the_negative_log_likelihood():
    """For E = (x - m)^2 / 2 and negatives from the model, dL/dm estimates m - mean(data)."""
    mean = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    data, noise = normal(1000) + 2.0, normal(100_000, seed=2)
    negatives = mean.detach() + noise
    loss = contrastive_loss((data - mean).square() / 2, (negatives - mean).square() / 2)
    (grad,) = torch.autograd.grad(loss, mean)
    assert grad.item() == pytest.approx(float(mean.detach() - data.mean()), abs=0.02)


def test_terms_add_up():
    data, negative = normal(4), normal(6, seed=2)
    terms = terms_of(data, negative, weight=0.3, energy_l2=0.2, mean_energy_l2=0.5)
    contrast = data.mean() - negative.mean()
    level = (data.mean() + negative.mean()) / 2
    squares = data.square().mean() + negative.square().mean()
    torch.testing.assert_close(terms.gap, -contrast)
    torch.testing.assert_close(terms.named["regulariser"], 0.1 * squares + 0.5 * level**2)
    torch.testing.assert_close(terms.loss, 0.3 * contrast + terms.named["regulariser"])


@pytest.mark.parametrize(("gap", "scale"), [(-5.0, 1.0), (0.0, 1.0), (5.0, 0.5), (50.0, 0.02)])
def test_thermostat_scales_the_contrastive_loss_by_the_gap_as_a_constant(gap, scale):
    data = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    negative = torch.full((2,), gap, dtype=torch.float64, requires_grad=True)
    terms = terms_of(data, negative, weight=1.0, gap_limit=10.0)
    torch.testing.assert_close(terms.loss.item(), -scale * gap)
    terms.loss.backward()
    torch.testing.assert_close(data.grad, torch.full_like(data, scale / 2))


def test_the_gradient_of_outliers_is_the_same_in_several_processes():
    data, outliers, weight = normal(8), 6 * normal(4, seed=2) + 8, torch.ones(2)

    def gradient(part, mean):
        w = weight.clone().requires_grad_()
        energy = [w[0] * part(e) + 0.1 * w[1] * part(e) ** 2 for e in (data, outliers)]
        outlier_loss(*energy, margin=10.0, mean=mean).backward()
        return w.grad

    def everywhere(energies):  # values of both processes, the gradient of one
        values = iter(energies)
        return lambda mine: mine.mean() + (next(values) - mine.mean().detach())

    with torch.no_grad():
        energy = [weight[0] * e + 0.1 * weight[1] * e**2 for e in (data, outliers)]
        centre = energy[0].mean()
        seen = [
            centre,
            torch.sigmoid(10 + centre - energy[1]).mean(),
            F.softplus(10 + centre - energy[1]).mean(),
        ]
    parts = [gradient(lambda e, r=r: e[r::2], everywhere(seen)) for r in range(2)]
    whole = gradient(lambda e: e, torch.mean)
    assert torch.allclose((parts[0] + parts[1]) / 2, whole, atol=1e-6)


def test_the_penalty_counts_what_the_network_adds_to_a_base_density():
    data, chains, base_data, base_chains = normal(4, 5)
    loss = Contrastive(energy_l2=0.3)
    energies = Energies(data - base_data, chains - base_chains, None, base_data, base_chains)
    settings = {"weight": 0.0, "generator": None, "mean": torch.mean}
    alone = loss(None, None, Energies(data, chains), **settings).loss
    torch.testing.assert_close(loss(None, None, energies, **settings).loss, alone)
