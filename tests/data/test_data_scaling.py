import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_iris

from jem.data import Scaling, from_arrays
from jem.data.scaling import unit_warning
from jem.errors import InputError

DIGITS = load_digits()
IMAGES = DIGITS.images

GREY = Scaling.of_bytes((1, 4, 6), "channels_first")
COLOUR = Scaling.of_bytes((3, 4, 6), "channels_last")
TABLE = Scaling((3,), torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 4.0]), "table")


def images(*shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize("shape", [(4, 6), (1, 4, 6), (4, 6, 1)])
@pytest.mark.parametrize("batch", [(), (5,)])
def test_grey_images_in_any_arrangement(shape, batch):
    raw = images(*batch, 4, 6)
    x = GREY(raw.reshape(*batch, *shape))
    assert x.dtype == torch.float32
    np.testing.assert_allclose(x[:, 0], raw.reshape(-1, 4, 6) / 127.5 - 1, atol=1e-6)


def test_colour_images_in_both_orders_give_the_same():
    raw = images(5, 4, 6, 3)
    expected = torch.from_numpy(raw).permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(COLOUR(raw), expected)
    torch.testing.assert_close(COLOUR(raw.transpose(0, 3, 1, 2)), expected)
    torch.testing.assert_close(COLOUR(raw[0]), expected[:1])


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_layout_decides_where_the_shape_could_be_read_both_ways(layout):
    raw = images(2, 3, 3, 3)
    x = Scaling.of_bytes((3, 3, 3), layout)(raw)
    expected = torch.from_numpy(raw) / 127.5 - 1
    torch.testing.assert_close(x, expected.movedim(-1, 1) if "last" in layout else expected)


def test_lists_tensors_and_read_only_arrays_agree():
    raw = np.array([[1.0, 4.0, 7.0], [2.0, 2.0, 3.0]])
    expected = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    raw.setflags(write=False)
    for given in (raw, raw.tolist(), torch.tensor(raw.tolist()), raw.astype(">f4")):
        torch.testing.assert_close(TABLE(given), expected)
    torch.testing.assert_close(TABLE(raw.astype(np.uint16)), expected)
    torch.testing.assert_close(TABLE(raw[0].tolist()), expected[:1])


@pytest.mark.parametrize(
    ("scaling", "raw"), [(GREY, images(5, 1, 4, 6)), (TABLE, np.arange(6.0).reshape(2, 3))]
)
def test_invert_undoes_the_scaling(scaling, raw):
    np.testing.assert_allclose(scaling.invert(scaling(raw)).numpy(), raw, atol=1e-4)


@pytest.mark.parametrize(("mean", "std"), [(1.7e9 + 70, 1.0), (20240101.7, 1.0), (1.7e12, 1e4)])
def test_time_stamps_are_standardised_too(mean, std):
    x = mean + std * np.random.default_rng(0).normal(size=(500, 1))
    scaling = Scaling.of_table(x)
    scaled = scaling(x)
    torch.testing.assert_close(scaled.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled.std(correction=0), torch.tensor(1.0))
    np.testing.assert_allclose(scaling.invert(scaled.double()), x, atol=1e-5 * std, rtol=0)


@pytest.mark.parametrize(
    ("scaling", "shape", "message"),
    [
        (GREY, (0, 4, 6), r"N > 0.*got \(0, 4, 6\)"),
        (COLOUR, (4, 6), r"shape \(N, 4, 6, 3\) or \(N, 3, 4, 6\).*got \(4, 6\)"),
        (TABLE, (5, 2), r"shape \(N, 3\) .*got \(5, 2\)"),
    ],
)
def test_wrong_shape_is_named(scaling, shape, message):
    with pytest.raises(InputError, match=message):
        scaling(np.zeros(shape))


@pytest.fixture(scope="module")
def splits():
    return from_arrays(IMAGES, DIGITS.target)


def doubt(splits, raw):
    return unit_warning(splits.scaling(raw), splits.scaling, splits.domain)


@pytest.mark.parametrize(("factor", "largest"), [(255 / 16, "255"), (1 / 255, "0.06275")])
def test_images_on_another_scale_are_doubted_in_both_directions(splits, factor, largest):
    assert f"is {largest}, and that of the training data 16" in doubt(splits, IMAGES * factor)
    assert doubt(splits, IMAGES[:1] * factor) is not None


def test_images_as_in_training_and_blank_ones_are_not_doubted_but_a_dark_batch_is(splits):
    dark = np.minimum(IMAGES, 3)
    assert doubt(splits, IMAGES) is None
    assert all(doubt(splits, image[None]) is None for image in IMAGES)
    assert doubt(splits, np.zeros((1, 8, 8))) is None
    assert doubt(splits, np.zeros((50, 8, 8))) is None
    assert doubt(splits, dark[:9]) is None
    assert doubt(splits, dark[:10]) is not None
    assert doubt(splits, np.concatenate([dark, IMAGES[:1]])) is None


@pytest.mark.parametrize("load", [load_iris, load_breast_cancer])
def test_tables_are_doubted_where_every_row_lies_outside(load):
    x, y = load(return_X_y=True)
    splits = from_arrays(x, y)
    assert "more than half of the columns" in doubt(splits, 1000 * x)
    assert doubt(splits, x) is None
    others = x + 100 * x.std(axis=0)
    assert doubt(splits, others[:9]) is None  # such rows are what the scores are for
    assert doubt(splits, np.concatenate([others, x[:1]])) is None
    assert unit_warning(torch.full((len(x), 1), 99.0), splits.scaling, None) is None
