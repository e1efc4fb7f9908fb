import ast
import inspect
import json
import math
from dataclasses import FrozenInstanceError, asdict, fields, replace
from itertools import pairwise

import pytest

from jem.errors import InputError
from jem.training.recipe import DEFAULTS, RECIPES, Recipe, recipe_from

CHOICES = {
    "step": ("plain", "classic", "fused"),
    "precision": ("float32", "bfloat16"),
    "head": ("joint", "factored"),
    "optimizer": ("adam", "adamw", "sgd"),
    "schedule": ("cosine", "step", "constant"),
    "class_weight": ("none", "balanced"),
    "start": ("uniform", "contrast", "gaussian", "mixed"),
    "sample_init": ("uniform", "contrast", "gaussian", "mixed"),
    "streams": ("shared", "separate"),
}
FLAGS = (
    "evaluation_mode",
    "clip_to_domain",
    "conditional",
    "replacement",
    "flip",
    "density_augment_flip",
)
COUNTS = ("batch_size", "num_chains", "checkpoint_every", "log_every")
OPTIONAL_COUNTS = ("density_batch_size", "num_steps", "buffer_size")
COUNTS_FROM_ZERO = ("shift", "density_augment_shift", "max_recoveries")
POSITIVE = ("max_energy_gap",)
OPTIONAL = (
    "learning_rate",
    "max_grad_norm",
    "grad_clamp",
    "max_rms",
    "gap_limit",
    "adaptive_sam_rho",
    "step_size",
)
OPTIONAL_FROM_ZERO = ("augment_noise", "noise_std", "accuracy_margin", "generative_weight")
SHARES = ("warmup", "generative_ramp")
DECAYS = ("average", "label_smoothing", "momentum")
FROM_ZERO = (
    "weight_decay", "energy_l2", "mean_energy_l2", "density_augment_noise",
    "outlier_margin", "outlier_weight",
)  # fmt: skip

WRONG = {
    "epochs": [-1, 2.5, "3"],
    "decay_at": [(0.5, 1.1), (-0.1,), (math.nan,), ("0.5",), 0.5, None],
    "decay_factor": [0, 1.1, -0.5, math.nan, "0", None],
    "reinit_prob": [-0.1, 1.1, math.nan, "1"],
    **{name: [0, -1, 1.5, "8"] for name in OPTIONAL_COUNTS},
    "outlier_count": [-1, 1.5, "8", True],
    "sample_steps": [-1, 1.5, "8", True],
    "gradient_blur": [-0.1, 1, math.nan, "0"],
    **{name: [-0.1, math.nan, math.inf, "0"] for name in OPTIONAL_FROM_ZERO},
    **{name: ["bogus", 3] + [None] * (name != "start") for name in CHOICES},
    **{name: ["yes", 1, None] for name in FLAGS},
    **{name: [0, -1, 1.5, "8", True, None] for name in COUNTS},
    **{name: [-1, 0.5, "1", None] for name in COUNTS_FROM_ZERO},
    **{name: [0, -1.0, math.nan, math.inf, "1", True, None] for name in POSITIVE},
    **{name: [0, -1.0, math.nan, "1"] for name in OPTIONAL},
    **{name: [-0.1, 1.1, math.nan, "1", None] for name in SHARES},
    **{name: [-0.1, 1.0, math.nan, "0", None] for name in DECAYS},
    **{name: [-0.1, math.nan, math.inf, "0", None] for name in FROM_ZERO},
}
RIGHT = {
    "epochs": [0, 1, None],
    "decay_at": [(), (0.5,), (0, 0.3, 1)],
    "decay_factor": [0.1, 1],
    "reinit_prob": [0, 0.5, 1, None],
    "density_batch_size": [1, 64, None],
    "num_steps": [1, 20, None],
    "outlier_count": [0, 18, None],
    "sample_steps": [0, 100, None],
    "gradient_blur": [0, 0.8, None],
    **{name: [None, 0, 0.5] for name in OPTIONAL_FROM_ZERO},
    **CHOICES,
    **{name: [True, False] for name in FLAGS},
    **{name: [1, 64] for name in COUNTS},
    "buffer_size": [64, 10_000, None],
    **{name: [0, 4] for name in COUNTS_FROM_ZERO},
    **{name: [1e-9, 1, 1e8] for name in POSITIVE},
    **{name: [None, 1, 0.5] for name in OPTIONAL},
    **{name: [0, 0.5, 1] for name in SHARES},
    **{name: [0, 0.999] for name in DECAYS},
    **{name: [0, 0.5] for name in FROM_ZERO},
}
NAMES = [field.name for field in fields(Recipe)]


