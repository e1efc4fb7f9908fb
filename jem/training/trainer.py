"""The loop: fit -> fit_epoch -> train_step, with snapshots, recovery and exact resumption."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jem.data.batches import as_part
from jem.data.splits import DataPart, LazyPart
from jem.devices import choose_device, place
from jem.errors import InputError, RunFolderError, TrainingInterrupted
from jem.model import JEM
from jem.randomness import derive_seed
from jem.runs.checkpoint import Checkpoints
from jem.runs.folder import RunFolder
from jem.training.distributed import join, one_for_all, restarted
from jem.training.method import Batch, StepResult
from jem.training.monitor import RunMonitor, draw_samples, spared
from jem.training.optimisation import (
    clip_gradients,
    generative_weight,
    learning_rate,
    sam_perturbation,
)
from jem.training.problem_checks import check_network
from jem.training.process import isolated_randomness, lowered, stop_signals
from jem.training.recipe import Recipe
from jem.training.recipes import recipe_from
from jem.training.safeguards import (
    MAX_RECOVERIES,
    AccuracyGuard,
    give_up,
    is_healthy,
    mask_gradients,
)
from jem.training.setup import set_up
from jem.training.state import RunState, identity, refuse_other_settings
from jem.training.steps import STEPS, sam_backward, step_of
from jem.training.validation import validate

FLAG_EVERY = 50
"""Iterations between reads of the health flag on an accelerator, where a read waits for it."""

Data = Any  # a torch Dataset of (x, y), or a pair of tensors
Metrics = dict[str, Any]
OnEpoch = Callable[[Metrics], bool | None]


@dataclass
class FitResult:
    """What `Trainer.fit` did.

    Attributes:
        seconds: Wall-clock time of training, interruptions left out.
        iterations: Parameter updates.
        recoveries: Times that training diverged and went back to a snapshot.
        epochs: Metrics of each epoch trained by this call.
        as_given: Why the model is as it was given, with no update made or no epoch within
            `accuracy_margin`; empty if it was trained.
        kept_epoch: Epoch, from 1, whose averaged weights the model holds.
    """

    seconds: float
    iterations: int
    recoveries: int
    epochs: list[Metrics] = field(default_factory=list, repr=False)
    as_given: str = ""
    kept_epoch: int = 0


class _Diverged(Exception):  # noqa: N818
    """A step that must not be applied; the loop goes back to a snapshot."""


class Trainer:
    """Train a JEM on any data.

    Args:
        model: The model. After `fit` it holds the averaged weights and is in evaluation mode.
        recipe: A recipe or the name of one.
        run_dir: Where checkpoints, metrics and pictures go; None writes nothing.
        seed: The one seed of everything random in training; the network's first weights are yours.
            On the CPU the same seed, machine, versions and thread count give the same bits, also
            after being killed and resumed.
        device: `"cpu"`, `"cuda"`, `"mps"`, or `"auto"` for the best there is.
        progress: Show a progress bar on the standard error stream.
        metadata: Plain values to keep in `config.json`, such as where the data came from.

    Attributes:
        recipe: The recipe; once `fit` has seen the data, with nothing left open.

    Raises:
        InputError: If the recipe or device is unknown.

    Example:
        >>> from jem import networks, RECIPES
        >>> from dataclasses import replace
        >>> x = torch.linspace(-1, 1, 128).view(64, 2)
        >>> y = (x[:, 0] > 0).long()
        >>> recipe = replace(RECIPES["fast"], epochs=1, buffer_size=64)
        >>> Trainer(JEM(networks.mlp((2,), 2)), recipe).fit((x, y)).iterations
        1
    """

    def __init__(
        self,
        model: JEM,
        recipe: Recipe | str = "fast",
        *,
        run_dir: str | Path | None = None,
        seed: int = 0,
        device: str = "auto",
        progress: bool = False,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self.recipe = self._asked = recipe_from(recipe)
        self.ranks = join()
        self.device = choose_device(device)
        self.model = place(model, self.device)
        self.folder = None if run_dir is None else RunFolder(self.ranks.agree(str(run_dir)))
        self.seed = seed
        self.progress = progress
        self.metadata = metadata or {}

    def fit(
        self,
        train: Data,
        valid: Data | None = None,
        *,
        resume: bool = False,
        on_epoch: OnEpoch | None = None,
    ) -> FitResult:
        """Train to the end of the recipe, or until a callback says that it is enough.

        Args:
            train: Training examples: a Dataset of (x, y), or tensors x (N, *shape), float, in the
                network's units, and class indices y (N,).
            valid: Validation examples, looked at after each epoch.
            resume: Go on from the last checkpoint of the run folder.
            on_epoch: Called with the metrics of each epoch. If it returns True, training ends as
                if this epoch were the last: averaged weights, last checkpoint, samples; `resume`
                then finds a finished run. A run that was killed calls it again for the epochs
                after its last checkpoint, so one that counts must take its count from the metrics.

        Returns:
            What was done; the model holds the averaged weights. Where `accuracy_margin` left it as
            it was given, a warning says so.

        Raises:
            InputError: If the data do not fit the model, or there is no folder to resume from.
            RunFolderError: If the folder already holds a run (without `resume`), is in use or
                cannot be written.
            TrainingDivergedError: If training diverges more often than the recipe allows.
            TrainingInterrupted: On SIGINT or SIGTERM, after the state was saved.
        """
        if resume and self.folder is None:
            raise InputError("`resume` needs the run's folder: Trainer(..., run_dir=...)")
        train, valid = as_part(train), None if valid is None else as_part(valid)
        with contextlib.ExitStack() as stack:
            stack.enter_context(one_for_all(self.ranks))
            if self.folder is not None and self.ranks.first:
                resume = resume or (restarted() and self.folder.holds_run())
                stack.enter_context(self.folder.claimed(resume))
            resume = self.ranks.agree(resume)
            stack.enter_context(isolated_randomness(self.device))
            stack.enter_context(torch.enable_grad())
            shown = self.ranks.first
            watch = RunMonitor(self.folder if shown else None, self.progress and shown)
            self._prepare(train, watch)
            self._check_validation(valid)
            self._guard_accuracy(valid)
            self._begin(resume)
            self._stop = stack.enter_context(stop_signals())
            stack.enter_context(self.watch.shown(self.total_iterations, "training"))
            epochs = self._run(valid, on_epoch)
            self._finish()
        position, why = self.state.position, self._why_as_given()
        if position.iteration and why and self.ranks.first:
            warnings.warn(
                f"{why}: the model is as it was given; train longer or with a smaller "
                "--generative-weight",
                stacklevel=2,
            )
        return FitResult(
            position.seconds, position.iteration, position.recoveries, epochs, why, self._kept()
        )

    # -- the ladder -------------------------------------------------------------------------------

    def _run(self, valid: Data | None, on_epoch: OnEpoch | None) -> list[Metrics]:
        epochs: dict[int, Metrics] = {}
        while self.state.position.epoch < self.num_epochs and not self.state.position.stopped:
            epoch = self.state.position.epoch
            try:
                self.fit_epoch(epoch, self.state.position.iteration - epoch * len(self.batches))
                self._require_clean()
            except _Diverged:
                self._recover()
                continue
            epochs[epoch] = self._end_epoch(valid)
            if on_epoch is not None:
                stop = bool(on_epoch(epochs[epoch]))
                self.state.position.stopped = self.ranks.any(stop, self.device)
        return [epochs[epoch] for epoch in sorted(epochs)]

    def fit_epoch(self, epoch: int, start: int = 0) -> None:
        """Train on one pass over the data.

        Args:
            epoch: Which one, from 0: it decides the order of the examples.
            start: Batches of it that were already seen.
        """
        self.model.train(not self.recipe.freeze_norm_and_dropout)
        self.method.clock.enter("data")
        for batch in self.batches.epoch(epoch, start, generator=self.state.augmentation):
            self.train_step(batch)
            if self.state.position.iteration % self.recipe.checkpoint_every == 0:
                self._snapshot()
            if self.ranks.any(self._stop.is_set(), self.device):
                self._interrupt()
            self.method.clock.enter("data")
        self.method.clock.enter("other")

    def train_step(self, batch: Batch) -> StepResult:
        """Make one update of the parameters and move the chains, or refuse both.

        Args:
            batch: The data.

        Returns:
            What the step computed.
        """
        recipe, position = self.recipe, self.state.position
        rate = learning_rate(recipe, position.iteration, self.total_iterations)
        rate *= 0.5**position.recoveries
        for group in self.state.optimizer.param_groups:
            group["lr"] = rate
        weight = generative_weight(recipe, position.iteration, self.total_iterations)
        if self.state.guard is not None:
            weight *= self.state.guard.weight_scale

        self.ranks.copy_buffers(self.model)
        self.state.optimizer.zero_grad(set_to_none=True)
        step = STEPS[step_of(recipe)]
        with lowered(recipe.precision, self.device):
            outcome = step(self.model, batch, self.method, weight, position.recoveries)
            if recipe.adaptive_sam_rho is not None:
                with sam_perturbation(self.model, recipe.adaptive_sam_rho):
                    sam_backward(self.model, batch, self.method, weight, outcome)
        grad_norm = clip_gradients(self.model, recipe.max_grad_norm)
        self._apply(outcome, self.ranks.all(is_healthy(outcome, grad_norm, recipe.max_energy_gap)))

        self.method.clock.enter("other")
        self.watch.step(
            self.state, self.method, batch, outcome,
            learning_rate=rate, generative_weight=weight, gradient_norm=grad_norm,
        )  # fmt: skip
        position.iteration += 1
        return outcome

    def _apply(self, outcome: StepResult, healthy: Tensor) -> None:
        """Update parameters, average and chains, unless the step was not healthy.

        On the CPU the flag is read at once. An accelerator is not made to wait for it: the update
        is masked there, and the flag read now and then.
        """
        moved = outcome.moved
        if self.device.type == "cpu":
            if not healthy:
                raise _Diverged
        else:
            mask_gradients(self.model, healthy)
            self._clean &= healthy
            if self.state.position.iteration % FLAG_EVERY == 0:
                self._require_clean()
            if moved is not None:
                moved = moved._replace(x=torch.where(healthy, moved.x, moved.draw.x))
        self.state.optimizer.step()
        self.state.update_average()
        if moved is not None and self.state.negatives is not None:
            self.state.negatives.buffer.commit(moved.draw, moved.x, steps=moved.moves)

    def _require_clean(self) -> None:
        if not self._clean:
            raise _Diverged

    def _end_epoch(self, valid: Data | None) -> Metrics:
        """Validate the average, and record the epoch."""
        state = self.state
        self._tick()
        self.ranks.copy_buffers(state.averaged_model)
        metrics: Metrics = {
            "epoch": state.position.epoch + 1,
            "iteration": state.position.iteration,
            "seconds": state.position.seconds,
            "recoveries": state.position.recoveries,
        }
        if valid is not None:
            metrics |= self._validate(valid)
        if state.guard is not None:
            metrics |= state.guard.judge(metrics["valid_accuracy"], state.averaged_model)
        state.position.epoch += 1
        self.watch.epoch(metrics, self.num_epochs, state)
        return metrics

    def _validate(self, valid: Data) -> Metrics:
        batch_size = 4 * self.recipe.batch_size
        model = self.state.averaged_model
        return validate(model, valid, batch_size, self.device, self.ranks)

    # -- beginning and end ------------------------------------------------------------------------

    def _prepare(self, train: Data, watch: RunMonitor) -> None:
        """Make what follows from model, recipe, data and seed; a resumed run makes it again."""
        torch.manual_seed(derive_seed(self.ranks.seed(self.seed), "dropout") % 2**32)
        self.method, self.batches = set_up(self.model, self._asked, train, self.seed, self.ranks)
        self.recipe = self.method.recipe
        self.num_epochs = self.recipe.num_epochs(len(self.batches))
        self.total_iterations = self.num_epochs * len(self.batches)
        self.state = RunState(
            self.model, self.recipe, self.method.negatives, self.seed, self.ranks
        )
        self.watch = watch
        self._clean = torch.ones((), dtype=torch.bool, device=self.device)

    def _check_validation(self, valid: Data | None) -> None:
        if valid is None:
            return
        x = valid[0][0]
        if tuple(x.shape) != self.model.input_shape:
            raise InputError(
                f"validation examples must be of shape {self.model.input_shape}, as those of "
                f"training, but are of {tuple(x.shape)}"
            )
        if isinstance(valid, DataPart | LazyPart):
            check_network(self.model, x[None], valid.y)

    def _guard_accuracy(self, valid: Data | None) -> None:
        margin = self.recipe.accuracy_margin
        if margin is None:
            return
        if valid is None:
            raise InputError("`accuracy_margin` needs validation examples: fit(train, valid)")
        before = self._validate(valid).get("valid_accuracy")
        if before is None:
            raise InputError("`accuracy_margin` needs classes, but the network has one output")
        self.state.guard = AccuracyGuard(margin, before, self.model)

    def _begin(self, resume: bool) -> None:
        folder = self.folder
        self.checkpoints = Checkpoints(
            None if folder is None else folder.checkpoints,
            self.recipe.checkpoint_every,
            writes=self.ranks.first,
        )
        if resume and self.checkpoints.iterations():
            self._restore(self.checkpoints.load_latest()[1])
            if folder is not None and self.ranks.first:
                folder.model.unlink(missing_ok=True)  # it holds the weights from before
            self.watch.log.truncate(self.state.position.log_position)
            return
        if folder is not None and self.ranks.first:
            folder.write_config(self.config())
            self.watch.log.truncate(0)
        self._snapshot()

    def config(self) -> dict[str, Any]:
        """What `config.json` says of the run, once `fit` has seen the data."""
        return {
            **self.metadata,
            **identity(self.model, self.recipe, self.seed),
            "input_shape": self.model.input_shape,
            "classes": self.model.classes,
            "epochs": self.num_epochs,
            "iterations": self.total_iterations,
            "device": str(self.device),
        }

    def _finish(self) -> None:
        """Leave averaged weights in the model, the last checkpoint on disk, samples beside it.

        Of a model as it was given the folder says why, and shows no samples.
        """
        if self.state.guard is not None:
            self.state.averaged_model.load_state_dict(self.state.guard.accepted)
        self._snapshot()
        position = self.state.position
        self.watch.log.write(
            "end",
            iteration=position.iteration,
            seconds=position.seconds,
            recoveries=position.recoveries,
            kept_epoch=self._kept(),
        )
        if 0 < self._kept() < position.epoch:
            self.watch.display.message(
                f"kept: epoch {self._kept()} of {position.epoch}, the last within the accuracy "
                f"margin of {self.recipe.accuracy_margin:g} on validation examples"
            )
        self.state.optimizer.zero_grad(set_to_none=True)
        self.model.load_state_dict(self.state.averaged_model.state_dict())
        self.model.eval()
        if self.folder is None or not self.ranks.first:
            return
        if why := self._why_as_given():
            self.folder.write_config(self.folder.read_config() | {"as_given": why})
            self.folder.samples.unlink(missing_ok=True)
        elif self.recipe.generative:
            with spared(self.folder.samples):
                draw_samples(self.model, self.seed, self.folder.samples)

    def _kept(self) -> int:
        """The epoch whose average is what training returns."""
        guard = self.state.guard
        return self.state.position.epoch if guard is None else guard.kept

    def _why_as_given(self) -> str:
        if not self.state.position.iteration:
            return "0 updates were made"
        return "" if self.state.guard is None else self.state.guard.why_as_given

    # -- snapshots and recovery -------------------------------------------------------------------

    def _tick(self) -> None:
        """Bring the run's seconds up to date."""
        self.state.position.seconds += self.method.clock.tick()

    def _snapshot(self) -> None:
        """Write a checkpoint; only a run known to be healthy makes one."""
        self._require_clean()
        self._tick()
        self.state.position.log_position = self.watch.log.position()
        run = identity(self.model, self.recipe, self.seed)
        self.checkpoints.save(self.state.position.iteration, self.state.state_dict() | run)

    def _restore(self, state: dict[str, Any]) -> None:
        refuse_other_settings(state, self.recipe, self.seed)
        try:
            self.state.load_state_dict(state)
        except RuntimeError as error:
            raise RunFolderError(
                "the run was started with another network, which its checkpoint does not fit: "
                f"{str(error).splitlines()[-1].strip()}"
            ) from error
        self.method.clock.tick()  # loading is no training

    def _recover(self) -> None:
        """Go back to a snapshot: other noise, half the learning rate, one more Langevin move."""
        diverged, log = self.state.position, self.watch.log
        self._tick()
        recoveries = diverged.recoveries + 1
        if recoveries > MAX_RECOVERIES:
            log.write("gave_up", iteration=diverged.iteration, recoveries=diverged.recoveries)
            raise give_up(self.recipe, diverged.iteration, diverged.recoveries)
        fixed = self.ranks.agree(self.checkpoints.fixed_iterations(diverged.iteration))
        target = self.checkpoints.roll_back(fixed, diverged.rolled_back_to)
        self._restore(self.checkpoints.load(target))
        self._clean.fill_(True)
        position = self.state.position
        position.recoveries, position.rolled_back_to = recoveries, target
        position.seconds = diverged.seconds
        if self.state.negatives is not None:
            seed = derive_seed(self.ranks.seed(self.seed), "chains", recoveries)
            self.state.negatives.generator.manual_seed(seed)
        log.write("recovery", iteration=diverged.iteration, back_to=target, recoveries=recoveries)
        self.watch.display.message(
            f"diverged at iteration {diverged.iteration}: back to {target}, learning rate times "
            f"{0.5**recoveries:g} (recovery {recoveries} of at most {MAX_RECOVERIES})"
        )
        self._snapshot()  # over the one gone back to: a run killed now resumes after the recovery

    def _interrupt(self) -> None:
        self._snapshot()
        saved = "nothing was saved"
        if self.folder is not None:
            saved = f"the state is in {self.folder.path}; go on with "
            saved += "--resume, or fit(..., resume=True)"
        raise TrainingInterrupted(
            f"stopped at iteration {self.state.position.iteration} of {self.total_iterations}; "
            f"{saved}"
        )

    def seconds_per_iteration(self, train: Data, iterations: int = 8) -> float:
        """Time a few iterations, to estimate a run; they train the model, nothing is written.

        Args:
            train: Training examples, as `fit` takes them.
            iterations: How many are timed; as many go before them to warm up.

        Returns:
            Seconds of one iteration, the median.
        """
        with isolated_randomness(self.device), torch.enable_grad():
            self._prepare(as_part(train), RunMonitor(None, progress=False))
            self.model.train(not self.recipe.freeze_norm_and_dropout)
            times = []
            batches = self.batches.epoch(0, 0, generator=self.state.augmentation)
            start = time.perf_counter()
            for batch in itertools.islice(itertools.cycle(batches), 2 * iterations):
                with contextlib.suppress(_Diverged):  # a step that is refused costs as much
                    self.train_step(batch)
                if self.device.type != "cpu":
                    torch.accelerator.synchronize(self.device)  # else only launches are timed
                now = time.perf_counter()
                times.append(now - start)
                start = now
        return statistics.median(times[iterations:])
