"""What tests of the commands share: the command itself, what it says to mistakes, small runs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import jem
from jem import networks
from jem.cli import main
from jem.serving.scorer import fit_scorer


@pytest.fixture(scope="session")
def run():
    """Run the command in this process, and return its exit status."""
    return lambda *words: main([str(word) for word in words])


@pytest.fixture
def refused(run, capsys):
    """The one line that a mistake gets, with exit status 2."""

    def check(*words):
        capsys.readouterr()
        assert run(*words) == 2
        *notes, line = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("jem: error: ")
        assert all(note.startswith("jem: ") for note in notes)
        return line

    return check


@pytest.fixture(scope="session")
def pictures():
    """Make a folder of grey images for each of two classes, dark `a` and bright `b`."""

    def make(folder, count=20, size=(8, 8)):
        rng = np.random.default_rng(0)
        for label, brightest in (("a", 60), ("b", 255)):
            (folder / label).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, brightest, size, dtype=np.uint8)
                Image.fromarray(pixels).save(folder / label / f"{i}.png")
        return folder

    return make


@pytest.fixture(scope="session")
def table():
    """Write a table of two columns whose classes are the signs of the first."""

    def make(path, count=80):
        x = np.random.default_rng(0).normal(size=(count, 2)).round(3)
        rows = [f"{u},{v},{'yes' if u > 0 else 'no'}" for u, v in x]
        path.write_text("\n".join(["u,v,label", *rows]) + "\n")
        return path

    return make


@pytest.fixture(scope="session")
def train():
    """Train for a moment in Python, and leave a run as `jem train` does."""

    def make(folder, name, recipe="fast", module=None, detector=True, scaling=True, **metadata):
        splits = jem.data.load(name)
        shape, num_classes = splits.input_shape, len(splits.classes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            build = networks.mlp if len(shape) == 1 else networks.small_cnn
            network = module or build(shape, num_classes, width=4, head="factored")
        model = jem.JEM(network, classes=splits.classes, domain=splits.domain)
        model.scaling = splits.scaling if scaling else None
        quick = {"epochs": 1, "num_chains": 16, "buffer_size": 32, "sample_steps": 3}
        recipe = replace(jem.RECIPES[recipe], **quick)
        trainer = jem.Trainer(model, recipe, run_dir=folder, device="cpu", metadata=metadata)
        trainer.fit((splits.train[:256][0], splits.train[:256][1]))
        if detector:
            scorer = fit_scorer(model, splits)
            fitted = {"detector": scorer.detector, "temperature": scorer.temperature}
            jem.save(model, folder / "model.pt", **fitted)
        return folder

    return make


@pytest.fixture(scope="session")
def digits_run(train, tmp_path_factory):
    return train(tmp_path_factory.mktemp("digits") / "run", "digits", data="digits")


@pytest.fixture(scope="session")
def raw_digits():
    """The test part in its raw units, 0 to 16, as scikit-learn has it."""
    data = jem.data.load("digits")
    return data.scaling.invert(data.test.x)[:, 0].numpy().round()
