"""Subsets: at random, without repetition, and read only as far as needed."""

import torch

from jem.data.splits import DataPart, LazyPart
from jem.evaluation.subsets import choose_rows, draw_subset


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
