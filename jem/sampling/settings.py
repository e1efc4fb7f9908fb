"""The sampler's settings that a model keeps, so that drawing from it needs nothing else."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from jem.sampling.base_distributions import BaseDistribution, base_from_state


@dataclass(frozen=True)
class SamplerSettings:
    """How chains of a trained model begin and move.

    Attributes:
        start: Where fresh ones begin.
        num_steps: Langevin moves of a fresh chain.
        step_size: eta of `langevin_update`.
        noise_std: sigma of `langevin_update`, in data units.
        grad_clamp: Clamp on each component of the gradient, or None.
        max_rms: Cap on the root mean square of a move, or None.
        conditional: Chains move on E(x, y) of their class, not on E(x).
        class_frequencies: Probabilities of the K classes in the training data, shape (K,).
        gradient_blur: Share of the blurred gradient in a move.
        outliers: Whether training contrasted the data with made-up outliers, too.
        noise_starts: Whether chains of training began at noise; None where they began at `start`.
    """

    start: BaseDistribution
    num_steps: int
    step_size: float
    noise_std: float
    grad_clamp: float | None
    max_rms: float | None
    conditional: bool
    class_frequencies: Tensor
    gradient_blur: float = 0.0
    outliers: bool = False
    noise_starts: bool | None = None

    @property
    def move(self) -> dict[str, Any]:
        """The keyword arguments of `langevin_update` that describe a move."""
        return {
            "step_size": self.step_size,
            "noise_std": self.noise_std,
            "grad_clamp": self.grad_clamp,
            "max_rms": self.max_rms,
            "gradient_blur": self.gradient_blur,
        }

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "start"}
        return plain | {"start": self.start.state_dict()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> SamplerSettings:
        """Make settings again from `state_dict`."""
        return cls(**{**state, "start": base_from_state(state["start"])})
