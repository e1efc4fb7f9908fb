"""The recipe: every setting of a training run in one frozen dataclass.

`GROUPS` says which fields belong together, `help_texts` what each field means and what it is where
it is left open. The named recipes are in `jem.training.recipes`.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from itertools import pairwise
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from jem.checks import check_choice, check_integer, check_number, refuse
from jem.networks import is_embedding, usual_head
from jem.objectives import OBJECTIVES

LARGE_IMAGE = 16
"""Pixels a side from which on an image has room for texture that its chains must be kept from."""

KINDS = ("vector", "embedding", "small image", "large image", "large colour image", "photograph")
_BY_KIND: dict[str, tuple[Any, ...]] = {
    "learning_rate": (0.002, 0.001, 0.002, 0.001, 0.001, 0.001),
    "density_weight": (0.1, 0.01, 0.1, 0.05, 0.05, 0.05),
    "score_noise": ((0.2,), (0.2,), *[(0.1, 0.2, 0.4, 0.8)] * 4),
    "outlier_count": (0, 0, 0, 18, 18, 18),
    "num_chains": (64, 64, 16, 16, 16, 16),
    "num_steps": (2, 2, 2, 1, 1, 1),
    "step_size": (0.05, 0.05, 3.0, 1.0, 1.0, 1.0),
    "noise_std": (0.1, 0.1, 0.01, 0.01, 0.01, 0.01),
    "gradient_blur": (0.0, 0.0, 0.0, 0.8, 0.8, 0.8),
    "init": ("mixed", "mixed", "uniform", "gaussian", "gaussian", "gaussian"),
    "buffer_size": (256, 256, 64, 32, 32, 32),
    "reinit_prob": (0.1, 0.1, 0.02, 0.01, 0.01, 0.01),
    "sample_steps": (20, 20, 10, 100, 200, 200),
    "augment_noise": (0.0, 1.0, 0.1, 0.0, 0.0, 0.0),
    "augment_shift": (0, 0, 0, 0, 0, 4),
    "augment_flip": (False, False, False, False, False, True),
}
DEFAULTS: dict[str, dict[str, Any]] = {
    kind: {name: values[i] for name, values in _BY_KIND.items()} for i, kind in enumerate(KINDS)
}
"""What a field is that a recipe leaves open (None), by the kind of input: vectors are rows of
tables and points, embeddings are vectors of at least 100 numbers, large images have at least 16
pixels a side, colour is several channels. Photographs are large images of three channels whose
classes have names of two letters or more: they stay what they are when mirrored. Digits, letters
and classes that are only numbered may not, and grey images may be either."""

Init = Literal["uniform", "gaussian", "mixed"]


@dataclass(frozen=True)
class Recipe:
    """How a model is trained. Derive your own with `dataclasses.replace(recipe, epochs=5)`.

    A field's type carries the range of its values: an interval, or the least whole number.

    Raises:
        InputError: If a value is out of its range; the message names the field.
    """

    objective: str = "contrastive"
    """What is minimised beside the cross-entropy, a key of `jem.objectives.OBJECTIVES`: `none`,
    `contrastive`: lower the energy of data and raise that of chains, `adversarial`: the same until
    the two are told apart, or `dsm` and `nce`, without chains (see docs/method.md)."""
    fused: bool = True
    """Train the network and move the chains with one backward pass, which makes the last Langevin
    step of each update free. Only for objectives that need chains and nothing else."""
    epochs: Annotated[int | None, 0] = None
    """Passes over the training data. If None: about 1,500 updates, in 8 to 100 epochs. With 0
    nothing is trained: the network is stored with a threshold and a temperature."""
    batch_size: Annotated[int, 1] = 64
    """Training examples in each update."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Number format of the network in training. bfloat16 can halve the time on hardware made for
    it, and is slow elsewhere. Weights, energies, chains and the heads of `jem.networks` stay
    float32. Turn autocast off in the last layer of your own network, or its logits are coarse."""
    head: Literal["joint", "factored", "towers", "companion", "density"] | None = None
    """What the density is read from. `towers`: a small network of its own, beside the classifier
    (`jem.networks.towers`). `factored`: an output of its own of the one network, and `joint`: the
    logits; your own network is then taken as it is. `companion`: your network becomes the
    unchanged classifier of a `jem.companion`. `density`: one output, and no classes; labels are
    not looked at. If None: `towers` for colour images of at least 16 pixels a side and for your
    own network of images, else `factored`."""
    label_smoothing: Annotated[float, "[0, 1)"] = 0.003
    """Share of the target that is spread over all classes."""
    class_weight: Literal["none", "balanced"] = "none"
    """In the cross-entropy every example counts the same (none), or every class (balanced)."""
    attack_eps: Annotated[float, "[0, inf)"] = 0.0
    """Train the classifier on attacked inputs, so that it withstands changes of each component of
    up to this size, in data units: images lie in [-1, 1], where 16/255 is the 8/255 of [0, 1]. An
    update takes a forward and a backward pass more. With 0 it sees the data."""
    log_every: Annotated[int, 1] = 20
    """Updates between lines of `metrics.jsonl`."""

    # -- optimiser
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """Optimiser of the parameters; its momentum (beta1 of Adam) is 0.9."""
    learning_rate: Annotated[float | None, "(0, inf)"] = None
    """Peak learning rate."""
    weight_decay: Annotated[float, "[0, inf)"] = 0.0
    """Weight decay, as the optimiser defines it."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """After warm-up: cosine to zero, in steps (see the next two), or constant."""
    decay_at: Annotated[tuple[float, ...], "[0, 1]"] = (0.8, 0.9)
    """Shares of the run at which the schedule of steps lowers the learning rate."""
    decay_factor: Annotated[float, "(0, 1]"] = 0.3
    """Factor of the learning rate at each of these points."""
    warmup: Annotated[float, "[0, 1]"] = 0.02
    """Share of the run in which the learning rate rises linearly from zero."""
    max_grad_norm: Annotated[float | None, "(0, inf)"] = None
    """Largest norm of the parameters' gradient. If None: gradients are not clipped."""
    adaptive_sam_rho: Annotated[float | None, "(0, inf)"] = None
    """Radius rho of adaptive sharpness-aware minimisation: an update takes the gradient where the
    loss is worst nearby, in two passes. If None: the gradient at the parameters themselves."""
    ema_decay: Annotated[float, "[0, 1)"] = 0.99
    """Decay of the exponential moving average of the weights, which training returns; 0 returns
    the last weights."""
    freeze_norm_and_dropout: bool = False
    """Train in evaluation mode, with fixed statistics of batch normalisation and without dropout:
    for networks that are trained already."""

    # -- density
    density_weight: Annotated[float | None, "[0, inf)"] = None
    """Weight of the contrastive loss (or of another `objective`) beside the cross-entropy."""
    energy_l2: Annotated[float, "[0, inf)"] = 0.03
    """Penalty c/2 on the square of each energy."""
    mean_energy_l2: Annotated[float, "[0, inf)"] = 0.0
    """Penalty on the square of the mean energy of data and chains."""
    gap_limit: Annotated[float | None, "(0, inf)"] = None
    """Energy gap between chains and data, in nats, at which the contrastive loss is reduced to 2 %
    of its weight, so that chains catch up. If None: it never is."""
    outlier_count: Annotated[int | None, 0] = None
    """Made-up outliers in each update (noise, shapes, shuffled images or columns). Their energy is
    raised until it is `outlier_margin` above that of the data."""
    outlier_weight: Annotated[float, "[0, inf)"] = 6.0
    """Weight of the outlier loss, as a multiple of `density_weight`."""
    outlier_margin: Annotated[float, "[0, inf)"] = 10.0
    """Energy above that of the data, in nats, from which an outlier no longer counts."""

    score_noise: Annotated[tuple[float, ...] | None, "(0, inf)"] = None
    """For `dsm` and `ssm`: standard deviation of the noise on the data, in data units; of
    several, each example draws one."""
    score_form: Literal["exact", "difference", "sliced", "trace"] = "exact"
    """For `dsm`: differentiate the energy twice (exact), or take the difference of two energies,
    which any network allows and which is noisier (difference). `sliced` (the recipe `ssm`) and
    `trace` (at most 64 numbers) measure the curvature of the energy in place of the noise."""

    # -- sampler
    num_chains: Annotated[int | None, 1] = None
    """Chains that take part in each update, M."""
    num_steps: Annotated[int | None, 1] = None
    """Langevin steps of each of these chains in an update, K; a fused update makes the last one
    for free."""
    step_size: Annotated[float | None, "(0, inf)"] = None
    """Step size eta of a Langevin step: the factor of the energy gradient."""
    noise_std: Annotated[float | None, "[0, inf)"] = None
    """Standard deviation sigma of the noise of a Langevin step, in data units."""
    langevin_grad_clamp: Annotated[float | None, "(0, inf)"] = None
    """Largest size of each component of a chain's gradient (JEM++ takes 1). If None: no
    clamp."""
    normalize_gradient: bool = False
    """Divide each chain's gradient by its root mean square, so that `step_size` is what a step
    changes components by."""
    gradient_blur: Annotated[float | None, "[0, 1)"] = None
    """For images: share of the blurred gradient in a step. Chains then change regions rather than
    single pixels."""
    clip_to_domain: bool = True
    """Keep chains inside the domain of the data."""
    init: Init | None = None
    """Where chains of training begin: uniform noise, class Gaussians, or a third each of these and
    of noise of random contrast (mixed)."""
    buffer_size: Annotated[int | None, 1] = None
    """Number of persistent chains, at least `num_chains`."""
    reinit_prob: Annotated[float | None, "[0, 1]"] = None
    """Probability that a chain drawn from the buffer begins again, as `init` says."""
    replacement: bool = False
    """Draw chains with replacement, as the official JEM code does."""
    sample_init: Init = "gaussian"
    """Where samples begin; the same choices as `init`."""
    sample_steps: Annotated[int | None, 0] = None
    """Langevin steps of a sample."""

    # -- augmentation
    augment_shift: Annotated[int | None, 0] = None
    """Shift images at random by up to this many pixels."""
    augment_flip: bool | None = None
    """Mirror images at random, left to right."""
    augment_noise: Annotated[float | None, "[0, inf)"] = None
    """Standard deviation of Gaussian noise added to inputs, in data units. Not for larger images:
    their networks learn to see it, and tell chains from data by it."""
    separate_density_batches: bool = False
    """Train the density on batches of its own; otherwise it sees those of the classifier."""
    density_batch_size: Annotated[int | None, 1] = None
    """Size of these batches. If None: `batch_size`."""
    augment_density: bool = True
    """Augment these batches too."""

    # -- safety
    accuracy_margin: Annotated[float | None, "[0, inf)"] = None
    """For a trained classifier: the largest loss of validation accuracy that you accept, such as
    0.01. The result is the last epoch within this margin, or the unchanged network. After an epoch
    outside it, `density_weight` is halved. If None: any loss."""
    max_energy_gap: Annotated[float, "(0, inf)"] = 1000.0
    """Gap between the energies of chains and data, in nats, beyond which a run has diverged."""
    checkpoint_every: Annotated[int, 1] = 250
    """Updates between checkpoints. A diverged run goes back to one."""

    def __post_init__(self) -> None:
        """Check every field, then what fields ask of each other."""
        for name in ("decay_at", "score_noise"):
            if isinstance(value := getattr(self, name), list):  # as JSON has it
                object.__setattr__(self, name, tuple(value))
        for name, kind in _kinds().items():
            _check_field(name, kind, getattr(self, name))
        check_choice("objective", self.objective, OBJECTIVES)
        if self.score_noise == ():
            refuse("score_noise", "hold a standard deviation", "none")
        size, least = self.buffer_size, self.num_chains
        if size and least and self.trains_density and not self.replacement and size < least:
            refuse("buffer_size", f"be at least `num_chains` ({least})", size)
        if self.density_batch_size is not None and not self.separate_density_batches:
            remedy = "set `separate_density_batches`, or leave it out"
            refuse("density_batch_size", "be None", self.density_batch_size, remedy)
        if self.accuracy_margin is not None and not self.trains_density:
            remedy = "it limits what the density may cost; leave it out"
            refuse("accuracy_margin", "be None", self.accuracy_margin, remedy)

    @property
    def trains_density(self) -> bool:
        """Whether its objective trains the density, in any epoch; a `Trainer` may have another."""
        return self.objective != "none" and self.epochs != 0

    def num_epochs(self, updates_per_epoch: int) -> int:
        """Epochs of a run whose epochs have so many updates."""
        if self.epochs is not None:
            return self.epochs
        return min(100, max(8, round(1500 / updates_per_epoch)))

    def resolved(
        self, input_shape: Sequence[int], updates_per_epoch: int, classes: Sequence[str] = ()
    ) -> ResolvedRecipe:
        """Fill in what is left open: the number of epochs, and what depends on the kind of input.

        Args:
            input_shape: Shape of one input.
            updates_per_epoch: Updates of an epoch.
            classes: Names of the classes, where they have any.

        Returns:
            The recipe with a value in each of these fields: what `config.json` keeps.
        """
        kind = kind_of(input_shape, classes)
        values = DEFAULTS[kind] | {"epochs": self.num_epochs(updates_per_epoch)}
        values["head"] = usual_head(input_shape) if self.trains_density else "joint"
        values |= {name: value for name, value in vars(self).items() if value is not None}
        if self.buffer_size is None:
            values["buffer_size"] = max(values["num_chains"], values["buffer_size"])
        return ResolvedRecipe(**values)


