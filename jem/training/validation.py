"""Figures on held-out examples while training runs."""

from __future__ import annotations

from typing import Any

import torch

from jem.data.batches import BatchStream
from jem.model import JEM, evaluation_mode, joint_energy
from jem.objectives.classification import cross_entropy


@torch.no_grad()
def validate(model: JEM, examples: Any, batch_size: int, device: torch.device) -> dict[str, float]:  # noqa: ANN401
    """Score held-out examples in evaluation mode.

    Args:
        model: The model; its mode is restored.
        examples: A Dataset of (x, y).
        batch_size: Examples at a time.
        device: Where the model is.

    Returns:
        `valid_accuracy` and `valid_nll` (for K > 1) and `valid_energy`, the mean of E(x), in nats.
    """
    stream = BatchStream(
        examples, batch_size, seed=0, name="valid", device=device, drop_last=False
    )
    totals = torch.zeros(3, dtype=torch.float64)
    count, num_classes = 0, 1
    with evaluation_mode(model):
        for x, labels in stream.epoch(0):
            logits = model.logits(x)
            num_classes = logits.shape[1]
            right = (logits.argmax(dim=1) == labels).sum()
            nll = cross_entropy(logits, labels) * len(x)
            totals += torch.stack([right, nll, joint_energy(logits).sum()]).cpu()
            count += len(x)
    accuracy, nll, energy = (totals / count).tolist()
    metrics = {"valid_energy": energy}
    if num_classes > 1:
        metrics |= {"valid_accuracy": accuracy, "valid_nll": nll}
    return metrics
