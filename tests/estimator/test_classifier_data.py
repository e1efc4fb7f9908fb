"""What the estimator holds out of training, and how samples are brought back to raw units."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from jem import JEMClassifier
from jem.data import Scaling
from jem.estimator.data import RawFormat, divide, rows_needed, rows_shared


def parts(counts, **changes):
    """Sizes of training, validation and calibration part of a table with so many of each class."""
    labels = np.repeat(np.arange(len(counts)), counts)
    x = np.arange(2.0 * len(labels)).reshape(-1, 2)
    settings = {"validation": 0.0, "calibration": 0.1, "acceptance_rate": 0.95} | changes
    names = [f"class {k}" for k in range(len(counts))]
    splits = divide(x, labels, names, channels=None, seed=0, **settings)
    assert len(splits.test) == 0
    raw = [splits.scaling.invert(p.x) for p in (splits.train, splits.validation)]
    raw.append(splits.scaling.invert(splits.calibration.x))
    together = torch.cat(raw)[:, 0].round().sort().values
    assert together.tolist() == x[:, 0].tolist()  # every row is in one part
    for part in (splits.validation, splits.calibration):
        assert len(part) == 0 or set(part.y.tolist()) == set(range(len(counts)))
    return len(splits.train), len(splits.validation), len(splits.calibration)


@pytest.mark.parametrize(
    ("counts", "settings", "expected"),
    [
        ([300, 200], {}, (450, 0, 50)),
        ([300, 200], {"calibration": 0.0}, (500, 0, 0)),
        ([300, 200], {"validation": 0.2}, (350, 100, 50)),
        ([300, 200], {"acceptance_rate": 0.99}, (401, 0, 99)),  # grows to what accept needs
        ([50, 50], {}, (81, 0, 19)),
        ([38, 38], {}, (57, 0, 19)),  # a quarter is the most
        ([37, 37], {}, (74, 0, 0)),  # 19 would be more than a quarter (18.5 is rounded to 18)
        ([37, 37], {"acceptance_rate": 0.9}, (65, 0, 9)),
        ([30, 30], {"calibration": 0.4}, (36, 0, 24)),  # unless more is asked for
        ([99, 1], {}, (100, 0, 0)),  # the rare class is needed in training
        ([99, 2], {"validation": 0.1}, (91, 10, 0)),
        ([99, 1], {"validation": 0.1}, (100, 0, 0)),
        ([4] * 10, {"validation": 0.1}, (30, 10, 0)),  # one of each class at least
        ([3] * 10, {"validation": 0.1}, (30, 0, 0)),  # but no more than a quarter
    ],
)
def test_what_is_held_out(counts, settings, expected):
    assert parts(counts, **settings) == expected


@pytest.mark.parametrize("calibration", [0.1, 0.4])
@pytest.mark.parametrize("acceptance_rate", [0.8, 0.95, 0.99])
def test_the_number_said_to_be_needed_for_a_threshold_is_enough_and_no_more(
    calibration, acceptance_rate
):
    needed = rows_needed(calibration, acceptance_rate, 2)
    for count, held_out in ((needed, True), (needed - 1, False)):
        labels = np.arange(count) % 2
        parts = divide(
            np.arange(2.0 * count).reshape(count, 2), labels, ["a", "b"], validation=0,
            calibration=calibration, acceptance_rate=acceptance_rate, channels=None, seed=0,
        )  # fmt: skip
        assert bool(len(parts.calibration)) is held_out


def test_rows_that_both_hold_are_counted():
    x = np.arange(60.0).reshape(10, 2, 3)
    assert rows_shared(x[3:5] + 1, x) == 0
    assert rows_shared(np.concatenate([x[:4] + 0.5, x[3:5], x[3:4]]).astype(np.float32), x) == 3


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, np.int64])
@pytest.mark.parametrize(
    ("shape", "layout", "input_shape"),
    [
        ((4, 5), "channels_first", (1, 4, 5)),
        ((4, 5, 3), "channels_last", (3, 4, 5)),
        ((3, 4, 5), "channels_first", (3, 4, 5)),
    ],
)
def test_inputs_come_back_from_the_network_as_they_were(dtype, shape, layout, input_shape):
    x = np.random.default_rng(0).integers(0, 256, (6, *shape)).astype(dtype)
    scaling = Scaling.of_bytes(input_shape, layout)
    back = RawFormat.of(x).restore(scaling(x), scaling)
    assert back.dtype == dtype
    assert back.shape == x.shape
    np.testing.assert_allclose(back, x, atol=1e-4)


def test_whole_numbers_are_rounded_and_stay_in_their_range():
    scaling = Scaling.of_bytes((1, 1, 3), "channels_first")
    x = torch.tensor([[[[-1.2, 0.002, 1.2]]]])
    raw_format = RawFormat((1, 3), np.dtype(np.uint8))
    assert raw_format.restore(x, scaling).tolist() == [[[0, 128, 255]]]


def test_truth_values_come_back_as_truth_values():
    scaling = Scaling.of_table(np.array([[0.0], [1.0]]))
    drawn = torch.tensor([[-1.3], [-0.1], [0.1], [1.3]])
    restored = RawFormat.of(np.array([[False], [True]])).restore(drawn, scaling)
    assert restored.dtype == bool
    assert restored.ravel().tolist() == [False, False, True, True]


def test_rows_are_valid_again_with_one_part_of_a_category_and_whole_numbers():
    table = np.array([[0, 1, 7, 0.5], [1, 0, 9, 2.5], [0, 1, 12, 1.0]])
    scaling = Scaling.of_table(table)
    drawn = torch.tensor([[0.9, -0.9, 0.4, 9.0], [0.5, 0.6, -9.0, 0.1]])
    restored = RawFormat.of(table).restore(drawn, scaling)
    assert restored[:, :2].tolist() == [[1, 0], [0, 1]]
    assert restored[:, 2].tolist() == [10, 7]
    assert restored[0, 3] == 2.5
    np.testing.assert_allclose(restored[1, 3], table[:, 3].mean() + 0.1 * table[:, 3].std())


def test_sparse_rows_are_those_that_they_stand_for():
    x = np.random.default_rng(0).integers(0, 3, (60, 4)).astype(float)
    labels = (x.sum(axis=1) > 4).astype(int)
    classifier = JEMClassifier(epochs=2, calibration_fraction=0, random_state=0)
    probabilities = classifier.fit(csr_matrix(x), labels).predict_proba(csr_matrix(x))
    np.testing.assert_array_equal(classifier.fit(x, labels).predict_proba(x), probabilities)
