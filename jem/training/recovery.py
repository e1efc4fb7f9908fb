"""Checkpoints of a run: exact resumption, and the way back from divergence."""

from pathlib import Path
from typing import Any

from jem.errors import RunFolderError
from jem.randomness import derive_seed
from jem.runs.checkpoint import Checkpoints
from jem.training.monitor import RunMonitor
from jem.training.safeguards import MAX_RECOVERIES, give_up
from jem.training.state import RunState, check_same_settings
from jem.training.steps import StepContext


class Recovery:
    """Writes the state of a run, and takes it back from what was written.

    Args:
        state: The run.
        context: Its recipe, chains and processes.
        monitor: Its record: the metrics file is cut to the length that a checkpoint remembers.
        folder: Where checkpoints are; None keeps them in memory.
        identity: Network, recipe, seed and versions of the run, kept in each checkpoint.
    """

    def __init__(
        self,
        state: RunState,
        context: StepContext,
        monitor: RunMonitor,
        folder: Path | None,
        identity: dict[str, Any],
    ) -> None:
        self.state, self.context, self.monitor = state, context, monitor
        self.identity = identity
        every, first = context.recipe.checkpoint_every, context.ranks.first
        self.checkpoints = Checkpoints(folder, every, writes=first)

    def save(self) -> None:
        """Write a checkpoint. Every process must call it, as the state is gathered from all."""
        progress = self.state.progress
        self.state.tick()
        progress.log_position = self.monitor.log.position()
        self.checkpoints.save(progress.iteration, self.state.state_dict() | self.identity)

    def resume(self) -> bool:
        """Go on from the newest checkpoint that is whole; False if there is none.

        Raises:
            RunFolderError: If the checkpoint is of another network, recipe or seed.
        """
        if not self.checkpoints.iterations():
            return False
        self._restore(self.checkpoints.load_latest()[1])
        # What was recorded after the checkpoint will be recorded again.
        self.monitor.log.truncate(self.state.progress.log_position)
        return True

    def go_back(self) -> None:
        """Go back to a checkpoint: other noise, half the learning rate, one more Langevin step.

        The learning rate and the Langevin steps follow from `Progress.recoveries`.

        Raises:
            TrainingDivergedError: If that was done `MAX_RECOVERIES` times already.
        """
        diverged, log = self.state.progress, self.monitor.log
        self.state.tick()
        recoveries = diverged.recoveries + 1
        if recoveries > MAX_RECOVERIES:
            log.write("gave_up", iteration=diverged.iteration, recoveries=diverged.recoveries)
            raise give_up(self.context.recipe, diverged.iteration)
        fixed = self.context.ranks.agree(self.checkpoints.fixed_iterations(diverged.iteration))
        target = self.checkpoints.roll_back(fixed, diverged.rolled_back_to)
        self._restore(self.checkpoints.load(target))
        progress = self.state.progress  # that of the checkpoint; what happened since is kept
        progress.recoveries, progress.rolled_back_to = recoveries, target
        progress.seconds = diverged.seconds
        if self.state.chains is not None:  # the noise that was would lead to the same end
            seed = derive_seed(
                self.context.ranks.seed(self.identity["seed"]), "chains", recoveries
            )
            self.state.chains.generator.manual_seed(seed)
        log.write("recovery", iteration=diverged.iteration, back_to=target, recoveries=recoveries)
        self.monitor.bar.message(
            f"diverged at iteration {diverged.iteration}: back to {target}, learning rate times "
            f"{0.5**recoveries:g} (recovery {recoveries} of at most {MAX_RECOVERIES})"
        )
        self.save()  # over the one gone back to: a run killed now resumes after the recovery

    def _restore(self, state: dict[str, Any]) -> None:
        check_same_settings(state, self.context.recipe, self.identity["seed"])
        try:
            self.state.load_state_dict(state)
        except RuntimeError as error:
            raise RunFolderError(
                "the run was started with another network, which its checkpoint does not fit: "
                f"{str(error).splitlines()[-1].strip()}"
            ) from error
        self.state.tick(counted=False)  # loading is no training
