"""What an objective is: the part of the loss that trains the density, beside the cross-entropy."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from jem.model import JEM

NEEDS = frozenset({"chains", "noise", "input_gradients"})
"""What an objective may ask for; see `Objective`."""

Mean = Callable[[Tensor], Tensor]
"""Mean of values, over all processes of a run."""


class Batch(NamedTuple):
    """What one update sees of the data."""

    x: Tensor  # (B, *shape) inputs of the classifier
    labels: Tensor  # (B,) class indices
    x_data: Tensor  # (B', *shape) inputs of the density; `x` itself if it sees the same batches
    outliers: Tensor | None = None  # (O, *shape) made-up inputs that are to be unlikely


class Energies(NamedTuple):
    """Energies that the forward passes of an update gave, in nats, with their graph."""

    data: Tensor  # (B',) E(x) of `Batch.x_data`
    chains: Tensor | None = None  # (M,) the energy that chains move on, at the chains
    outliers: Tensor | None = None  # (O,) E(x) of `Batch.outliers`


@dataclass(frozen=True)
class Terms:
    """Named scalars of an update, one of them the loss.

    Attributes:
        loss: What is differentiated, weights included.
        named: What the log shows beside it. A `gap`, the energy of chains minus that of data, is
            held to `Recipe.max_energy_gap`.
    """

    loss: Tensor
    named: dict[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """What trains the density. Any callable of this form can be given to `Trainer(objective=...)`.

    A new one that recipes can name is a dataclass in a file of its own and a line in
    `jem.objectives.OBJECTIVES`. Its fields that are called like fields of `Recipe` are taken from
    there.
    """

    @property
    def needs(self) -> frozenset[str]:
        """What it asks of training.

        - `chains`: persistent chains (and outliers) in `Energies`. If it needs nothing else, an
          update may be fused, for then the loss sees a chain through its energy alone.
        - `noise`: a base distribution in `model.sampler.init`, with `sample` and `log_prob`.
        - `input_gradients`: a network that is differentiable in its inputs.
        """

    def __call__(
        self,
        model: JEM,
        batch: Batch,
        energies: Energies,
        *,
        weight: float,
        generator: torch.Generator,
        mean: Mean,
    ) -> Terms:
        """Compute the loss and its terms for one batch.

        Args:
            model: The model, in training mode, for energies of other inputs than these.
            batch: The data.
            energies: What the forward passes of the update gave already.
            weight: Weight of the objective beside the cross-entropy, in this update.
            generator: Source of all randomness, on the model's device.
            mean: How values are averaged.
        """


@dataclass(frozen=True)
class NoObjective:
    """Nothing beside the cross-entropy: a plain classifier."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, model: JEM, batch: Batch, energies: Energies, **_: Any) -> Terms:  # noqa: ANN401
        """Give a loss of zero."""
        return Terms(torch.zeros((), device=energies.data.device))
