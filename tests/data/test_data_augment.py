import pytest
import torch

from jem.data import augment
from jem.errors import InputError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count=64, size=9):
    return torch.rand(count, 2, size, size, dtype=torch.float64, generator=generator(1)) * 2 - 1


def apply(x, shift=0, flip=False, noise_std=0.0, seed=0):
    return augment(x, shift=shift, flip=flip, noise_std=noise_std, generator=generator(seed))


def test_nothing_to_do_returns_the_input_itself_and_draws_nothing():
    x, source = images(), generator()
    before = source.get_state()
    assert augment(x, shift=0, flip=False, noise_std=0.0, generator=source) is x
    assert torch.equal(source.get_state(), before)


def test_each_image_is_one_of_the_possible_shifts():
    x = images()
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2), mode="replicate")
    windows = torch.stack(
        [padded[:, :, i : i + 9, j : j + 9] for i in range(5) for j in range(5)], 1
    )
    matches = (windows == apply(x, shift=2)[:, None]).flatten(2).all(2)
    assert matches.sum(1).tolist() == [1] * 64
    assert matches.any(0).sum() > 15  # shifts vary from image to image


def test_flip_mirrors_about_half_of_the_images():
    x = images(400)
    out = apply(x, flip=True)
    kept = (out == x).flatten(1).all(1)
    mirrored = (out == x.flip(3)).flatten(1).all(1)
    assert (kept ^ mirrored).all()
    assert 150 < kept.sum() < 250


def test_noise_has_its_standard_deviation_and_is_not_clipped():
    x = torch.ones(500, 1, 8, 8)
    noise = apply(x, noise_std=0.1) - x
    assert noise.std().item() == pytest.approx(0.1, rel=0.02)
    assert noise.mean().item() == pytest.approx(0, abs=2e-3)
    assert noise.max() > 0


def test_shape_dtype_and_input_are_kept():
    x = images()
    copy = x.clone()
    out = apply(x, shift=3, flip=True, noise_std=0.1)
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    assert torch.equal(x, copy)


def test_same_seed_same_result_and_global_generator_untouched():
    x, before = images(), torch.get_rng_state()
    options = {"shift": 2, "flip": True, "noise_std": 0.1}
    assert torch.equal(apply(x, **options), apply(x, **options))
    assert not torch.equal(apply(x, **options), apply(x, **options, seed=1))
    assert torch.equal(before, torch.get_rng_state())


def test_shift_beyond_the_image_repeats_its_edge():
    assert torch.isfinite(apply(images(size=3), shift=10)).all()


def test_rows_of_a_table_take_noise_but_no_shift():
    x = torch.zeros(6, 3)
    assert apply(x, noise_std=0.1).shape == (6, 3)
    for options in ({"shift": 1}, {"flip": True}):
        with pytest.raises(
            InputError, match=r"shape \(B, C, H, W\) to shift or flip, got \(6, 3\)"
        ):
            apply(x, **options)


@pytest.mark.parametrize("options", [{"shift": -1}, {"noise_std": -0.1}])
def test_negative_amounts_are_refused(options):
    with pytest.raises(InputError, match="at least 0"):
        apply(images(), **options)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_equals_cpu_with_a_generator_of_the_cpu():
    x = images()
    options = {"shift": 2, "flip": True, "noise_std": 0.1}
    torch.testing.assert_close(apply(x.cuda(), **options).cpu(), apply(x, **options))
    source = torch.Generator("cuda").manual_seed(0)
    assert augment(x.cuda(), generator=source, **options).is_cuda
