"""OOD sets: noise, photographs, letters, turned images, held-out classes; and corruptions."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torchvision.transforms.functional import gaussian_blur

from jem.data import CORRUPTIONS, OOD_SETS, LazyPart, corrupt, load
from jem.data.shifts import ROTATIONS, hold_out, make_ood_set, rotations
from jem.data.splits import PART_NAMES
from jem.errors import InputError

DIGITS = load("digits")


@pytest.mark.parametrize("name", OOD_SETS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (1, 12, 20), (1, 20, 12)])
def test_ood_sets_have_shape_and_range_and_vary(name, shape):
    x = OOD_SETS[name](9, shape, seed=0)
    assert x.shape == (9, *shape)
    assert x.dtype == torch.float32
    assert x.min() >= -1
    assert x.max() <= 1
    assert len(x.flatten(1).unique(dim=0)) == 9


def test_photographs_have_contrast_and_neighbours_alike():
    x = OOD_SETS["photo_patches"](200, (1, 16, 16), seed=0)
    assert x.flatten(1).std(1).min() > 0.05
    steps = (x[..., 1:] - x[..., :-1]).abs().mean()
    shuffled = x.flatten(1)[:, torch.randperm(256, generator=torch.Generator().manual_seed(0))]
    assert steps < 0.5 * (shuffled[:, 1:] - shuffled[:, :-1]).abs().mean()


def test_letters_look_like_digits_in_brightness_and_place():
    x = OOD_SETS["letters"](300, (1, 8, 8), seed=0)
    assert abs(x.mean() - DIGITS.test.x[:40].mean()) < 0.25
    assert abs(x.std() - DIGITS.test.x[:40].std()) < 0.15
    assert x.amax((2, 3)).min() > 0  # every one is visible
    mass = (x + 1).sum((0, 1))
    for along in (mass, mass.T):
        assert abs((along * torch.arange(8.0)).sum() / mass.sum() - 3.5) < 0.5


@pytest.mark.usefixtures("global_rng_untouched")
@pytest.mark.parametrize("name", [*OOD_SETS, ROTATIONS])
def test_sets_by_name_fit_the_data_and_repeat(name):
    x = make_ood_set(name, DIGITS, 20, seed=1)
    assert x.shape == (20, 1, 8, 8)
    assert x.equal(make_ood_set(name, DIGITS, 20, seed=1))
    assert not x.equal(make_ood_set(name, DIGITS, 20, seed=2))
    if name in OOD_SETS:
        assert x.equal(OOD_SETS[name](20, (1, 8, 8), seed=1))


def test_rotations_are_test_images_turned_by_all_three_angles():
    x = make_ood_set(ROTATIONS, DIGITS, 400, seed=0)
    assert len(x) == len(DIGITS.test)  # there are no more
    turned = [{row.numpy().tobytes() for row in rotations(DIGITS.test.x, k)} for k in range(4)]
    found = [{k for k in range(4) if row.numpy().tobytes() in turned[k]} for row in x]
    assert all(found)
    assert sum(0 in angles for angles in found) <= 5  # but for digits that look the same
    for k in (1, 2, 3):
        assert 80 < sum(k in angles for angles in found) < 160


def test_held_out_classes_are_nowhere_in_what_is_left():
    known, unseen = hold_out(DIGITS, ["3", "7"])
    assert known.classes == tuple("01245689")
    assert known.scaling is DIGITS.scaling
    for name in PART_NAMES:
        before, after = getattr(DIGITS, name), getattr(known, name)
        kept = (before.y != 3) & (before.y != 7)
        assert after.x.equal(before.x[kept])
        names = [known.classes[k] for k in after.y]
        assert names == [DIGITS.classes[k] for k in before.y[kept]]
    gone = (DIGITS.test.y == 3) | (DIGITS.test.y == 7)
    assert unseen.equal(DIGITS.test.x[gone])


def test_held_out_classes_of_data_on_disk():
    lazy = {
        name: LazyPart(list(getattr(DIGITS, name).x), getattr(DIGITS, name).y, torch.clone)
        for name in PART_NAMES
    }
    known, unseen = hold_out(replace(DIGITS, **lazy), ["0"])
    expected, wanted = hold_out(DIGITS, ["0"])
    assert isinstance(known.train, LazyPart)
    assert unseen.equal(wanted)
    assert known.validation[:][0].equal(expected.validation.x)
    assert known.validation.y.equal(expected.validation.y)


def test_mistakes_are_refused():
    with pytest.raises(InputError, match="3 channels for photographs"):
        OOD_SETS["photo_patches"](3, (2, 8, 8), seed=0)
    with pytest.raises(InputError, match="`name` must be one of"):
        make_ood_set("fog", DIGITS, 5, seed=0)
    for name in ("letters", ROTATIONS):
        with pytest.raises(InputError, match="`splits` must hold images"):
            make_ood_set(name, load("iris"), 5, seed=0)
        with pytest.raises(InputError, match="`count` must"):
            make_ood_set(name, DIGITS, 0, seed=0)
    with pytest.raises(InputError, match="square images to turn"):
        make_ood_set(ROTATIONS, replace(DIGITS, input_shape=(1, 4, 8)), 5, seed=0)
    for names in (["1", "ten"], []):
        with pytest.raises(InputError, match="`names` must be classes among 0, 1"):
            hold_out(DIGITS, names)
    with pytest.raises(InputError, match="`names` must leave at least two classes"):
        hold_out(load("iris"), ["setosa", "virginica"])


# -- corruptions ---------------------------------------------------------------------------------

IMAGES = DIGITS.test.x[:40]


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("size", [8, 28])
def test_corruptions_grow_with_severity(kind, size):
    x = OOD_SETS["letters"](40, (1, size, size), seed=0)
    distances = [(corrupt(x, kind, s, seed=0) - x).square().mean() for s in range(1, 6)]
    assert distances[0] > 1e-4
    assert all(a < b for a, b in pairwise(distances))


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corruptions_keep_range_shape_and_input(kind):
    assert corrupt(torch.zeros(2, 1, 1, 1), kind, 5, seed=0).shape == (2, 1, 1, 1)
    copy = IMAGES.clone()
    out = corrupt(IMAGES, kind, 5, seed=0)
    assert out.shape == IMAGES.shape
    assert out.dtype == IMAGES.dtype
    assert out.abs().max() <= 1
    assert torch.equal(IMAGES, copy)
    assert torch.equal(out, corrupt(IMAGES, kind, 5, seed=0))


@pytest.mark.parametrize(("shape", "severity"), [((3, 1, 8, 8), 1), ((2, 3, 32, 20), 5)])
def test_blur_is_that_of_torchvision(shape, severity):
    side = min(shape[2:])
    sigma = 0.3 + 0.03 * severity * side
    size = 2 * min(math.ceil(3 * sigma), side - 1) + 1
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = gaussian_blur(x, [size, size], [sigma, sigma])
    torch.testing.assert_close(corrupt(x, "blur", severity, seed=0), expected)


def test_what_contrast_and_occlusion_do():
    flat = corrupt(IMAGES, "contrast", 5, seed=0)
    torch.testing.assert_close(flat.mean((1, 2, 3)), IMAGES.mean((1, 2, 3)))
    torch.testing.assert_close(flat.flatten(1).std(1), 0.15 * IMAGES.flatten(1).std(1))
    covered = [corrupt(torch.ones(30, 1, 8, 8), "occlusion", s, seed=0) == 0 for s in range(1, 6)]
    assert [c.sum((1, 2, 3)).unique().tolist() for c in covered] == [[4], [9], [16], [25], [36]]
    assert all((b | ~a).all() for a, b in pairwise(covered))  # nested


@pytest.mark.parametrize(
    ("shape", "kind", "severity", "name"),
    [
        ((2, 1, 8, 8), "fog", 1, "kind"),
        *[((2, 1, 8, 8), "blur", severity, "severity") for severity in (0, 6, 2.5)],
        ((4, 2), "noise", 1, "x"),
    ],
)
def test_wrong_corruptions_are_refused(shape, kind, severity, name):
    with pytest.raises(InputError, match=f"`{name}` must be"):
        corrupt(torch.zeros(shape), kind, severity, seed=0)
