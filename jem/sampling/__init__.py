"""Langevin chains: their steps, where they begin, and the buffer in which they persist."""

from jem.sampling.base_density import BaseDensity as BaseDensity
from jem.sampling.base_distributions import BaseDistribution as BaseDistribution
from jem.sampling.base_distributions import ContrastBase as ContrastBase
from jem.sampling.base_distributions import GaussianBase as GaussianBase
from jem.sampling.base_distributions import MixtureBase as MixtureBase
from jem.sampling.base_distributions import SamplerSettings as SamplerSettings
from jem.sampling.base_distributions import UniformBase as UniformBase
from jem.sampling.base_distributions import base_from_state as base_from_state
from jem.sampling.buffer import PersistentChains as PersistentChains
from jem.sampling.buffer import ReplayBuffer as ReplayBuffer
from jem.sampling.langevin import LangevinStep as LangevinStep
from jem.sampling.langevin import energy_and_gradient as energy_and_gradient
from jem.sampling.langevin import run_chains as run_chains
from jem.sampling.mala import Points as Points
from jem.sampling.mala import mala_step as mala_step
from jem.sampling.mala import run_corrected_chains as run_corrected_chains
from jem.sampling.outliers import Outliers as Outliers
from jem.sampling.outliers import SmoothNoiseBase as SmoothNoiseBase