def test_these_tables_know_every_field():
    assert set(WRONG) == set(RIGHT) == set(NAMES)


@pytest.mark.parametrize(("name", "value"), [(n, v) for n in WRONG for v in WRONG[n]])
def test_a_wrong_value_is_refused_with_field_expectation_and_value(name, value):
    with pytest.raises(InputError) as caught:
        Recipe(**{name: value})
    message = str(caught.value)
    assert message.startswith(f"recipe field `{name}` must be ")
    assert message.endswith(f", but got {value!r}")


@pytest.mark.parametrize(("name", "value"), [(n, v) for n in RIGHT for v in RIGHT[n]])
def test_a_right_value_is_taken(name, value):
    needs = {"streams": "separate"} if name.startswith("generative_") else {}
    assert getattr(Recipe(**{**needs, name: value}), name) == value


def test_changes_of_a_generative_stream_need_one():
    for name in ("density_augment_shift", "density_batch_size"):
        with pytest.raises(InputError, match=f"`{name}` needs `streams` = 'separate'"):
            Recipe(**{name: 1})


def test_a_list_as_json_has_it_becomes_a_tuple():
    recipe = recipe_from("jem", json.loads(json.dumps(asdict(RECIPES["sada_jem"]))))
    assert recipe == RECIPES["sada_jem"]
    assert hash(recipe) == hash(RECIPES["sada_jem"])


def test_messages_name_the_choices_and_the_kind_of_number():
    with pytest.raises(
        InputError, match=r"`step` must be one of 'plain', 'classic', 'fused', but"
    ):
        Recipe(step="fussed")
    with pytest.raises(InputError, match=r"`batch_size` must be a whole number, but got 1\.5"):
        Recipe(batch_size=1.5)
    with pytest.raises(InputError, match=r"`max_grad_norm` must be a finite number or None, but"):
        Recipe(max_grad_norm="1")
    with pytest.raises(InputError, match=r"`flip` must be true or false, but got 'no'"):
        Recipe(flip="no")


def test_more_chains_than_slots_are_refused_unless_drawn_with_replacement_or_not_at_all():
    with pytest.raises(InputError, match=r"`buffer_size` must be at least `num_chains` \(64\)"):
        Recipe(buffer_size=32)
    Recipe(buffer_size=32, replacement=True)
    Recipe(buffer_size=32, step="plain")
    Recipe(buffer_size=32, num_chains=32)


def test_a_recipe_is_frozen():
    with pytest.raises(FrozenInstanceError):
        Recipe().epochs = 3


def test_every_field_says_what_it_is():
    body = ast.parse(inspect.getsource(Recipe)).body[0].body
    described = {
        first.target.id
        for first, second in pairwise(body)
        if isinstance(first, ast.AnnAssign)
        and isinstance(second, ast.Expr)
        and isinstance(second.value, ast.Constant)
    }
    assert described == set(NAMES)


def test_only_plain_trains_no_density():
    assert {name for name, recipe in RECIPES.items() if not recipe.generative} == {"plain"}


@pytest.mark.parametrize(
    ("steps_per_epoch", "expected"), [(1, 100), (15, 100), (50, 30), (100, 15), (1000, 8)]
)
def test_epochs_left_open_give_about_1500_updates(steps_per_epoch, expected):
    assert Recipe().num_epochs(steps_per_epoch) == expected
    assert Recipe(epochs=3).num_epochs(steps_per_epoch) == 3


