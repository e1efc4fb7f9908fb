"""Counterfactuals, against a search of the whole plane and distances computed by hand."""

import pytest
import torch
from torch import nn

import jem
from jem import JEM
from jem.errors import InputError
from jem.generation import BLOCK

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


class Wells(nn.Module):
    """E(x, y) = 2 |x - centre_y|^2 in the plane."""

    def __init__(self, centres):
        super().__init__()
        self.centres = nn.Parameter(torch.tensor(centres))

    def forward(self, x):
        return -2 * (x[:, None, :] - self.centres[None]).square().sum(dim=2)


class Flat(nn.Module):
    """Class 1 only where x_1 > 0.6; on the left half nothing says where that is."""

    def forward(self, x):
        logit = 10 * (x[:, :1] - 0.5).relu() - 1
        return torch.cat([torch.zeros_like(logit), logit], dim=1)


@pytest.fixture
def wells():
    return JEM(Wells([[-0.5, -0.5], [0.5, -0.4], [0.1, 0.6]]), domain=(-1.0, 1.0))


def linear(weight, bias):
    layer = nn.utils.skip_init(nn.Linear, len(weight[0]), len(weight))  # draws no first weights
    layer.weight.data, layer.bias.data = torch.as_tensor(weight), torch.tensor(bias)
    return layer


