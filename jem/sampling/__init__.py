"""Langevin chains: their steps, where they begin, and the buffer in which they persist."""

from jem.sampling.base_distributions import (
    BaseDistribution,
    ContrastBase,
    GaussianBase,
    MixtureBase,
    UniformBase,
    base_from_state,
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
from jem.sampling.settings import SamplerSettings

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