@dataclass(frozen=True, kw_only=True)
class ResolvedRecipe(Recipe):
    """A recipe with nothing left open that depends on the data. None in a field means "off"."""

    epochs: int
    head: Literal["joint", "factored", "towers", "companion", "density"]
    learning_rate: float
    density_weight: float
    score_noise: tuple[float, ...]
    outlier_count: int
    num_chains: int
    num_steps: int
    step_size: float
    noise_std: float
    gradient_blur: float
    init: Init
    buffer_size: int
    reinit_prob: float
    sample_steps: int
    augment_noise: float
    augment_shift: int
    augment_flip: bool

    @property
    def augmentation(self) -> str:
        """How images are changed in training, in a line for people; empty if they are not."""
        changes = ["mirrored"] * self.augment_flip
        if self.augment_shift:
            changes.append(f"shifted by up to {self.augment_shift} pixels")
        if not changes:
            return ""
        return (
            f"images are {' and '.join(changes)} at random (--no-augment-flip --augment-shift 0)"
        )


def _grouped() -> dict[str, tuple[str, ...]]:
    first = {
        "objective": "run",
        "optimizer": "optimiser",
        "density_weight": "density",
        "num_chains": "sampler",
        "augment_shift": "augmentation",
        "accuracy_margin": "safety",
    }
    groups: dict[str, tuple[str, ...]] = {}
    for f in fields(Recipe):
        group = first.get(f.name) or next(reversed(groups))
        groups[group] = (*groups.get(group, ()), f.name)
    return groups


