import math

import numpy as np
import pandas as pd
import pytest
import torch

from jem.data import from_arrays
from jem.data.arrays import index_labels
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
    assert rebuilt(splits)[0].mean(0).abs().max() > 1e-3


def test_other_parts_cannot_move_the_scaling():
    splits = from_arrays(ROWS, LABELS)
    raw_test = splits.scaling.invert(splits.test.x).numpy()
    changed = ROWS.copy()
    for row in raw_test:
        changed[np.abs(ROWS - row).sum(1).argmin()] = 1e4
    again = from_arrays(changed, LABELS)
    assert torch.equal(again.scaling.shift, splits.scaling.shift)
    assert torch.equal(again.train.x, splits.train.x)
    assert again.test.x.min() > 50


def test_every_example_keeps_its_label():
    x, y = rebuilt(from_arrays(np.stack([LABELS, np.arange(60)], 1), LABELS))
    for label in range(3):
        assert len(x[y == label][:, 0].unique()) == 1
    assert len(x[:, 1].unique()) == 60


def test_table_domain_is_the_training_range_and_a_tenth():
    x = ROWS.copy()
    x[:, 1] = 4.0
    splits = from_arrays(x, LABELS)
    low, high = splits.domain
    span = splits.train.x.max(0).values - splits.train.x.min(0).values
    expected = torch.where(span > 0, 1.2 * span, torch.tensor(2.0))
    torch.testing.assert_close(high - low, expected)
    assert (splits.train.x >= low).all()
    assert splits.kind == "table"


def test_string_labels_round_trip():
    names = np.array(["pear", "apple", "fig"])[LABELS]
    splits = from_arrays(np.stack([LABELS, LABELS], 1), names)
    assert splits.classes == ("apple", "fig", "pear")
    raw = splits.scaling.invert(splits.test.x)[:, 0].round().long()
    back = [splits.classes[i] for i in splits.test.y]
    assert back == [["pear", "apple", "fig"][i] for i in raw]


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        ([7, -2, 7], ("-2", "7")),
        (["10", "9", "2"], ("2", "9", "10")),
        ([True, False], ("False", "True")),
        (np.array(["b", "a"], dtype=object).astype(str), ("a", "b")),
    ],
)
def test_classes_are_sorted_and_indices_point_to_them(values, classes):
    names, indices = index_labels(np.asarray(values))
    assert names == classes
    assert [names[i] for i in indices] == [str(value) for value in values]


@pytest.mark.parametrize("dtype", [object, float, "S3"])
def test_labels_of_other_types(dtype):
    assert from_arrays(ROWS, LABELS.astype(dtype)).classes == ("0", "1", "2")


def test_numbers_as_objects_are_numbers():
    labels = LABELS.astype(float).astype(object)
    assert from_arrays(ROWS, labels).classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("low", "high", "dtype", "shift", "scale"),
    [
        (0, 255, np.uint8, 127.5, 127.5),
        (0, 255, np.float64, 127.5, 127.5),
        (0, 240, np.int64, 127.5, 127.5),
        (0, 1, np.float32, 0.5, 0.5),
        (0, 1, np.uint8, 0.5, 0.5),
        (-1, 1, np.float32, 0, 1),
        (0, 16, np.float64, 8, 8),
        (0, 0.2, np.float64, 0.1, 0.1),
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
        ((60, 5, 7, 3), None, (3, 5, 7)),
        ((60, 3, 5, 7), None, (3, 5, 7)),
        ((60, 1, 5, 7), None, (1, 5, 7)),
        ((60, 3, 5, 3), "first", (3, 5, 3)),
        ((60, 3, 5, 3), "last", (3, 3, 5)),
        ((60, 8, 5, 9), "first", (8, 5, 9)),
    ],
)
def test_channels_are_found(shape, channels, input_shape):
    splits = from_arrays(RNG.random(shape), LABELS, channels=channels)
    assert splits.input_shape == input_shape
    assert splits.train.x.shape[1:] == input_shape


def test_own_test_part_is_kept_whole():
    x_test = ROWS[:7] + 1
    splits = from_arrays(ROWS, LABELS, test=(x_test, LABELS[:7]))
    assert [len(p) for p in (splits.train, splits.validation, splits.calibration)] == [48, 6, 6]
    torch.testing.assert_close(splits.test.x, splits.scaling(x_test))
    assert splits.test.y.tolist() == LABELS[:7].tolist()


