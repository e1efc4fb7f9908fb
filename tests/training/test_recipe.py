import json
import math
from dataclasses import asdict, fields

import pytest

from jem.errors import InputError
from jem.training.recipe import DEFAULTS, GROUPS, Recipe, help_texts
from jem.training.recipes import RECIPES, recipe_from

NAMES = [field.name for field in fields(Recipe)]


@pytest.mark.parametrize("name", NAMES)
def test_no_field_takes_what_is_of_no_kind(name):
    for value in ("bogus", math.nan, object()):
        with pytest.raises(InputError, match=f"`{name}`"):
            Recipe(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", -1), ("epochs", 2.5), ("batch_size", 0), ("batch_size", True),
        ("num_steps", 0), ("outlier_count", -1), ("learning_rate", 0), ("learning_rate", math.inf),
        ("ema_decay", 1), ("warmup", 1.1), ("decay_at", (0.5, 1.1)), ("decay_factor", 0),
        ("gradient_blur", 1), ("reinit_prob", -0.1), ("density_weight", -0.1), ("fused", 1),
        ("max_energy_gap", 0), ("label_smoothing", None), ("augment_shift", 0.5),
    ],
)  # fmt: skip
def test_a_number_out_of_its_range_is_refused_with_its_name(name, value):
    with pytest.raises(InputError, match=f"`{name}`"):
        Recipe(**{name: value})


def test_density_batches_have_a_size_of_their_own_only_if_they_are_separate():
    with pytest.raises(InputError, match="`separate_density_batches`"):
        Recipe(density_batch_size=8)
    assert Recipe(separate_density_batches=True, density_batch_size=8).density_batch_size == 8


def test_a_recipe_comes_back_from_json():
    recipe = recipe_from("jem", json.loads(json.dumps(asdict(RECIPES["sada_jem"]))))
    assert recipe == RECIPES["sada_jem"]
    assert hash(recipe) == hash(RECIPES["sada_jem"])


def test_more_chains_than_slots_are_refused_unless_drawn_with_replacement_or_not_at_all():
    with pytest.raises(InputError, match="`buffer_size`"):
        Recipe(buffer_size=32, num_chains=64)
    with pytest.raises(InputError, match="`buffer_size`"):
        Recipe(buffer_size=8).resolved((1, 28, 28), 50)
    Recipe(buffer_size=32, num_chains=64, replacement=True)
    Recipe(buffer_size=32, num_chains=64, objective="none")
    Recipe(buffer_size=32, num_chains=32)


def test_every_field_is_in_one_group():
    assert sorted(name for group in GROUPS.values() for name in group) == sorted(NAMES)


def test_every_field_says_what_it_is_and_what_it_is_for_each_kind_of_input():
    texts = help_texts()
    assert set(texts) == set(NAMES)
    for kind, values in DEFAULTS.items():
        assert all(
            f"{value}" in texts[name] and kind in texts[name] for name, value in values.items()
        )


@pytest.mark.parametrize(
    ("updates_per_epoch", "expected"), [(1, 100), (15, 100), (50, 30), (100, 15), (1000, 8)]
)
def test_epochs_left_open_give_about_1500_updates(updates_per_epoch, expected):
    assert Recipe().num_epochs(updates_per_epoch) == expected
    assert Recipe(epochs=3).num_epochs(updates_per_epoch) == 3


@pytest.mark.parametrize(
    ("shape", "classes", "kind"),
    [
        ((2,), (), "vector"), ((384,), (), "embedding"),
        ((4, 16), (), "vector"), ((1, 8, 8), (), "small image"),
        ((3, 40, 15), ("cat", "dog"), "small image"), ((1, 28, 28), ("cat", "dog"), "large image"),
        ((3, 16, 16), ("cat", "dog"), "photograph"), ((3, 32, 32), (), "large colour image"),
        ((3, 32, 32), ("0", "1", "10"), "large colour image"),
        ((3, 32, 32), ("A", "b", "word"), "large colour image"),
        ((4, 32, 32), ("cat", "dog"), "large colour image"),
    ],
)  # fmt: skip
def test_what_is_left_open_follows_the_kind_of_input_and_what_is_set_stays(shape, classes, kind):
    settled = Recipe(augment_noise=0.03).resolved(shape, 50, classes)
    expected = DEFAULTS[kind] | {"epochs": 30, "augment_noise": 0.03}
    assert {name: getattr(settled, name) for name in expected} == expected
    assert settled.resolved((2,), 1000) == settled
    assert bool(settled.augmentation) is settled.augment_flip is (kind == "photograph")


def test_a_buffer_left_open_holds_all_chains_of_an_update():
    assert Recipe(num_chains=300).resolved((1, 8, 8), 50).buffer_size == 300


def test_a_margin_for_what_the_density_costs_needs_one():
    with pytest.raises(InputError, match="`accuracy_margin`"):
        Recipe(objective="none", accuracy_margin=0.01)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "quick",
            None,
            "'fast', 'companion', 'plain', 'dsm', 'ssm', 'adversarial', 'nce', 'finetune', 'jem',",
        ),
        ("fast", {"epoch": 3}, "`epoch`"),
        ("fast", {"objective": "bogus"}, "`objective`"),
        ({"epochs": 3}, None, "dict"),
    ],
)
def test_what_is_unknown_or_wrong_is_named(name, changes, message):
    with pytest.raises(InputError, match=message):
        recipe_from(name, changes)