GROUPS = _grouped()
"""Fields of a recipe by what they are about, in the order in which they are written above."""


@cache
def help_texts() -> dict[str, str]:
    """What each field means, and what it is for each kind of input where it is left open."""
    body = ast.parse(inspect.getsource(Recipe)).body[0].body  # type: ignore[attr-defined]
    texts = {
        field.target.id: " ".join(text.value.value.split())
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }
    for name in DEFAULTS["vector"]:
        kinds: dict[Any, list[str]] = {}
        for kind, values in DEFAULTS.items():
            kinds.setdefault(values[name], []).append(kind)
        shown = (f"{value} ({', '.join(names)})" for value, names in kinds.items())
        texts[name] += f" If None, by kind of input: {', '.join(shown)}."
    return texts


def kind_of(input_shape: Sequence[int], classes: Sequence[str] = ()) -> str:
    """Key of `DEFAULTS` for inputs of a shape, with classes of these names."""
    if len(input_shape) != 3:
        return "embedding" if is_embedding(input_shape) else "vector"
    if min(input_shape[1:]) < LARGE_IMAGE:
        return "small image"
    if input_shape[0] == 1:
        return "large image"
    words = bool(classes) and all(sum(map(str.isalpha, name)) > 1 for name in classes)
    return "photograph" if words and input_shape[0] == 3 else "large colour image"


@cache
def _kinds() -> dict[str, Any]:
    return get_type_hints(Recipe, include_extras=True)


def _check_field(name: str, kind: Any, value: Any) -> None:  # noqa: ANN401
    limits: Any = None
    if get_origin(kind) is Annotated:
        kind, limits = get_args(kind)
    if NoneType in get_args(kind):
        if value is None:
            return
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        check_choice(name, value, get_args(kind))
    elif get_origin(kind) is tuple and isinstance(value, tuple):
        for item in value:
            check_number(name, item, limits)
    elif kind is int:
        check_integer(name, value, limits)
    elif kind is float:
        check_number(name, value, limits)
    elif not isinstance(value, get_origin(kind) or kind):
        refuse(name, "be " + {bool: "true or false", str: "text"}.get(kind, "a list"), repr(value))
