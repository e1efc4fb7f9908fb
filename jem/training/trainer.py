"""The loop: fit -> fit_epoch -> train_step, with snapshots, recovery and exact resumption."""

from __future__ import annotations

import contextlib
import itertools
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jem.data.augment import augment
from jem.data.batches import BatchStream, as_part
from jem.errors import InputError, RunFolderError, TrainingInterrupted
from jem.model import JEM, evaluation_mode
from jem.objectives.classification import balanced_class_weights
from jem.randomness import derive_seed, named_generator
from jem.sampling.buffer import ReplayBuffer
from jem.sampling.negatives import Negatives
from jem.sampling.settings import ChainSettings
from jem.training.checkpoint import Checkpoints
from jem.training.guard import give_up, is_healthy, mask_gradients
from jem.training.log import MetricsLog, ProgressDisplay
from jem.training.optimisation import clip_gradients, learning_rate
from jem.training.problem import choose_device, domain_of, examples_of, make_start
from jem.training.process import isolated_randomness, stop_signals
from jem.training.recipe import Recipe, recipe_from
from jem.training.run_folder import RunFolder
from jem.training.state import RunState
from jem.training.steps import STEPS, Batch, Method, Outcome
from jem.training.validation import validate
from jem.training.watch import draw_chains, draw_samples, step_metrics

FLAG_EVERY = 50
"""Iterations between reads of the health flag on an accelerator, where a read waits for it."""

