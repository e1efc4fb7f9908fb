"""Figures on held-out examples while training runs."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from jem.data.batches import BatchStream
from jem.model import JEM, evaluation_mode, joint_energy
from jem.objectives.classification import cross_entropy
from jem.training.distributed import ONE_PROCESS, Ranks


@torch.no_grad()
def validate(
    model: JEM,
    examples: Any,  # noqa: ANN401
    batch_size: int,
    device: torch.device,
    ranks: Ranks = ONE_PROCESS,
) -> dict[str, float]:
    """Score held-out examples in evaluation mode.

    Args:
        model: The model; its mode is restored.
        examples: A Dataset of (x, y).
        batch_size: Examples at a time.
        device: Where the model is.
        ranks: Processes that divide the batches among them.

    Returns:
        `valid_accuracy` and `valid_nll` (for K > 1) and `valid_energy`, the mean of E(x), in nats.
    """
    stream = BatchStream(
        examples, batch_size, seed=0, name="valid", device=device, drop_last=False
    )
    totals = torch.zeros(5, dtype=torch.float64)
    with evaluation_mode(model):
        for x, labels in itertools.islice(stream.epoch(0), ranks.rank, None, ranks.count):
            logits = model.logits(x)
            right = (logits.argmax(dim=1) == labels).sum()
            nll = cross_entropy(logits, labels) * len(x)
            totals[:3] += torch.stack([right, nll, joint_energy(logits).sum()]).cpu()
            totals[3:] += torch.tensor([len(x), len(x) * (logits.shape[1] > 1)])
    right, nll, energy, count, count_with_classes = ranks.total(totals).tolist()
    metrics = {"valid_energy": energy / count}
    if count_with_classes:
        metrics |= {"valid_accuracy": right / count, "valid_nll": nll / count}
    return metrics