def test_torch_tensors_are_taken():
    x = torch.from_numpy(ROWS)
    splits = from_arrays(x, torch.from_numpy(LABELS))
    assert torch.equal(splits.train.x, from_arrays(ROWS, LABELS).train.x)
    from_arrays(x.bfloat16(), LABELS)


def with_nan(x, place):
    x = x.copy()
    x[place] = np.nan
    return x


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (ROWS, LABELS[:50], {}, "60 inputs and 50 labels"),
        (ROWS, LABELS * 0, {}, "at least two classes, got only '0'"),
        (ROWS, LABELS + 0.5, {}, "another task"),
        (ROWS, np.eye(3)[LABELS], {}, r"y.argmax\(1\)"),
        (ROWS, [None, *LABELS[1:]], {}, "label for every example, got none in row 0"),
        (ROWS, [*["a"] * 59, float("nan")], {}, "label|class"),
        (with_nan(ROWS, (4, 2)), LABELS, {}, "got nan in row 4, column 2"),
        (with_nan(RNG.random((60, 5, 5)), (3, 1, 2)), LABELS, {}, r"row 3, pixel \(1, 2\)"),
        (ROWS[:0], [], {}, r"N > 0, got \(0, 3\)"),
        (ROWS[:, 0], LABELS, {}, r"got \(60,\)"),
        ([["a", "b"]] * 60, LABELS, {}, "`inputs` must be numbers"),
        (ROWS, LABELS, {"kind": "image"}, r"shape \(N, H, W\).*got \(60, 3\)"),
        (RNG.random((60, 5, 5)), LABELS, {"kind": "table"}, r"shape \(N, D\)"),
        (RNG.random((60, 3, 5, 3)), LABELS, {}, 'channels="first" or channels="last"'),
        (RNG.random((60, 8, 5, 9)), LABELS, {}, 'channels="first" or channels="last"'),
        (RNG.random((60, 2, 2, 2, 2)), LABELS, {}, "reshape"),
        (np.ones((60, 5, 5)), LABELS, {}, "got 1 in every pixel"),
        (ROWS[:7], LABELS[:7], {}, "at least 4 examples of every class.*got 2 of class '1'"),
        (ROWS, LABELS, {"test": (ROWS[:2], [0, 9])}, "among the training classes 0, 1, 2.*'9'"),
        (ROWS, LABELS, {"test": (ROWS[:2, :2], [0, 1])}, r"got \(2, 2\)"),
        (ROWS, LABELS, {"classes": ["a", "b"]}, "from 0 to 1.*got 0 to 2"),
        (ROWS, LABELS, {"counts": (60, 1)}, "four counts"),
        (ROWS, np.array(list("abc"))[LABELS], {"classes": ["a"]}, "from 0 to 0.*such as '.'"),
        (ROWS, [np.nan, *LABELS[1:]], {}, "label for every example, got none in row 0"),
        (ROWS, [np.inf, *LABELS[1:]], {}, "label for every example, got none in row 0"),
        (ROWS, np.array([np.float32("nan"), *"ab" * 29, "a"], object), {}, "none in row 0"),
        (ROWS, np.array([math.inf, *"ab" * 29, "a"], object), {}, "none in row 0"),
        (ROWS, pd.array(["a", pd.NA] * 30), {}, "label for every example, got none in row 1"),
        (ROWS, np.array([b"\xff", b"a"] * 30), {}, "text in UTF-8"),
        (ROWS, ["a", "b", math.nan] * 20, {}, "none in row 2 .'nan'."),
        (ROWS, ["a", " "] * 30, {}, "none in row 1"),
        (ROWS, (LABELS + 0.5).astype(object), {}, "another task"),
        (ROWS, LABELS, {"classes": ["crane", "crane", "dog"]}, "of its own.*got crane, crane"),
        (ROWS, LABELS, {"channels": "chw"}, "channels 'first', 'last' or None, got 'chw'"),
        (ROWS, LABELS, {"kind": "rows"}, "kind 'image', 'table' or None, got 'rows'"),
        (ROWS, LABELS, {"seed": None}, "a seed must be an integer"),
        (
            ROWS,
            LABELS,
            {"test": (ROWS, LABELS), "counts": (30, 10, 10, 10)},
            "0 for the test part, which is given, got 10",
        ),
    ],
)
def test_what_cannot_be_trained_on_is_refused(x, y, options, message):
    with pytest.raises(InputError, match=message):
        from_arrays(x, y, **options)


def test_names_of_classes_are_plain_strings():
    splits = from_arrays(np.arange(80.0).reshape(40, 2), [0, 1] * 20, classes=np.array(["a", "b"]))
    assert repr(splits.classes) == "('a', 'b')"
