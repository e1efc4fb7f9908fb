"""Draw new inputs from a trained model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jem.errors import InputError
from jem.model import JEM, evaluation_mode
from jem.randomness import named_generator
from jem.sampling.langevin import sgld_chain
from jem.sampling.settings import ChainSettings

BLOCK = 16
"""Chains that share a generator. Blocks always run whole: sample i is the same for any count."""


def sample(
    model: JEM,
    labels: Tensor | Sequence[int] | None = None,
    *,
    count: int | None = None,
    seed: int = 0,
    num_steps: int | None = None,
) -> Tensor:
    r"""Draw inputs with Langevin chains from fresh starts, for classes you name.

    Chains move on E(x, y) = -f(x)[y] of their class, with the moves that the model was trained
    with. They are short and far below temperature 1: samples of what the model holds likely, not
    exact samples of its density.

    Args:
        model: A model trained with a generative recipe, or with `chain` and `domain` set.
        labels: Class indices, shape (B,); None draws the classes too, at their frequencies in the
            training data.
        count: Number of samples where `labels` is None; 16 by default. With labels, B counts.
        seed: Sample i depends on the seed, i and its label alone, not on how many are drawn.
        num_steps: Langevin moves; None takes the model's.

    Returns:
        Samples, shape (B, *input_shape), in the network's units, on the model's device.

    Raises:
        InputError: If the model keeps no sampler settings, or a label is out of range.

    References:
        Grathwohl et al. (2020), arXiv:1912.03263, section 5.1.
    """
    chain = _chain_of(model)
    num_classes = len(chain.class_frequencies)
    wanted = None if labels is None else _checked_labels(labels, num_classes)
    total = (16 if count is None else count) if wanted is None else len(wanted)
    if total < 1:
        raise InputError(f"`count` must be at least 1, but got {total}")
    steps = chain.num_steps if num_steps is None else num_steps
    if steps < 0:
        raise InputError(f"`num_steps` must be at least 0, but got {steps}")
    blocks = []
    # Class indices made in inference mode could not enter the energy's graph.
    with torch.inference_mode(False), torch.no_grad(), evaluation_mode(model):
        for block in range(-(-total // BLOCK)):
            rows = None if wanted is None else wanted[block * BLOCK : (block + 1) * BLOCK]
            blocks.append(_run_block(model, chain, rows, steps, seed, block))
    return torch.cat(blocks)[:total]


def _run_block(
    model: JEM, chain: ChainSettings, labels: Tensor | None, num_steps: int, seed: int, block: int
) -> Tensor:
    generator = named_generator(seed, "sample", block, device=model.device)
    frequencies = chain.class_frequencies.to(model.device)
    drawn = torch.multinomial(frequencies, BLOCK, replacement=True, generator=generator)
    if labels is not None:  # what fills the block up does not matter, only that it is full
        drawn[: len(labels)] = labels.to(model.device)
        drawn[len(labels) :] = 0
    x = chain.start.sample(BLOCK, drawn, generator=generator)
    x = sgld_chain(
        x,
        lambda x: model.energy(x, drawn),
        num_steps=num_steps,
        generator=generator,
        bounds=model.bounds(),
        **chain.move,
    )
    return x if labels is None else x[: len(labels)]


def _chain_of(model: JEM) -> ChainSettings:
    if not isinstance(model.chain, ChainSettings):
        raise InputError(
            "this model keeps no sampler settings: "
            "train it with a generative recipe such as 'fast'"
        )
    return model.chain


def _checked_labels(labels: Tensor | Sequence[int], num_classes: int) -> Tensor:
    try:
        wanted = torch.as_tensor(labels)
    except (TypeError, ValueError) as error:
        raise InputError(f"`labels` must be class indices, but got {labels!r}") from error
    number = wanted.is_floating_point() or wanted.is_complex() or wanted.dtype == torch.bool
    if wanted.ndim != 1 or not len(wanted) or number:
        raise InputError(
            "`labels` must be class indices of shape (B,), "
            f"but got {wanted.dtype} of shape {tuple(wanted.shape)}"
        )
    if int(wanted.min()) < 0 or int(wanted.max()) >= num_classes:
        raise InputError(
            f"`labels` must lie in 0..{num_classes - 1}, "
            f"but got {int(wanted.min())}..{int(wanted.max())}"
        )
    return wanted.long()
