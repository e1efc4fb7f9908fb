import math

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.preprocessing import LabelEncoder

from jem.data import from_arrays
from jem.errors import InputError

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(60, 3)) * [1, 10, 100] + [0, 5, -7]
LABELS = np.array([0, 1, 2] * 20)


def rebuilt(splits):
    parts = [splits.train, splits.validation, splits.calibration, splits.test]
    return torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts])


def test_statistics_come_from_the_training_part_alone():
    splits = from_arrays(ROWS, LABELS)
    torch.testing.assert_close(splits.train.x.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(splits.train.x.std(0, correction=0), torch.ones(3))
    raw_test = splits.scaling.invert(splits.test.x).numpy()
    changed = ROWS.copy()
    for row in raw_test:
        changed[np.abs(ROWS - row).sum(1).argmin()] = 1e4
    again = from_arrays(changed, LABELS)
    assert torch.equal(again.scaling.shift, splits.scaling.shift)
    assert torch.equal(again.train.x, splits.train.x)
    assert again.test.x.min() > 50


def test_each_example_says_which_row_it_was():
    x = RNG.normal(size=(60, 3)).astype(np.float32)
    own = RNG.normal(size=(4, 3)).astype(np.float32)
    splits = from_arrays(x, ["a", "b"] * 30, test=(own, ["a", "b"] * 2))
    for part, raw in ((splits.train, x), (splits.calibration, x), (splits.test, own)):
        np.testing.assert_allclose(splits.scaling.invert(part.x), raw[part.sources], atol=1e-6)


def test_table_domain_is_the_training_range_and_a_tenth_but_a_constant_column_stays_constant():
    x = ROWS.copy()
    x[:, 1] = 4.0
    splits = from_arrays(x, LABELS, columns=["a", "b", "c"])
    low, high = splits.domain
    span = splits.train.x.max(0).values - splits.train.x.min(0).values
    expected = torch.where(span > 0, 1.2 * span, torch.tensor(2e-6))
    torch.testing.assert_close(high - low, expected)
    assert (splits.train.x >= low).all()
    assert (splits.kind, splits.columns) == ("table", ("a", "b", "c"))


@pytest.mark.parametrize(
    "values",
    [
        np.array([30, -2, 7]),
        np.array(["b", "a", "c"], dtype=object),
        np.array([3.0, 0.0, 12.0]),
        np.array([b"b", b"a", b"c"]),
    ],
)
def test_classes_are_sorted_as_scikit_learn_sorts_them(values):
    labels = values[LABELS]
    splits = from_arrays(np.stack([LABELS, LABELS], 1), labels)
    encoder = LabelEncoder().fit(labels)
    expected = [v.decode() if isinstance(v, bytes) else v for v in encoder.classes_.tolist()]
    whole = [int(v) if isinstance(v, float) else v for v in expected]
    assert splits.classes == tuple(map(str, whole))
    raw = splits.scaling.invert(splits.test.x)[:, 0].round().long()
    assert splits.test.y.tolist() == encoder.transform(values)[raw].tolist()


@pytest.mark.parametrize(
    ("low", "high", "dtype", "shift", "scale"),
    [
        (0, 255, np.uint8, 127.5, 127.5),
        (0, 1, np.float32, 0.5, 0.5),
        (0, 16, np.float64, 8, 8),
        (-40, 20, np.float64, -10, 30),
    ],
)
def test_range_of_images_is_recognised(low, high, dtype, shift, scale):
    x = RNG.random((60, 5, 7))
    x[:, 0, 0], x[:, 0, 1] = 0, 1
    splits = from_arrays((low + (high - low) * x).astype(dtype), LABELS)
    assert splits.scaling.shift.item() == pytest.approx(shift)
    assert splits.scaling.scale.item() == pytest.approx(scale)
    assert splits.kind == "image"
    assert [bound.item() for bound in splits.domain] == [-1, 1]


@pytest.mark.parametrize(
    ("shape", "channels", "input_shape"),
    [
        ((60, 5, 7), None, (1, 5, 7)),
        ((60, 3, 5, 7), None, (3, 5, 7)),
        ((60, 12, 12, 13), None, (13, 12, 12)),
        ((60, 2, 7, 7), None, (2, 7, 7)),
        ((60, 3, 5, 3), "first", (3, 5, 3)),
        ((60, 3, 5, 3), "last", (3, 3, 5)),
    ],
)
def test_channels_are_found(shape, channels, input_shape):
    splits = from_arrays(RNG.random(shape), LABELS, channels=channels)
    assert splits.input_shape == input_shape
    assert splits.train.x.shape[1:] == input_shape


@pytest.mark.parametrize(
    ("low", "high", "dtype", "units"),
    [
        (-0.2, 1.0, float, (0, 1)),  # what bicubic interpolation makes of 0 to 1
        (0.0, 0.4, float, (0, 1)),
        (-0.9, 0.8, float, (-1, 1)),
        (0.0, 200.0, float, (0, 255)),
        (0, 40, np.uint8, (0, 255)),
        (0.0, 16.0, float, (0, 16)),
        (0, 4000, np.uint16, (0, 4000)),
    ],
)
def test_pictures_of_bytes_are_brought_to_the_units_of_arrays(low, high, dtype, units):
    x = RNG.uniform(low, high, (60, 5, 5)).astype(dtype)
    x[:, 0, 0], x[:, 0, 1] = low, high
    splits = from_arrays(x, LABELS)
    black, white = units
    bytes_ = 255.0 * (x[..., None] - float(black)) / (white - black)
    torch.testing.assert_close(splits.scaling.for_bytes()(bytes_), splits.scaling(x))
    told = f"black {black} and white {white}, a guess"
    assert (told in splits.describe()) == (dtype != np.uint8)


def test_own_test_part_is_kept_whole_and_classes_have_the_names_given():
    x_test = ROWS[:7] + 1
    splits = from_arrays(ROWS, LABELS, test=(x_test, LABELS[:7]), classes=["a", "b", "c"])
    assert [len(p) for p in (splits.train, splits.validation, splits.calibration)] == [48, 6, 6]
    torch.testing.assert_close(splits.test.x, splits.scaling(x_test))
    assert splits.test.y.tolist() == LABELS[:7].tolist()
    assert splits.classes == ("a", "b", "c")


def test_torch_tensors_are_taken():
    x = torch.from_numpy(ROWS)
    splits = from_arrays(x, torch.from_numpy(LABELS))
    assert torch.equal(splits.train.x, from_arrays(ROWS, LABELS).train.x)
    from_arrays(x.bfloat16(), LABELS)


def with_value(x, place, value=np.nan):
    x = x.copy()
    x[place] = value
    return x


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (ROWS, LABELS[:50], {}, r"`y` .*\(60,\), got \(50,\)"),
        (ROWS, LABELS, {"classes": ["a", "a"]}, "`classes` must hold different names"),
        (ROWS, np.eye(3)[LABELS], {}, r"`y` .*y.argmax\(1\)"),
        (ROWS, ["a", "b", math.nan] * 20, {}, "`y` .*none in row 2"),
        (ROWS, LABELS + 0.5, {}, "no quantities"),
        (ROWS, np.array([math.inf, *"ab" * 29, "a"], object), {}, "none in row 0"),
        (ROWS, np.array([b"\xff", b"a"] * 30), {}, "`y` .*UTF-8"),
        (ROWS, pd.array(["a", pd.NA] * 30), {}, "`y` .*none in row 1"),
        (ROWS, ["a", " "] * 30, {}, "`y` .*none in row 1"),
        (with_value(ROWS, (4, 2), 1e39), LABELS, {"columns": "abc"}, "1e.39 in row 4, column 'c'"),
        (with_value(RNG.random((60, 5, 5)), (3, 1, 2)), LABELS, {}, r"row 3, position \(1, 2\)"),
        ([["a", "b"]] * 60, LABELS, {}, "`x` must be a tensor, or an array"),
        (RNG.random((60, 3, 5, 3)), LABELS, {}, "`channels` must be 'first' or 'last'"),
        (np.ones((60, 5, 5)), LABELS, {}, "`x` .*got 1 in every pixel"),
        (ROWS, LABELS, {"test": (ROWS[:2], [0, 9])}, "among the training classes .*'9'"),
        (ROWS, LABELS, {"classes": ["a", "b"]}, r"`y` must lie in 0\.\.1, got 0\.\.2"),
        (ROWS, LABELS, {"classes": ["crane", "crane", "dog"]}, "once, got crane, crane"),
        (
            ROWS,
            LABELS,
            {"test": (ROWS, LABELS), "counts": (30, 10, 10, 10)},
            "`counts` must be 0 for the test part",
        ),
    ],
)
def test_what_cannot_be_trained_on_is_refused(x, y, options, message):
    with pytest.raises(InputError, match=message):
        from_arrays(x, y, **options)
