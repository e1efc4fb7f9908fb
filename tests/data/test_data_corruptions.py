import math
import string
from itertools import pairwise

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import gaussian_blur

from jem.data import CORRUPTIONS, OOD_SETS, corrupt, load, rotations
from jem.data.corruptions import DIGIT_LOOKALIKES, LETTERS
from jem.errors import InputError

DIGITS = load("digits").test.x[:40]


@pytest.mark.parametrize("name", OOD_SETS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (1, 12, 20), (1, 20, 12)])
def test_foreign_sets_have_shape_and_range_and_vary(name, shape):
    x = OOD_SETS[name](9, shape, seed=0)
    assert x.shape == (9, *shape)
    assert x.dtype == torch.float32
    assert x.min() >= -1
    assert x.max() <= 1
    assert len(x.flatten(1).unique(dim=0)) == 9


@pytest.mark.parametrize("name", OOD_SETS)
def test_foreign_sets_depend_on_their_seed_alone(name):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    x = OOD_SETS[name](6, (1, 8, 8), seed=0)
    assert torch.equal(x, OOD_SETS[name](6, (1, 8, 8), seed=0))
    assert not torch.equal(x, OOD_SETS[name](6, (1, 8, 8), seed=1))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("name", OOD_SETS)
def test_foreign_sets_refuse_what_is_no_image(name):
    for count, shape in ((0, (1, 8, 8)), (3, (5,)), (3, (1, 0, 8))):
        with pytest.raises(InputError, match=r"image shape \(C, H, W\)"):
            OOD_SETS[name](count, shape, seed=0)


def test_photographs_have_one_or_three_channels():
    with pytest.raises(InputError, match="1 or 3 channels for photographs, got 2"):
        OOD_SETS["photo_patches"](3, (2, 8, 8), seed=0)


def test_photographs_have_contrast_and_neighbours_alike():
    x = OOD_SETS["photo_patches"](200, (1, 16, 16), seed=0)
    assert x.flatten(1).std(1).min() > 0.05
    steps = (x[..., 1:] - x[..., :-1]).abs().mean()
    shuffled = x.flatten(1)[:, torch.randperm(256, generator=torch.Generator().manual_seed(0))]
    assert steps < 0.5 * (shuffled[:, 1:] - shuffled[:, :-1]).abs().mean()


def test_patches_may_be_larger_than_the_photographs():
    assert OOD_SETS["photo_patches"](2, (1, 700, 700), seed=0).shape == (2, 1, 700, 700)


def test_every_letter_is_either_used_or_explained():
    assert sorted(LETTERS + "".join(DIGIT_LOOKALIKES)) == sorted(string.ascii_letters)


def test_letters_look_like_digits_in_brightness_and_place():
    x = OOD_SETS["letters"](300, (1, 8, 8), seed=0)
    assert abs(x.mean() - DIGITS.mean()) < 0.25
    assert abs(x.std() - DIGITS.std()) < 0.15
    assert x.amax((2, 3)).min() > 0  # every one is visible
    mass = (x + 1).sum((0, 1))
    centre = (
        (mass * torch.arange(8.0)).sum() / mass.sum(),
        (mass.T * torch.arange(8.0)).sum() / mass.sum(),
    )
    assert all(abs(c - 3.5) < 0.5 for c in centre)


def test_letters_keep_the_margin_of_larger_digits():
    x = OOD_SETS["letters"](200, (1, 28, 28), seed=0)
    assert (x[..., :2, :] == -1).all()
    assert (x[..., -2:, :] == -1).all()
    assert (x[..., 8:20, 8:20] > 0.9).flatten(1).any(1).all()


def test_quarter_turns():
    assert torch.equal(rotations(DIGITS, 4), DIGITS)
    assert torch.equal(rotations(rotations(DIGITS)), DIGITS.flip(2, 3))
    assert rotations(torch.zeros(2, 1, 4, 6)).shape == (2, 1, 6, 4)


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("size", [8, 28])
def test_corruptions_grow_with_severity(kind, size):
    x = OOD_SETS["letters"](40, (1, size, size), seed=0)
    distances = [(corrupt(x, kind, s, seed=0) - x).square().mean() for s in range(1, 6)]
    assert distances[0] > 1e-4
    assert all(a < b for a, b in pairwise(distances))


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corruptions_keep_range_shape_and_input(kind):
    copy = DIGITS.clone()
    out = corrupt(DIGITS, kind, 5, seed=0)
    assert out.shape == DIGITS.shape
    assert out.dtype == DIGITS.dtype
    assert out.abs().max() <= 1
    assert torch.equal(DIGITS, copy)
    assert torch.equal(out, corrupt(DIGITS, kind, 5, seed=0))


@pytest.mark.parametrize(("shape", "severity"), [((3, 1, 8, 8), 1), ((2, 3, 32, 20), 5)])
def test_blur_is_that_of_torchvision(shape, severity):
    side = min(shape[2:])
    sigma = 0.3 + 0.03 * severity * side
    size = 2 * min(math.ceil(3 * sigma), side - 1) + 1
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = gaussian_blur(x, [size, size], [sigma, sigma])
    torch.testing.assert_close(corrupt(x, "blur", severity, seed=0), expected)


def test_what_blur_contrast_and_occlusion_do():
    sharpness = [
        (b[..., 1:] - b[..., :-1]).abs().mean()
        for b in (corrupt(DIGITS, "blur", 3, seed=0), DIGITS)
    ]
    assert sharpness[0] < 0.6 * sharpness[1]
    flat = corrupt(DIGITS, "contrast", 5, seed=0)
    torch.testing.assert_close(flat.mean((1, 2, 3)), DIGITS.mean((1, 2, 3)))
    torch.testing.assert_close(flat.flatten(1).std(1), 0.15 * DIGITS.flatten(1).std(1))
    covered = [corrupt(torch.ones(30, 1, 8, 8), "occlusion", s, seed=0) == 0 for s in range(1, 6)]
    assert [c.sum((1, 2, 3)).unique().tolist() for c in covered] == [[4], [9], [16], [25], [36]]
    assert all((b | ~a).all() for a, b in pairwise(covered))  # nested


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (2, 1, 2, 5)])
def test_corruptions_of_tiny_images(kind, shape):
    assert corrupt(torch.zeros(shape), kind, 5, seed=0).shape == shape


def test_wrong_corruptions_are_refused():
    with pytest.raises(InputError, match="among noise, blur, contrast, occlusion, got 'fog'"):
        corrupt(DIGITS, "fog", 1, seed=0)
    for severity in (0, 6, 2.5):
        with pytest.raises(InputError, match="severity from 1 to 5"):
            corrupt(DIGITS, "blur", severity, seed=0)
    with pytest.raises(InputError, match=r"\(B, C, H, W\), got \(4, 2\)"):
        corrupt(torch.zeros(4, 2), "noise", 1, seed=0)
