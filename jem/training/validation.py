"""Figures on held-out examples while training runs."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from jem.data.batches import BatchStream
from jem.errors import InputError
from jem.model import JEM, inference, joint_energy
from jem.objectives.classification import cross_entropy
from jem.training.distributed import ONE_PROCESS, Processes


def validate(
    model: JEM,
    examples: Any,  # noqa: ANN401
    batch_size: int,
    device: torch.device,
    ranks: Processes = ONE_PROCESS,
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

    Raises:
        InputError: If a label has no output.
    """
    stream = BatchStream(
        examples, batch_size, seed=0, name="valid", device=device, drop_last=False
    )
    totals = torch.zeros(5, dtype=torch.float64)
    with inference(model):
        for x, labels in itertools.islice(stream.epoch(0), ranks.rank, None, ranks.count):
            logits = model.logits(x)
            _check_labels(labels, logits.shape[1], examples)
            right = (logits.argmax(dim=1) == labels).sum()
            nll = cross_entropy(logits, labels) * len(x)
            totals[:3] += torch.stack([right, nll, joint_energy(logits).sum()]).cpu()
            totals[3:] += torch.tensor([len(x), len(x) * (logits.shape[1] > 1)])
    right, nll, energy, count, count_with_classes = ranks.total(totals).tolist()
    metrics = {"valid_energy": energy / count}
    if count_with_classes:
        metrics |= {"valid_accuracy": right / count, "valid_nll": nll / count}
    return metrics


def _check_labels(labels: Tensor, num_classes: int, examples: Any) -> None:  # noqa: ANN401
    """Refuse labels of a batch that have no output, and find the example that is to blame."""
    if num_classes == 1 or not bool(((labels < 0) | (labels >= num_classes)).any()):
        return
    given = ((i, int(examples[i][1])) for i in range(len(examples)))
    i, label = next((i, label) for i, label in given if not 0 <= label < num_classes)
    raise InputError(
        f"validation labels must lie in 0..{num_classes - 1} for a network of {num_classes} "
        f"outputs, but that of example {i} is {label}"
    )
