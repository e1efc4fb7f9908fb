"""Completions measured: fillings recomputed by hand, on a data set whose answer is known."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

import jem
from jem import JEM
from jem.data import DataPart
from jem.errors import InputError
from jem.evaluation.fidelity.completion import completion_accuracy, upper_half
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
        class_conditional_chains=True, class_frequencies=torch.tensor([0.5, 0.5]),
    )  # fmt: skip
    return model


def part(model, count, seed):
    y = torch.arange(count) % 2
    noise = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))
    return DataPart((model.network.bars.detach()[y] + 0.2 * noise).clamp(-1, 1), y)


@dataclass
class LowerHalf:
    """A judge that looks at the lower half alone: left brighter than right is class 0."""

    name: str = "lower half"

    def predict(self, x):
        halves = x[:, 0, 2:, :2].mean(dim=(1, 2)), x[:, 0, 2:, 2:].mean(dim=(1, 2))
        return (halves[1] > halves[0]).long()


def rows_of(report):
    return {row["name"]: row for row in report.rows}


def test_fillings_are_what_they_are_called(model):
    train, test = part(model, 60, 1), part(model, 24, 2)
    report = completion_accuracy(
        model, train=train, test=test, seed=0, judge=LowerHalf(), num_draws=3, num_shown=24
    )
    shown = report.pictures
    assert list(shown) == [
        "original", "kept", "mean fill", "nearest neighbour", "one completion",
        "mean of 3 completions",
    ]  # fmt: skip
    known = upper_half(SHAPE)
    x = test.x
    assert torch.equal(shown["original"], x)
    assert torch.equal(shown["kept"].isnan(), (~known).expand_as(x))
    for name in list(shown)[1:]:
        assert torch.equal(shown[name][:, known], x[:, known])
    torch.testing.assert_close(
        shown["mean fill"][:, ~known], train.x.mean(dim=0)[~known].expand(24, -1)
    )
    for row in range(24):
        away = [(x[row, :, :2] - other[:, :2]).square().sum() for other in train.x]
        nearest = train.x[int(torch.stack(away).argmin())]
        assert torch.equal(shown["nearest neighbour"][row, :, 2:], nearest[:, 2:])
    draws = [
        jem.inpaint(model, x, known, seed=derive_seed(0, "completion", number))
        for number in range(3)
    ]
    assert torch.equal(shown["one completion"], draws[0])
    torch.testing.assert_close(shown["mean of 3 completions"], torch.stack(draws).mean(dim=0))
    rows = rows_of(report)
    for name, z in shown.items():
        if name != "kept":
            right = (LowerHalf().predict(z) == test.y).double()
            low, high = wilson_interval([right.sum()], [24], 0.95)
            expected = (right.mean(), low[0], high[0])
            got = tuple(rows[name][key] for key in ("accuracy", "low", "high"))
            assert got == pytest.approx([float(value) for value in expected])
            error = (z - x)[:, ~known].square().mean().sqrt()
            assert rows[name]["rmse"] == pytest.approx(float(error), abs=1e-6)


def test_a_model_that_knows_its_data_brings_the_class_back(model):
    report = completion_accuracy(
        model, train=part(model, 60, 1), test=part(model, 40, 2), seed=0, judge=LowerHalf(),
        num_draws=2,
    )  # fmt: skip
    rows = rows_of(report)
    assert rows["original"]["accuracy"] == 1
    assert rows["original"]["rmse"] == 0
    assert rows["one completion"]["accuracy"] == 1
    assert rows["mean fill"]["accuracy"] == 0.5  # one filling for both classes
    assert (report.num_inputs, report.num_draws, report.share_known) == (40, 2, 0.5)
    gain = report.differences[0]
    assert (gain["name"], gain["against"]) == ("one completion", "mean fill")
    assert gain["value"] == 0.5
    # Half of the inputs gain 1, the others 0: the interval is that of a share of one half.
    reach = 1.96 * (0.25 / 40) ** 0.5
    assert (gain["low"], gain["high"]) == pytest.approx((0.5 - reach, 0.5 + reach), abs=0.03)
    same = report.differences[1]
    assert (same["against"], same["value"]) == ("nearest neighbour", 0)
    # Forty inputs that agree leave a difference of z^2 / (n + z^2) plausible, to both sides.
    assert (same["low"], same["high"]) == pytest.approx((-0.0876, 0.0876), abs=1e-4)


def test_the_report_is_made_of_plain_values_and_repeats(model):
    train, test = part(model, 60, 1), part(model, 30, 2)
    words = {"train": train, "test": test, "num_draws": 1, "num_steps": 3, "count": 20}
    report = completion_accuracy(model, seed=5, **words)
    again = completion_accuracy(model, seed=5, **words)
    assert report.to_dict() == again.to_dict()
    assert "pictures" not in report.to_dict()
    assert report.num_inputs == 20
    assert [row["name"] for row in report.rows][-1] == "one completion"
    assert len(report.differences) == 2
    assert report.judge.endswith("seed5")
    assert all(len(x) == 10 for x in report.pictures.values())


def test_any_mask_will_do(model):
    known = torch.zeros(SHAPE, dtype=torch.bool)
    known[:, :, 1:] = True
    told = []
    report = completion_accuracy(
        model, train=part(model, 40, 1), test=part(model, 20, 2), seed=0, judge=LowerHalf(),
        known=known, num_draws=2, num_steps=3, progress=lambda *moves: told.append(moves),
    )  # fmt: skip
    assert report.share_known == 0.75
    assert report.pictures["kept"][:, :, :, 0].isnan().all()
    assert told == [(done, 12) for done in range(1, 13)]  # two draws of two blocks of three moves


def test_the_upper_half_of_an_odd_height():
    known = upper_half((2, 5, 3))
    assert known[:, :2].all()
    assert not known[:, 2:].any()
    with pytest.raises(InputError, match=r"shape \(13,\) have no lower half"):
        upper_half((13,))


def test_arguments_are_checked(model):
    parts = {"train": part(model, 20, 1), "test": part(model, 10, 2), "seed": 0}
    for words, message in [
        ({"num_draws": 0}, "`num_draws` must be at least 1"),
        ({"known": torch.ones(SHAPE, dtype=torch.bool)}, "leave something to complete"),
        ({"known": torch.zeros(4, 4, dtype=torch.bool)}, "`known` must be booleans of shape"),
        ({"known": torch.zeros(SHAPE)}, "`known` must be booleans"),
        ({"count": 0}, "`limit` must be at least 1"),
    ]:
        with pytest.raises(InputError, match=message):
            completion_accuracy(model, **parts, **words)
    model.sampler = None
    with pytest.raises(InputError, match="keeps no sampler settings"):
        completion_accuracy(model, **parts)


def test_pictures_of_digits_are_judged_by_a_network_of_their_own(model):
    with np.errstate(all="raise"):
        report = completion_accuracy(
            model, train=part(model, 60, 1), test=part(model, 20, 2), seed=0, num_draws=1
        )
    assert "n60-seed0" in report.judge
    assert rows_of(report)["original"]["accuracy"] == 1
