import itertools
import math

import pytest
import torch

from jem.sampling import ContrastBase, GaussianBase, Outliers, UniformBase
from jem.sampling.outliers import (
    CONTRASTS,
    LEVELS,
    SmoothNoiseBase,
    column_groups,
    draw_shapes,
    join_halves,
    shuffle_columns,
    shuffle_patches,
    smooth_fields,
)

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

LOW, HIGH = torch.tensor(-1.0), torch.tensor(1.0)


def fresh(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count=40, shape=(2, 18, 16)):
    return torch.rand(count, *shape, generator=fresh(5)) * 2 - 1


def outliers_of(x, low=LOW, high=HIGH, *, gaussians=True):
    labels, bounds = torch.arange(len(x)) % 3, (low, high)
    noise = [UniformBase(*bounds, x.shape[1:]), ContrastBase(*bounds, x.shape[1:])]
    if gaussians:
        noise.append(GaussianBase.fit(x, labels, 3, bounds=bounds))
    return Outliers(bounds, noise, torch.ones(3) / 3, x)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 16, 20), (1, 3, 2), (5,), (1,)])
@pytest.mark.parametrize("count", [1, 4, 23])
def test_as_many_as_asked_for_inside_the_domain_and_by_the_generator_alone(shape, count):
    x = images(shape=shape)
    made = outliers_of(x)
    drawn = made.draw(count, x, generator=fresh())
    assert drawn.shape == (count, *shape)
    assert drawn.dtype == x.dtype
    assert drawn.min() >= -1
    assert drawn.max() <= 1
    assert torch.equal(drawn, made.draw(count, x, generator=fresh()))
    assert not torch.equal(drawn, made.draw(count, x, generator=fresh(1)))


def test_class_gaussians_are_left_out_where_chains_begin_there():
    x = torch.full((8, 1, 16, 16), 0.123)
    for gaussians, expected in ((True, 3), (False, 0)):
        drawn = outliers_of(x, gaussians=gaussians).draw(18, x, generator=fresh())
        # Gaussians of data that do not vary stay near them; no other noise does.
        near = ((drawn - 0.123).abs() < 0.1).flatten(1).all(dim=1)
        broken = (drawn == 0.123).flatten(1).all(dim=1)
        assert (near & ~broken).sum() == expected


def test_a_domain_that_differs_by_channel_is_kept():
    low, high = torch.tensor([-1.0, 0.0]).view(2, 1, 1), torch.tensor([1.0, 3.0]).view(2, 1, 1)
    x = images() * 0.5 + 0.5
    drawn = outliers_of(x, low, high).draw(60, x, generator=fresh())
    assert bool(((drawn >= low) & (drawn <= high)).all())
    assert drawn[:, 1].max() > 2


def test_shuffled_patches_hold_the_same_pixels_elsewhere():
    x = images()
    shuffled = shuffle_patches(x, 2 * len(x), fresh())
    inner = slice(0, 16), slice(0, 16)  # 18 rows are four patches of four, and two that stay
    sources = [
        int((x[:, :, 16:] == row[:, 16:]).flatten(1).all(dim=1).nonzero()) for row in shuffled
    ]
    assert len(set(sources)) > len(x) / 2
    x = x[sources]
    for channel in range(2):
        ours = shuffled[:, channel][:, *inner].flatten(1).sort(dim=1).values
        theirs = x[:, channel][:, *inner].flatten(1).sort(dim=1).values
        assert torch.equal(ours, theirs)
    assert (shuffled != x).flatten(1).any(dim=1).float().mean() > 0.9
    corner = shuffled[0, :, :4, :4]
    places = [x[0, :, i : i + 4, j : j + 4] for i in range(0, 16, 4) for j in range(0, 16, 4)]
    assert any(torch.equal(corner, place) for place in places)  # patches stay whole


@pytest.mark.parametrize("count", [1, 2, 40])
def test_joined_halves_come_from_two_images(count):
    x = images()
    sides = set()
    for row in join_halves(x, count, fresh()):
        # The upper left quarter is of one image, the lower or the right half of another.
        kept = (x[:, :, :9, :8] == row[:, :9, :8]).flatten(1).all(dim=1)
        lower = (x[:, :, 9:] == row[:, 9:]).flatten(1).all(dim=1)
        right = (x[:, :, :, 8:] == row[..., 8:]).flatten(1).all(dim=1)
        assert int(kept.sum()) == int((lower | right).sum()) == 1
        assert not bool((kept & (lower | right)).any())
        sides.add("lower" if bool(lower.any()) else "right")
    assert count < 40 or sides == {"lower", "right"}


