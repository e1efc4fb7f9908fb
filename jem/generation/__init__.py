"""Draw from a trained model: new inputs, completions, cleaned inputs."""

from jem.generation.restoration import denoise, inpaint
from jem.generation.samples import BLOCK, sample

__all__ = ["BLOCK", "denoise", "inpaint", "sample"]
