"""What the fields of a recipe may hold, and how a person is told what they may not."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from jem.errors import InputError

if TYPE_CHECKING:
    from jem.training.recipe import Recipe

_RANGES: dict[str, tuple[Callable[[Any], bool], tuple[str, ...]]] = {
    "at least 1": (
        lambda value: value >= 1,
        ("batch_size", "num_chains", "checkpoint_every", "log_every"),
    ),
    "at least 0": (
        lambda value: value >= 0,
        (
            "weight_decay", "energy_l2", "mean_energy_l2", "augment_shift",
            "outlier_margin", "outlier_weight",
        ),
    ),
    "at least 0, or None": (
        lambda value: value is None or value >= 0,
        (
            "epochs", "augment_noise", "noise_std", "accuracy_margin", "outlier_count",
            "generative_weight", "sample_steps",
        ),
    ),
    "above 0": (lambda value: value > 0, ("max_energy_gap",)),
    "above 0, or None": (
        lambda value: value is None or value > 0,
        (
            "learning_rate", "max_grad_norm", "langevin_grad_clamp", "max_rms", "gap_limit",
            "adaptive_sam_rho", "step_size",
        ),
    ),
    "in [0, 1), or None": (lambda value: value is None or 0 <= value < 1, ("gradient_blur",)),
    "at least 1, or None": (
        lambda value: value is None or value >= 1,
        ("density_batch_size", "num_steps", "buffer_size"),
    ),
    "each in [0, 1]": (lambda value: all(0 <= item <= 1 for item in value), ("decay_at",)),
    "in (0, 1]": (lambda value: 0 < value <= 1, ("decay_factor",)),
    "in [0, 1]": (
        lambda value: 0 <= value <= 1,
        ("warmup", "generative_ramp"),
    ),
    "in [0, 1], or None": (
        lambda value: value is None or 0 <= value <= 1,
        ("reinit_prob",),
    ),
    "in [0, 1)": (lambda value: 0 <= value < 1, ("ema_decay", "label_smoothing")),
}  # fmt: skip
"""What a field must be, in words; how that is checked; which fields it is said of."""


def check_fields(recipe: Recipe) -> None:
    """Check the type of every field, then its range, then what fields ask of each other.

    Raises:
        InputError: At the first that is wrong; the message names it.
    """

    def require(name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise InputError(
                f"recipe field `{name}` must be {expected}, but got {getattr(recipe, name)!r}"
            )

    for name, kind in get_type_hints(type(recipe)).items():
        require(name, _is_a(kind, getattr(recipe, name)), _described(kind))
    for expected, (holds, names) in _RANGES.items():
        for name in names:
            require(name, holds(getattr(recipe, name)), expected)
    size = recipe.buffer_size
    fits = size is None or recipe.replacement or recipe.num_chains <= size
    fits = fits or not recipe.generative
    require("buffer_size", fits, f"at least `num_chains` ({recipe.num_chains})")
    _check_half_that_is_missing(recipe)


def _check_half_that_is_missing(recipe: Recipe) -> None:
    if recipe.density_batch_size is not None and not recipe.separate_density_batches:
        raise InputError(
            "recipe field `density_batch_size` needs `separate_density_batches`; without them the "
            "density sees what the classifier sees"
        )
    if recipe.accuracy_margin is not None and not recipe.generative:
        raise InputError(
            "recipe field `accuracy_margin` bounds what the density may cost, and `objective` = "
            "'none' trains none; leave it out"
        )


def _is_a(kind: Any, value: Any) -> bool:  # noqa: ANN401
    """Whether a value is of a field's type; a whole number is a number too, and NaN is none."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is_a(get_args(kind)[0], item) for item in value)
    if get_origin(kind) in (Union, UnionType):
        return any(_is_a(option, value) for option in get_args(kind))
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, kind)


def _described(kind: Any) -> str:  # noqa: ANN401
    """A field's type, in words."""
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(repr(option) for option in get_args(kind))
    if get_origin(kind) is tuple:
        return "a list of finite numbers"
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_described(option) for option in get_args(kind))
    words = {int: "a whole number", float: "a finite number", bool: "true or false"}
    return words.get(kind, "None")
