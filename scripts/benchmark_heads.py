"""The plain and the factored head under every recipe: accuracy, OOD detection, samples.

    python scripts/benchmark_heads.py --seeds 0 1 2 --epochs 20

Trains on digits of 8x8 pixels, where the steps of training overshoot on E(x, y) of a plain head.
Prints a Markdown table: test accuracy and NLL, AUROC of letters by log-density, and the share of
samples that the model itself and a support vector classifier name as asked for; the same of
samples by the steps of training as they are, in brackets.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from dataclasses import dataclass, replace
from unittest import mock

import torch
import tyro
from sklearn.svm import SVC

import jem
from jem.data import make_ood_set
from jem.networks import network_for

SAMPLES_A_CLASS = 20


@dataclass
class Benchmark:
    """What to measure."""

    recipes: tuple[str, ...] = ("fast", "jem_pp", "sada_jem", "jem")
    """Generative recipes."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each seed is another split, another initialisation and other noise."""
    epochs: int | None = None
    """Epochs of training; about 1,500 updates if left out."""
    threads: int | None = None
    """Threads of torch; all cores if left out."""


def measure(recipe: str, head: str, seed: int, epochs: int | None) -> str:
    """A row of the table."""
    data = jem.data.load("digits", seed=seed)
    torch.manual_seed(seed)
    network = network_for(data.input_shape, 10, head=head)
    model = jem.JEM(network, classes=data.classes, domain=data.domain)
    settings = replace(jem.RECIPES[recipe], epochs=epochs, head=head)
    trainer = jem.Trainer(model, settings, seed=seed, device="cpu")
    trainer.fit(data.train, data.validation)
    logits = model.logits(data.test.x).detach()
    accuracy = (logits.argmax(dim=1) == data.test.y).float().mean()
    nll = torch.nn.functional.cross_entropy(logits, data.test.y)
    letters = make_ood_set("letters", data, 1000, seed=seed)
    far = jem.ood_metrics(model.log_density(data.test.x), model.log_density(letters)).auroc
    svc = SVC().fit(data.train.x.flatten(1).numpy(), data.train.y.numpy())
    y = torch.arange(10).repeat_interleave(SAMPLES_A_CLASS)

    def agreement() -> tuple[float, float]:
        x = jem.sample(model, y, seed=seed)
        named = model.predict_proba(x).argmax(dim=1), svc.predict(x.flatten(1).numpy())
        own, other = (float((torch.as_tensor(k) == y).float().mean()) for k in named)
        return own, other

    own, other = agreement()
    with mock.patch("jem.generation.samples.stable_step", lambda step, *_: step):
        own_before, other_before = agreement()
    return (
        f"| {recipe} | {head} | {seed} | {accuracy:.4f} | {nll:.3f} | {far:.4f} | "
        f"{own:.3f} ({own_before:.3f}) | {other:.3f} ({other_before:.3f}) |"
    )


def main(args: Benchmark) -> None:
    """Train, sample and print."""
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    print(
        "| recipe | head | seed | accuracy | NLL | AUROC, letters | of the class, by the model | "
        "by an SVC |\n|" + "---|" * 8
    )
    for recipe in args.recipes:
        for head in ("joint", "factored"):
            for seed in args.seeds:
                print(measure(recipe, head, seed, args.epochs), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
