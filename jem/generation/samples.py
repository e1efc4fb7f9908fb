"""Draw new inputs of the classes you name, from fresh chains or from saved ones."""

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle

import torch
from torch import Tensor

from jem.checks import check_inputs, check_integer, refuse
from jem.generation.chains import (
    BLOCK,
    Beginning,
    Progress,
    annealed,
    class_indices,
    guided_energy,
    run_blocks,
    sampler_of,
)
from jem.model import JEM, batched_logits
from jem.randomness import named_generator
from jem.sampling.base_distributions import BaseDistribution

SAVED_STEPS = 20
"""Steps of a saved chain. It has moved through all of training; many more on a model that no
longer changes take it to the nearest mode, where chains of a class look alike."""
ATTEMPTS = 8
"""Draws of a sample until the classifier says the class asked for, if it gives no gradients."""


def sample(
    model: JEM,
    labels: Tensor | Sequence[int] | None = None,
    *,
    count: int | None = None,
    seed: int = 0,
    num_steps: int | None = None,
    init: BaseDistribution | Tensor | None = None,
    guidance: float = 1.0,
    initial_noise: float | None = None,
    step_decay: float = 1.0,
    progress: Progress | None = None,
) -> Tensor:
    r"""Draw inputs with Langevin chains, for classes you name.

    Chains move on E_s(x, y) = E(x) - s log p(y|x) of their class, where s is the guidance: s = 1
    is the joint energy E(x, y) = -f(x)[y]. They are short and far below temperature 1: samples of
    what the model holds likely, not exact samples of its density. With the settings of training
    many steps end in few modes; noise that begins high and falls (simulated annealing) spreads
    them over more.

    Where the classifier of a companion gives no gradients, chains move on E(x) alone, and a sample
    that is not of its class is drawn again, up to 7 times.

    Args:
        model: A model trained with a generative recipe, or with `sampler` and `domain` set.
        labels: Class indices, shape (B,); None draws the classes too, at their frequencies in the
            training data.
        count: Number of samples where `labels` is None; 16 by default. With labels, B counts.
        seed: Sample i depends on the seed, i and its label alone, not on how many are drawn.
        num_steps: Langevin steps; None takes the model's, and 20 from saved chains.
        init: Where chains begin. None takes what the model keeps; a base distribution, such as
            a `GaussianBase` fitted to data, replaces it. A tensor (M, *shape) is saved chains: the
            j-th sample of a class begins at the j-th that the model gives to that class, in an
            order drawn once (sample i then also depends on how many before it are of its class).
        guidance: s >= 0; below 1 more varied, above 1 more typical of the class.
        initial_noise: Noise of the first step, in data units, falling evenly to that of training
            at the last; None keeps that of training throughout.
        step_decay: Size of the last step over that of the first, in (0, 1]; for more steps that
            settle. The noise falls with its square root, so the temperature stays.
        progress: Called after each step with steps done and steps in all.

    Returns:
        Samples, shape (B, *input_shape), in the network's units, on the model's device.

    Raises:
        InputError: If the model keeps no sampler settings, or an argument is out of range.

    References:
        Grathwohl et al. (2020), arXiv:1912.03263, section 5.1. Kirkpatrick et al. (1983),
        Science 220, for annealing.
    """
    sampler = sampler_of(model)
    frequencies = sampler.class_frequencies
    if labels is not None:
        labels = class_indices("labels", labels, len(frequencies))
        count = len(labels)
    count = 16 if count is None else count
    check_integer("count", count, 1)
    base, usual, dealt = sampler.init, sampler.num_steps, None
    if isinstance(init, Tensor):
        usual, dealt = SAVED_STEPS, deal(model, init, seed)
    elif isinstance(init, BaseDistribution):
        base = init
    elif init is not None:
        remedy = "for class Gaussians, `jem.sampling.GaussianBase.fit(x, y, num_classes)`"
        refuse("init", "be a base distribution or saved chains", type(init).__name__, remedy)

    def begin(rows: slice, generator: torch.Generator) -> Beginning:
        weights = frequencies.to(generator.device)
        y = torch.multinomial(weights, BLOCK, replacement=True, generator=generator)
        if labels is not None:  # the classes of rows that only fill the block do not matter
            y = torch.zeros_like(y)
            y[: rows.stop - rows.start] = labels[rows]
        x = base.sample(BLOCK, y, generator=generator) if dealt is None else dealt(y)
        return Beginning(x, guided_energy(model, y, guidance))

    num_steps = usual if num_steps is None else num_steps
    steps = annealed(sampler.step, num_steps, initial_noise, step_decay)
    x = run_blocks(model, count, begin, steps, seed=seed, name="sample", progress=progress)
    if labels is None or getattr(model.network, "has_class_gradients", True):
        return x
    for attempt in range(1, ATTEMPTS):  # chains did not move to a class: keep those that are in it
        wrong = batched_logits(model, x).argmax(dim=1).cpu() != labels.cpu()
        if not wrong.any():
            break
        again = run_blocks(model, count, begin, steps, seed=seed, name=f"sample {attempt}")
        x[wrong] = again[wrong]
    return x


def deal(model: JEM, chains: Tensor, seed: int) -> Callable[[Tensor], Tensor]:
    """Deal saved chains: the j-th sample of a class begins from the j-th chain of that class.

    A chain is of the class that the model gives it; the order within a class is drawn once. Where
    a class has dealt all its chains it begins again, and classes that have none deal from all.

    Args:
        model: The model, which says what class a chain is of.
        chains: Positions, shape (M, *shape); rows that are not finite are left out.
        seed: Decides the order.

    Returns:
        Maps class indices (B,) to the next chains (B, *shape), on the model's device.
    """
    check_inputs("init", chains, model.input_shape)
    chains = chains[chains.flatten(1).isfinite().all(dim=1)]
    if not len(chains):
        refuse("init", "hold a finite chain", "none")
    order = torch.randperm(len(chains), generator=named_generator(seed, "saved chains"))
    chains = chains[order.to(chains.device)].to(model.device).float()
    classes = batched_logits(model, chains).argmax(dim=1)
    every = cycle(range(len(chains)))
    decks: dict[int, Iterator[int]] = {}

    def next_of(label: int) -> int:
        if label not in decks:
            own = (classes == label).nonzero().flatten().tolist()
            decks[label] = cycle(own) if own else every
        return next(decks[label])

    return lambda labels: chains[[next_of(label) for label in labels.tolist()]]
