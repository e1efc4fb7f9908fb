"""Recipes: every setting of a training run in one frozen dataclass, and the named ones.

`GROUPS` says which fields belong together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from jem.errors import InputError
from jem.training.recipe_checks import check_fields

LARGE_IMAGE = 16
"""Pixels a side from which on an image has room for texture that its chains must be kept from."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "vector": {
        "learning_rate": 2e-3,
        "augment_noise": 0.0,
        "generative_weight": 0.1,
        "num_steps": 2,
        "step_size": 0.05,
        "noise_std": 0.1,
        "gradient_blur": 0.0,
        "init": "mixed",
        "buffer_size": 256,
        "reinit_prob": 0.1,
        "sample_steps": 20,
        "outlier_count": 0,
    },
    "small image": {
        "learning_rate": 2e-3,
        "augment_noise": 0.1,
        "generative_weight": 0.1,
        "num_steps": 2,
        "step_size": 3.0,
        "noise_std": 0.01,
        "gradient_blur": 0.0,
        "init": "uniform",
        "buffer_size": 256,
        "reinit_prob": 0.02,
        "sample_steps": 10,
        "outlier_count": 0,
    },
    "large image": {
        "learning_rate": 1e-3,
        "augment_noise": 0.0,
        "generative_weight": 0.05,
        "num_steps": 1,
        "step_size": 1.0,
        "noise_std": 0.01,
        "gradient_blur": 0.8,
        "init": "gaussian",
        "buffer_size": 128,
        "reinit_prob": 0.01,
        "sample_steps": 100,
        "outlier_count": 18,
    },
}
DEFAULTS["large colour image"] = DEFAULTS["large image"] | {"sample_steps": 200}
"""What a recipe takes for a field that it leaves None, by the kind of input: vectors are rows of
tables and points, large images have at least 16 pixels a side, colour is several channels."""


GROUPS: dict[str, tuple[str, ...]] = {
    "run": (
        "objective", "fused", "epochs", "batch_size", "precision", "head", "label_smoothing",
        "class_weight", "log_every",
    ),
    "optimiser": (
        "optimizer", "learning_rate", "weight_decay", "schedule", "decay_at", "decay_factor",
        "warmup", "max_grad_norm", "adaptive_sam_rho", "ema_decay", "freeze_norm_and_dropout",
    ),
    "density": (
        "generative_weight", "generative_ramp", "energy_l2", "mean_energy_l2", "gap_limit",
        "outlier_count", "outlier_weight", "outlier_margin",
    ),
    "sampler": (
        "num_chains", "num_steps", "step_size", "noise_std", "langevin_grad_clamp", "max_rms",
        "gradient_blur", "clip_to_domain", "class_conditional_chains", "init", "buffer_size",
        "reinit_prob", "replacement", "sample_init", "sample_steps",
    ),
    "augmentation": (
        "augment_shift", "augment_flip", "augment_noise", "separate_density_batches",
        "density_batch_size", "augment_density",
    ),
    "safety": ("accuracy_margin", "max_energy_gap", "checkpoint_every"),
}  # fmt: skip
"""Fields of a recipe by what they are about, in the order in which they are shown."""


