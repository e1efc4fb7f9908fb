import math
from itertools import pairwise

import pytest
import torch
from torchvision.transforms.functional import gaussian_blur

from jem.data import CORRUPTIONS, OOD_SETS, corrupt, load
from jem.errors import InputError

DIGITS = load("digits").test.x[:40]


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


def test_what_contrast_and_occlusion_do():
    flat = corrupt(DIGITS, "contrast", 5, seed=0)
    torch.testing.assert_close(flat.mean((1, 2, 3)), DIGITS.mean((1, 2, 3)))
    torch.testing.assert_close(flat.flatten(1).std(1), 0.15 * DIGITS.flatten(1).std(1))
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
