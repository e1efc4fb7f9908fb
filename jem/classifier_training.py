"""What the estimator trains, and what it asks of training beyond a recipe."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from jem import networks
from jem.errors import InputError
from jem.randomness import derive_seed
from jem.training.trainer import Trainer

NetworkFactory = Callable[[tuple[int, ...], int], nn.Module]


def make_network(
    given: nn.Module | NetworkFactory | None,
    shape: tuple[int, ...],
    num_classes: int,
    head: networks.Head,
    seed: int,
) -> nn.Module:
    """A network of one's own, a copy if it is a module, or the usual one for a shape.

    Args:
        given: A module, a function (shape, number of classes) -> module, or None.
        shape: Shape of one input.
        num_classes: K.
        head: Head of the usual network.
        seed: Seed of new weights; torch's global generator is left as it was.

    Returns:
        What maps (B, *shape) to logits, if a person's own network does.

    Raises:
        InputError: If this is neither a module nor a function.
    """
    if isinstance(given, nn.Module):
        return copy.deepcopy(given)
    if given is not None and not callable(given):
        raise InputError(
            "`network` must be a torch module or a function (shape, number of classes) -> module, "
            f"but got {type(given).__name__}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "network") % 2**32)
        if given is None:
            return networks.network_for(shape, num_classes, head=head)
        return given(shape, num_classes)


class WeightedTrainer(Trainer):
    """A trainer with class weights of a person's own, of which a recipe names but one kind.

    Args:
        arguments: As `Trainer` takes them.
        class_weight: Weight of each class in the cross-entropy, shape (K,), above 0; None leaves
            the recipe's.
        settings: As `Trainer` takes them.
    """

    def __init__(
        self,
        *arguments: Any,  # noqa: ANN401
        class_weight: Tensor | None,
        **settings: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(*arguments, **settings)
        self.class_weight = None if class_weight is None else class_weight.to(self.device)

    def fit_epoch(self, epoch: int, start: int = 0) -> None:
        """Train on one pass over the data, as `Trainer.fit_epoch`."""
        if self.class_weight is not None:
            self.method = replace(self.method, class_weight=self.class_weight)
        super().fit_epoch(epoch, start)


class BestEpoch:
    """Callback that ends training when the validation NLL stops improving; keeps the best weights.

    Args:
        trainer: The trainer, fitted with validation examples.
        patience: Epochs to wait for an improvement.
    """

    def __init__(self, trainer: Trainer, patience: int) -> None:
        self.trainer, self.patience = trainer, patience
        self.best, self.best_epoch = math.inf, 0
        self.weights: dict[str, Tensor] = {}

    def __call__(self, metrics: dict[str, Any]) -> bool:
        """Whether to end training after this epoch."""
        if metrics["valid_nll"] < self.best:
            self.best, self.best_epoch = metrics["valid_nll"], metrics["epoch"]
            state = self.trainer.state.averaged_model.state_dict()
            self.weights = {name: value.clone() for name, value in state.items()}
        return bool(metrics["epoch"] - self.best_epoch >= self.patience)

    def restore(self) -> None:
        """Give the model the averaged weights of the best epoch."""
        if self.weights:
            self.trainer.model.load_state_dict(self.weights)
