"""Checks at the border: what a user passes in is read, or what is wrong with it is named."""

import numpy as np
import pytest
import torch

from jem.checks import as_batch, as_labels, as_tensor
from jem.data import DataPart
from jem.errors import InputError


def test_arrays_in_files_are_read_without_a_copy(tmp_path):
    x = np.random.default_rng(0).normal(size=(50, 2))
    np.save(tmp_path / "x.npy", x)
    stored = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert as_batch(stored, (2,)).data_ptr() == stored.ctypes.data


def test_lists_and_arrays_of_any_layout_are_read():
    x = np.random.default_rng(0).normal(size=(5, 2))
    for view in (x.tolist(), x.astype(">f8"), x[::-1][::-1], torch.tensor(x, requires_grad=True)):
        found = as_tensor("x", view)
        np.testing.assert_array_equal(found.numpy(), x)
    np.testing.assert_array_equal(as_tensor("x", x[::-1]).numpy(), x[::-1])


@pytest.mark.parametrize(
    "values",
    [
        [[1.0, 2.0], [3.0]],
        np.array([["a", "b"]]),
        DataPart(torch.zeros(4, 2), torch.zeros(4, dtype=torch.long)),
        (torch.zeros(4, 2), torch.zeros(4)),
        None,
    ],
)
def test_what_is_no_array_of_numbers_is_refused(values):
    with pytest.raises(InputError, match="`x` must be a tensor, or an array or list of numbers"):
        as_tensor("x", values)


def test_a_batch_has_the_shape_of_the_model_or_is_refused():
    assert as_batch(torch.zeros(2), (2,)).shape == as_batch(np.zeros((1, 2)), (2,)).shape == (1, 2)
    assert as_batch(torch.zeros(2), None).shape == (1, 2)
    for shape, input_shape in (((4, 3), (2,)), ((), None), ((2, 2, 2), (2,))):
        with pytest.raises(InputError, match=r"`x` must have shape \(B"):
            as_batch(torch.zeros(shape), input_shape)
    with pytest.raises(InputError, match="preprocess"):
        as_batch(np.zeros((4, 2), np.uint8), (2,))


def test_labels_are_class_indices_one_a_row():
    assert as_labels("y", [0, 2], 2, 3).tolist() == [0, 2]
    for labels in ([0, 3], [-1, 0], [0.0, 1.0], [0], [[0], [1]]):
        with pytest.raises(InputError, match="`y`"):
            as_labels("y", labels, 2, 3)
