"""The loop: fit -> fit_epoch -> train_step, with snapshots, recovery from divergence and exact resumption."""

from __future__ import annotations

import contextlib
import itertools
import math
import platform
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from jem.data.augment import augment
from jem.data.batches import BatchStream, as_part
from jem.errors import InputError, RunFolderError, TrainingInterrupted
from jem.generation import sample
from jem.model import JEM, evaluation_mode, joint_energy
from jem.objectives.classification import balanced_class_weights, cross_entropy
from jem.randomness import derive_seed, named_generator
from jem.sampling.buffer import ReplayBuffer
from jem.sampling.negatives import Negatives
from jem.sampling.settings import ChainSettings
from jem.sampling.starts import (
    ClassGaussianStart,
    ContrastStart,
    MixtureStart,
    Start,
    UniformStart,
)
from jem.training.checkpoint import Checkpoints
from jem.training.guard import give_up, is_healthy, mask_gradients
from jem.training.log import MetricsLog, ProgressDisplay
from jem.training.recipe import Recipe, recipe_from
from jem.training.run_folder import RunFolder, model_settings, restore_settings
from jem.training.steps import STEPS, Batch, Method, Outcome

FLAG_EVERY = 50
"""Iterations between reads of the health flag on an accelerator, where each read waits for the device."""

Data = Any  # a torch Dataset of (x, y), or a pair of tensors
Metrics = dict[str, Any]


