"""Random trainings on awkward data: each ends in a finite model or in one clear error."""

from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import torch
from hypothesis import HealthCheck, given, settings

import jem
from jem.errors import JemError
from jem.networks import mlp, small_cnn, wide_resnet
from jem.training.recipes import RECIPES

SHAPES = ((1,), (2,), (7,), (1, 8, 8), (3, 8, 8), (1, 9, 11), (2, 5, 4), (3, 1, 12))


@st.composite
def data_sets(draw):
    """Awkward data: (x, y, number of classes)."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    shape = draw(st.sampled_from(SHAPES))
    num_classes = draw(st.integers(1, 4))
    count = draw(st.sampled_from((1, 2, 5, 17, 33)))  # a last batch of one, fewer than a batch
    x = rng.standard_normal((count, *shape))
    x *= 10.0 ** draw(st.sampled_from((-8, -3, 0, 0, 0, 3, 8)))
    y = rng.integers(0, num_classes, count)
    how = draw(
        st.sampled_from(("as is", "constant", "repeated", "one class", "unit box", "outlier"))
    )
    if how == "constant":
        x[:] = x.flat[0]
    elif how == "repeated":
        x[:] = x[:1]
    elif how == "one class":  # the others are missing from every batch
        y[:] = 0
    elif how == "unit box":
        x = 1 / (1 + np.exp(-x / np.abs(x).max()))
    elif how == "outlier":
        x.flat[0] *= 1e6
    dtype = draw(st.sampled_from((torch.float32, torch.float32, torch.float64, torch.float16)))
    return torch.as_tensor(x).to(dtype), torch.as_tensor(y), num_classes


CHOICES = {
    "epochs": (1, 2, 3), "batch_size": (1, 4, 16), "optimizer": ("adam", "adamw", "sgd"),
    "learning_rate": (1e-4, 1e-3, 1e-2, 1.0), "schedule": ("cosine", "step", "constant"),
    "ema_decay": (0.0, 0.9), "class_weight": ("none", "balanced"),
    "density_weight": (0.0, 0.3, 1.0), "energy_l2": (0.0, 0.03), "mean_energy_l2": (0.0, 0.01),
    "gap_limit": (None, 2.0), "num_chains": (1, 3, 8), "buffer_size": (8, 24),
    "num_steps": (1, 2, 3), "step_size": (1e-2, 1.0, 100.0), "noise_std": (0.0, 0.01, 1.0),
    "langevin_grad_clamp": (None, 1.0), "clip_to_domain": (False, True),
    "reinit_prob": (0.0, 0.1, 1.0),
    "checkpoint_every": (1, 5),
}  # fmt: skip


@st.composite
def recipes(draw):
    """Recipes of every kind, some of them reckless."""
    base = RECIPES[draw(st.sampled_from(sorted(RECIPES)))]
    changes = {name: draw(st.sampled_from(values)) for name, values in CHOICES.items()}
    return replace(base, **changes, sample_steps=3, head="joint")


def build(shape, num_classes, kind):
    """A network that suits the shape."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind != "mlp" and len(shape) == 3 and min(shape[1:]) >= 8:
            if kind == "wide_resnet":
                return wide_resnet(shape, num_classes, depth=10, width=1, norm="batch")
            return small_cnn(shape, num_classes, width=4, head="factored")
        return mlp(shape, num_classes, width=8, depth=1, dropout=0.1)


def train_and_use(data, recipe, kind):
    """Train, score and sample; True if the run came to an end, False if it was refused."""
    x, y, num_classes = data
    model = jem.JEM(build(tuple(x.shape[1:]), num_classes, kind))
    try:
        result = jem.Trainer(model, recipe, seed=1, device="cpu").fit((x, y), (x, y))
    except JemError:
        return False
    assert result.iterations >= 1
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert not model.training
    with torch.no_grad():
        logits = model.logits(x.float())
    assert logits.shape == (len(x), num_classes)
    assert bool(logits.isfinite().all())
    if recipe.trains_density:
        assert bool(jem.sample(model, count=2, seed=0, num_steps=3).isfinite().all())
    return True


@settings(
    deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), max_examples=40
)
@given(
    data=data_sets(), recipe=recipes(),
    kind=st.sampled_from(("mlp", "mlp", "small_cnn", "small_cnn", "wide_resnet")),
)  # fmt: skip
def test_trainings_end_in_a_finite_model_or_a_clear_error(data, recipe, kind):
    assert train_and_use(data, recipe, kind) in (True, False)


def test_most_awkward_trainings_end_in_a_model():
    """What the tests above allow to be refused is the exception."""
    generator = torch.Generator().manual_seed(0)
    ends = []
    for scale in (1e-8, 1e-3, 1.0, 1e3, 1e8):
        for shape in ((2,), (1, 8, 8)):
            x = scale * torch.randn(33, *shape, generator=generator)
            y = torch.arange(33) % 3
            recipe = replace(
                RECIPES["fast"], epochs=2, num_chains=8, buffer_size=16, batch_size=16
            )
            recipe = replace(recipe, sample_steps=3)
            ends.append(train_and_use((x, y, 3), recipe, "small_cnn"))
    assert sum(ends) >= 8, ends
