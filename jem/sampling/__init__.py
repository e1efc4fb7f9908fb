"""Langevin chains: moves, where they begin, and the buffer in which they persist."""

from jem.sampling.buffer import Draw, ReplayBuffer, slots_by_class
from jem.sampling.langevin import (
    SGLDInfo,
    blur,
    clip_to_bounds,
    energy_and_gradient,
    langevin_update,
    sgld_chain,
    sgld_step,
)
from jem.sampling.outliers import Outliers
from jem.sampling.settings import ChainSettings
from jem.sampling.starts import (
    ClassGaussianStart,
    ContrastStart,
    MixtureStart,
    Start,
    UniformStart,
    start_from_state,
)

__all__ = [
    "ChainSettings",
    "ClassGaussianStart",
    "ContrastStart",
    "Draw",
    "MixtureStart",
    "Outliers",
    "ReplayBuffer",
    "SGLDInfo",
    "Start",
    "UniformStart",
    "blur",
    "clip_to_bounds",
    "energy_and_gradient",
    "langevin_update",
    "sgld_chain",
    "sgld_step",
    "slots_by_class",
    "start_from_state",
]
