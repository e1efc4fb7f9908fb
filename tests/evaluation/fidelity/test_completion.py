"""Completions measured: fillings recomputed by hand, on a data set whose answer is known."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

import jem
from jem import JEM
from jem.data import DataPart
from jem.errors import InputError
from jem.evaluation.fidelity.report import completion_accuracy, upper_half
from jem.evaluation.statistics import wilson_interval
from jem.randomness import derive_seed
from jem.sampling import LangevinStep, SamplerSettings, UniformBase

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

SHAPE = (1, 4, 4)


class Bars(nn.Module):
    """E(x, y) = 5 |x - bar_y|^2: class 0 is bright on the left, class 1 on the right."""

    def __init__(self):
        super().__init__()
        bar = torch.full(SHAPE, -0.8)
        bar[:, :, :2] = 0.8
        self.bars = nn.Parameter(torch.stack([bar, -bar]))

    def forward(self, x):
        return -5 * (x[:, None] - self.bars[None]).flatten(2).square().sum(dim=2)


@pytest.fixture
def model():
    model = JEM(Bars(), input_shape=SHAPE, domain=(-1.0, 1.0))
    model.sampler = SamplerSettings(
        UniformBase(-1.0, 1.0, SHAPE), num_steps=30, step=LangevinStep(0.05, 0.01),
        class_frequencies=torch.tensor([0.5, 0.5]),
    )  # fmt: skip
    return model


def part(model, count, seed):
    y = torch.arange(count) % 2
    noise = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))
    return DataPart((model.network.bars.detach()[y] + 0.2 * noise).clamp(-1, 1), y)


@dataclass
class LowerHalf:
    """Looks at the lower half alone: left brighter than right is class 0."""

    name: str = "lower half"

    def predict(self, x):
        halves = x[:, 0, 2:, :2].mean(dim=(1, 2)), x[:, 0, 2:, 2:].mean(dim=(1, 2))
        return (halves[1] > halves[0]).long()


def test_fillings_are_what_they_are_called(model):
    train, test = part(model, 60, 1), part(model, 10, 2)
    report = completion_accuracy(model, train=train, test=test, seed=0, reference=LowerHalf())
    shown = report.pictures
    assert list(shown) == ["original", "kept", "mean fill", "nearest neighbour", "one completion"]
    known = upper_half(SHAPE)
    x = test.x
    assert torch.equal(shown["original"], x)
    assert (shown["kept"][:, ~known] == sum(model.bounds()) / 2).all()  # grey
    for name in list(shown)[1:]:
        assert torch.equal(shown[name][:, known], x[:, known])
    torch.testing.assert_close(
        shown["mean fill"][:, ~known], train.x.mean(dim=0)[~known].expand(10, -1)
    )
    for row in range(10):
        away = [(x[row, :, :2] - other[:, :2]).square().sum() for other in train.x]
        nearest = train.x[int(torch.stack(away).argmin())]
        assert torch.equal(shown["nearest neighbour"][row, :, 2:], nearest[:, 2:])
    drawn = jem.inpaint(model, x, known, seed=derive_seed(0, "completion", 0))
    assert torch.equal(shown["one completion"], drawn)
    for name, filling in report.fillings.items():
        right = (LowerHalf().predict(shown[name]) == test.y).double()
        low, high = wilson_interval([right.sum()], [10], 0.95)
        accuracy = filling.accuracy.value, filling.accuracy.low, filling.accuracy.high
        assert accuracy == pytest.approx([float(v) for v in (right.mean(), low[0], high[0])])
        error = (shown[name] - x)[:, ~known].square().mean().sqrt()
        assert filling.rmse == pytest.approx(float(error), abs=1e-6)


def test_a_model_that_knows_its_data_brings_the_class_back(model):
    report = completion_accuracy(
        model, train=part(model, 60, 1), test=part(model, 40, 2), seed=0, reference=LowerHalf()
    )
    found = report.fillings
    assert report.num_inputs == 40
    assert found["original"].accuracy.value == 1
    assert found["original"].rmse == 0
    assert found["one completion"].accuracy.value == 1
    assert found["mean fill"].accuracy.value == 0.5  # one filling for both classes
    gain = found["one completion"].gain_over_mean
    # Half of the inputs gain 1, the others 0: the interval is that of a share of one half.
    reach = 1.96 * (0.25 / 40) ** 0.5
    assert gain.value == 0.5
    assert (gain.low, gain.high) == pytest.approx((0.5 - reach, 0.5 + reach), abs=0.03)
    same = found["one completion"].gain_over_nearest
    # Forty inputs that agree leave a difference of z^2 / (n + z^2) plausible, to both sides.
    assert (same.value, same.low, same.high) == pytest.approx((0, -0.0876, 0.0876), abs=1e-4)


def test_same_seed_same_report_and_few_inputs_are_shown(model):
    words = {"train": part(model, 60, 1), "test": part(model, 30, 2), "reference": LowerHalf()}
    report, again = (completion_accuracy(model, seed=5, count=20, **words) for _ in range(2))
    assert report.fillings == again.fillings
    assert report.num_inputs == 20
    assert all(len(x) == 10 for x in report.pictures.values())


def test_the_upper_half_of_an_odd_height():
    known = upper_half((2, 5, 3))
    assert known[:, :2].all()
    assert not known[:, 2:].any()
    with pytest.raises(InputError, match="completions are of images"):
        upper_half((13,))
