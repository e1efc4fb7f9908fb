"""The state of a run: everything that a checkpoint brings back for the same bits to follow."""

from __future__ import annotations

import platform
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from jem.errors import RunFolderError
from jem.model import JEM
from jem.networks.build import spec_of
from jem.networks.foreign import copied
from jem.randomness import derive_seed
from jem.runs.checkpoint import Checkpoints
from jem.runs.folder import RunFolder
from jem.sampling.buffer import ReplayBuffer
from jem.training.optimisation import make_optimizer, update_average
from jem.training.safeguards import MAX_RECOVERIES, give_up
from jem.training.update import UpdateContext
from jem.training.validation import EpochGuard


@dataclass
class Progress:
    """Where a run is: what is neither a tensor nor a setting.

    Attributes:
        iteration: Updates made.
        epoch: Epochs ended, that is, validated and reported too.
        stopped: Whether training ended early, by a callback or because it only overfitted.
        recoveries: Times that training diverged and went back to a checkpoint.
        rolled_back_to: Iteration of the checkpoint last gone back to; -1 if none was.
        seconds: Wall-clock time of training so far.
        log_position: Length of the metrics file, in bytes, when the state was taken.
    """

    iteration: int = 0
    epoch: int = 0
    stopped: bool = False
    recoveries: int = 0
    rolled_back_to: int = -1
    seconds: float = 0.0
    log_position: int = 0


@dataclass
class FitResult:
    """What `Trainer.fit` did.

    Attributes:
        seconds: Wall-clock time of training, interruptions left out.
        iterations: Parameter updates.
        recoveries: Times that training diverged and went back to a checkpoint.
        epochs: Metrics of each epoch trained by this call.
        as_given: Why the model is as it was given, with no update made or no epoch within
            `accuracy_margin`; empty if it was trained.
        refused: The model of the most accurate epoch, where none was within `accuracy_margin`.
        kept_epoch: Epoch, from 1, whose averaged weights the model holds: see `EpochGuard`.
    """

    seconds: float
    iterations: int
    recoveries: int
    epochs: list[dict[str, Any]] = field(default_factory=list, repr=False)
    as_given: str = ""
    kept_epoch: int = 0
    refused: JEM | None = field(default=None, repr=False)


