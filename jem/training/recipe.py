"""Recipes: every setting of a training run in one frozen dataclass, and the named ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jem.errors import InputError


@dataclass(frozen=True)
class Recipe:
    """How a model is trained. Derive your own with `dataclasses.replace(recipe, epochs=5)`.

    Raises:
        InputError: If a value is out of its range; the message names the field.
    """

    step: Literal["plain", "classic", "fused"] = "fused"
    """Kind of training step: cross-entropy only, JEM with separate passes, or the fused one."""
    epochs: int | None = None
    """Passes over the training data; None gives about 1,500 updates, in 8 to 100 epochs; 0 trains
    nothing, to measure a network as it is."""
    batch_size: int = 64
    """Training examples an update."""
    head: Literal["joint", "factored"] = "factored"
    """Head of the network that is built for you; a network of your own keeps its own."""

    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """Optimiser of the parameters."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    momentum: float = 0.9
    """Momentum of SGD, and beta1 of Adam."""
    weight_decay: float = 0.0
    """Weight decay, as the optimiser defines it."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """After warm-up: cosine to zero, times 0.3 at 80 % and at 90 % of the run, or constant."""
    warmup: float = 0.02
    """Share of the run in which the learning rate rises linearly from zero."""
    grad_clip: float | None = None
    """Largest norm of the parameters' gradient; None leaves it."""
    average: float = 0.99
    """Decay of the average of the weights that training returns; 0 returns the last weights."""

    label_smoothing: float = 0.003
    """Share of the target that is spread over all classes."""
    class_weight: Literal["none", "balanced"] = "none"
    """Weigh classes in the cross-entropy: equally an example, or equally a class."""

    generative_weight: float = 0.05
    """Weight w of E(data) - E(chains) beside cross-entropy."""
    generative_ramp: float = 0.0
    """Share of the run in which the weight rises linearly from zero."""
    energy_l2: float = 0.03
    """Penalty c/2 on the square of each energy."""
    gauge: float = 0.0
    """Penalty on the square of the common level of the energies of data and chains."""
    thermostat: float | None = None
    """Gap in nats at which the contrast is nearly off, so that chains catch up; None never."""

    num_chains: int = 64
    """Chains moved an iteration, M."""
    num_steps: int = 2
    """Langevin moves a chain makes an iteration, K; the fused step takes the last one for free."""
    step_size: float = 3.0
    """eta, multiplies the gradient of the energy in a move."""
    noise_std: float = 0.01
    """sigma of the noise of a move, in data units."""
    grad_clamp: float | None = None
    """Clamp each component of a chain's gradient to this size (JEM++ takes 1); None leaves it."""
    max_rms: float | None = None
    """Cap on the root mean square of one move, in data units; None leaves it."""
    clip_chains: bool = True
    """Keep chains inside the domain of the data."""
    conditional: bool = False
    """Chains belong to a class and move on E(x, y); otherwise they move on E(x)."""
    start: Literal["uniform", "contrast", "gaussian", "mixed"] = "uniform"
    """Uniform noise, noise of random contrast, class Gaussians, or a third of each."""
    buffer_size: int = 256
    """Number of persistent chains."""
    restart_prob: float = 0.02
    """Probability that a drawn chain starts afresh."""
    replacement: bool = False
    """Draw chains with replacement, as the official JEM code does."""
    sample_steps: int = 200
    """Moves of a fresh chain when the trained model is sampled."""

    streams: Literal["shared", "separate"] = "shared"
    """One batch for both halves of the objective, or another one for the density."""
    shift: int = 0
    """Random shift of images by up to this many pixels."""
    flip: bool = False
    """Random horizontal flip of images."""
    input_noise: float | None = None
    """Standard deviation of Gaussian noise added to inputs, in data units; None gives images 0.1
    and tables and points none."""
    generative_shift: int = 0
    """As `shift`, for the separate generative stream."""
    generative_flip: bool = False
    """As `flip`, for the separate generative stream."""
    generative_noise: float = 0.0
    """As `input_noise`, for the separate generative stream."""

    max_gap: float = 1000.0
    """Gap between the energies of chains and data, in nats, beyond which a run has diverged."""
    snapshot_every: int = 250
    """Iterations between checkpoints, which are also what a diverged run goes back to."""
    max_recoveries: int = 5
    """Recoveries from divergence before giving up."""
    log_every: int = 20
    """Iterations between lines of `metrics.jsonl`."""

    def __post_init__(self) -> None:
        """Check the type of every field, then its range."""
        for name, kind in get_type_hints(type(self)).items():
            self._require(name, _is_a(kind, getattr(self, name)), _described(kind))
        for name in (
            "batch_size",
            "num_chains",
            "num_steps",
            "buffer_size",
            "snapshot_every",
            "log_every",
        ):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("epochs", "input_noise"):
            value = getattr(self, name)
            self._require(name, value is None or value >= 0, "at least 0, or None")
        for name in ("learning_rate", "step_size", "max_gap"):
            self._require(name, getattr(self, name) > 0, "above 0")
        for name in ("grad_clip", "grad_clamp", "max_rms", "thermostat"):
            value = getattr(self, name)
            self._require(name, value is None or value > 0, "above 0, or None")
        for name in ("warmup", "generative_ramp", "restart_prob"):
            self._require(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        for name in ("average", "label_smoothing", "momentum"):
            self._require(name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        for name in (
            "weight_decay", "generative_weight", "energy_l2", "gauge", "noise_std", "shift",
            "generative_shift", "generative_noise", "max_recoveries",
            "sample_steps",
        ):  # fmt: skip
            self._require(name, getattr(self, name) >= 0, "at least 0")
        changed = self.generative_shift or self.generative_flip or self.generative_noise
        if self.streams == "shared" and changed:
            raise InputError(
                "recipe fields `generative_shift`, `generative_flip` and `generative_noise` need "
                "`streams` = 'separate'; with 'shared' the density sees what the classifier sees"
            )
        fits = self.replacement or self.num_chains <= self.buffer_size or self.step == "plain"
        self._require("buffer_size", fits, f"at least `num_chains` ({self.num_chains})")

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise InputError(
                f"recipe field `{name}` must be {expected}, but got {getattr(self, name)!r}"
            )

    @property
    def generative(self) -> bool:
        """Whether the recipe trains the density at all."""
        return self.step != "plain"

    def for_inputs(self, shape: Sequence[int]) -> Recipe:
        """The recipe with what depends on the kind of data settled.

        Args:
            shape: Shape of one input: (C, H, W) for images.

        Returns:
            A recipe whose `input_noise` is a number.
        """
        if self.input_noise is not None:
            return self
        return replace(self, input_noise=0.1 if len(shape) == 3 else 0.0)

    def num_epochs(self, steps_per_epoch: int) -> int:
        """Epochs of a run whose epochs have so many updates."""
        if self.epochs is not None:
            return self.epochs
        return min(100, max(8, round(1500 / steps_per_epoch)))


def _is_a(kind: Any, value: Any) -> bool:  # noqa: ANN401
    """Whether a value is of a field's type; a whole number is a number too, and NaN is none."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if isinstance(kind, UnionType):
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
    if isinstance(kind, UnionType):
        return " or ".join(_described(option) for option in get_args(kind))
    words = {int: "a whole number", float: "a finite number", bool: "true or false"}
    return words.get(kind, "None")


RECIPES: dict[str, Recipe] = {
    "fast": Recipe(),
    "plain": Recipe(step="plain", head="joint"),
    "jem": Recipe(
        step="classic",
        head="joint",
        learning_rate=1e-4,
        schedule="step",
        warmup=0.007,
        average=0.0,
        label_smoothing=0.0,
        generative_weight=1.0,
        energy_l2=0.0,
        num_steps=20,
        step_size=1.0,
        noise_std=0.01,
        clip_chains=False,
        start="uniform",
        buffer_size=10_000,
        restart_prob=0.05,
        replacement=True,
        streams="separate",
        input_noise=0.03,
        generative_noise=0.03,
        max_gap=1e8,
    ),
}
"""Recipes by name: `fast` (fused step), `plain` (cross-entropy, the control), `jem` (official)."""


def recipe_from(name_or_recipe: str | Recipe, changes: dict[str, Any] | None = None) -> Recipe:
    """Take a recipe by name, or as it is, and change some of its fields.

    Args:
        name_or_recipe: A key of `RECIPES`, or a recipe.
        changes: Field names and new values.

    Returns:
        The recipe.

    Raises:
        InputError: If the name or a field is unknown, or a value is out of range or of the wrong
            type.
    """
    recipe = name_or_recipe
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise InputError(
                f"unknown recipe {recipe!r}: expected one of {', '.join(sorted(RECIPES))}"
            )
        recipe = RECIPES[recipe]
    if not isinstance(recipe, Recipe):
        raise InputError(f"expected a recipe or its name, but got {type(recipe).__name__}")
    known = {f.name for f in fields(Recipe)}
    for name in changes or {}:
        if name not in known:
            raise InputError(f"unknown recipe field {name!r}; `jem recipes` lists them")
    return replace(recipe, **(changes or {}))
