"""A training loop of your own in plain torch, from the pieces of `jem`.

    python scripts/own_loop.py --epochs 20

Trains a classifier of handwritten digits as a joint energy model, then prints its accuracy on the
test part and how well its log-density tells digits from letters. `fabric_loop.py` is the same loop
in Lightning Fabric.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

import jem
from jem.data import DataSplits
from jem.data.shifts import letters
from jem.model import energy_of
from jem.objectives import contrastive_loss
from jem.sampling import LangevinStep, ReplayBuffer, SamplerSettings, UniformBase, run_chains
from jem.training.update import input_gradient


class Result(NamedTuple):
    """What came out."""

    model: jem.JEM
    accuracy: float  # on the test part
    auroc: float  # of the log-density, digits against letters


def make_model(data: DataSplits) -> jem.JEM:
    """A fresh network as a joint energy model, with the sampler that it is trained with."""
    num_classes = len(data.classes)
    network = jem.networks.network_for(data.input_shape, num_classes)
    model = jem.JEM(network, domain=data.domain, classes=data.classes, scaling=data.scaling)
    model.sampler = SamplerSettings(
        init=UniformBase(*data.domain, data.input_shape),
        num_steps=200,
        step=LangevinStep(step_size=3.0, noise_std=0.01),
        class_frequencies=torch.full((num_classes,), 1 / num_classes),
    )
    return model


def measure(model: jem.JEM, data: DataSplits) -> Result:
    """Measure on the test part."""
    model.eval()
    x, labels = data.test[:]
    accuracy = float((model.predict_proba(x).argmax(dim=1).cpu() == labels).double().mean())
    detector = jem.OODDetector(model, "log_density")
    ood_sets = letters(1000, data.input_shape, seed=0)
    auroc = jem.ood_metrics(detector.score(x), detector.score(ood_sets)).auroc
    return Result(model, accuracy, auroc)


def density_loss(energy: Tensor, energy_negative: Tensor) -> Tensor:
    """Contrast of data with chains, and a penalty that keeps energies in place."""
    squares = energy.square().mean() + energy_negative.square().mean()
    return 0.3 * contrastive_loss(energy, energy_negative) + 0.03 / 2 * squares


def main(epochs: int = 20, seed: int = 0) -> Result:
    """Train on digits."""
    data = jem.data.load("digits", seed=seed)
    torch.manual_seed(seed)
    model = make_model(data)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.95))
    loader = DataLoader(data.train, batch_size=64, shuffle=True, drop_last=True)
    generator = torch.Generator().manual_seed(seed)
    step, source = model.sampler.step, {"bounds": model.bounds(), "generator": generator}
    buffer = ReplayBuffer.from_init(model.sampler.init, 256, generator=generator)

    for _ in range(epochs):
        for x, labels in loader:
            # All steps of the chains but the last.
            draw = buffer.draw(64, init=model.sampler.init, reinit_prob=0.02, generator=generator)
            x_negative = run_chains(draw.x, model.energy, [step], **source).requires_grad_()

            # Data and chains in one forward: right for networks without batch norm and dropout.
            x = x + torch.empty_like(x).normal_(std=0.1, generator=generator)
            logits, logits_negative = model(torch.cat([x, x_negative])).split([len(x), 64])
            energy, energy_negative = energy_of(logits), energy_of(logits_negative)
            energy_negative.retain_grad()
            loss = cross_entropy(logits, labels) + density_loss(energy, energy_negative)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update_parameters(model)

            # The last step is free: the backward pass holds its gradient already.
            gradient = input_gradient(x_negative, energy_negative)
            buffer.commit(draw, step(x_negative, gradient, **source), steps=2)

    return measure(average.module, data)


def flags() -> argparse.ArgumentParser:
    """What can be set from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20, help="passes over 1,237 digits")
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    result = main(**vars(flags().parse_args()))
    print(f"test accuracy {result.accuracy:.4f}, AUROC against letters {result.auroc:.4f}")
