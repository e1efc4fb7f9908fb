import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from jem.data import load
from jem.errors import InputError

PARTS = ("train", "validation", "calibration", "test")
WITHOUT_DOWNLOAD = ("digits", "breast_cancer", "wine", "iris", "two_moons", "rings")


def write_idx(path, array):
    head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(head + array.astype(np.uint8).tobytes())


@pytest.fixture
def small_mnist(tmp_path):
    """A folder laid out as MNIST is, with 100 and 20 images."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", 100), ("t10k", 20)):
        labels = np.arange(count) % 10
        images = np.zeros((count, 28, 28)) + 20 * labels[:, None, None] + 60
        write_idx(raw / f"{prefix}-images-idx3-ubyte", images)
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", labels)
    return tmp_path


@pytest.mark.parametrize("name", WITHOUT_DOWNLOAD)
def test_sets_that_need_no_download(name):
    splits = load(name)
    assert splits.name == name
    low, high = splits.domain
    for part in (getattr(splits, part) for part in PARTS):
        assert part.x.dtype == torch.float32
        assert part.y.dtype == torch.int64
        assert part.x.shape == (len(part), *splits.input_shape)
        assert set(part.y.tolist()) == set(range(len(splits.classes)))
    assert (splits.train.x >= low).all()
    assert (splits.train.x <= high).all()


def test_digits_are_scikit_learns_in_their_order():
    from sklearn.datasets import load_digits

    splits = load("digits")
    raw = load_digits()
    expected = {(image.tobytes(), int(y)) for image, y in zip(raw.images, raw.target, strict=True)}
    found = set()
    for part in (getattr(splits, part) for part in PARTS):
        images = splits.scaling.invert(part.x)[:, 0].double().numpy()
        found |= {(image.tobytes(), int(y)) for image, y in zip(images, part.y, strict=True)}
    assert found == expected
    assert splits.classes == tuple("0123456789")
    assert [len(getattr(splits, part)) for part in PARTS] == [1237, 100, 100, 360]


def test_seed_moves_the_parts_and_nothing_else():
    first, second = load("rings", seed=0), load("rings", seed=1)
    assert not torch.equal(first.test.x, second.test.x)

    def points(splits):
        raw = [splits.scaling.invert(getattr(splits, part).x) for part in PARTS]
        return torch.cat(raw).sort(0).values

    torch.testing.assert_close(points(first), points(second))
    assert torch.equal(load("rings").train.x, first.train.x)


def test_official_test_part_is_kept(small_mnist):
    splits = load("mnist", root=small_mnist)
    assert [len(getattr(splits, part)) for part in PARTS] == [80, 10, 10, 20]
    expected = (20 * splits.test.y + 60) / 127.5 - 1
    torch.testing.assert_close(splits.test.x[:, 0, 3, 3], expected.float())
    assert splits.test.y.tolist() == [i % 10 for i in range(20)]
    assert splits.input_shape == (1, 28, 28)


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10"])
def test_missing_set_names_the_folder_and_the_flag(name, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=f"{tmp_path}.*--download"):
        load(name, root=tmp_path)
    monkeypatch.delenv("JEM_DATA", raising=False)
    with pytest.raises(InputError, match=r"JEM_DATA.* --data-root"):
        load(name)


def test_failed_download_is_one_clear_line(tmp_path, monkeypatch):
    def offline(**_):
        raise RuntimeError("no route to host")

    monkeypatch.setattr("torchvision.datasets.MNIST", offline)
    with pytest.raises(InputError, match=r"could not download mnist into .*no route to host"):
        load("mnist", root=tmp_path, download=True)


def test_a_path_is_no_name_and_a_name_no_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="`digits` must be"):
        load(Path("digits"))
    Path("digits").mkdir()
    for folder in (Path("digits"), "./digits"):
        with pytest.raises(InputError, match="`digits` must hold a subfolder of images"):
            load(folder)
    with pytest.warns(UserWarning, match=r"^digits means .* write '\./digits'") as seen:
        assert load("digits").input_shape == (1, 8, 8)
    assert seen[0].filename == __file__


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit", r"digits, fashion_mnist.*got 'digit': did you mean digits\?"),
        ("nowhere/at.npz", r"`nowhere/at\.npz` must .*, got no such path"),
    ],
)
def test_unknown_names_get_help(name, message):
    with pytest.raises(InputError, match=message):
        load(name)
