"""Draw from a trained model: new inputs, completions, cleaned inputs, counterfactuals."""

from jem.generation.counterfactuals import Counterfactuals, counterfactual
from jem.generation.restoration import denoise, inpaint
from jem.generation.samples import BLOCK, sample

__all__ = ["BLOCK", "Counterfactuals", "counterfactual", "denoise", "inpaint", "sample"]
