"""Why samples of the plain head miss their class on small images, and what mends it.

    python scripts/benchmark_heads.py --seeds 0 1 --epochs 20

Trains `fast` on digits with the plain and the factored head, and the plain one with chains that
have a class. Draws samples by Langevin steps of several sizes and prints a Markdown table: who
names the class asked for, and how f(x)[y] and the log-density moved from where chains begin.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from dataclasses import dataclass, replace

import torch
import tyro
from sklearn.svm import SVC

import jem
from jem.networks import network_for

SAMPLES_A_CLASS = 20
KINDS = {
    "plain head": {},
    "factored head": {"head": "factored"},
}


@dataclass
class Benchmark:
    """What to measure."""

    seeds: tuple[int, ...] = (0, 1)
    """Each seed is another split, another initialisation and other noise."""
    epochs: int | None = None
    """Epochs of `fast`; about 1,500 updates if left out."""
    kinds: tuple[str, ...] = tuple(KINDS)
    """Which networks."""
    step_sizes: tuple[float, ...] = (3.0, 1.0, 0.3, 0.1)
    """Sizes of the Langevin steps of samples; training takes the first of these."""
    threads: int | None = None
    """Threads of torch; all cores if left out."""


def curvature(model: jem.JEM, x: torch.Tensor, y: torch.Tensor) -> float:
    """Mean second derivative of E(x, y) along its gradient: a step beyond 2 over it overshoots."""
    x = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(model.energy(x, y).sum(), x, create_graph=True)
    along = torch.nn.functional.normalize(slope.detach().flatten(1)).view_as(x)
    (bent,) = torch.autograd.grad((slope * along).sum(), x)
    return float((bent * along).flatten(1).sum(dim=1).mean())


def main(args: Benchmark) -> None:
    """Train, sample and print."""
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    print(
        "| network | seed | accuracy | step | step x curvature | of the class, by the model | "
        "by an SVC | f(x)[y] | log-density |\n|" + "---|" * 9
    )
    y = torch.arange(10).repeat_interleave(SAMPLES_A_CLASS)
    for kind in args.kinds:
        for seed in args.seeds:
            data = jem.data.load("digits", seed=seed)
            torch.manual_seed(seed)
            recipe = replace(jem.RECIPES["fast"], epochs=args.epochs, head="joint")
            recipe = replace(recipe, **KINDS[kind])
            network = network_for(data.input_shape, 10, head=recipe.head)
            model = jem.JEM(network, classes=data.classes, domain=data.domain)
            jem.Trainer(model, recipe, seed=seed, device="cpu").fit(data.train, data.validation)
            svc = SVC().fit(data.train.x.flatten(1).numpy(), data.train.y.numpy())
            right = model.predict_proba(data.test.x).argmax(dim=1) == data.test.y
            usual, begun = model.sampler, jem.sample(model, y, seed=seed, num_steps=0)
            bent = curvature(model, begun, y)
            for size in (0.0, *args.step_sizes):
                step = replace(usual.step, step_size=size or usual.step.step_size)
                model.sampler = replace(usual, step=step)
                x = jem.sample(model, y, seed=seed) if size else begun
                own = float((model.predict_proba(x).argmax(dim=1) == y).float().mean())
                by_svc = (torch.tensor(svc.predict(x.flatten(1).numpy())) == y).float().mean()
                with torch.no_grad():
                    of_class, density = -model.energy(x, y).mean(), model.log_density(x).mean()
                print(
                    f"| {kind} | {seed} | {right.float().mean():.4f} | {size or 'none'} | "
                    f"{size * bent:.1f} | {own:.3f} | {by_svc:.3f} | {of_class:.2f} | "
                    f"{density:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
