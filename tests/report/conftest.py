"""Subjects of reports: small models, trained for a moment, and what was measured of one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import jem
from jem.data.arrays import from_arrays
from jem.data.shifts import gaussian_noise
from jem.evaluation.fidelity import reference_classifier
from jem.networks import mlp, small_cnn
from jem.report.measure import Subject, TrainingRun, measure
from jem.training.recipes import recipe_from

RECORDS = [
    {"kind": "update", "iteration": 0, "gap": 0.1},
    {"kind": "update", "iteration": 20, "gap": None},
    {"kind": "epoch", "iteration": 20, "valid_nll": 0.5},
    {"kind": "recovery", "iteration": 15, "back_to": 10},
]


def build_subject(kind="image", trained=True, num_classes=3, control=True, **about):
    """A model of a bright pixel, and its data; `about` goes to what is known of its training."""
    rng = np.random.default_rng(0)
    shape = (8, 8) if kind == "image" else (4,)
    y = np.arange(240) % 3
    x = rng.uniform(0, 0.4, (240, *shape))
    x.reshape(240, -1)[np.arange(240), y] += 0.6
    splits = from_arrays(x, y, name="made up", seed=0)
    chains = []

    def model(recipe):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            make = small_cnn if kind == "image" else mlp
            network = make(splits.input_shape, num_classes, width=8)
        made = jem.JEM(
            network, classes=splits.classes if num_classes == 3 else None, domain=splits.domain
        )
        if trained:
            trainer = jem.Trainer(made, recipe, device="cpu")
            trainer.fit(splits.train, splits.validation)
            chains.append(trainer.state.chains.buffer.chains if recipe.trains_density else None)
        return made.eval()

    quick = {"epochs": 3, "num_chains": 16, "buffer_size": 32, "sample_steps": 3}
    own = model(recipe_from("fast", quick))
    other = model(recipe_from("plain", {"epochs": 3})) if control else None
    run = {
        "sentence": "A test & nothing <else>.",
        "command": "jem train",
        "control_command": "jem train --control",
        "config": {"seed": 0, "note": "<script>alert(1)</script>"},
        "chains": chains[0] if chains else None,
        "records": RECORDS,
    }
    return Subject(own, splits, control=other, run=TrainingRun(**run | about))


@pytest.fixture
def make_subject():
    return build_subject


@pytest.fixture(scope="session")
def measured():
    """A subject with a control and two more OOD sets, and its report."""
    of = build_subject()
    sets = {
        "gaussian noise": gaussian_noise(50, of.splits.input_shape, seed=0),
        "mine.npz": torch.zeros(20, *of.splits.input_shape),
    }
    of = replace(of, ood_sets=sets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_classifier, "FEWEST_UPDATES", 20)
        patch.setattr(reference_classifier, "EPOCHS", 1)
        return of, measure(of)