Data = Any  # a torch Dataset of (x, y), or a pair of tensors
Metrics = dict[str, Any]


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
        describe: Plain values to keep in `config.json`, such as where the data came from; under
            `"network"` the `module:factory` of a network of your own, so that `jem.load` finds it.

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
        on_epoch: Callable[[Metrics], bool | None] | None = None,
    ) -> FitResult:
        """Train to the end of the recipe.

        Args:
            train: Training examples: a Dataset of (x, y), or tensors x (N, *shape), float, in the
                network's units, and class indices y (N,).
            valid: Validation examples, looked at after each epoch.
            resume: Go on from the last checkpoint of the run folder.
            on_epoch: Called with the metrics of each epoch; returning True ends training there, as
                if it had been the last.

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
        with contextlib.ExitStack() as stack:
            if self.folder is not None:
                stack.enter_context(self.folder.claimed(resume))
            stack.enter_context(isolated_randomness(self.device))
            self._prepare(train)
            self._begin(resume)
            self._stop = stack.enter_context(stop_signals())
            self._display = stack.enter_context(
                ProgressDisplay(self.total_iterations, self.recipe.step, self.progress)
            )
            epochs = self._run(valid, on_epoch)
            self._finish()
        position = self.state.position
        return FitResult(position.seconds, position.iteration, position.recoveries, epochs)

    # -- the ladder -------------------------------------------------------------------------------

    def _run(
        self, valid: Data | None, on_epoch: Callable[[Metrics], bool | None] | None
    ) -> list[Metrics]:
        epochs: dict[int, Metrics] = {}
        while self.state.position.iteration < self.total_iterations:
            if self.state.position.stopped:
                break
            epoch, done = divmod(self.state.position.iteration, self.steps_per_epoch)
            try:
                self.fit_epoch(epoch, done)
                self._require_clean()
            except _Diverged:
                self._recover()
                continue
            epochs[epoch] = self._after_epoch(epoch + 1, valid)
            if on_epoch is not None and on_epoch(epochs[epoch]) is True:
                self.state.position.stopped = True
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
            batch = self._batch(x, labels, x_data)
            self._lap("data")
            self.train_step(batch)
            if self.state.position.iteration % self.recipe.snapshot_every == 0:
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
        recipe, position = self.recipe, self.state.position
        rate = learning_rate(recipe, position.iteration, self.total_iterations)
        rate *= 0.5**position.recoveries
        for group in self.state.optimizer.param_groups:
            group["lr"] = rate
        weight = recipe.generative_weight
        if recipe.generative_ramp:
            ramp = recipe.generative_ramp * self.total_iterations
            weight *= min(1.0, position.iteration / ramp)

        self.state.optimizer.zero_grad(set_to_none=True)
        step = STEPS[recipe.step]
        outcome = step(self.model, batch, self.method, weight, position.recoveries)
        self._lap("update")
        if outcome.moved is not None:
            self._phases["update"] -= outcome.moved.seconds
            self._phases["chains"] += outcome.moved.seconds
        grad_norm = clip_gradients(self.model, recipe.grad_clip)
        self._apply(outcome, is_healthy(outcome, grad_norm, recipe.max_gap))
        self._lap("update")

        if position.iteration % recipe.log_every == 0:
            self._log_step(
                outcome, batch, learning_rate=rate, generative_weight=weight,
                gradient_norm=float(grad_norm),
            )  # fmt: skip
        position.iteration += 1
        return outcome

    def _apply(self, outcome: Outcome, healthy: Tensor) -> None:
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
            self.state.negatives.buffer.commit(moved.draw, moved.x, moves=moved.moves)

    def _require_clean(self) -> None:
        if not self._clean:
            raise _Diverged

    def _batch(self, x: Tensor, labels: Tensor, x_data: Tensor | None) -> Batch:
        recipe, generator = self.recipe, self.state.augmentation
        x = augment(
            x,
            shift=recipe.shift,
            flip=recipe.flip,
            noise_std=recipe.input_noise or 0.0,
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

    # -- set-up -----------------------------------------------------------------------------------

    def _prepare(self, train: Data) -> None:
        """Make what follows from model, recipe, data and seed; a resumed run makes it again."""
        model = self.model
        torch.manual_seed(derive_seed(self.seed, "dropout") % 2**32)
        x, labels = examples_of(train)
        self.recipe = recipe = self.recipe.for_inputs(x.shape[1:])
        num_classes = self._check_network(x[:1], labels)
        if model.input_shape is None:
            model.input_shape = tuple(x.shape[1:])
        if model.classes is None:
            model.classes = tuple(str(k) for k in range(num_classes))
        if model.domain is None:
            model.domain = domain_of(x)

        def stream(name: str) -> BatchStream:
            return BatchStream(
                train, recipe.batch_size, seed=self.seed, name=name, device=self.device
            )

        self.labelled = stream("labelled")
        self.generative = stream("generative") if recipe.streams == "separate" else None
        self.steps_per_epoch = len(self.labelled)
        self.num_epochs = recipe.num_epochs(self.steps_per_epoch)
        self.total_iterations = self.steps_per_epoch * self.num_epochs

        class_weight = None
        if recipe.class_weight == "balanced":
            class_weight = balanced_class_weights(labels, num_classes).to(self.device)
        negatives = self._make_negatives(x, labels, num_classes) if recipe.generative else None
        self.method = Method(recipe, negatives, class_weight)
        self.state = RunState(model, recipe, negatives, self.seed)
        self._clean = torch.ones((), dtype=torch.bool, device=self.device)
        self._start_clock()

    def _check_network(self, x: Tensor, labels: Tensor) -> int:
        """Number of classes, after one forward in evaluation mode."""
        try:
            with torch.no_grad(), evaluation_mode(self.model):
                num_classes = self.model.logits(x.to(self.device)).shape[1]
        except RuntimeError as error:
            raise InputError(
                f"the network does not take inputs of shape {tuple(x.shape[1:])}: "
                f"{str(error).splitlines()[0]}"
            ) from error
        low, high = int(labels.min()), int(labels.max())
        if num_classes > 1 and not 0 <= low <= high < num_classes:
            raise InputError(
                f"labels must lie in 0..{num_classes - 1} for a network of {num_classes} outputs, "
                f"but got {low}..{high}"
            )
        return num_classes

    def _make_negatives(self, x: Tensor, labels: Tensor, num_classes: int) -> Negatives:
        recipe, model = self.recipe, self.model
        assert model.domain is not None, "set before chains are made"
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
        folder = self.folder
        self.checkpoints = Checkpoints(
            None if folder is None else folder.checkpoints, self.recipe.snapshot_every
        )
        self.log = MetricsLog(None if folder is None else folder.metrics)
        if resume and self.checkpoints.iterations():
            self._restore(self.checkpoints.load_latest()[1])
            self.log.truncate(self.state.position.log_position)
            return
        if folder is not None:
            self.log.truncate(0)
            folder.write_config(self._config())
        self._snapshot()

    def _config(self) -> dict[str, Any]:
        """What `config.json` says of the run, before and beside what checkpoints hold."""
        return {
            **self.describe,
            "recipe": asdict(self.recipe),
            "network": network_spec(self.model.network, self.describe),
            "seed": self.seed,
            "input_shape": self.model.input_shape,
            "classes": self.model.classes,
            "epochs": self.num_epochs,
            "iterations": self.total_iterations,
            "versions": _versions(),
            "device": str(self.device),
        }

    # -- snapshots, recovery, the end -------------------------------------------------------------

    def _snapshot(self) -> None:
        """Write a checkpoint; only a run known to be healthy makes one."""
        self._require_clean()
        self._lap("other")
        position = self.state.position
        position.log_position = self.log.position()
        state = self.state.state_dict() | {
            "network": network_spec(self.model.network, self.describe),
            "recipe": asdict(self.recipe),
            "seed": self.seed,
            "versions": _versions(),
        }
        self.checkpoints.save(position.iteration, state)

    def _restore(self, state: dict[str, Any]) -> None:
        recipe = asdict(self.recipe)
        if state["recipe"] != recipe or state["seed"] != self.seed:
            changed = [name for name in recipe if state["recipe"].get(name) != recipe[name]]
            raise RunFolderError(
                "a run is resumed with the settings it was started with; "
                f"these differ: {', '.join(changed) or 'seed'}"
            )
        self.state.load_state_dict(state)
        self._start_clock()

    def _recover(self) -> None:
        """Go back to a snapshot: other noise, half the learning rate, one more Langevin move."""
        self._lap("other")
        diverged = self.state.position
        recoveries = diverged.recoveries + 1
        if recoveries > self.recipe.max_recoveries:
            self.log.write("gave_up", iteration=diverged.iteration, recoveries=diverged.recoveries)
            raise give_up(self.recipe, diverged.iteration, diverged.recoveries)
        target = self._rollback_target()
        self._restore(self.checkpoints.load(target))
        self._clean.fill_(True)
        position = self.state.position
        position.recoveries, position.rolled_back_to = recoveries, target
        position.seconds = diverged.seconds
        if self.state.negatives is not None:
            seed = derive_seed(self.seed, "chains", recoveries)
            self.state.negatives.generator.manual_seed(seed)
        self.log.write(
            "recovery", iteration=diverged.iteration, back_to=target, recoveries=recoveries
        )
        self._display.message(
            f"diverged at iteration {diverged.iteration}: back to {target}, learning rate times "
            f"{0.5**recoveries:g} (recovery {recoveries} of at most {self.recipe.max_recoveries})"
        )
        self._snapshot()  # over the one gone back to: a run killed now resumes after the recovery

    def _rollback_target(self) -> int:
        """Newest snapshot at a fixed iteration; the one before if that did not help."""
        *older, target = self.checkpoints.fixed_iterations()
        if target == self.state.position.rolled_back_to and older:
            target = older[-1]
        for iteration in self.checkpoints.iterations():
            if iteration > target:
                self.checkpoints.drop(iteration)
        return target

    def _interrupt(self) -> None:
        self._snapshot()
        saved = "nothing was saved"
        if self.folder is not None:
            saved = f"the state is in {self.folder.path}; go on with --resume"
        raise TrainingInterrupted(
            f"stopped at iteration {self.state.position.iteration} of {self.total_iterations}; "
            f"{saved}"
        )

    def _finish(self) -> None:
        """Leave averaged weights in the model, the last checkpoint on disk, samples beside it."""
        self._snapshot()
        position = self.state.position
        self.log.write(
            "end",
            iteration=position.iteration,
            seconds=position.seconds,
            recoveries=position.recoveries,
        )
        self.state.optimizer.zero_grad(set_to_none=True)
        self.model.load_state_dict(self.state.averaged_model.state_dict())
        self.model.eval()
        if self.folder is not None and self.recipe.generative:
            draw_samples(self.model, self.seed, self.folder.samples)

    # -- what a person sees -----------------------------------------------------------------------

    def _start_clock(self) -> None:
        self._clock = time.perf_counter()
        self._phases = dict.fromkeys(("data", "chains", "update", "other"), 0.0)

    def _lap(self, phase: str) -> None:
        """Book the time since the last call under a phase, and on the run."""
        now = time.perf_counter()
        self._phases[phase] += now - self._clock
        self.state.position.seconds += now - self._clock
        self._clock = now

    def _log_step(self, outcome: Outcome, batch: Batch, **settings: float) -> None:
        figures = step_metrics(outcome, batch, self.model.bounds()) | settings
        if self.state.negatives is not None:
            figures["chain_age"] = float(self.state.negatives.buffer.ages.float().mean())
        self._lap("other")
        position, seconds = self.state.position, sum(self._phases.values())
        figures["images_per_second"] = self.recipe.log_every * len(batch.x) / max(seconds, 1e-9)
        figures |= {f"seconds_{phase}": spent for phase, spent in self._phases.items()}
        self._phases = dict.fromkeys(self._phases, 0.0)
        self.log.write("step", iteration=position.iteration, seconds=position.seconds, **figures)
        shown = ("accuracy", "gap", "images_per_second")
        self._display.update(
            position.iteration, {name: figures[name] for name in shown if name in figures}
        )

    def _after_epoch(self, epoch: int, valid: Data | None) -> Metrics:
        self._lap("other")
        position = self.state.position
        metrics: Metrics = {
            "epoch": epoch,
            "iteration": position.iteration,
            "seconds": position.seconds,
            "recoveries": position.recoveries,
        }
        if valid is not None:
            metrics |= validate(
                self.state.averaged_model, valid, 4 * self.recipe.batch_size, self.device
            )
        self.log.write("epoch", **metrics)
        self._display.epoch(epoch, self.num_epochs, metrics)
        rarely = epoch % max(1, self.num_epochs // 10) == 0
        if rarely and self.folder is not None and self.state.negatives is not None:
            buffer = self.state.negatives.buffer
            draw_chains(buffer, self.model.bounds("cpu"), self.folder.samples)
        return metrics

    def seconds_per_iteration(self, train: Data, iterations: int = 8) -> float:
        """Time a few iterations, to estimate a run; they train the model, nothing is written.

        Args:
            train: Training examples, as `fit` takes them.
            iterations: How many are timed; as many go before them to warm up.

        Returns:
            Seconds of one iteration, the median.
        """
        with isolated_randomness(self.device):
            self._prepare(as_part(train))
            self.log, self._display = MetricsLog(None), ProgressDisplay(1, "", enabled=False)
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


def network_spec(network: nn.Module, describe: dict[str, Any]) -> dict[str, Any] | str | None:
    """How a network can be built again: its spec, the `module:factory` it came from, or None."""
    spec = getattr(network, "spec", None)
    if isinstance(spec, dict):
        return spec
    named = describe.get("network")
    return named if isinstance(named, str) else None


def _versions() -> dict[str, str | int]:
    from jem import __version__

    return {
        "jem": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
