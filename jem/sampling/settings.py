"""The sampler's settings that a model keeps, so that drawing from it needs nothing else."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import Tensor

from jem.sampling.base_distributions import BaseDistribution, base_from_state
from jem.sampling.langevin import LangevinStep


@dataclass(frozen=True)
class SamplerSettings:
    """How chains of a trained model begin and move.

    Attributes:
        init: What fresh chains are drawn from.
        num_steps: Langevin steps of a fresh chain.
        step: The Langevin step.
        class_frequencies: Probabilities of the K classes in the training data, shape (K,).
        class_conditional_chains: Whether chains of training moved on E(x, y) of a class each, not
            on E(x).
        trained_on_outliers: Whether training contrasted the data with made-up outliers, too.
        trained_on_noise: Whether chains of training began at noise; None where they began at
            `init`.

    Example:
        >>> from jem.sampling import UniformBase
        >>> settings = SamplerSettings(
        ...     init=UniformBase(-1.0, 1.0, (2,)),
        ...     num_steps=20,
        ...     step=LangevinStep(step_size=1.0, noise_std=0.01),
        ...     class_frequencies=torch.tensor([0.5, 0.5]),
        ... )
        >>> round(settings.step.temperature, 7)
        5e-05
    """

    init: BaseDistribution
    num_steps: int
    step: LangevinStep
    class_frequencies: Tensor
    class_conditional_chains: bool = False
    trained_on_outliers: bool = False
    trained_on_noise: bool | None = None

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return values | {"init": self.init.state_dict(), "step": asdict(self.step)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> SamplerSettings:
        """Make settings again from `state_dict`."""
        init, step = base_from_state(state["init"]), LangevinStep(**state["step"])
        return cls(**{**state, "init": init, "step": step})
