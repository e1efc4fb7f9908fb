"""Parts of the data that the user has divided: files and folders of their own."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from jem.data import load
from jem.errors import InputError


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Train, v and t, each as .csv, as .npz and as a folder of images."""
    folder, rng = tmp_path_factory.mktemp("given"), np.random.default_rng(0)
    for name, count in (("train", 100), ("v", 12), ("t", 20)):
        y = np.arange(count) % 2
        x = rng.normal(size=(count, 3)) + y[:, None]
        np.savez(folder / f"{name}.npz", x=x, labels=y)
        frame = pd.DataFrame(x, columns=["p", "q", "r"]).assign(label=np.array(["no", "yes"])[y])
        order = frame.columns if name == "train" else frame.columns[::-1]  # names decide
        frame[order].to_csv(folder / f"{name}.csv", index=False)
        for i in range(count):
            image = folder / name / ("dark", "light")[i % 2] / f"{i:03d}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 100, (8, 8), dtype=np.uint8) + 100 * (i % 2)
            Image.fromarray(pixels.astype(np.uint8)).save(image)
    return folder


@pytest.mark.parametrize("suffix", [".csv", ".npz", ""])
def test_given_parts_are_kept_whole_and_the_others_come_from_the_training_data(here, suffix):
    paths = {name: here / f"{name}{suffix}" for name in ("train", "v", "t")}
    splits = load(paths["train"], validation=paths["v"], test=paths["t"])
    sizes = [len(getattr(splits, part)) for part in ("train", "validation", "calibration", "test")]
    assert sizes == [90, 12, 10, 20]
    alone = load(paths["train"], test=paths["t"])
    assert [len(alone.train), len(alone.validation), len(alone.test)] == [80, 10, 20]
    otherwise = load(paths["v"], test=paths["t"])  # the same inputs, scaled by another part
    raw = [of.scaling.invert(of.test.x).double() for of in (splits, otherwise)]
    mine, theirs = (x.mean((0, *range(2, x.ndim))) for x in raw)
    assert torch.allclose(mine, theirs.flip(0) if suffix == ".csv" else theirs, atol=1e-4)


def test_parts_of_another_kind_are_refused(here):
    for changes, message in (
        ({"test": here / "t"}, "`test` must be a file"),
        ({"validation": here / "nothing.csv"}, "`validation` must be a file"),
        ({"test": here / "t.npz"}, "must have the columns of"),
    ):
        with pytest.raises(InputError, match=message):
            load(here / "train.csv", **changes)
    with pytest.raises(InputError, match="`name` must be a file or folder"):
        load("digits", test=here / "t.npz")


def test_a_class_that_training_does_not_know_is_refused(here, tmp_path):
    np.savez(tmp_path / "t.npz", x=np.zeros((2, 3)), labels=[0, 2])
    with pytest.raises(InputError, match=r"train\.npz.*t\.npz.*'2'"):
        load(here / "train.npz", test=tmp_path / "t.npz")
