"""Langevin chains: their steps, where they begin, and the buffer in which they persist."""

from jem.sampling.base_density import BaseDensity
from jem.sampling.base_distributions import (
    BaseDistribution,
    ContrastBase,
    GaussianBase,
    MixtureBase,
    UniformBase,
)
from jem.sampling.buffer import PersistentChains, ReplayBuffer
from jem.sampling.langevin import (
    LangevinStep,
    SGLDInfo,
    energy_and_gradient,
    langevin_update,
    sgld_chain,
    sgld_step,
)
from jem.sampling.outliers import Outliers
from jem.sampling.random_fields import SmoothNoiseBase
from jem.sampling.settings import SamplerSettings, base_from_state

__all__ = [
    "BaseDensity",
    "BaseDistribution",
    "ContrastBase",
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
    "energy_and_gradient",
    "langevin_update",
    "sgld_chain",
    "sgld_step",
]
