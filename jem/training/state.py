"""The state of a run: everything that a checkpoint must bring back for the same bits to follow."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch.optim.swa_utils import AveragedModel

from jem.model import JEM
from jem.randomness import named_generator
from jem.sampling.negatives import Negatives
from jem.training.optimisation import make_optimizer, moving_average
from jem.training.recipe import Recipe
from jem.training.run_folder import model_settings, restore_settings


@dataclass
class Position:
    """Where a run is: what is neither a tensor nor a setting.

    Attributes:
        iteration: Updates made.
        recoveries: Times that training diverged and went back to a snapshot.
        rolled_back_to: Iteration of the snapshot last gone back to; -1 if none was.
        seconds: Wall-clock time of training so far.
        log_position: Length of the metrics file, in bytes, when the state was taken.
        stopped: Whether `on_epoch` ended the run before its last epoch.
    """

    iteration: int = 0
    recoveries: int = 0
    rolled_back_to: int = -1
    seconds: float = 0.0
    log_position: int = 0
    stopped: bool = False


class RunState:
    """Model, average, optimiser, chains, generators and position of a run.

    Args:
        model: The model, on its device.
        recipe: The recipe.
        negatives: The chains; None for a plain classifier.
        seed: The run's seed.
    """

    def __init__(self, model: JEM, recipe: Recipe, negatives: Negatives | None, seed: int) -> None:
        self.model, self.negatives, self.device = model, negatives, model.device
        self.optimizer = make_optimizer(recipe, model)
        self._average = AveragedModel(
            model, multi_avg_fn=moving_average(recipe.average), use_buffers=True
        )
        self.augmentation = named_generator(seed, "augmentation", device=self.device)
        self.position = Position()

    @property
    def averaged_model(self) -> JEM:
        """The model with averaged weights and statistics."""
        return cast(JEM, self._average.module)

    def update_average(self) -> None:
        """Take the model's weights into the average."""
        self._average.update_parameters(self.model)

    def _generators(self) -> dict[str, torch.Generator]:
        generators = {"augmentation": self.augmentation}
        if self.negatives is not None:
            generators["chains"] = self.negatives.generator
        return generators

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, as a checkpoint keeps them."""
        generators = {name: g.get_state() for name, g in self._generators().items()}
        generators["torch"] = torch.get_rng_state()  # dropout draws from it
        if self.device.type == "cuda":
            generators["torch cuda"] = torch.cuda.get_rng_state(self.device)
        return {
            "modules": {
                "model": self.model.state_dict(),
                "average": self.averaged_model.state_dict(),
            },
            "averaged": int(self._average.n_averaged),
            "optimizers": {"parameters": self.optimizer.state_dict()},
            "chains": None if self.negatives is None else self.negatives.buffer.state_dict(),
            "generators": generators,
            "progress": asdict(self.position),
            "settings": model_settings(self.model),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take everything back from `state_dict`."""
        self.model.load_state_dict(state["modules"]["model"])
        self.averaged_model.load_state_dict(state["modules"]["average"])
        self._average.n_averaged.fill_(state["averaged"])
        self.optimizer.load_state_dict(state["optimizers"]["parameters"])
        restore_settings(self.model, state["settings"])
        for name, generator in self._generators().items():
            generator.set_state(state["generators"][name])
        torch.set_rng_state(state["generators"]["torch"])
        if self.device.type == "cuda" and "torch cuda" in state["generators"]:
            torch.cuda.set_rng_state(state["generators"]["torch cuda"], self.device)
        if self.negatives is not None:
            self.negatives.buffer.load_state_dict(state["chains"])
        self.position = Position(**state["progress"])