@dataclass
class Position:
    """Where a run is: everything about it that is neither a tensor nor a setting."""

    iteration: int = 0
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
        recoveries: Times that training diverged and went back to a snapshot.
        epochs: Metrics of each epoch trained by this call.
    """

    seconds: float
    iterations: int
    recoveries: int
    epochs: list[Metrics] = field(default_factory=list)


class _Diverged(Exception):  # noqa: N818
    """A step that must not be applied; the loop goes back to a snapshot."""


class Trainer:
    """Train a JEM on any data.

    Args:
        model: The model. After `fit` it holds the averaged weights and is in evaluation mode.
        recipe: A recipe or the name of one.
        run_dir: Where checkpoints, metrics and pictures go; None writes nothing.
        seed: The one seed of everything random. On the CPU the same seed, machine, versions and
            thread count give the same bits, also after being killed and resumed.
        device: `"cpu"`, `"cuda"`, `"mps"`, or `"auto"` for the best there is.
        progress: Show a progress bar on the standard error stream.
        describe: Plain values to keep in `config.json`, such as where the data came from.

    Raises:
        InputError: If the recipe or device is unknown.

    Example:
        >>> x = torch.randn(64, 2).clamp(-1, 1)
        >>> y = (x[:, 0] > 0).long()
        >>> import jem, dataclasses
        >>> recipe = dataclasses.replace(jem.RECIPES["fast"], epochs=1, buffer_size=64)
        >>> trainer = Trainer(JEM(networks.mlp((2,), 2)), recipe)
        >>> trainer.fit((x, y)).iterations
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
        describe: dict[str, Any] | None = None,
    ) -> None:
        self.recipe = recipe_from(recipe)
        self.device = choose_device(device)
        self.model = model.to(self.device)
        self.folder = None if run_dir is None else RunFolder(run_dir)
        self.seed = seed
        self.progress = progress
        self.describe = describe or {}

    def fit(
        self,
        train: Data,
        valid: Data | None = None,
        *,
        resume: bool = False,
        on_epoch: Callable[[Metrics], None] | None = None,
    ) -> FitResult:
        """Train to the end of the recipe.

        Args:
            train: Training examples: a Dataset of (x, y), or tensors x (N, *shape), float, in the
                network's units, and class indices y (N,).
            valid: Validation examples, looked at after each epoch.
            resume: Go on from the last checkpoint of the run folder.
            on_epoch: Called with the metrics of each epoch.

        Returns:
            What was done; the model holds the averaged weights.

        Raises:
            InputError: If the data do not fit the model.
            RunFolderError: If the folder already holds a run (without `resume`), is in use or
                cannot be written.
            TrainingDivergedError: If training diverges more often than the recipe allows.
            TrainingInterrupted: On SIGINT or SIGTERM, after the state was saved.
        """
        train, valid = as_part(train), None if valid is None else as_part(valid)
        with ExitStack() as stack:
            if self.folder is not None:
                self._claim_folder(resume)
                stack.enter_context(self.folder.locked())
            stack.enter_context(_isolated_randomness(self.device))
            self._prepare(train)
            self._begin(resume)
            self._stop = stack.enter_context(_stop_signals())
            title = f"{self.recipe.step}"
            self.display = stack.enter_context(
                ProgressDisplay(self.total_iterations, title, self.progress)
            )
            epochs = self._run(valid, on_epoch)
            self._finish()
        position = self.position
        return FitResult(position.seconds, position.iteration, position.recoveries, epochs)

    # -- set-up
    # ---------------------------------------------------------------------------------------------------

    def _claim_folder(self, resume: bool) -> None:
        assert self.folder is not None
        if self.folder.holds_run() and not resume:
            raise RunFolderError(
                f"{self.folder.path} already holds a run; choose another folder, or go on with it (resume)"
            )
        if resume and not self.folder.holds_run():
            raise RunFolderError(f"{self.folder.path} holds no run to resume")
        self.folder.create()

    def _prepare(self, train: Any) -> None:  # noqa: ANN401
        """Everything that follows from model, recipe, data and seed alone: a resumed run makes it again."""
        recipe, model = self.recipe, self.model
        torch.manual_seed(
            derive_seed(self.seed, "network noise") % 2**32
        )  # dropout draws from here
        x, labels = _examples(train)
        num_classes = self._check_network(x[:1], labels)
        if model.input_shape is None:
            model.input_shape = tuple(x.shape[1:])
        if model.classes is None:
            model.classes = tuple(str(k) for k in range(num_classes))
        if model.domain is None:
            model.domain = domain_of(x)

        self.labelled = BatchStream(
            train, recipe.batch_size, seed=self.seed, name="labelled", device=self.device
        )
        self.generative = (
            BatchStream(
                train, recipe.batch_size, seed=self.seed, name="generative", device=self.device
            )
            if recipe.streams == "separate"
            else None
        )
        self.steps_per_epoch = len(self.labelled)
        self.num_epochs = recipe.num_epochs(self.steps_per_epoch)
        self.total_iterations = self.steps_per_epoch * self.num_epochs

        self.optimizer = make_optimizer(recipe, model)
        self.average = AveragedModel(
            model, multi_avg_fn=_moving_average(recipe.average), use_buffers=True
        )
        self.augmentation = named_generator(self.seed, "augmentation", device=self.device)
        class_weight = (
            balanced_class_weights(labels, num_classes).to(self.device)
            if recipe.class_weight == "balanced"
            else None
        )
        negatives = self._make_negatives(x, labels, num_classes) if recipe.generative else None
        self.method = Method(recipe, negatives, class_weight)
        self.position = Position()
        self._clean = torch.ones((), dtype=torch.bool, device=self.device)

    def _check_network(self, x: Tensor, labels: Tensor) -> int:
        """Number of classes, after one forward in evaluation mode."""
        try:
            with torch.no_grad(), evaluation_mode(self.model):
                num_classes = self.model.logits(x.to(self.device)).shape[1]
        except RuntimeError as error:
            raise InputError(
                f"the network does not take inputs of shape {tuple(x.shape[1:])}: {str(error).splitlines()[0]}"
            ) from error
        if num_classes > 1 and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            raise InputError(
                f"labels must lie in 0..{num_classes - 1} for a network of {num_classes} outputs, "
                f"but got {int(labels.min())}..{int(labels.max())}"
            )
        return num_classes

    def _make_negatives(self, x: Tensor, labels: Tensor, num_classes: int) -> Negatives:
        recipe, model = self.recipe, self.model
        assert model.domain is not None
        labels = labels if num_classes > 1 else torch.zeros_like(labels)
        frequencies = torch.bincount(labels, minlength=num_classes).float() / len(labels)
        start = make_start(recipe.start, model.domain, x, labels, num_classes)
        model.chain = ChainSettings(
            start=start,
            num_steps=recipe.sample_steps,
            step_size=recipe.step_size,
            noise_std=recipe.noise_std,
            grad_clamp=recipe.grad_clamp,
            max_rms=recipe.max_rms,
            conditional=recipe.conditional,
            class_frequencies=frequencies,
        )
        generator = named_generator(self.seed, "chains", 0, device=self.device)
        buffer = ReplayBuffer.from_start(
            start,
            recipe.buffer_size,
            generator=generator,
            class_frequencies=frequencies if recipe.conditional else None,
        )
        return Negatives(
            buffer=buffer,
            start=start,
            count=recipe.num_chains,
            restart_prob=recipe.restart_prob,
            replacement=recipe.replacement,
            move=model.chain.move,
            bounds=model.bounds(self.device) if recipe.clip_chains else None,
            generator=generator,
        )

    def _begin(self, resume: bool) -> None:
        self.checkpoints = Checkpoints(
            None if self.folder is None else self.folder.checkpoints, self.recipe.snapshot_every
        )
        self.log = MetricsLog(None if self.folder is None else self.folder.metrics)
        if resume and self.checkpoints.iterations():
            self._restore(self.checkpoints.load_latest()[1])
            self.log.truncate(self.position.log_position)
            return
        if self.folder is not None:
            self.log.truncate(0)
            self.folder.write_config(self._config())
        self._snapshot()

    def _config(self) -> dict[str, Any]:
        model = self.model
        return {
            **self.describe,
            "recipe": asdict(self.recipe),
            "network": network_spec(model.network, self.describe),
            "seed": self.seed,
            "input_shape": model.input_shape,
            "classes": model.classes,
            "epochs": self.num_epochs,
            "iterations": self.total_iterations,
            "versions": _versions(),
            "device": str(self.device),
        }

    # -- the ladder
    # -----------------------------------------------------------------------------------------------

    def _run(self, valid: Any, on_epoch: Callable[[Metrics], None] | None) -> list[Metrics]:  # noqa: ANN401
        epochs: dict[int, Metrics] = {}
        self._clock = time.perf_counter()
        while self.position.iteration < self.total_iterations:
            epoch, done = divmod(self.position.iteration, self.steps_per_epoch)
            try:
                self.fit_epoch(epoch, done)
                self._require_clean()
            except _Diverged:
                self._recover()
                continue
            metrics = self._after_epoch(epoch + 1, valid)
            epochs[epoch] = metrics
            if on_epoch is not None:
                on_epoch(metrics)
        return [epochs[epoch] for epoch in sorted(epochs)]

    def fit_epoch(self, epoch: int, start: int = 0) -> None:
        """Train on one pass over the data.

        Args:
            epoch: Which one, from 0: it decides the order of the examples.
            start: Batches of it that were already seen.
        """
        labelled = self.labelled.epoch(epoch, start)
        generative = self.generative.epoch(epoch, start) if self.generative is not None else None
        self.model.train()
        for x, labels in labelled:
            x_data = next(generative)[0] if generative is not None else None
            self.train_step(self._batch(x, labels, x_data))
            if self.position.iteration % self.recipe.snapshot_every == 0:
                self._snapshot()
            if self._stop.is_set():
                self._interrupt()

    def train_step(self, batch: Batch) -> Outcome:
        """Make one update of the parameters and move the chains, or refuse both.

        Args:
            batch: The data.

        Returns:
            What the step computed.
        """
        recipe, model, position = self.recipe, self.model, self.position
        progress = position.iteration / self.total_iterations
        rate = learning_rate(recipe, position.iteration, self.total_iterations)
        rate *= 0.5**position.recoveries
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        weight = recipe.generative_weight
        if recipe.generative_ramp:
            weight *= min(1.0, progress / recipe.generative_ramp)

        self.optimizer.zero_grad(set_to_none=True)
        outcome = STEPS[recipe.step](model, batch, self.method, weight, position.recoveries)
        grad_norm = clip_gradients(model, recipe.grad_clip)
        healthy = is_healthy(outcome, grad_norm, recipe.max_gap)
        self._apply(outcome, healthy)

        if position.iteration % recipe.log_every == 0:
            self._log_step(outcome, batch, rate, weight, grad_norm)
        position.iteration += 1
        return outcome

    def _apply(self, outcome: Outcome, healthy: Tensor) -> None:
        moved, negatives = outcome.moved, self.method.negatives
        if self.device.type == "cpu":
            if not healthy:
                raise _Diverged
        else:
            mask_gradients(self.model, healthy)
            self._clean &= healthy
            if self.position.iteration % FLAG_EVERY == 0:
                self._require_clean()
        self.optimizer.step()
        self.average.update_parameters(self.model)
        if moved is not None and negatives is not None:
            x = (
                moved.x
                if self.device.type == "cpu"
                else torch.where(healthy, moved.x, moved.draw.x)
            )
            negatives.buffer.commit(moved.draw, x, moves=moved.moves)

    def _require_clean(self) -> None:
        if not self._clean:
            raise _Diverged

    def _batch(self, x: Tensor, labels: Tensor, x_data: Tensor | None) -> Batch:
        recipe, generator = self.recipe, self.augmentation
        x = augment(
            x,
            shift=recipe.shift,
            flip=recipe.flip,
            noise_std=recipe.input_noise,
            generator=generator,
        )
        if x_data is None:
            return Batch(x, labels, x)
        x_data = augment(
            x_data,
            shift=recipe.generative_shift,
            flip=recipe.generative_flip,
            noise_std=recipe.generative_noise,
            generator=generator,
        )
        return Batch(x, labels, x_data)

    # -- snapshots and recovery
    # -----------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        negatives = self.method.negatives
        generators = {
            "augmentation": self.augmentation.get_state(),
            "network": torch.get_rng_state(),
        }
        if negatives is not None:
            generators["chains"] = negatives.generator.get_state()
        if self.device.type == "cuda":
            generators["network cuda"] = torch.cuda.get_rng_state(self.device)
        self._tick()
        self.position.log_position = self.log.position()
        return {
            "modules": {
                "model": self.model.state_dict(),
                "average": self.average.module.state_dict(),
            },
            "averaged": int(self.average.n_averaged),
            "optimizers": {"parameters": self.optimizer.state_dict()},
            "chains": None if negatives is None else negatives.buffer.state_dict(),
            "generators": generators,
            "progress": asdict(self.position),
            "settings": model_settings(self.model),
            "network": network_spec(self.model.network, self.describe),
            "recipe": asdict(self.recipe),
            "seed": self.seed,
            "versions": _versions(),
        }

    def _snapshot(self) -> None:
        self._require_clean()
        self.checkpoints.save(self.position.iteration, self._state())

    def _restore(self, state: dict[str, Any]) -> None:
        if state["recipe"] != asdict(self.recipe) or state["seed"] != self.seed:
            changed = [k for k, v in asdict(self.recipe).items() if state["recipe"].get(k) != v]
            raise RunFolderError(
                "a run is resumed with the settings it was started with; "
                f"these differ: {', '.join(changed) or 'seed'}"
            )
        self.model.load_state_dict(state["modules"]["model"])
        self.average.module.load_state_dict(state["modules"]["average"])
        self.average.n_averaged.fill_(state["averaged"])
        self.optimizer.load_state_dict(state["optimizers"]["parameters"])
        restore_settings(self.model, state["settings"])
        generators = state["generators"]
        self.augmentation.set_state(generators["augmentation"])
        torch.set_rng_state(generators["network"])
        if "network cuda" in generators and self.device.type == "cuda":
            torch.cuda.set_rng_state(generators["network cuda"], self.device)
        if self.method.negatives is not None:
            self.method.negatives.buffer.load_state_dict(state["chains"])
            self.method.negatives.generator.set_state(generators["chains"])
        self.position = Position(**state["progress"])
        self._clock = time.perf_counter()

    def _recover(self) -> None:
        """Go back to a snapshot with another seed for the chains, half the learning rate and one more Langevin move."""
        diverged = self.position
        recoveries = diverged.recoveries + 1
        if recoveries > self.recipe.max_recoveries:
            self.log.write("gave_up", iteration=diverged.iteration, recoveries=diverged.recoveries)
            raise give_up(self.recipe, diverged.iteration, diverged.recoveries)
        target = self._rollback_target()
        self._restore(self.checkpoints.load(target))
        self._clean.fill_(True)
        self.position.recoveries = recoveries
        self.position.rolled_back_to = target
        self.position.seconds = diverged.seconds
        if self.method.negatives is not None:
            seed = derive_seed(self.seed, "chains", recoveries)
            self.method.negatives.generator.manual_seed(seed)
        self.log.write(
            "recovery", iteration=diverged.iteration, back_to=target, recoveries=recoveries
        )
        self.display.message(
            f"diverged at iteration {diverged.iteration}: back to {target}, learning rate x "
            f"{0.5**recoveries:g} (recovery {recoveries} of at most {self.recipe.max_recoveries})"
        )
        self._snapshot()  # over the one gone back to: a run killed now resumes after the recovery

    def _rollback_target(self) -> int:
        """Newest snapshot at a fixed iteration; the one before if going back to it did not help."""
        *older, target = self.checkpoints.fixed_iterations()
        if target == self.position.rolled_back_to and older:
            target = older[-1]
        for iteration in self.checkpoints.iterations():
            if iteration > target:
                self.checkpoints.drop(iteration)
        return target

    def _interrupt(self) -> None:
        self._snapshot()
        where = (
            "nothing was saved" if self.folder is None else f"the state is in {self.folder.path}"
        )
        raise TrainingInterrupted(
            f"stopped at iteration {self.position.iteration} of {self.total_iterations}; {where}; "
            "go on with --resume"
        )

    def seconds_per_iteration(self, train: Data, iterations: int = 8) -> float:
        """Time a few iterations, for an estimate of a run; the model is trained by them, nothing is written.

        Args:
            train: Training examples, as `fit` takes them.
            iterations: How many are timed; as many go before them to warm up.

        Returns:
            Seconds of one iteration, the median.
        """
        with _isolated_randomness(self.device):
            self._prepare(as_part(train))
            self.log, self.display = MetricsLog(None), ProgressDisplay(1, "", enabled=False)
            self.model.train()
            times = []
            batches = itertools.cycle(self.labelled.epoch(0))
            for _ in range(2 * iterations):
                x, labels = next(batches)
                start = time.perf_counter()
                with contextlib.suppress(_Diverged):  # a step that is refused costs as much
                    self.train_step(self._batch(x, labels, x if self.generative else None))
                times.append(time.perf_counter() - start)
        return statistics.median(times[iterations:])

    # -- what a person sees
    # ---------------------------------------------------------------------------------------

    def _tick(self) -> None:
        now = time.perf_counter()
        self.position.seconds += now - getattr(self, "_clock", now)
        self._clock = now

    @torch.no_grad()
    def _log_step(
        self, outcome: Outcome, batch: Batch, rate: float, weight: float, grad_norm: Tensor
    ) -> None:
        seconds, iteration = self.position.seconds, self.position.iteration
        self._tick()
        elapsed = self.position.seconds - seconds
        values: Metrics = {
            "loss": float(outcome.loss),
            "cross_entropy": float(outcome.classification),
            "learning_rate": rate,
            "gradient_norm": float(grad_norm),
            "images_per_second": self.recipe.log_every * len(batch.x) / max(elapsed, 1e-9),
        }
        figures = {}
        if outcome.logits.shape[1] > 1:
            accuracy = (outcome.logits.argmax(dim=1) == batch.labels).float().mean()
            values["accuracy"] = figures["accuracy"] = float(accuracy)
        if outcome.moved is not None and outcome.terms is not None:
            values |= self._chain_metrics(outcome, weight)
            figures["gap"] = values["gap"]
        figures["images/s"] = values["images_per_second"]
        self.log.write("step", iteration=iteration, seconds=self.position.seconds, **values)
        self.display.update(iteration, figures)

    def _chain_metrics(self, outcome: Outcome, weight: float) -> Metrics:
        terms, moved = outcome.terms, outcome.moved
        assert terms is not None and moved is not None and outcome.energy_data is not None
        assert outcome.energy_negative is not None and self.method.negatives is not None
        bounds = self.model.bounds(moved.x.device)
        at_bounds = 0.0
        if bounds is not None:
            low, high = bounds
            at_bounds = float(((moved.x <= low) | (moved.x >= high)).float().mean())
        return {
            "generative_weight": weight,
            "contrast": float(terms.contrast),
            "regulariser": float(terms.regulariser),
            "energy_data": float(outcome.energy_data.mean()),
            "energy_data_std": float(outcome.energy_data.std(correction=0)),
            "energy_chains": float(outcome.energy_negative.mean()),
            "energy_chains_std": float(outcome.energy_negative.std(correction=0)),
            "gap": float(terms.gap),
            "move_rms": float((moved.x - moved.draw.x).square().mean().sqrt()),
            "share_at_bounds": at_bounds,
            "chain_age": float(self.method.negatives.buffer.ages.float().mean()),
        }

    def _after_epoch(self, epoch: int, valid: Any) -> Metrics:  # noqa: ANN401
        self._tick()
        metrics: Metrics = {
            "epoch": epoch,
            "iteration": self.position.iteration,
            "seconds": self.position.seconds,
            "recoveries": self.position.recoveries,
        }
        if valid is not None:
            metrics |= validate(
                self.average.module, valid, self.recipe.batch_size * 4, self.device
            )
        self.log.write("epoch", **metrics)
        self.display.epoch(epoch, self.num_epochs, metrics)
        if epoch % max(1, self.num_epochs // 10) == 0:
            self._draw_chains()
        return metrics

    def _draw_chains(self) -> None:
        """Show chains of the buffer while training runs, one row a class where they have one."""
        if self.folder is None or self.method.negatives is None:
            return
        buffer = self.method.negatives.buffer
        order = (
            slice(None) if buffer.labels is None else torch.linspace(0, len(buffer) - 1, 64).long()
        )
        self._picture(buffer.chains[order][:64], "persistent chains", [])

    def _draw_samples(self) -> None:
        """Show fresh samples of the trained model, one row a class."""
        classes = self.model.classes or ("",)
        rows = min(len(classes), 10)
        labels = torch.arange(rows).repeat_interleave(8)
        self._picture(
            sample(self.model, labels, seed=self.seed), "fresh samples by class", classes
        )

    def _picture(self, x: Tensor, title: str, row_names: Sequence[str]) -> None:
        from jem.plotting import inputs_figure, save_figure

        assert self.folder is not None
        figure = inputs_figure(x, self.model.bounds("cpu"), row_names=row_names, title=title)
        save_figure(figure, self.folder.samples)

    def _finish(self) -> None:
        """Leave the averaged weights in the model, the last checkpoint on disk and fresh samples beside it."""
        self._snapshot()
        self.log.write(
            "end",
            iteration=self.position.iteration,
            seconds=self.position.seconds,
            recoveries=self.position.recoveries,
        )
        self.optimizer.zero_grad(set_to_none=True)
        self.model.load_state_dict(self.average.module.state_dict())
        self.model.eval()
        if self.folder is not None and self.method.negatives is not None:
            self._draw_samples()


# -- pieces that need no state
# ----------------------------------------------------------------------------------------


def learning_rate(recipe: Recipe, iteration: int, total: int) -> float:
    """Learning rate of an iteration: linear warm-up from zero, then the recipe's schedule.

    Args:
        recipe: The recipe.
        iteration: From 0; with a warm-up of W iterations the rate is multiplied by min(1,
            iteration / W).
        total: Iterations of the run.

    Returns:
        The rate, >= 0.

    Example:
        >>> recipe = Recipe(learning_rate=1.0, warmup=0.1, schedule="constant")
        >>> [learning_rate(recipe, i, 100) for i in (0, 5, 50)]
        [0.0, 0.5, 1.0]
    """
    warmup = round(recipe.warmup * total)
    progress = iteration / max(total, 1)
    scale = min(1.0, iteration / warmup) if warmup else 1.0
    if recipe.schedule == "cosine":
        scale *= (1 + math.cos(math.pi * progress)) / 2
    elif recipe.schedule == "step":
        scale *= 0.3 ** ((progress >= 0.8) + (progress >= 0.9))
    return recipe.learning_rate * scale


def make_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """Optimiser of a recipe over all parameters of a model."""
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), rate, recipe.momentum, weight_decay=decay)
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(model.parameters(), rate, betas=(recipe.momentum, 0.999), weight_decay=decay)


