"""Masks by name and from files."""

import numpy as np
import pytest
import torch
from PIL import Image

from jem.commands.inpaint import read_mask
from jem.errors import InputError

SHAPE = (3, 5, 4)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("lower", np.s_[:, 2:]), ("upper", np.s_[:, :2]),
        ("left", np.s_[:, :, :2]), ("right", np.s_[:, :, 2:]),
    ],
)  # fmt: skip
def test_halves(text, place):
    expected = torch.zeros(SHAPE, dtype=torch.bool)
    expected[place] = True
    assert torch.equal(read_mask(text, 2, SHAPE), expected.expand(2, *SHAPE))


@pytest.mark.parametrize("shape", [(5, 4), (3, 5, 4), (7, 3, 5, 4), (7, 5, 4)])
def test_files_hold_a_mask_for_all_inputs_or_for_each(tmp_path, shape):
    mask = np.random.default_rng(0).integers(0, 2, shape)
    np.save(tmp_path / "m.npy", mask.astype(float) * 7)
    full = mask[:, None] if shape == (7, 5, 4) else mask
    expected = np.broadcast_to(full, (7, *SHAPE)).astype(bool)
    assert np.array_equal(read_mask(str(tmp_path / "m.npy"), 7, SHAPE), expected)


def test_transparent_parts_of_an_image_mark_nothing(tmp_path):
    drawn = np.zeros((5, 4, 4), np.uint8)
    drawn[2, :, :] = 255  # a white stroke on nothing
    Image.fromarray(drawn, "RGBA").save(tmp_path / "m.png")
    marked = read_mask(str(tmp_path / "m.png"), 1, (1, 5, 4))[0, 0].any(dim=1)
    assert marked.tolist() == [False, False, True, False, False]


@pytest.mark.parametrize(
    ("text", "shape", "named"),
    [("bottom", SHAPE, "lower, upper, left, right"), ("lower", (13,), "13")],
)
def test_what_names_no_mask_is_refused(text, shape, named):
    with pytest.raises(InputError, match=named):
        read_mask(text, 2, shape)


@pytest.mark.parametrize(
    ("content", "count", "named"),
    [
        (np.ones((4, 5)), 2, r"\(2, 3, 5, 4\), got \(4, 5\)"),
        (np.zeros((5, 4)), 2, "marks nothing"),
        (np.full((5, 4), "x"), 2, "hold numbers"), (np.full((5, 4), None), 2, "m.npy"),
    ],
)  # fmt: skip
def test_arrays_that_are_no_mask_are_refused(tmp_path, content, count, named):
    np.save(tmp_path / "m.npy", content, allow_pickle=True)
    with pytest.raises(InputError, match=named):
        read_mask(str(tmp_path / "m.npy"), count, SHAPE)


def test_files_that_hold_no_mask_are_refused(tmp_path):
    np.savez(tmp_path / "m.npz", other=np.ones((5, 4)))
    with pytest.raises(InputError, match="'mask'"):
        read_mask(str(tmp_path / "m.npz"), 2, SHAPE)
    (tmp_path / "m.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="damaged"):
        read_mask(str(tmp_path / "m.png"), 2, SHAPE)
