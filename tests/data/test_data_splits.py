import numpy as np
import pytest
import torch

from jem.data import OOD_SETS, DataPart, LazyPart, from_arrays, load
from jem.data.splits import choose_rows, draw_subset, split_indices
from jem.errors import InputError


def labels(*counts):
    y = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(1).permutation(y)


@pytest.mark.parametrize("counts", [(100, 50, 50), (7, 300, 4), (4, 4), (1000, 999, 1)[:2]])
def test_parts_are_disjoint_cover_everything_and_hold_every_class(counts):
    y = labels(*counts)
    parts = split_indices(y, seed=0)
    assert sorted(np.concatenate(parts)) == list(range(len(y)))
    for part in parts:
        assert set(y[part]) == set(range(len(counts)))


def test_classes_are_in_proportion():
    y = labels(500, 300, 200)
    for part, size in zip(split_indices(y, seed=3), (600, 100, 100, 200), strict=True):
        assert len(part) == size
        np.testing.assert_allclose(
            np.bincount(y[part]), np.array([0.5, 0.3, 0.2]) * size, atol=1.001
        )


def test_rows_in_file_order_do_not_decide_the_part():
    y = np.repeat([0, 1], 500)
    test = split_indices(y, seed=0)[3]
    assert abs(test[y[test] == 0].mean() - 249.5) < 50
    assert not np.array_equal(test, np.sort(test))


def test_rare_class_reaches_every_part_even_with_exact_counts():
    counts = (20, 10, 20, 0)
    assert [len(p) for p in split_indices(labels(30, 20), seed=0, counts=counts)] == [*counts]
    y = labels(4, 496)
    parts = split_indices(y, seed=0, counts=(470, 10, 10, 10))
    assert [len(part) for part in parts] == [470, 10, 10, 10]
    assert [int((y[part] == 0).sum()) for part in parts] == [1, 1, 1, 1]


@pytest.mark.usefixtures("global_rng_untouched")
def test_global_generators_are_left_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    load("digits")
    load("two_moons")
    OOD_SETS["letters"](6, (1, 8, 8), seed=0)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_large_sets_keep_small_parts_and_given_parts_stay_with_the_training_part():
    sizes = [len(part) for part in split_indices(labels(50_000, 50_000), seed=0)]
    assert sizes == [80_000, 5_000, 5_000, 10_000]
    given = split_indices(labels(50, 50), seed=0, given=("validation", "test"))
    assert [len(part) for part in given] == [90, 0, 10, 0]


@pytest.mark.parametrize(
    ("y", "options", "message"),
    [
        (labels(10, 3), {}, "at least 4 examples of every class.*got 3 of class '1'"),
        (labels(10, 3), {"classes": ["cat", "dog"]}, "got 3 of class 'dog'"),
        (labels(10, 10), {"counts": (10, 5, 4, 0)}, "`counts` .*sum to the 20 examples"),
        (labels(10, 10), {"counts": (10, 8, 1, 1)}, "calibration part at least 2"),
        (np.zeros((4, 2)), {}, r"shape \(N,\)"),
    ],
)
def test_impossible_splits_say_why(y, options, message):
    with pytest.raises(InputError, match=message):
        split_indices(y, seed=0, **options)


def test_lazy_part_answers_like_a_part_in_memory():
    x, y = torch.arange(12.0).reshape(6, 2), torch.arange(6)
    lazy, part = LazyPart(range(6), y, lambda i: x[i]), DataPart(x, y)
    assert len(lazy) == 6
    for index in (3, -1, slice(1, 3), torch.tensor([5, 0]), torch.tensor(4)):
        for got, expected in zip(lazy[index], part[index], strict=True):
            assert torch.equal(got, expected)
    with pytest.raises(InputError, match=r"part\[:1000\]"):
        lazy.x  # noqa: B018


def test_classes_take_the_order_of_a_network():
    data = from_arrays(np.arange(80.0).reshape(40, 2), ["a", "b"] * 20)
    moved = data.in_order(["b", "a"])
    assert moved.classes == ("b", "a")
    assert torch.equal(moved.test.y, 1 - data.test.y)
    assert torch.equal(moved.test.x, data.test.x)
    with pytest.raises(InputError, match=r"those of the data \(a, b\), got a, c"):
        data.in_order(["a", "c"])


def test_a_data_set_is_described_by_its_shape_sizes_and_class_counts():
    text = load("digits").describe()
    assert "images of 1 x 8 x 8, 10 classes" in text
    assert "train 1,237, validation 100, calibration 100, test 360" in text
    assert "3: 126" in text
    assert repr(load("digits")) == text
    assert repr(load("digits").train) == "DataPart(1,237 inputs of 1 x 8 x 8)"


def test_subsets_are_read_only_as_far_as_needed():
    read = []

    def open_one(source):
        read.append(source)
        return torch.full((2,), float(source))

    part = LazyPart(list(range(50)), torch.arange(50) % 5, open_one)
    x, y = draw_subset(part, 7, seed=0, name="a")
    assert read[0] == 0  # for its size
    assert len(read[1:]) == 7 == len(set(read[1:]))
    assert (x[:, 0].long() % 5).equal(y)
    again, _ = draw_subset(part, 7, seed=0, name="a")
    other, _ = draw_subset(part, 7, seed=1, name="a")
    assert x.equal(again)
    assert not x.equal(other)
    few, _ = draw_subset(part, 7, seed=0, name="a", max_entries=9)
    assert few.equal(x[:4])


def test_a_part_that_fits_is_taken_whole_and_in_order():
    part = DataPart(torch.arange(6.0)[:, None], torch.zeros(6))
    whole, _ = draw_subset(part, 9, seed=0, name="a")
    assert whole.flatten().tolist() == list(range(6))
    assert choose_rows(5, 5, seed=0, name="a").tolist() == list(range(5))