def clip_gradients(model: nn.Module, max_norm: float | None) -> Tensor:
    """Clip the gradient of all parameters to a norm, and return the norm it had, a scalar."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if max_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, norm)
    return norm


def make_start(
    kind: str, domain: tuple[Tensor, Tensor], x: Tensor, labels: Tensor, num_classes: int
) -> Start:
    """Start of a recipe, fitted to training data where it needs any.

    Args:
        kind: `Recipe.start`.
        domain: Bounds of the inputs.
        x: Training inputs, shape (N, *shape).
        labels: Class indices, shape (N,).
        num_classes: K.
    """
    low, high = domain
    shape = tuple(x.shape[1:])
    if kind == "uniform":
        return UniformStart(low, high, shape)
    if kind == "contrast":
        return ContrastStart(low, high, shape)
    gaussian = ClassGaussianStart.fit(x, labels, num_classes, bounds=domain)
    if kind == "gaussian":
        return gaussian
    parts = [UniformStart(low, high, shape), ContrastStart(low, high, shape), gaussian]
    return MixtureStart(parts, [1.0, 1.0, 1.0])


def domain_of(x: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds of inputs: [-1, 1] for images that lie in it, else each component's range widened by a tenth.

    Args:
        x: Training inputs, shape (N, *shape).

    Returns:
        (low, high), scalars for images, of one input's shape otherwise.
    """
    if x.ndim == 4:
        low, high = x.min(), x.max()
        if low >= -1 and high <= 1:
            return torch.tensor(-1.0), torch.tensor(1.0)
    else:
        low, high = x.amin(dim=0), x.amax(dim=0)
    width = torch.where(high > low, high - low, 10.0)
    return low - 0.1 * width, high + 0.1 * width