class RunState:
    """Model, average, optimiser, chains, generators and progress of a run, and its checkpoints.

    Args:
        model: The model, on its device.
        context: What the run was built of: recipe, chains, generator, processes.
        seed: The run's seed.
        folder: Its folder; None keeps checkpoints in memory.

    Attributes:
        averaged_model: The model with averaged weights and statistics.
        identity: Network, recipe, seed and versions of the run, in configuration and checkpoints.
    """

    def __init__(
        self, model: JEM, context: UpdateContext, seed: int, folder: RunFolder | None
    ) -> None:
        from jem import __version__

        self.model, self.device, self.context = model, model.device, context
        self.chains, self.ranks, self.recipe = context.chains, context.ranks, context.recipe
        self.optimizer = make_optimizer(self.recipe, model)
        self.averaged_model, self._averaged = copied(model), 0
        self.guard: EpochGuard | None = None
        self.progress = Progress()
        self.sums = torch.zeros(3, device=self.device)  # of the epoch: see `add_losses`
        self._ticked = time.perf_counter()
        self._generators = {"augmentation": context.generator}
        if self.chains is not None:
            self._generators["chains"] = self.chains.generator
        every, first = self.recipe.checkpoint_every, self.ranks.first
        path = None if folder is None else folder.checkpoints
        self.checkpoints = Checkpoints(path, every, writes=first)
        self.identity: dict[str, Any] = {
            "network": spec_of(model.network),
            "recipe": asdict(self.recipe),
            "seed": seed,
            "versions": {
                "jem": __version__,
                "torch": str(torch.__version__),
                "python": platform.python_version(),
                "threads": torch.get_num_threads(),
            },
        }

    def update_average(self) -> None:
        """Take the model's weights and statistics into the average."""
        decay = self.recipe.ema_decay
        update_average(self.averaged_model, self.model, decay, self._averaged)
        self._averaged += 1

    def tick(self, *, counted: bool = True) -> None:
        """Count the time since the last call as time of training, or leave it out."""
        now = time.perf_counter()
        if counted:
            self.progress.seconds += now - self._ticked
        self._ticked = now

    def add_losses(self, loss: Tensor, cross_entropy: Tensor) -> None:
        """Add the losses of this process's update to those of its epoch; no device waits."""
        values = torch.stack([loss, cross_entropy, torch.ones_like(loss)])
        self.sums += values.detach().to(self.sums)

    def take_losses(self) -> dict[str, float]:
        """Mean `loss` and `cross_entropy` of an epoch over all processes, in nats; begin again."""
        loss, cross_entropy, count = self.ranks.total(self.sums).tolist()
        self.sums.zero_()
        return {"loss": loss / count, "cross_entropy": cross_entropy / count}

    @property
    def kept_epoch(self) -> int:
        """The epoch whose average is what training returns."""
        return self.progress.epoch if self.guard is None else self.guard.kept

    @property
    def why_as_given(self) -> str:
        """Why the model is as it was given; empty if it was trained."""
        if not self.progress.iteration:
            return "0 updates were made"
        return "" if self.guard is None else self.guard.why_as_given

    def refused(self) -> JEM | None:
        """The model of the most accurate epoch, where none was within the margin."""
        if self.guard is None or not self.guard.why_as_given:
            return None
        model = copied(self.averaged_model)
        model.load_state_dict(self.guard.best["weights"])
        return model.eval()

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, as a checkpoint keeps them: chains of all processes in one.

        Every process must call it.
        """
        generators = {name: g.get_state() for name, g in self._generators.items()}
        generators["torch"] = torch.get_rng_state()  # dropout draws from it
        if self.device.type == "cuda":
            generators["torch cuda"] = torch.cuda.get_rng_state(self.device)
        elif self.device.type == "mps":
            generators["torch mps"] = torch.mps.get_rng_state()
        return {
            "modules": {
                "model": self.model.network.state_dict(),
                "average": self.averaged_model.state_dict(),
            },
            "averaged": self._averaged,
            "optimizers": {"parameters": self.optimizer.state_dict()},
            "chains": None if self.chains is None else self._joined(self.chains.buffer),
            "sums": self.ranks.gather(self.sums),
            "guard": None if self.guard is None else self.guard.state_dict(),
            "generators": self.ranks.gather(generators),
            "progress": asdict(self.progress),
        }

    def _joined(self, buffer: ReplayBuffer) -> dict[str, Any]:
        parts = self.ranks.gather(buffer.state_dict())
        return {
            name: torch.cat([part[name].to(value) for part in parts])
            for name, value in parts[0].items()
        }

    def _own(self, joined: dict[str, Any]) -> dict[str, Any]:
        rank, count = self.ranks.rank, self.ranks.count
        return {name: value.chunk(count)[rank] for name, value in joined.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take everything back from `state_dict`.

        Raises:
            RunFolderError: If it is of another number of processes.
        """
        made_by = len(state["generators"])
        if made_by != self.ranks.count:
            raise RunFolderError(
                f"this run was made by {made_by} process(es) and resumes with as many: "
                f"torchrun --nproc-per-node {made_by}; now there are {self.ranks.count}"
            )
        generators = state["generators"][self.ranks.rank]
        self.model.network.load_state_dict(state["modules"]["model"])
        self.averaged_model.load_state_dict(state["modules"]["average"])
        self.model.set_extra_state(self.averaged_model.get_extra_state())
        self._averaged = state["averaged"]
        self.optimizer.load_state_dict(state["optimizers"]["parameters"])
        for name, generator in self._generators.items():
            generator.set_state(generators[name])
        torch.set_rng_state(generators["torch"])
        if self.device.type == "cuda" and "torch cuda" in generators:
            torch.cuda.set_rng_state(generators["torch cuda"], self.device)
        elif self.device.type == "mps" and "torch mps" in generators:
            torch.mps.set_rng_state(generators["torch mps"])
        if self.chains is not None:
            self.chains.buffer.load_state_dict(self._own(state["chains"]))
        self.sums.copy_(state["sums"][self.ranks.rank])
        if self.guard is not None:
            self.guard.load_state_dict(state["guard"])
        self.progress = Progress(**state["progress"])

    # -- checkpoints ------------------------------------------------------------------------------

    def save(self, log_position: int) -> None:
        """Write a checkpoint. Every process must call it, as the state is gathered from all.

        Args:
            log_position: Length of the metrics file, in bytes.
        """
        self.tick()
        self.progress.log_position = log_position
        self.checkpoints.save(self.progress.iteration, self.state_dict() | self.identity)

    def resume(self) -> bool:
        """Go on from the newest checkpoint that is whole; False if there is none.

        Raises:
            RunFolderError: If the checkpoint is of another network, recipe or seed.
        """
        if not self.checkpoints.iterations():
            return False
        self._restore(self.checkpoints.load_latest()[1])
        return True

    def go_back(self) -> None:
        """Go back to a checkpoint: other noise, half the learning rate, one more Langevin step.

        The learning rate and the Langevin steps follow from `Progress.recoveries`.

        Raises:
            TrainingDivergedError: If that was done `MAX_RECOVERIES` times already.
        """
        self.tick()
        diverged, recoveries = self.progress, self.progress.recoveries + 1
        if recoveries > MAX_RECOVERIES:
            raise give_up(self.context, diverged.iteration)
        fixed = self.ranks.agree(self.checkpoints.fixed_iterations(diverged.iteration))
        target = self.checkpoints.roll_back(fixed, diverged.rolled_back_to)
        self._restore(self.checkpoints.load(target))
        progress = self.progress  # that of the checkpoint; what happened since is kept
        progress.recoveries, progress.rolled_back_to = recoveries, target
        progress.seconds = diverged.seconds
        if self.chains is not None:  # the noise that was would lead to the same end
            seed = derive_seed(self.ranks.seed(self.identity["seed"]), "chains", recoveries)
            self.chains.generator.manual_seed(seed)

    def _restore(self, state: dict[str, Any]) -> None:
        now, then = ({**s["recipe"], "seed": s["seed"]} for s in (self.identity, state))
        if changed := [name for name, value in now.items() if then.get(name, ...) != value]:
            raise RunFolderError(
                "a run is resumed with the settings it was started with; "
                f"these differ: {', '.join(changed)}"
            )
        try:
            self.load_state_dict(state)
        except RuntimeError as error:
            raise RunFolderError(
                "the run was started with another network, which its checkpoint does not fit: "
                f"{str(error).splitlines()[-1].strip()}"
            ) from error
        self.tick(counted=False)  # loading is no training
