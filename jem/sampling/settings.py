"""The sampler's settings that a model keeps, so that drawing from it needs nothing else."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import Tensor

from jem.checks import check_choice
from jem.sampling.base_distributions import (
    BaseDistribution,
    ContrastBase,
    GaussianBase,
    MixtureBase,
    UniformBase,
)
from jem.sampling.langevin import LangevinStep

KINDS: dict[str, type[BaseDistribution]] = {
    base.kind: base for base in (UniformBase, ContrastBase, GaussianBase, MixtureBase)
}
"""Base distributions by their names in saved settings."""


@dataclass(frozen=True)
class SamplerSettings:
    """How chains of a trained model begin and move.

    Attributes:
        init: What fresh chains are drawn from.
        num_steps: Langevin steps of a fresh chain.
        step: The Langevin step.
        class_frequencies: Probabilities of the K classes in the training data, shape (K,).
        trained_on_outliers: Whether training contrasted the data with made-up outliers, too.
        trained_on_noise: Whether chains of training began at noise; None where they began at
            `init`.

    Example:
        >>> import torch
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
    trained_on_outliers: bool = False
    trained_on_noise: bool | None = None

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return values | {"init": self.init.state(), "step": asdict(self.step)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> SamplerSettings:
        """Make settings again from `state_dict`."""
        init, step = base_from_state(state["init"]), LangevinStep(**state["step"])
        return cls(**{**state, "init": init, "step": step})


def base_from_state(state: dict[str, Any]) -> BaseDistribution:
    """Make a base distribution again from what its `state` returned.

    Raises:
        InputError: If the kind is unknown.
    """
    check_choice("kind", state["kind"], KINDS)
    arguments = {name: value for name, value in state.items() if name != "kind"}
    if "parts" in arguments:  # of a mixture
        arguments["parts"] = [base_from_state(part) for part in arguments["parts"]]
    return KINDS[state["kind"]](**arguments)