@torch.no_grad()
def validate(model: JEM, examples: Any, batch_size: int, device: torch.device) -> Metrics:  # noqa: ANN401
    """Score held-out examples in evaluation mode.

    Args:
        model: The model; its mode is restored.
        examples: A Dataset of (x, y).
        batch_size: Examples at a time.
        device: Where the model is.

    Returns:
        `valid_accuracy` and `valid_nll` (for K > 1) and `valid_energy`, the mean of E(x), in nats.
    """
    stream = BatchStream(
        examples, batch_size, seed=0, name="valid", device=device, drop_last=False
    )
    totals = torch.zeros(3, dtype=torch.float64)
    count, num_classes = 0, 1
    with evaluation_mode(model):
        for x, labels in stream.epoch(0):
            logits = model.logits(x)
            num_classes = logits.shape[1]
            right = (logits.argmax(dim=1) == labels).sum()
            nll = cross_entropy(logits, labels) * len(x)
            totals += torch.stack([right, nll, joint_energy(logits).sum()]).cpu()
            count += len(x)
    accuracy, nll, energy = (totals / count).tolist()
    metrics = {"valid_energy": energy}
    if num_classes > 1:
        metrics |= {"valid_accuracy": accuracy, "valid_nll": nll}
    return metrics


def choose_device(name: str) -> torch.device:
    """Device by name; `"auto"` is the accelerator that torch finds, else the CPU.

    Raises:
        InputError: If it is unknown or not there.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if found is None else found
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {name!r} cannot be used: {reason}") from error
    return device


def network_spec(network: nn.Module, describe: dict[str, Any]) -> dict[str, Any] | str | None:
    """How a network can be built again: its own spec, a `module:factory` it was named by, or None."""
    spec = getattr(network, "spec", None)
    if isinstance(spec, dict):
        return spec
    named = describe.get("network")
    return named if isinstance(named, str) else None


def _moving_average(decay: float) -> Callable[..., None]:
    """Exponential average whose first updates weigh more: decay min(d, (1 + n) / (10 + n)) at update n."""

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], num_averaged: Tensor | int) -> None:
        n = int(num_averaged)
        now = min(decay, (1 + n) / (10 + n))
        for mean, value in zip(averaged, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - now)
            else:
                mean.copy_(value)

    return update


def _examples(train: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    """Inputs and labels to fit starts and class frequencies on: all in memory, or the first 5,000 of a stream."""
    if isinstance(getattr(train, "x", None), Tensor):
        return train.x, train.y
    pairs = [train[i] for i in range(min(len(train), 5000))]
    return torch.stack([x for x, _ in pairs]), torch.tensor([int(y) for _, y in pairs])


def _versions() -> dict[str, str | int]:
    from jem import __version__

    return {
        "jem": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }


@contextmanager
def _isolated_randomness(device: torch.device) -> Iterator[None]:
    """Leave torch's global generator as it was, and use deterministic algorithms on the CPU meanwhile."""
    devices = [device] if device.type == "cuda" else []
    deterministic = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    with torch.random.fork_rng(devices=devices):
        if device.type == "cpu":
            torch.use_deterministic_algorithms(True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic)
            torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Turn SIGINT and SIGTERM into a flag; outside the main thread they keep their meaning."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in signals}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
