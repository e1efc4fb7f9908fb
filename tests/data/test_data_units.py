"""Inputs in other units are doubted; dark, blank and foreign ones are not."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_iris

from jem.data import from_arrays
from jem.data.units import doubt_units

DIGITS = load_digits()
IMAGES = DIGITS.images


@pytest.fixture(scope="module")
def splits():
    return from_arrays(IMAGES, DIGITS.target)


def doubt(splits, raw):
    return doubt_units(np.asarray(raw), splits.scaling(raw), splits.scaling, splits.domain)


@pytest.mark.parametrize(
    ("factor", "largest"), [(1 / 16, "1"), (255 / 16, "255"), (1 / 255, "0.06275")]
)
def test_images_on_another_scale_are_doubted_in_both_directions(splits, factor, largest):
    assert f"largest absolute value is 16, got {largest}: " in doubt(splits, IMAGES * factor)
    assert doubt(splits, IMAGES[:1] * factor) is not None


def test_images_like_those_of_training_are_not_doubted(splits):
    assert doubt(splits, IMAGES) is None
    for image in IMAGES:
        assert doubt(splits, image[None]) is None


def test_dark_and_blank_images_are_not_doubted_but_a_dark_batch_is(splits):
    dark = np.minimum(IMAGES, 3)
    assert doubt(splits, np.zeros((1, 8, 8))) is None
    assert doubt(splits, np.zeros((50, 8, 8))) is None
    assert doubt(splits, dark[:9]) is None
    assert doubt(splits, dark[:10]) is not None
    assert doubt(splits, np.concatenate([dark, IMAGES[:1]])) is None


def test_bytes_as_floats_and_floats_as_bytes_are_doubted():
    x = IMAGES / 16
    of_floats, of_bytes = (from_arrays(scale * x, DIGITS.target) for scale in (1, 255))
    assert doubt(of_floats, 255 * x[:1]) is not None
    assert doubt(of_bytes, x[:1]) is not None
    signed = from_arrays(2 * x - 1, DIGITS.target)
    assert doubt(signed, x) is None


@pytest.mark.parametrize("load", [load_iris, load_breast_cancer])
def test_tables_are_doubted_where_every_row_lies_outside(load):
    x, y = load(return_X_y=True)
    splits = from_arrays(x, y)
    assert "more than half of the columns" in doubt(splits, 1000 * x)
    assert doubt(splits, x) is None
    ood_sets = x + 100 * x.std(axis=0)
    assert doubt(splits, ood_sets[:9]) is None  # foreign rows are what the scores are for
    assert doubt(splits, np.concatenate([ood_sets, x[:1]])) is None
    assert doubt_units(x, torch.full((len(x), 1), 99.0), splits.scaling, None) is None
