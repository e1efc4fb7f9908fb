"""The trainer of another package on the same network and data, for `benchmark_recipes.py`.

`pip install ebmkit` (version 0.16). Settings are those of its own JEM example on MNIST: step 10,
noise 0.005, gradient clamp 0.01, 60 moves, a buffer of 10,000 with 5 % restarts from uniform
noise, chains of random classes, energy penalty 1, Adam at 1e-4, average with decay 0.999.
"""

from __future__ import annotations

import contextlib
import time

import torch
from ebm import (  # type: ignore[import-not-found]
    ClassifierEnergy,
    ContrastiveDivergence,
    JEMLoss,
    LangevinDynamics,
    ReplayBuffer,
    Trainer,
)
from torch import Tensor

import jem
from jem.data import DataSplits
from jem.sampling import LangevinStep, SamplerSettings, UniformBase

MOVE = {"step_size": 10.0, "noise": 0.005, "clamp": 0.01}


class _TimeIsUpError(Exception):
    """Ends training: the package has steps and no clock."""


def train(model: jem.JEM, splits: DataSplits, seconds: float, seed: int) -> int:
    """Train a model for so many processor seconds.

    Args:
        model: Its network is trained, and ends with the averaged weights; it is given what
            `jem.sample` needs.
        splits: The data.
        seconds: Processor time.
        seed: Of the global generator, which the package draws from.

    Returns:
        Updates made.
    """
    torch.manual_seed(seed)

    def uniform(shape: tuple[int, ...]) -> Tensor:
        return torch.rand(shape) * 2 - 1

    sampler = LangevinDynamics(
        step_size=MOVE["step_size"], steps=60, noise_scale=MOVE["noise"],
        max_grad_norm=MOVE["clamp"], clamp=(-1.0, 1.0),
    )  # fmt: skip
    buffer = ReplayBuffer(10_000, splits.input_shape, reinit_prob=0.05, init_fn=uniform)
    loss = JEMLoss(
        ContrastiveDivergence(sampler, buffer, energy_reg=1.0), conditional_negatives=True
    )
    start = time.process_time()

    def stop(step: int, _: object) -> None:
        if time.process_time() - start > seconds:
            raise _TimeIsUpError

    energy = ClassifierEnergy(model.network)
    trainer = Trainer(energy, loss, lr=1e-4, ema_decay=0.999, callback=stop, device="cpu")
    with contextlib.suppress(_TimeIsUpError):
        trainer.fit((splits.train.x, splits.train.y), steps=10**9, batch_size=64, verbose=False)
    model.network.load_state_dict(trainer.ema.module.net.state_dict())
    model.eval()
    num_classes = len(splits.classes)
    model.sampler = SamplerSettings(
        init=UniformBase(-1.0, 1.0, splits.input_shape),
        num_steps=200,
        step=LangevinStep(MOVE["step_size"], MOVE["noise"], grad_clamp=MOVE["clamp"]),
        class_frequencies=torch.full((num_classes,), 1 / num_classes),
    )
    return int(trainer.step_count)
