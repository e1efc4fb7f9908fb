"""The named recipes, and a recipe by name with changes."""

from dataclasses import replace
from typing import Any

from jem.checks import check_choice, refuse
from jem.training.recipe import Recipe

_PUBLISHED = Recipe(
    fused=False,
    head="joint",
    schedule="step",
    ema_decay=0.0,
    label_smoothing=0.0,
    density_weight=1.0,
    energy_l2=0.0,
    step_size=1.0,
    gradient_blur=0.0,
    outlier_count=0,
    num_chains=64,
    buffer_size=10_000,
    reinit_prob=0.05,
    replacement=True,
    separate_density_batches=True,
    augment_noise=0.03,
    max_energy_gap=1e8,
)
"""What the published methods have in common."""

_JEM_PP = replace(
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
)

_WITHOUT_CHAINS = Recipe(
    fused=False,
    density_weight=1.0,
    outlier_count=0,
    init="gaussian",
    step_size=0.005,
    noise_std=0.1,
    gradient_blur=0.0,
    sample_steps=20,
)
"""What the objectives without chains have in common: samples are drawn at temperature 1."""

RECIPES: dict[str, Recipe] = {
    "fast": Recipe(),
    "companion": Recipe(head="companion"),
    "plain": Recipe(objective="none", fused=False, head="joint"),
    "dsm": replace(_WITHOUT_CHAINS, objective="dsm"),
    "ssm": replace(_WITHOUT_CHAINS, objective="dsm", score_form="sliced"),
    "adversarial": Recipe(
        objective="adversarial",
        attack_eps=16 / 255,
        head="joint",
        density_weight=1.0,
        normalize_gradient=True,
        step_size=0.03,
        noise_std=0.0,
        gradient_blur=0.0,
        outlier_count=0,
        num_steps=5,
        init="mixed",
        num_chains=64,
        buffer_size=64,
        reinit_prob=1.0,
    ),
    "nce": replace(_WITHOUT_CHAINS, objective="nce"),
    "finetune": Recipe(
        head="joint",
        learning_rate=3e-4,
        warmup=0.1,
        ema_decay=0.95,
        freeze_norm_and_dropout=True,
        energy_l2=0.0,
        gap_limit=2.0,
        num_chains=32,
        buffer_size=128,
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
    "image_ebm": replace(
        _PUBLISHED,
        head="density",
        epochs=60,
        batch_size=128,
        learning_rate=1e-4,
        warmup=0.0,
        decay_at=(0.25, 0.5, 0.75),
        decay_factor=0.63,
        max_grad_norm=0.1,
        energy_l2=0.2,
        num_chains=128,
        buffer_size=8192,
        num_steps=60,
        step_size=10.0,
        noise_std=0.005,
        langevin_grad_clamp=0.03,
        init="uniform",
        sample_init="uniform",
        sample_steps=256,
        separate_density_batches=False,
        augment_noise=0.005,
    ),
    "jem_pp": _JEM_PP,
    "sada_jem": replace(
        _JEM_PP,
        batch_size=128,
        weight_decay=5e-4,
        decay_at=(0.3, 0.6, 0.9),
        warmup=0.0128,
        adaptive_sam_rho=2.0,
        num_steps=5,
        sample_steps=30,
        density_batch_size=64,
        augment_noise=0.0,
        augment_density=False,
        max_energy_gap=1e5,
    ),
}
"""Recipes by name.

- `fast`: the fused update.
- `companion`: for a network that classifies already, and keeps its predictions to the bit: a small
  network beside it learns the density (`jem.companion`).
- `plain`: cross-entropy alone, to compare with.
- `dsm`: denoising score matching, without chains. Samples are drawn at temperature 1, with steps
  of half the square of the smallest noise.
- `ssm`: sliced score matching, at data with the noise of `dsm`: it learns the same density from
  the curvature of the energy along a random direction, and takes longer.
- `nce`: noise contrastive estimation, without chains, for vectors: the network tells the data from
  the Gaussians of its base density.
- `adversarial`: for a classifier that withstands small changes of its inputs. It is trained on
  attacked inputs (`attack_eps`), and the energy tells data from points that five steps of fixed
  length find from noise and class Gaussians: after Yin et al. (2025), arXiv:2510.13872 (DAT), with
  attacks of one step, and with noise in place of foreign photographs.
- `finetune`: for a network that classifies already, in a few epochs. Half of the negatives are
  outliers, which help at once. No penalty pulls its energies to 0, as they lie far from it.
- `jem`: Grathwohl et al. (2020), arXiv:1912.03263, step by step.
- `image_ebm`: an energy of images without classes, with the settings of tutorial 8 on deep energy
  models of the University of Amsterdam, after Du and Mordatch (2019), arXiv:1903.08689, for 28x28
  pixels. Its beta1 of Adam is 0, and its rate falls a little in each epoch. To compare with
  `replace(RECIPES["fast"], head="density")`, which costs far less.
- `jem_pp`: JEM++, Yang and Ji (2021), arXiv:2109.09032. Chains begin at class Gaussians and make
  steps without noise, by gradients clamped to 1, inside the domain. The paper's inner loop makes
  5 steps of 0.2 on a fixed gradient of the first layer, which is one step of 1; so its 10 outer
  loops are 10 steps here.
- `sada_jem`: SADA-JEM, Yang et al. (2022), arXiv:2209.07959. The same chains with 5 steps,
  adaptive sharpness-aware minimisation, and batches of the density that are never augmented.

The last four have published settings, the last three those for CIFAR-10. Warm-up and decays are
shares of the run, so that they scale with it. Augmentation belongs to the data, so
`augment_shift` and `augment_flip` follow the kind of input. Chains make steps in evaluation mode,
and class Gaussians are of low rank. How many steps a sample makes was chosen on validation digits
(`docs/log.md`).
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
    recipe, changes = name_or_recipe, changes or {}
    if isinstance(recipe, str):
        check_choice("recipe", recipe, RECIPES)
        recipe = RECIPES[recipe]
    if not isinstance(recipe, Recipe):
        refuse("recipe", "be a recipe or its name", type(recipe).__name__)
    for name in changes.keys() - vars(recipe):
        refuse("recipe", "have known fields", f"`{name}`", "`jem recipes` lists them")
    return replace(recipe, **changes)
