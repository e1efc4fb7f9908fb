"""The loop: fit -> _run -> update -> _apply, with recovery and exact resumption."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jem.data.batches import as_part
from jem.devices import choose_device, place
from jem.errors import InputError, TrainingInterrupted
from jem.model import JEM
from jem.objectives import Batch, Objective
from jem.randomness import derive_seed
from jem.runs.folder import RunFolder
from jem.runs.model_file import save
from jem.training.monitor import RunMonitor, draw_samples, spared
from jem.training.optimisation import clip_gradients, learning_rate, sam_perturbation
from jem.training.process import (
    isolated_randomness,
    join,
    lowered,
    one_for_all,
    restarts,
    stop_signals,
)
from jem.training.recipe import Recipe
from jem.training.recipes import recipe_from
from jem.training.safeguards import (
    Diverged,
    check_attacked,
    check_modes,
    is_healthy,
    mask_gradients,
    why_doubted,
)
from jem.training.setup import build, head_advice
from jem.training.state import FitResult, RunState
from jem.training.update import UpdateResult, compute_update, sam_backward
from jem.training.validation import check_validation, validate

FLAG_EVERY = 50
"""Updates between reads of the health flag on an accelerator, where a read waits for it."""

Data = Any  # a torch Dataset of (x, y), or a pair of tensors
Metrics = dict[str, Any]
OnEpoch = Callable[[Metrics], bool | None]


class Trainer:
    """Train a JEM on any data.

    Args:
        model: The model. After `fit` it holds the averaged weights and is in evaluation mode.
        recipe: A recipe or the name of one.
        objective: What trains the density, in place of the one that the recipe names: see
            `jem.objectives.Objective`.
        class_weight: Weight of each class in the cross-entropy, shape (K,), in place of the
            recipe's.
        monitor: What records and shows the run; a `RunMonitor` with `progress` if left out.
        run_dir: Where checkpoints, metrics and pictures go; None writes nothing.
        seed: The one seed of everything random in training; the network's first weights are yours.
            On the CPU the same seed, machine, versions and thread count give the same bits, also
            after being killed and resumed.
        device: `"cpu"`, `"cuda"`, `"mps"`, or `"auto"` for the best there is.
        progress: Show a progress bar on the standard error stream.
        metadata: Plain values to keep in `config.json`, such as where the data came from.

    Attributes:
        recipe: The recipe, as it was given.
        context: What `fit` made of recipe and data: `context.recipe` leaves nothing open.

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
        objective: Objective | None = None,
        class_weight: Tensor | None = None,
        monitor: RunMonitor | None = None,
        run_dir: str | Path | None = None,
        seed: int = 0,
        device: str = "auto",
        progress: bool = False,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self.recipe = recipe_from(recipe)
        self.objective, self.class_weight = objective, class_weight
        self.ranks = join()
        shown = self.ranks.first
        self.monitor = (shown and monitor) or RunMonitor(quiet=not (shown and progress))
        self.device = choose_device(device)
        self.model = place(model, self.device)
        self.folder = None if run_dir is None else RunFolder(self.ranks.agree(str(run_dir)))
        self.seed = seed
        self.metadata = metadata or {}

    def fit(
        self,
        train: Data,
        valid: Data | None = None,
        *,
        resume: bool = False,
        on_epoch: OnEpoch | None = None,
    ) -> FitResult:
        """Train to the end of the recipe, until it only overfits, or until a callback ends it.

        Validation examples decide which epoch's averaged weights the model gets, and whether
        training ends early: see `jem.training.validation.EpochGuard`.

        Args:
            train: Training examples: tensors x (N, *shape), float, in the network's units, and
                class indices y (N,); or a Dataset or DataLoader: see `jem.data.batches.as_part`.
            valid: Validation examples, looked at after each epoch.
            resume: Go on from the last checkpoint of the run folder.
            on_epoch: Called with the metrics of each epoch. If it returns True, training ends as
                if this epoch were the last: averaged weights, last checkpoint, samples; `resume`
                then finds a finished run. A run that was killed calls it again for the epochs
                after its last checkpoint, so one that counts must take its count from the metrics.

        Returns:
            What was done; the model holds the averaged weights. A warning says so if no epoch
            stayed within `accuracy_margin`, so that the model is unchanged.

        Raises:
            InputError: If the data do not fit the model, or there is no folder to resume from.
            RunFolderError: If the folder already holds a run (without `resume`), is in use or
                cannot be written.
            TrainingDivergedError: If training diverges too often, or is lost in evaluation mode.
            TrainingInterrupted: On SIGINT or SIGTERM, after the state was saved.
        """
        if resume and self.folder is None:
            raise InputError("`resume` needs the run's folder: Trainer(..., run_dir=...)")
        train, valid = as_part(train), None if valid is None else as_part(valid)
        with contextlib.ExitStack() as stack:
            stack.enter_context(one_for_all(self.ranks))
            if self.folder is not None and self.ranks.first:
                resume = resume or (restarts() > 0 and self.folder.holds_run())
                stack.enter_context(self.folder.claimed(resume))
            resume = self.ranks.agree(resume)
            stack.enter_context(isolated_randomness(self.device))
            stack.enter_context(torch.enable_grad())
            self.prepare(train)
            self.state.guard = check_validation(self.model, self.context.recipe, valid, self.ranks)
            written = self.folder if self.ranks.first else None
            stack.enter_context(self.monitor.open(written, self.total_iterations))
            self._begin(resume)
            advice = head_advice(self.model, self.context), self.context.recipe.augmentation
            for line in filter(None, advice if self.num_epochs else ()):
                self.monitor.bar.message(line)
            with stop_signals() as self._stop:
                epochs = self._run(valid, on_epoch)
            self._finish()
        progress, why = self.state.progress, self.state.why_as_given
        ends = progress.iteration and self.ranks.first
        examples = train if valid is None else valid
        if ends and (doubt := why_doubted(self.model, self.context, why, examples)):
            warnings.warn(doubt, stacklevel=2)
        return FitResult(
            progress.seconds, progress.iteration, progress.recoveries, epochs, as_given=why,
            kept_epoch=self.state.kept_epoch, refused=self.state.refused(),
        )  # fmt: skip

    # -- the loop ---------------------------------------------------------------------------------

    def _run(self, valid: Data | None, on_epoch: OnEpoch | None) -> list[Metrics]:
        epochs: dict[int, Metrics] = {}
        while self.state.progress.epoch < self.num_epochs and not self.state.progress.stopped:
            epoch = self.state.progress.epoch
            try:
                self._fit_epoch(epoch, self.state.progress.iteration - epoch * len(self.batches))
                self._require_healthy()
                epochs[epoch] = self._end_epoch(valid)
            except Diverged:
                self._go_back()
                continue
            stop = self.state.guard is not None and self.state.guard.stops
            if on_epoch is not None:
                stop |= bool(on_epoch(epochs[epoch]))
            self.state.progress.stopped = self.ranks.any(stop, self.device)
            self._heed_stop()
        return [epochs[epoch] for epoch in sorted(epochs)]

    def _fit_epoch(self, epoch: int, start: int) -> None:
        """Train on the batches of one pass over the data, from `start` on."""
        recipe = self.context.recipe
        self.model.train(not recipe.freeze_norm_and_dropout)
        for batch in self.batches.epoch(epoch, start, generator=self.context.generator):
            self.update(batch)
            if self.state.progress.iteration % recipe.checkpoint_every == 0:
                self._save()
            self._heed_stop()

    def update(self, batch: Batch) -> UpdateResult:
        """Update the parameters and move the chains, or refuse both.

        `compute_update` fills the parameters' gradients. They are checked and clipped here, and
        `_apply` lets the optimiser use them. Call `prepare` first, as `fit` does.

        Args:
            batch: The data.

        Returns:
            What was computed.
        """
        recipe, progress = self.context.recipe, self.state.progress
        # After each recovery: half the rate, and one more Langevin step.
        rate = learning_rate(recipe, progress.iteration, self.total_iterations)
        rate *= 0.5**progress.recoveries
        for group in self.state.optimizer.param_groups:
            group["lr"] = rate
        scale = 1.0 if self.state.guard is None else self.state.guard.weight_scale
        weight = recipe.density_weight * scale

        self.ranks.copy(self.model.buffers())
        self.state.optimizer.zero_grad(set_to_none=True)
        with lowered(recipe.precision, self.device):
            result = compute_update(
                self.trained, batch, self.context, weight, extra_steps=progress.recoveries
            )
            self.ranks.average_gradients(self.model)
            if recipe.adaptive_sam_rho is not None:
                with sam_perturbation(self.trained, recipe.adaptive_sam_rho):
                    sam_backward(self.trained, batch, self.context, weight, result)
                self.ranks.average_gradients(self.model)
        grad_norm = clip_gradients(self.model, recipe.max_grad_norm)
        self._apply(result, self.ranks.all(is_healthy(result, grad_norm, recipe.max_energy_gap)))

        self.state.add_losses(result.loss, result.cross_entropy)
        self.monitor.update(
            self.state, batch, result,
            learning_rate=rate, density_weight=weight, gradient_norm=grad_norm,
        )  # fmt: skip
        progress.iteration += 1
        return result

    def _apply(self, result: UpdateResult, healthy: Tensor) -> None:
        """Update parameters, average and chains, unless something is not healthy.

        On the CPU the flag is read at once. An accelerator is not made to wait for it: the update
        is masked there, and the flag read now and then.
        """
        proposed = result.proposed
        if self.device.type == "cpu":
            if not healthy:
                raise Diverged
        else:
            mask_gradients(self.model, healthy)
            self._healthy_so_far &= healthy
            if self.state.progress.iteration % FLAG_EVERY == 0:
                self._require_healthy()
            if proposed is not None:
                x = torch.where(healthy, proposed.x, proposed.draw.x)
                proposed = proposed._replace(x=x)
        self.state.optimizer.step()
        self.state.update_average()
        if proposed is not None and self.state.chains is not None:
            buffer = self.state.chains.buffer
            buffer.commit(proposed.draw, proposed.x, steps=proposed.num_steps)

    def _require_healthy(self) -> None:
        if not self._healthy_so_far:
            raise Diverged

    def _end_epoch(self, valid: Data | None) -> Metrics:
        """Validate the average, and record the epoch."""
        state, progress, averaged = self.state, self.state.progress, self.state.averaged_model
        state.tick()
        self.ranks.copy(averaged.buffers())
        metrics: Metrics = {
            "epoch": progress.epoch + 1,
            "iteration": progress.iteration,
            "seconds": progress.seconds,
            "recoveries": progress.recoveries,
            **check_attacked(self.trained, self.batches.labelled, self.context),
            **state.take_losses(),
        }
        if valid is not None:
            metrics |= validate(averaged, valid, 4 * self.context.recipe.batch_size, self.ranks)
        if state.guard is not None:
            metrics |= state.guard.judge(metrics, averaged)
        progress.epoch += 1
        check_modes(averaged, self.batches.labelled, self.context, progress.epoch)
        self.monitor.epoch(metrics, self.num_epochs, state)
        return metrics

    # -- beginning and end ------------------------------------------------------------------------

    def prepare(self, train: Data) -> None:
        """Make what follows from model, recipe, data and seed; a resumed run makes it again."""
        torch.manual_seed(derive_seed(self.ranks.seed(self.seed), "dropout") % 2**32)
        self.context, self.batches = build(
            self.model, self.recipe, train, self.seed, self.ranks,
            self.objective, self.class_weight,
        )  # fmt: skip
        self.num_epochs = self.context.recipe.epochs
        self.total_iterations = self.num_epochs * len(self.batches)
        # Its parameters are those of the model, which clips and applies their gradients.
        self.trained = self.model.trained
        self.state = RunState(self.model, self.context, self.seed, self.folder)
        self._healthy_so_far = torch.ones((), dtype=torch.bool, device=self.device)

    def config(self) -> dict[str, Any]:
        """What `config.json` says of the run, once `fit` has seen the data."""
        return {
            **self.metadata,
            **self.state.identity,
            "input_shape": self.model.input_shape,
            "classes": self.model.classes,
            "epochs": self.num_epochs,
            "iterations": self.total_iterations,
            "device": str(self.device),
        }

    def _begin(self, resume: bool) -> None:
        if resume and self.state.resume():
            # What was recorded after the checkpoint will be recorded again.
            self.monitor.log.truncate(self.state.progress.log_position)
            if self.folder is not None and self.ranks.first:
                self.folder.model.unlink(missing_ok=True)  # it holds the weights from before
            return
        if self.folder is not None and self.ranks.first:
            self.folder.write_config(self.config())
            self.monitor.log.truncate(0)
        self._save()

    def _save(self) -> None:
        """Write a checkpoint; only a run known to be healthy makes one."""
        self._require_healthy()
        self.state.save(self.monitor.log.position())

    def _go_back(self) -> None:
        """Go back to a checkpoint after an update that must not be applied."""
        diverged = self.state.progress.iteration
        self.state.go_back()
        self._healthy_so_far.fill_(True)
        self.monitor.recovery(diverged, self.state.progress)
        self._save()  # over the one gone back to: a run killed now resumes after the recovery

    def _finish(self) -> None:
        """Leave averaged weights in the model, the last checkpoint on disk, samples beside it.

        If the model is unchanged, `config.json` gets the reason, and no samples are drawn.
        """
        if self.state.guard is not None:
            self.state.averaged_model.load_state_dict(self.state.guard.accepted)
        self._save()
        progress, kept = self.state.progress, self.state.kept_epoch
        self.monitor.record(
            "end",
            iteration=progress.iteration,
            seconds=progress.seconds,
            recoveries=progress.recoveries,
            kept_epoch=kept,
        )
        if self.state.guard is not None and 0 < kept < progress.epoch:
            self.monitor.bar.message(self.state.guard.summary)
        self.state.optimizer.zero_grad(set_to_none=True)
        self.model.load_state_dict(self.state.averaged_model.state_dict())
        self.model.eval()
        if self.folder is None or not self.ranks.first:
            return
        save(self.model, self.folder.model)  # first, for samples may take minutes
        if why := self.state.why_as_given:
            self.folder.write_config(self.folder.read_config() | {"as_given": why})
            self.folder.samples.unlink(missing_ok=True)
        elif self.context.trains_density:
            self.monitor.bar.stage("drawing samples")
            with spared(self.folder.samples):
                draw_samples(self.model, self.seed, self.folder.samples, self.monitor.bar)

    def _heed_stop(self) -> None:
        if not self.ranks.any(self._stop.is_set(), self.device):
            return
        self._save()
        saved = "nothing was saved"
        if self.folder is not None:
            saved = f"the state is in {self.folder.path}, for --resume or fit(..., resume=True)"
        raise TrainingInterrupted(
            f"stopped at update {self.state.progress.iteration} of {self.total_iterations}; "
            f"{saved}"
        )
