"""Whether a GPU computes what the CPU does, for `gpu_check.py`."""

from __future__ import annotations

import contextlib
import copy
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gpu_session import SHAPE, Figures, Session, noise_part, recipe_for
from torch import Tensor, nn

import jem
from jem.data.splits import DataPart
from jem.objectives import Batch, CrossEntropy
from jem.sampling.langevin import LangevinStep, run_chains
from jem.training.process import lowered
from jem.training.recipe import Recipe, ResolvedRecipe
from jem.training.setup import make_objective
from jem.training.trainer import Trainer
from jem.training.update import UpdateContext, UpdateResult, evaluate, input_gradient

TOLERANCES = {"float32": 1e-3, "bfloat16": 1e-1}
"""Largest relative error, in the Euclidean norm, against float64 on the CPU."""


def relative(value: Tensor, reference: Tensor) -> float:
    """Distance from a reference over the reference's norm."""
    return float((value.double().cpu() - reference).norm() / reference.norm())


def one_pass(
    network: nn.Module, recipe: ResolvedRecipe, device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Loss, energies and gradients of a fused pass over a fixed batch, float64 on the CPU."""
    model = jem.JEM(copy.deepcopy(network).to(device, dtype)).train()
    part = noise_part(48)
    x, chains, outliers = (p.to(device, dtype) for p in (part.x[:24] / 2, part.x[24:40], -part.x))
    chains.requires_grad_()
    context = UpdateContext(
        recipe, make_objective(recipe), CrossEntropy(), torch.Generator(device)
    )
    with lowered(recipe.precision, device):
        batch = Batch(x, part.y[:24].to(device), x, outliers[:8])
        result = evaluate(model, batch, context, 1.0, chains)
    energies = result.energies
    energies.chains.retain_grad()
    result.loss.backward()
    found = {
        "loss": result.loss[None],
        "energies": torch.cat([energies.data, energies.chains]),
        "weight gradient": torch.cat([p.grad.flatten() for p in model.parameters()]),
        "chain gradient": input_gradient(chains, energies.chains),
    }
    return {name: value.detach().double().cpu() for name, value in found.items()}


def losses_agree(session: Session) -> Figures:
    """Losses, energies and gradients in each precision against float64 on the CPU."""
    network, recipe = session.network("medium", "factored"), recipe_for("fast", 64)
    resolved, found = recipe.resolved(SHAPE, 100), {}
    reference = one_pass(network, resolved, torch.device("cpu"), torch.float64)
    allowed, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    for kind in TOLERANCES:
        lower = replace(resolved, precision=kind)
        value = one_pass(network, lower, session.device, torch.float32)
        found[kind] = {name: relative(value[name], reference[name]) for name in reference}
    torch.backends.cudnn.allow_tf32 = allowed
    passed = all(max(found[kind].values()) <= limit for kind, limit in TOLERANCES.items())
    return {"passed": passed, "tolerances": TOLERANCES, "errors": found}


def chains_agree(session: Session) -> Figures:
    """Twenty Langevin steps without noise in float64."""
    network = session.network("medium", "factored").double()

    def ends(device: torch.device) -> Tensor:
        model, x = jem.JEM(copy.deepcopy(network)).to(device).eval(), noise_part(16).x.double()
        steps = [LangevinStep(step_size=1.0, noise_std=0.0, gradient_blur=0.8)] * 20
        generator = torch.Generator(device)
        return run_chains(
            x.to(device), model.energy, steps, generator=generator, bounds=(-1.0, 1.0)
        )

    error = relative(ends(session.device), ends(torch.device("cpu")))
    return {"passed": error <= 1e-6, "tolerance": 1e-6, "difference": error}


class _Killed(Exception):  # noqa: N818
    """Stands for the end of a process."""


class Poisoned(Trainer):
    """A trainer whose eighth update sees NaN, once."""

    def update(self, batch: Batch) -> UpdateResult:
        """Make an update, of NaN if it is the one."""
        if self.state.progress.iteration == 7 and not self.state.progress.recoveries:
            batch = batch._replace(x=batch.x * math.nan, x_density=batch.x_density * math.nan)
        result = super().update(batch)
        finite = self.state.chains.buffer.chains.isfinite().all()
        self.all_finite = getattr(self, "all_finite", True) & finite
        return result


def short_recipe(epochs: int) -> Recipe:
    """Twelve updates a pass over 96 examples."""
    return recipe_for("fast", 8, epochs=epochs, sample_steps=2, checkpoint_every=10)


def short_run(session: Session, folder: Path | None, *, kill: bool, resume: bool) -> Tensor:
    """Weights and chains after three epochs, perhaps killed after the second or resumed there."""
    part = noise_part(96)
    part = DataPart(part.x[..., ::2, ::2].contiguous(), part.y)
    torch.manual_seed(0)
    model = jem.JEM(jem.networks.small_cnn((3, 16, 16), 10, 8, head="factored"))

    def killed(metrics: dict[str, Any]) -> None:
        if kill and metrics["epoch"] == 2:
            raise _Killed

    trainer = Trainer(model, short_recipe(3), run_dir=folder, device=session.device.type)
    with contextlib.suppress(_Killed):
        trainer.fit(part, part, resume=resume, on_epoch=killed)
    values = [*model.parameters(), trainer.state.chains.buffer.chains]
    return torch.cat([value.detach().flatten() for value in values]).double().cpu()


def resumed_agrees(session: Session) -> Figures:
    """A run that was killed and resumed against one that was not, and two that were not."""
    one, other = (short_run(session, None, kill=False, resume=False) for _ in range(2))
    with tempfile.TemporaryDirectory() as folder:
        short_run(session, Path(folder) / "run", kill=True, resume=False)
        resumed = short_run(session, Path(folder) / "run", kill=False, resume=True)
    noise, error = relative(other, one), relative(resumed, one)
    tolerance = max(1e-3, 3 * noise)
    found = {"passed": error <= tolerance, "tolerance": tolerance, "difference": error}
    return found | {"same_bits": torch.equal(resumed, one), "difference_of_a_repeat": noise}


def recovers(session: Session) -> Figures:
    """A provoked divergence: masked, seen later, gone back from."""
    model = jem.JEM(session.network("medium", "factored"))
    trainer = Poisoned(model, short_recipe(2), device=session.device.type)
    result = trainer.fit(noise_part(96))
    finite = all(bool(p.isfinite().all()) for p in model.parameters())
    passed = (result.recoveries, result.iterations) == (1, 24) and finite
    return {
        "passed": passed and bool(trainer.all_finite), "recoveries": result.recoveries,
        "chains_stayed_finite": bool(trainer.all_finite),
    }  # fmt: skip