@dataclass(frozen=True)
class Recipe:
    """How a model is trained. Derive your own with `dataclasses.replace(recipe, epochs=5)`.

    Raises:
        InputError: If a value is out of its range; the message names the field.
    """

    objective: Literal["none", "contrastive"] = "contrastive"
    """What is minimised beside the cross-entropy: nothing, or the contrast of data with chains."""
    fused: bool = True
    """Train and move the chains with one backward pass, which makes the last Langevin step free;
    otherwise in separate passes. Objectives without chains do not look at it."""
    epochs: int | None = None
    """Passes over the training data; None gives about 1,500 updates, in 8 to 100 epochs; 0 leaves
    the network as given, and only keeps it with what scores and reports need."""
    batch_size: int = 64
    """Training examples an update."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in during training. bfloat16 can halve the time on processors and
    GPUs with units for it, and is slow on others; weights, energies and chains stay float32. The
    heads of `jem.networks` do too; the last layer of your own network should (turn autocast off
    there), or its logits are coarse."""
    head: Literal["joint", "factored"] = "factored"
    """Head of the network that is built for you; a network of your own keeps its own."""

    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """Optimiser of the parameters."""
    learning_rate: float | None = None
    """Peak learning rate; None takes 1e-3 for large images, else 2e-3."""
    weight_decay: float = 0.0
    """Weight decay, as the optimiser defines it."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """After warm-up: cosine to zero, in steps (see the next two), or constant."""
    decay_at: tuple[float, ...] = (0.8, 0.9)
    """Shares of the run at which the schedule of steps lowers the learning rate."""
    decay_factor: float = 0.3
    """What it multiplies the learning rate by there."""
    warmup: float = 0.02
    """Share of the run in which the learning rate rises linearly from zero."""
    max_grad_norm: float | None = None
    """Largest norm of the parameters' gradient; None leaves it."""
    adaptive_sam_rho: float | None = None
    """Radius rho of adaptive sharpness-aware minimisation: an update takes the gradient where the
    loss is worst nearby, and two passes. None takes it where the parameters are."""
    ema_decay: float = 0.99
    """Decay of the average of the weights that training returns; 0 returns the last weights."""

    label_smoothing: float = 0.003
    """Share of the target that is spread over all classes."""
    freeze_norm_and_dropout: bool = False
    """Train in evaluation mode, statistics of batch normalisation fixed and no dropout: for a
    trained network, which then learns as it predicts."""
    class_weight: Literal["none", "balanced"] = "none"
    """Weigh classes in the cross-entropy: equally an example, or equally a class."""

    generative_weight: float | None = None
    """Weight w of E(data) - E(chains) beside cross-entropy; None takes 0.05 for large images (at
    least 16 pixels a side), else 0.1."""
    generative_ramp: float = 0.0
    """Share of the run in which the weight rises linearly from zero."""
    energy_l2: float = 0.03
    """Penalty c/2 on the square of each energy."""
    mean_energy_l2: float = 0.0
    """Penalty on the square of the common level of the energies of data and chains."""
    gap_limit: float | None = None
    """Gap in nats at which the contrast is nearly off, so that chains catch up; None never."""

    num_chains: int = 64
    """Chains moved an iteration, M."""
    num_steps: int | None = None
    """Langevin moves a drawn chain makes, K; the fused step takes the last one for free. None
    takes 1 for large images, else 2."""
    step_size: float | None = None
    """eta, multiplies the gradient of the energy in a move; None takes 0.05 for vectors (rows of
    tables, points), 3 for small images, 1 for large ones."""
    noise_std: float | None = None
    """sigma of the noise of a move, in data units; None takes 0.1 for vectors, else 0.01."""
    langevin_grad_clamp: float | None = None
    """Clamp each component of a chain's gradient to this size (JEM++ takes 1); None leaves it."""
    max_rms: float | None = None
    """Cap on the root mean square of one move, in data units; None leaves it."""
    gradient_blur: float | None = None
    """Share of the blurred gradient in a move: chains then move regions rather than single pixels;
    None takes 0.8 for large images, else 0."""
    clip_to_domain: bool = True
    """Keep chains inside the domain of the data."""
    class_conditional_chains: bool = False
    """Chains belong to a class and move on E(x, y); otherwise they move on E(x)."""
    init: Literal["uniform", "contrast", "gaussian", "mixed"] | None = None
    """Where chains of training begin: uniform noise, noise of random contrast, class Gaussians, or
    a third of each (mixed); None takes mixed for vectors, uniform noise for small images, class
    Gaussians for large ones."""
    buffer_size: int | None = None
    """Number of persistent chains; None takes 128 for large images, else 256, and never fewer than
    `num_chains`."""
    reinit_prob: float | None = None
    """Probability that a drawn chain starts afresh; None takes 0.1 for vectors, 0.02 for small
    images, 0.01 for large ones."""
    replacement: bool = False
    """Draw chains with replacement, as the official JEM code does."""
    sample_init: Literal["uniform", "contrast", "gaussian", "mixed"] = "gaussian"
    """Where fresh chains begin when the trained model is sampled, as `init`."""
    sample_steps: int | None = None
    """Moves of such a chain; None takes 20 for vectors, 10 for small images, 100 for large
    ones, 200 for those in colour."""
    outlier_count: int | None = None
    """Made-up outliers an update (noise of several kinds, broken images), which are pushed
    `outlier_margin` above the data in energy; None takes 18 for large images, else 0."""
    outlier_weight: float = 6.0
    """Weight of that push, as a multiple of `generative_weight`."""
    outlier_margin: float = 10.0
    """How far above the data in energy outliers no longer count, in nats."""

    separate_density_batches: bool = False
    """Draw other batches for the density; otherwise it sees those of the classifier."""
    density_batch_size: int | None = None
    """Examples an update of the separate density batches; None takes `batch_size`."""
    augment_shift: int = 0
    """Random shift of images by up to this many pixels."""
    augment_flip: bool = False
    """Random horizontal flip of images."""
    augment_noise: float | None = None
    """Standard deviation of Gaussian noise added to inputs, in data units: a texture that chains
    cannot make, which a large network tells them by. None takes 0.1 for small images, else 0."""
    augment_density: bool = True
    """Change separate density batches at random too; otherwise they stay as they are."""

    accuracy_margin: float | None = None
    """For a trained classifier: largest loss of validation accuracy, against that before training,
    that the density may cost. An epoch that ends below it halves `generative_weight` from there
    on; the result is the last epoch's average within the margin, or the model as given. None does
    not look."""
    max_energy_gap: float = 1000.0
    """Gap between the energies of chains and data, in nats, beyond which a run has diverged."""
    checkpoint_every: int = 250
    """Iterations between checkpoints, which are also what a diverged run goes back to."""
    log_every: int = 20
    """Iterations between lines of `metrics.jsonl`."""

    def __post_init__(self) -> None:
        """Check every field."""
        if isinstance(self.decay_at, list):  # as JSON has it
            object.__setattr__(self, "decay_at", tuple(self.decay_at))
        check_fields(self)

    @property
    def generative(self) -> bool:
        """Whether the recipe trains the density at all."""
        return self.objective != "none"

    def num_epochs(self, steps_per_epoch: int) -> int:
        """Epochs of a run whose epochs have so many updates."""
        if self.epochs is not None:
            return self.epochs
        return min(100, max(8, round(1500 / steps_per_epoch)))

    def resolved(self, input_shape: Sequence[int], steps_per_epoch: int) -> Recipe:
        """Settle what is left to the data: number of epochs, and what depends on their kind.

        Args:
            input_shape: Shape of one input.
            steps_per_epoch: Updates of an epoch.

        Returns:
            The recipe with a number in each of these fields: what `config.json` keeps.
        """
        defaults = DEFAULTS[kind_of(input_shape)] | {"epochs": self.num_epochs(steps_per_epoch)}
        defaults["buffer_size"] = max(self.num_chains, defaults["buffer_size"])
        open_fields = {
            name: value for name, value in defaults.items() if getattr(self, name) is None
        }
        return replace(self, **open_fields)


