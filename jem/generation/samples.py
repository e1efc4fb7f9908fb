"""Draw new inputs of the classes you name, from fresh chains or from saved chains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from jem.errors import InputError
from jem.generation.chains import (
    BLOCK,
    Progress,
    annealed,
    chain_of,
    checked_inputs,
    checked_labels,
    counted,
    guided_energy,
    run_blocks,
)
from jem.model import JEM, evaluation_mode
from jem.randomness import named_generator
from jem.sampling.base_distributions import BaseDistribution
from jem.sampling.langevin import sgld_chain
from jem.sampling.settings import SamplerSettings

SAVED_STEPS = 20
"""Steps of a saved chain. It has moved through all of training; many more on a model that no
longer changes take it to the nearest mode, where chains of a class look alike."""


class DealtChains:
    """Saved chains, dealt out: the j-th of a class begins from the j-th chain of it.

    A chain is of the class that the model gives it; the order within a class is drawn once. Where
    a class has dealt all its chains it begins again, and a class that has none deals from all.

    Args:
        model: The model, which says what class a chain is of.
        chains: Positions, shape (M, *shape); rows that are not finite are left out.
        seed: Decides the order.
    """

    def __init__(self, model: JEM, chains: Tensor, seed: int) -> None:
        chains = checked_inputs(model, chains, "init")
        chains = chains[chains.flatten(1).isfinite().all(dim=1)]
        if not len(chains):
            raise InputError("`init` must hold a finite chain, but none of them is finite")
        order = torch.randperm(len(chains), generator=named_generator(seed, "saved chains"))
        self.chains = chains[order.to(chains.device)].to(model.device).float()
        with torch.no_grad(), evaluation_mode(model):
            self._classes = torch.cat([model.logits(x).argmax(1) for x in self.chains.split(256)])
        self._dealt: dict[int, int] = {}

    def sample(
        self, count: int, labels: Tensor | None = None, *, generator: torch.Generator
    ) -> Tensor:
        """Deal (count, *shape) for `labels` (count,); the generator is not used."""
        if labels is None:
            raise InputError("saved chains are dealt by class, but no labels were given")
        return self.chains[torch.stack([self._next(int(k)) for k in labels])]

    def _next(self, label: int) -> Tensor:
        deck = (self._classes == label).nonzero().flatten()
        if not len(deck):  # all classes without a chain deal from one deck
            label, deck = -1, torch.arange(len(self.chains), device=deck.device)
        place = self._dealt.get(label, 0)
        self._dealt[label] = place + 1
        return deck[place % len(deck)]


def sample(
    model: JEM,
    labels: Tensor | Sequence[int] | None = None,
    *,
    count: int | None = None,
    seed: int = 0,
    num_steps: int | None = None,
    init: BaseDistribution | Tensor | np.ndarray | None = None,
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

    Args:
        model: A model trained with a generative recipe, or with `chain` and `domain` set.
        labels: Class indices, shape (B,); None draws the classes too, at their frequencies in the
            training data.
        count: Number of samples where `labels` is None; 16 by default. With labels, B counts.
        seed: Sample i depends on the seed, i and its label alone, not on how many are drawn.
        num_steps: Langevin steps; None takes the model's, and 20 from saved chains.
        init: Where chains begin. None takes what the model keeps; a base distribution, such as
            a `GaussianBase` fitted to data, replaces it; a tensor or array (M, *shape) is
            saved chains, of which the j-th sample of a class takes the j-th that the model gives
            to that class, in an order drawn once (sample i then also depends on how many before
            it are of its class).
        guidance: s >= 0; below 1 more varied, above 1 more typical of the class.
        initial_noise: Noise of the first step, in data units, falling evenly to that of training
            at the last; None keeps that of training throughout.
        step_decay: Step size of the last step over that of the first, in (0, 1]; for more steps
            that settle. The noise falls with its square root, so the temperature stays.
        progress: Called after each step with steps done and steps in all.

    Returns:
        Samples, shape (B, *input_shape), in the network's units, on the model's device.

    Raises:
        InputError: If the model keeps no sampler settings, or an argument is out of range.

    References:
        Grathwohl et al. (2020), arXiv:1912.03263, section 5.1. Kirkpatrick et al. (1983),
        Science 220, for annealing.
    """
    chain = chain_of(model)
    wanted = None if labels is None else checked_labels(labels, len(chain.class_frequencies))
    total = (16 if count is None else count) if wanted is None else len(wanted)
    if total < 1:
        raise InputError(f"`count` must be at least 1, but got {total}")
    if isinstance(init, np.ndarray):
        init = torch.as_tensor(init)
    if not (init is None or isinstance(init, Tensor) or hasattr(init, "sample")):
        came = repr(init) if isinstance(init, str) else type(init).__name__
        raise InputError(
            f"`init` must be a base distribution or saved chains, got {came}: for class "
            "Gaussians, `jem.sampling.GaussianBase.fit(x, y, num_classes)`"
        )
    begin: BaseDistribution | DealtChains
    if isinstance(init, Tensor):
        begin, usual = DealtChains(model, init, seed), SAVED_STEPS
    else:
        begin = chain.init if init is None else init
        usual = chain.num_steps
    num_steps = usual if num_steps is None else num_steps
    steps = annealed(chain.step, num_steps, initial_noise, step_decay)
    on_step = counted(len(steps) * -(-total // BLOCK), progress)

    def run(rows: slice, generator: torch.Generator) -> Tensor:
        drawn = _classes(chain, None if wanted is None else wanted[rows], generator)
        x = begin.sample(BLOCK, drawn, generator=generator)
        return sgld_chain(
            x,
            guided_energy(model, drawn, guidance),
            steps,
            generator=generator,
            bounds=model.bounds(),
            after_step=on_step,
        )

    return run_blocks(model, total, run, seed=seed, name="sample")


def _classes(chain: SamplerSettings, labels: Tensor | None, generator: torch.Generator) -> Tensor:
    """Classes of a full block: those named, filled up, or drawn at their frequencies."""
    frequencies = chain.class_frequencies.to(generator.device)
    drawn = torch.multinomial(frequencies, BLOCK, replacement=True, generator=generator)
    if labels is not None:  # what fills the block up does not matter, only that it is full
        drawn[: len(labels)] = labels.to(generator.device)
        drawn[len(labels) :] = 0
    return drawn