def points(count, seed=0):
    return torch.rand(count, 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("max_energy", [-0.05, 0.3, 100.0])
def test_distances_are_those_of_a_search_of_the_whole_plane(wells, max_energy):
    axis = torch.linspace(-1, 1, 401)
    plane = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        predicted, likely = wells(plane).argmax(dim=1), wells.energy(plane) <= max_energy
    x, target = points(BLOCK), torch.arange(BLOCK) % 3
    found = jem.counterfactual(wells, x, target, max_energy=max_energy)
    assert found.success.all()
    assert (wells(found.x).argmax(dim=1) == target).all()
    assert (wells.energy(found.x) <= max_energy).all()
    assert found.x.abs().max() <= 1
    torch.testing.assert_close(found.distance, (found.x - x).norm(dim=1))
    nearest = torch.stack([
        (plane[likely & (predicted == k)] - row).norm(dim=1).min()
        for row, k in zip(x, target, strict=True)
    ])  # fmt: skip
    torch.testing.assert_close(found.distance, nearest, rtol=0.01, atol=0.006)


def test_from_a_corner_the_search_goes_on_along_one_condition():
    """Flat boundaries: where both were met first is seldom where the way is shortest."""
    layer = linear([[0.9, -0.3], [-0.6, 1.8], [1.5, 0.6]], [0.2, -0.4, -0.3])
    model = JEM(layer, domain=(-3.0, 3.0))
    plane = torch.cartesian_prod(*[torch.linspace(-3, 3, 1201)] * 2)
    x = points(BLOCK)
    found = jem.counterfactual(model, x, 2, max_energy=-2.0)
    with torch.no_grad():
        fits = (model(plane).argmax(dim=1) == 2) & (model.energy(plane) <= -2)
    around = torch.cdist(found.x, plane[fits]) < 0.1  # likely inputs are no convex set
    nearest = torch.cdist(x, plane[fits]).masked_fill(~around, torch.inf).min(dim=1).values
    torch.testing.assert_close(found.distance, nearest, rtol=0.01, atol=0.006)


def test_without_a_target_the_nearest_of_all_other_classes_is_found(wells):
    x = points(12)
    own = wells(x).argmax(dim=1)
    found = jem.counterfactual(wells, x, max_energy=100.0)
    assert (found.labels != own).all()
    each = torch.stack([
        jem.counterfactual(wells, x, k, max_energy=100.0).distance.masked_fill(own == k, torch.inf)
        for k in range(3)
    ])  # fmt: skip
    nearest = each.min(dim=0).values  # what is found is a local minimum
    assert (found.distance >= nearest - 1e-3).all()
    assert (found.distance <= 1.05 * nearest).all()


def test_what_already_is_of_the_class_and_likely_stays(wells):
    x = wells.network.centres.detach().clone()
    found = jem.counterfactual(wells, x, [0, 1, 2], max_energy=0.0)
    assert torch.equal(found.x, x)
    assert found.distance.tolist() == [0, 0, 0]
    assert found.success.all()


def test_what_cannot_be_is_said_to_have_failed(wells):
    with torch.no_grad():
        lowest = float(wells.energy(points(5000)).min())
    found = jem.counterfactual(wells, points(4), 1, max_energy=lowest - 1)
    assert not found.success.any()
    assert found.x.isfinite().all()
    assert found.x.abs().max() <= 1
    torch.testing.assert_close(found.distance, (found.x - points(4)).norm(dim=1))


def test_a_reference_input_helps_where_no_gradient_leads():
    model = JEM(Flat(), domain=(-1.0, 1.0))
    x = torch.tensor([[-0.5, 0.2], [0.0, -0.4]])
    alone = jem.counterfactual(model, x, 1, max_energy=100.0)
    assert not alone.success.any()
    reference = torch.tensor([[0.9, 0.9], [0.2, 0.1], [-0.3, 0.0]])
    found = jem.counterfactual(model, x, 1, max_energy=100.0, reference=reference)
    assert found.success.all()
    torch.testing.assert_close(found.distance, torch.tensor([1.1, 0.6]), rtol=0.01, atol=0)


def test_the_energy_allowed_is_that_of_95_percent_of_the_reference(wells):
    data = points(200, seed=1)
    with torch.no_grad():
        energies = wells.energy(data)
    found = jem.counterfactual(wells, points(2), 0, reference=data)
    allowed = energies.quantile(0.95, interpolation="higher")
    assert found.max_energy == pytest.approx(float(allowed))
    assert (energies <= found.max_energy).double().mean() >= 0.95
    assert (found.energy <= found.max_energy).all()
    given = jem.counterfactual(wells, points(2), 0, reference=data, max_energy=0.1)
    assert given.max_energy == 0.1


def test_row_i_does_not_depend_on_the_batch(wells):
    x, target = points(BLOCK + 3), torch.arange(BLOCK + 3) % 3
    many = jem.counterfactual(wells, x, target, max_energy=0.1)
    for count in (1, BLOCK, BLOCK + 1):
        few = jem.counterfactual(wells, x[:count], target[:count], max_energy=0.1)
        assert torch.equal(few.x, many.x[:count])


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_the_model_is_left_as_it_was_in_any_gradient_mode(point_model, context):
    point_model.network.body.append(nn.Dropout(0.5))
    point_model.train()
    with context():
        x = points(3)
        found = jem.counterfactual(point_model, x, 1, reference=points(20, seed=2))
    assert all(m.training for m in point_model.modules())
    assert all(p.grad is None and p.requires_grad for p in point_model.parameters())
    again = jem.counterfactual(point_model.eval(), x, 1, reference=points(20, seed=2))
    assert torch.equal(found.x, again.x)


@pytest.mark.parametrize(
    ("x", "target", "words", "name"),
    [
        (points(2), 0, {}, "max_energy"),
        (points(2), 3, {"max_energy": 0.0}, "target"),
        (points(2), [0.5, 1.0], {"max_energy": 0.0}, "target"),
        (points(2), 0, {"max_energy": float("nan")}, "max_energy"),
        (points(2), 0, {"reference": points(5) * torch.nan}, "reference"),
        (points(2) * torch.nan, 0, {"max_energy": 0.0}, "x"),
    ],
)
def test_arguments_are_checked(point_model, x, target, words, name):
    with pytest.raises(InputError, match="K = 1"):
        jem.counterfactual(JEM(Wells([[0.0, 0.0]])), points(2), 0, max_energy=0.0)
    with pytest.raises(InputError, match=f"`{name}`"):
        jem.counterfactual(point_model, x, target, **words)


def test_the_result_is_inside_the_domain_though_the_input_is_not(wells):
    assert wells.domain is not None
    found = jem.counterfactual(wells, torch.tensor([[0.5, 3.0], [-7.0, 0.0]]), max_energy=100.0)
    low, high = wells.domain
    assert bool(((found.x >= low) & (found.x <= high)).all())
    outside, reference = torch.tensor([[0.5, 3.0]]), torch.tensor([[0.9, 1.4], [-3.0, 0.0]])
    for most in (-100.0, 100.0):
        found = jem.counterfactual(wells, outside, max_energy=most, reference=reference)
        assert bool(((found.x >= low) & (found.x <= high)).all())
