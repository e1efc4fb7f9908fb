"""What makes a training update faster, and what does not: each lever against none, in turn.

    python scripts/benchmark_levers.py

Prints a Markdown table: milliseconds of an update of the recipe `fast`, and the ratio to the one
without levers that was timed beside it (below 1 is faster). Ratios are medians over turns, so a
busy machine slows all alike. `torch.compile` needs a C++ compiler and its first update takes a
minute; name it with `--levers` to time it.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import tyro
from benchmark_sgld import network_of
from torch import Tensor, nn

import jem
from jem.training.recipe import RECIPES, Recipe

FEW = 3
"""Updates of a turn, after as many to warm up."""


class Lowered(nn.Module):
    """A network that computes in bfloat16 where autocast holds it safe."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Logits of inputs."""
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.network(x)  # type: ignore[no-any-return]


def channels_last(network: nn.Module) -> nn.Module:
    """Weights, and so the activations between them, with channels side by side."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


NETWORKS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "channels last": channels_last,
    "bfloat16": Lowered,
    "bfloat16, channels last": lambda network: Lowered(channels_last(network)),
    "torch.compile": torch.compile,
}
"""Levers that change the network."""

RECIPE: dict[str, dict[str, object]] = {
    "one move more": {"num_steps": 2},
    "separate passes": {"step": "classic"},
    "no outliers": {"outlier_count": 0},
    "half the chains": {"num_chains": 32},
}
"""Levers that change the recipe; the first two show what the fused step and K = 1 save."""

NONE, FLUSHED, PLAIN = "none", "denormals flushed", "plain"


@dataclass
class Benchmark:
    """What to time."""

    sizes: tuple[str, ...] = ("cnn8", "cnn28", "wrn32")
    """Networks, as in `benchmark_sgld.py`."""
    levers: tuple[str, ...] = (FLUSHED, *list(NETWORKS)[:3], *RECIPE, PLAIN)
    """Levers; `plain` is the update of the plain classifier."""
    turns: int = 7
    """Times that every lever is timed."""
    threads: int | None = None
    """Threads of torch; all cores if left out."""


def seconds_of(lever: str, size: str, data: tuple[Tensor, Tensor]) -> float:
    """Seconds of an update with a lever."""
    recipe: Recipe = RECIPES[PLAIN if lever == PLAIN else "fast"]
    recipe = replace(recipe, epochs=1, head="joint", **RECIPE.get(lever, {}))
    network, _ = network_of(size)
    network = NETWORKS.get(lever, lambda same: same)(network)
    torch.set_flush_denormal(lever == FLUSHED)
    try:
        trainer = jem.Trainer(jem.JEM(network), recipe, device="cpu")
        return trainer.seconds_per_iteration(data, FEW)
    finally:
        torch.set_flush_denormal(False)


def main() -> None:
    """Time all levers of all sizes and print the table."""
    args = tyro.cli(Benchmark)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {args.turns} turns\n")
    print("| network | lever | ms an update | x none |\n|---|---|---|---|")
    for size in args.sizes:
        _, shape = network_of(size)
        data = torch.rand(640, *shape) * 2 - 1, torch.arange(640) % 10
        times: dict[str, list[float]] = {}
        for _ in range(args.turns):
            for lever in (NONE, *args.levers):
                times.setdefault(lever, []).append(seconds_of(lever, size, data))
        for lever, taken in times.items():
            ratio = statistics.median(a / b for a, b in zip(taken, times[NONE], strict=True))
            milliseconds = 1000 * statistics.median(taken)
            print(f"| {size} | {lever} | {milliseconds:.1f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