@pytest.mark.parametrize(
    ("shape", "asked", "noise"),
    [
        ((1, 8, 8), None, 0.1),
        ((3, 1, 12), None, 0.1),
        ((2,), None, 0.0),
        ((4, 16), None, 0.0),
        ((1, 8, 8), 0.0, 0.0),
        ((2,), 0.03, 0.03),
        ((1, 28, 15), None, 0.1),
    ],
)
def test_what_is_left_to_the_data_is_settled_once(shape, asked, noise):
    recipe = Recipe(augment_noise=asked)
    settled = recipe.resolved(shape, 50)
    common = {"augment_noise": noise, "epochs": 30, "generative_weight": 0.1, "gradient_blur": 0.0}
    chains = {"num_steps": 2, "buffer_size": 256, "outlier_count": 0, "learning_rate": 2e-3}
    moves = (3.0, 0.01, 10, "uniform", 0.02) if len(shape) == 3 else (0.05, 0.1, 20, "mixed", 0.1)
    names = ("step_size", "noise_std", "sample_steps", "start", "reinit_prob")
    assert settled == replace(recipe, **common, **chains, **dict(zip(names, moves, strict=True)))
    assert settled.resolved((2,), 1000) == settled


def test_defaults_settle_the_same_fields_for_every_kind_of_input():
    left_open = {f.name for f in fields(Recipe) if getattr(Recipe(), f.name) is None}
    settled = [set(values) for values in DEFAULTS.values()]
    assert all(names == settled[0] < left_open for names in settled)


@pytest.mark.parametrize(
    ("shape", "is_large"), [((1, 28, 28), True), ((3, 16, 16), True), ((3, 40, 15), False)]
)
def test_images_with_room_for_texture_get_what_keeps_chains_from_it(shape, is_large):
    settled = Recipe().resolved(shape, 50)
    made = (settled.start, settled.gradient_blur, settled.outlier_count, settled.augment_noise)
    assert made == (("gaussian", 0.8, 18, 0.0) if is_large else ("uniform", 0.0, 0, 0.1))
    made = (settled.generative_weight, settled.step_size, settled.sample_steps)
    moves = 100 if shape[0] == 1 else 200
    assert made == ((0.05, 1.0, moves) if is_large else (0.1, 3.0, 10))
    assert settled.learning_rate == (1e-3 if is_large else 2e-3)
    made = (settled.num_steps, settled.buffer_size, settled.reinit_prob, settled.noise_std)
    assert made == ((1, 128, 0.01, 0.01) if is_large else (2, 256, 0.02, 0.01))
    assert Recipe(num_chains=300).resolved(shape, 50).buffer_size == 300
    for name in ("jem", "jem_pp", "sada_jem"):
        published = RECIPES[name].resolved(shape, 50)
        assert replace(published, epochs=None) == RECIPES[name]


def test_the_control_has_the_noise_of_the_hybrid_and_the_official_recipe_its_own():
    assert RECIPES["plain"].augment_noise is RECIPES["fast"].augment_noise is None
    assert RECIPES["jem"].resolved((2,), 1).augment_noise == 0.03


def test_a_margin_for_what_the_density_costs_needs_one():
    with pytest.raises(InputError, match="`accuracy_margin` bounds what the density may cost"):
        Recipe(step="plain", accuracy_margin=0.01)


# -- by name, with changes


def test_a_recipe_is_taken_by_name_or_as_it_is():
    own = Recipe(epochs=2)
    assert recipe_from("jem") is RECIPES["jem"] or recipe_from("jem") == RECIPES["jem"]
    assert recipe_from(own) == own
    assert recipe_from("fast", {"epochs": 2}) == replace(RECIPES["fast"], epochs=2)
    assert recipe_from(own, asdict(RECIPES["jem"])) == RECIPES["jem"]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "quick",
            None,
            "unknown recipe 'quick': expected one of fast, finetune, jem, plain, jem_pp, sada_jem",
        ),
        ("fast", {"epoch": 3}, "unknown recipe field 'epoch'; `jem recipes` lists them"),
        ("fast", {"epochs": "many"}, "`epochs` must be a whole number or None, but got 'many'"),
        ("fast", {"step": "bogus"}, "`step` must be one of"),
        ({"epochs": 3}, None, "expected a recipe or its name, but got dict"),
    ],
)
def test_what_is_unknown_or_wrong_is_named(name, changes, message):
    with pytest.raises(InputError, match=message):
        recipe_from(name, changes)
