"""Langevin chains: their steps, where they begin, and the buffer in which they persist."""

from jem.sampling.base_distributions import (
    BaseDistribution,
    ContrastBase,
    GaussianBase,
    MixtureBase,
    UniformBase,
)
from jem.sampling.buffer import Draw, PersistentChains, ReplayBuffer, slots_by_class
from jem.sampling.langevin import (
    LangevinStep,
    SGLDInfo,
    blur,
    clip_to_bounds,
    energy_and_gradient,
    langevin_update,
    sgld_chain,
    sgld_step,
)
from jem.sampling.outliers import Outliers
from jem.sampling.random_fields import SmoothNoiseBase
from jem.sampling.settings import SamplerSettings, base_from_state

__all__ = [
    "BaseDistribution",
    "ContrastBase",
    "Draw",
    "GaussianBase",
    "LangevinStep",
    "MixtureBase",
    "Outliers",
    "PersistentChains",
    "ReplayBuffer",
    "SGLDInfo",
    "SamplerSettings",
    "SmoothNoiseBase",
    "UniformBase",
    "base_from_state",
    "blur",
    "clip_to_bounds",
    "energy_and_gradient",
    "langevin_update",
    "sgld_chain",
    "sgld_step",
    "slots_by_class",
]
