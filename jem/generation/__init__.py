"""Draw from a trained model: new inputs, completions, counterfactuals."""

from jem.generation.counterfactuals import Counterfactuals, counterfactual
from jem.generation.restoration import inpaint
from jem.generation.samples import BLOCK, sample

__all__ = ["BLOCK", "Counterfactuals", "counterfactual", "inpaint", "sample"]
