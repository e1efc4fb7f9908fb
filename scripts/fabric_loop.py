"""The loop of `own_loop.py` in Lightning Fabric: any device, several processes, mixed precision.

    pip install 'jem-classifier[fabric]'
    python scripts/fabric_loop.py --processes 2

What differs: Fabric makes the module, the optimiser, the loader and the backward pass. The loss
goes through Fabric's module, whose hooks average the gradients of all processes; the moves of the
chains go through the bare model, since no parameter takes part in them. Every process has chains
of its own.
"""

from __future__ import annotations

import torch
from lightning_fabric import Fabric
from own_loop import Result, flags, make_model, measure
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

import jem
from jem.model import energy_of
from jem.objectives import contrastive_loss
from jem.sampling import ReplayBuffer, run_chains
from jem.training.update import input_gradient


def density_loss(energy: Tensor, energy_negative: Tensor) -> Tensor:
    """Contrast of data with chains, and a penalty that keeps energies in place."""
    squares = energy.square().mean() + energy_negative.square().mean()
    return 0.3 * contrastive_loss(energy, energy_negative) + 0.03 / 2 * squares


def main(fabric: Fabric, epochs: int = 20, seed: int = 0) -> Result:
    """Train on digits."""
    fabric.launch()
    data = jem.data.load("digits", seed=seed)
    torch.manual_seed(seed)
    model = make_model(data)
    module, optimizer = fabric.setup(model, torch.optim.Adam(model.parameters(), lr=1e-3))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.95))
    loader = fabric.setup_dataloaders(
        DataLoader(data.train, batch_size=64, shuffle=True, drop_last=True)
    )
    generator = torch.Generator(fabric.device).manual_seed(seed + fabric.global_rank)
    step, source = model.sampler.step, {"bounds": model.bounds(), "generator": generator}
    buffer = ReplayBuffer.from_init(model.sampler.init, 256, generator=generator)

    for _ in range(epochs):
        for x, labels in loader:
            draw = buffer.draw(64, init=model.sampler.init, reinit_prob=0.02, generator=generator)
            x_negative = run_chains(draw.x, model.energy, [step], **source).requires_grad_()

            x = x + torch.empty_like(x).normal_(std=0.1, generator=generator)
            logits, logits_negative = module(torch.cat([x, x_negative])).split([len(x), 64])
            energy, energy_negative = energy_of(logits), energy_of(logits_negative)
            energy_negative.retain_grad()
            loss = cross_entropy(logits, labels) + density_loss(energy, energy_negative)
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
            average.update_parameters(model)

            gradient = input_gradient(x_negative, energy_negative)
            buffer.commit(draw, step(x_negative, gradient, **source), steps=2)

    return measure(average.module, data)


if __name__ == "__main__":
    parser = flags()
    parser.add_argument(
        "--processes", type=int, default=1, help="each has batches and chains of its own"
    )
    arguments = vars(parser.parse_args())
    launched = Fabric(devices=arguments.pop("processes"))
    result = main(launched, **arguments)
    launched.print(
        f"test accuracy {result.accuracy:.4f}, AUROC against letters {result.auroc:.4f}"
    )