@pytest.mark.parametrize("count", [1, 6, 18])
def test_no_outlier_is_an_image_of_the_data(count):
    for number in (1, 2, 64):
        x = images(number, (1, 16, 16))
        outliers = outliers_of(x, gaussians=False)
        for seed in range(20):
            drawn = outliers.draw(count, x, generator=fresh(seed))
            assert not bool((drawn[:, None] == x[None]).flatten(2).all(dim=2).any())


def test_drawn_shapes_have_one_ink_on_the_ground_of_an_image():
    x = images(200, (2, 28, 28))
    x[:, :, 0, 0] = torch.tensor([0.3, -0.6])  # the corner of all
    drawn = draw_shapes(x, 200, fresh(), bounds=(LOW, HIGH))
    ground = x[:, :, :1, :1]
    # Between ground and ink there is one soft mask, the same in both channels.
    ink = torch.where(ground > 0, -1, 1) - ground  # as far as an ink may lie
    cover = (drawn - ground) / ink
    assert cover.min() >= 0
    assert cover.max() <= 1
    tones = cover.flatten(2).amax(dim=2, keepdim=True)
    assert tones.std() > 0.1  # inks differ
    drawn_on = (tones > 1e-3).all(dim=1).flatten()
    assert drawn_on.float().mean() > 0.95
    mask = (cover.flatten(2) / tones)[drawn_on]
    assert torch.allclose(mask[:, 0], mask[:, 1], atol=1e-4)
    assert ((mask < 0.1) | (mask > 0.9)).float().mean() > 0.8  # nearly all is ground or ink


def test_shuffled_columns_keep_each_column_and_break_rows():
    x = torch.arange(30.0)[:, None] + torch.tensor([0.0, 100.0, 200.0])
    for count in (1, 30):
        shuffled = shuffle_columns(x, count, fresh())
        assert shuffled.shape == (count, 3)
        assert bool((shuffled[:, None] == x[None]).any(dim=1).all())  # each value is of its column
        assert ((shuffled[:, 1] - shuffled[:, 0]) == 100).float().mean() < 0.3


def test_parts_of_one_hot_columns_are_found_and_nothing_else_is_grouped():
    first, second = torch.arange(24) % 3, torch.arange(24) % 2
    one_hot = (first[:, None] == torch.arange(3)).double()
    pair = (second[:, None] == torch.arange(2)).double()
    number = torch.arange(24.0)[:, None]
    flag = (torch.arange(24)[:, None] % 5 == 0).double()
    constant = torch.ones(24, 1)
    x = torch.cat([flag, one_hot, pair, number, constant, one_hot, flag, one_hot[:, :2]], dim=1)
    x = (x - x.mean(dim=0)) * 3  # as a network sees it
    expected = [0, 1, 1, 1, 2, 2, 3, 4, 5, 5, 5, 6, 7, 8]
    assert column_groups(x).tolist() == expected


# -- smooth random fields


def test_every_field_has_marginal_variance_one():
    x = smooth_fields(20_000, 6, 6, generator=fresh())
    torch.testing.assert_close(x.square().mean(dim=0), torch.ones(6, 6), rtol=0, atol=0.05)


def test_smooth_noise_has_the_second_moments_of_the_clipped_mixture():
    x = SmoothNoiseBase(-1.0, 1.0, (1, 6, 6)).sample(40_000, generator=fresh()).flatten(1)
    frequency = 2 * math.pi * torch.fft.fftfreq(6, dtype=torch.float64)
    pairs = []  # of neighbours, from each Gaussian of the mixture
    for level, contrast, i in itertools.product(LEVELS, CONTRASTS, range(6)):
        length = 0.7 * (1.5 / 0.7) ** (i / 5)
        weights = torch.exp(-(length**2) * frequency**2 / 2)
        correlation = 0.999 * float((weights * frequency.cos()).sum() / weights.sum())
        first, second = torch.randn(2, 2000, dtype=torch.float64, generator=fresh(len(pairs)))
        second = correlation * first + math.sqrt(1 - correlation**2) * second
        pairs.append((level + contrast * torch.stack([first, second], dim=1)).clamp(-1, 1))
    expected, found = torch.cat(pairs), x[:, :2].double()
    for moment in (lambda p: p[:, 0].square(), lambda p: p[:, 0] * p[:, 1]):
        assert moment(found).mean() == pytest.approx(float(moment(expected).mean()), rel=0.03)
