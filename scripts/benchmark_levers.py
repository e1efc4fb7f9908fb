"""What makes a training update faster, and what does not: each lever against none, in turn.

    python scripts/benchmark_levers.py

Prints a Markdown table: milliseconds of an update of the recipe `fast` with a joint head, and the
ratio to the one without levers that was timed beside it (below 1 is faster). A lever that changes
nothing, such as no outliers where there are none, is left out. Ratios are medians over turns, so a
busy machine slows all alike. `torch.compile` needs a C++ compiler and its first update takes a
minute; name it, `--levers compiled`, to time it.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import NamedTuple

import torch
import tyro
from benchmark_sgld import network_of
from torch import Tensor, nn

import jem
from jem.training.probe import seconds_per_update
from jem.training.recipe import Recipe
from jem.training.recipes import RECIPES

FEW = 3
"""Updates of a turn, after as many to warm up."""


Network = Callable[[nn.Module], nn.Module]


class Lever(NamedTuple):
    """What is changed: a recipe, some of its fields, and the network."""

    recipe: str = "fast"
    changes: Mapping[str, object] = MappingProxyType({})
    network: Network = lambda network: network


def channels_apart(network: nn.Module) -> nn.Module:
    """Weights as torch makes them; training lays them out with channels side by side."""
    return network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload,no-any-return]


LOWERED = {"precision": "bfloat16"}
NONE, FLUSHED, ONE_MORE = "none", "denormals flushed", "one move more"
LEVERS = {
    NONE: Lever(),
    FLUSHED: Lever(),
    "channels apart": Lever(network=channels_apart),
    "bfloat16": Lever(changes=LOWERED),
    "bfloat16, channels apart": Lever(changes=LOWERED, network=channels_apart),
    ONE_MORE: Lever(),
    "separate passes": Lever(changes={"fused": False}),
    "no outliers": Lever(changes={"outlier_count": 0}),
    "half the chains": Lever(changes={"num_chains": 32}),
    "plain": Lever("plain"),
    "plain, channels apart": Lever("plain", network=channels_apart),
    "plain, bfloat16": Lever("plain", LOWERED),
    "compiled": Lever(network=torch.compile),
}
"""By name. `plain` is the update of the plain classifier."""


@dataclass
class Benchmark:
    """What to time."""

    sizes: tuple[str, ...] = ("cnn8", "cnn28", "wrn32")
    """Networks, as in `benchmark_sgld.py`."""
    levers: tuple[str, ...] = tuple(LEVERS)[1:-1]
    """Levers."""
    turns: int = 7
    """Times that every lever is timed."""
    threads: int | None = None
    """Threads of torch; all cores if left out."""


def recipe_with(lever: str, shape: tuple[int, ...]) -> Recipe:
    """The recipe of a lever, with nothing left open."""
    name, changes, _ = LEVERS[lever]
    recipe = replace(RECIPES[name], epochs=1, head="joint", **changes).resolved(shape, 1)
    if lever == ONE_MORE:
        recipe = replace(recipe, num_steps=(recipe.num_steps or 0) + 1)
    return recipe


def changes_nothing(lever: str, shape: tuple[int, ...]) -> bool:
    """Whether a lever of the recipe is what the recipe does for such inputs anyhow."""
    settings = {**LEVERS[lever].changes} if lever != ONE_MORE else {}
    return bool(settings) and recipe_with(lever, shape) == recipe_with(NONE, shape)


def seconds_of(lever: str, size: str, data: tuple[Tensor, Tensor]) -> float:
    """Seconds of an update with a lever."""
    change_network = LEVERS[lever].network
    recipe = recipe_with(lever, tuple(data[0].shape[1:]))
    model = jem.JEM(network_of(size)[0])
    torch.set_flush_denormal(lever == FLUSHED)
    try:
        trainer = jem.Trainer(model, recipe, device="cpu")
        model.network = change_network(model.network)
        return seconds_per_update(trainer, data, FEW)
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
            for lever in (NONE, *(n for n in args.levers if not changes_nothing(n, shape))):
                times.setdefault(lever, []).append(seconds_of(lever, size, data))
        for lever, taken in times.items():
            ratio = statistics.median(a / b for a, b in zip(taken, times[NONE], strict=True))
            milliseconds = 1000 * statistics.median(taken)
            print(f"| {size} | {lever} | {milliseconds:.1f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