def kind_of(input_shape: Sequence[int]) -> str:
    """Key of `DEFAULTS` for inputs of a shape."""
    if len(input_shape) != 3:
        return "vector"
    if min(input_shape[1:]) < LARGE_IMAGE:
        return "small image"
    return "large image" if input_shape[0] == 1 else "large colour image"


_PUBLISHED = Recipe(
    fused=False,
    head="joint",
    schedule="step",
    ema_decay=0.0,
    label_smoothing=0.0,
    generative_weight=1.0,
    energy_l2=0.0,
    step_size=1.0,
    gradient_blur=0.0,
    outlier_count=0,
    buffer_size=10_000,
    reinit_prob=0.05,
    replacement=True,
    separate_density_batches=True,
    augment_noise=0.03,
    max_energy_gap=1e8,
)
"""What the published methods have in common."""

RECIPES: dict[str, Recipe] = {
    "fast": Recipe(),
    "plain": Recipe(objective="none", fused=False, head="joint"),
    "finetune": Recipe(
        head="joint",
        learning_rate=3e-4,
        warmup=0.1,
        ema_decay=0.95,
        freeze_norm_and_dropout=True,
        energy_l2=0.0,
        gap_limit=2.0,
        num_chains=32,
        num_steps=1,
        init="gaussian",
        outlier_count=32,
    ),
    "jem": replace(
        _PUBLISHED,
        learning_rate=1e-4,
        warmup=0.007,
        num_steps=20,
        noise_std=0.01,
        clip_to_domain=False,
        init="uniform",
        sample_init="uniform",
        sample_steps=200,
    ),
    "jem_pp": replace(
        _PUBLISHED,
        optimizer="sgd",
        learning_rate=0.1,
        weight_decay=4e-4,
        decay_at=(0.333, 0.666, 0.833),
        decay_factor=0.2,
        warmup=0.0095,
        num_steps=10,
        noise_std=0.0,
        langevin_grad_clamp=1.0,
        init="gaussian",
        sample_steps=50,
    ),
    "sada_jem": replace(
        _PUBLISHED,
        batch_size=128,
        optimizer="sgd",
        learning_rate=0.1,
        weight_decay=5e-4,
        decay_at=(0.3, 0.6, 0.9),
        decay_factor=0.2,
        warmup=0.0128,
        adaptive_sam_rho=2.0,
        num_steps=5,
        noise_std=0.0,
        langevin_grad_clamp=1.0,
        init="gaussian",
        sample_steps=30,
        density_batch_size=64,
        augment_noise=0.0,
        augment_density=False,
        max_energy_gap=1e5,
    ),
}
"""Recipes by name.

- `fast`: the fused step.
- `plain`: cross-entropy alone, the control.
- `finetune`: for a network that classifies already, in a few epochs: half of the negatives are
  outliers, which help at once, and no penalty draws its energies, which lie far from 0, there.
- `jem`: Grathwohl et al. (2020), arXiv:1912.03263, step by step.
- `jem_pp`: JEM++, Yang and Ji (2021), arXiv:2109.09032: chains begin from class Gaussians, and
  move without noise by gradients clamped to 1, inside the domain. Their inner loop of 5 moves of
  0.2 on a fixed gradient of the first layer is one move of 1, so 10 outer loops are 10 moves here.
- `sada_jem`: SADA-JEM, Yang et al. (2022), arXiv:2209.07959: the same chains, 5 moves; adaptive
  sharpness-aware minimisation; a generative stream that is never augmented.

The last three have the published settings for CIFAR-10. Warm-up and decays are shares of the run,
so that they scale with it. Augmentation belongs to the data, so `augment_shift` and
`augment_flip` are left to you. Chains move in evaluation mode, and class Gaussians are of low
rank. How many moves a sample makes was chosen on validation digits (`docs/log.md`).
"""


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
            raise InputError(f"unknown recipe {recipe!r}: expected one of {', '.join(RECIPES)}")
        recipe = RECIPES[recipe]
    if not isinstance(recipe, Recipe):
        raise InputError(f"expected a recipe or its name, but got {type(recipe).__name__}")
    known = {f.name for f in fields(Recipe)}
    for name in changes or {}:
        if name not in known:
            raise InputError(f"unknown recipe field {name!r}; `jem recipes` lists them")
    return replace(recipe, **(changes or {}))
