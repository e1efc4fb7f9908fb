"""Speed of the machinery: Langevin moves and training steps against the least that torch can do.

    python scripts/benchmark_sgld.py

A bare loop of forward pass, input gradient and update is the limit. All contenders of a row run
in turn, many times over, in one process; what is printed is the median of their ratios to the
limit measured beside them, so a busy machine slows all alike. Packages that people would pick
instead (`pip install ebmkit torchebm`) are timed where they are installed.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import torch
import tyro
from memory import peak_memory
from torch import Tensor, nn

import jem
from jem import networks
from jem.sampling.langevin import LangevinStep, run_chains
from jem.training.probe import seconds_per_update
from jem.training.recipes import RECIPES

STEP_SIZE, NOISE_STD, MOVES = 1.0, 0.01, 5
Contender = Callable[[], object]


@dataclass
class Benchmark:
    """What to time."""

    sizes: tuple[str, ...] = ("cnn8", "cnn28", "wrn32")
    """cnn8: 8x8 small_cnn; cnn28: 28x28 small_cnn; wrn32: 3x32x32 wide residual net 10-2."""
    batches: tuple[int, ...] = (16, 64, 512)
    """Chains moved at once."""
    seconds: float = 6.0
    """Seconds spent on each row."""
    threads: int | None = None
    """Threads of torch; all cores if left out."""
    memory: bool = True
    """Also measure the growth of peak memory, in a process of its own each."""


def network_of(size: str) -> tuple[nn.Module, tuple[int, ...]]:
    """A network by its name, and the shape of its inputs."""
    torch.manual_seed(0)
    if size == "cnn8":
        return networks.small_cnn((1, 8, 8), 10).eval(), (1, 8, 8)
    if size == "cnn28":
        return networks.small_cnn((1, 28, 28), 10).eval(), (1, 28, 28)
    return networks.wide_resnet((3, 32, 32), 10, depth=10, width=2).eval(), (3, 32, 32)


def bare_loop(network: nn.Module, x: Tensor) -> Tensor:
    """The limit: forward, input gradient, update, nothing else."""
    for _ in range(MOVES):
        leaf = x.detach().requires_grad_()
        energy = -network(leaf).logsumexp(dim=1).sum()
        (grad,) = torch.autograd.grad(energy, leaf)
        x = leaf.detach() - STEP_SIZE * grad + NOISE_STD * torch.randn_like(leaf)
    return x


def official_loop(network: nn.Module, x: Tensor) -> Tensor:
    """The loop of the official JEM code: the graph also reaches the parameters' side."""
    x = x.clone().requires_grad_()
    for _ in range(MOVES):
        grad = torch.autograd.grad(network(x).logsumexp(dim=1).sum(), [x], retain_graph=True)[0]
        x.data += STEP_SIZE * grad + NOISE_STD * torch.randn_like(x)
    return x.detach()


def samplers(network: nn.Module, x: Tensor) -> dict[str, Contender]:
    """Ways to make the same moves, the limit first."""
    model = jem.JEM(network)
    generator = torch.Generator().manual_seed(0)
    moves: dict[str, Contender] = {
        "bare loop": lambda: bare_loop(network, x),
        "jem": lambda: run_chains(
            x, model.energy, [LangevinStep(STEP_SIZE, NOISE_STD)] * MOVES, generator=generator
        ),
        "official loop": lambda: official_loop(network, x),
    }  # fmt: skip
    return moves | peers(network, x)


def peers(network: nn.Module, x: Tensor) -> dict[str, Contender]:
    """Samplers of other packages, where they are installed."""
    found: dict[str, Contender] = {}
    try:
        from ebm.jem import ClassifierEnergy
        from ebm.samplers import LangevinDynamics

        energy = ClassifierEnergy(network)
        ebmkit = LangevinDynamics(step_size=STEP_SIZE, steps=MOVES, noise_scale=NOISE_STD)
        found["ebmkit"] = lambda: ebmkit.sample(energy, x)
    except ImportError:
        pass
    try:
        from torchebm.core import BaseModel
        from torchebm.samplers import LangevinDynamics as Dynamics

        class Energy(BaseModel):
            def __init__(self) -> None:
                super().__init__()
                self.network = network

            def forward(self, x: Tensor) -> Tensor:
                return -self.network(x).logsumexp(dim=1)

        torchebm = Dynamics(Energy(), step_size=STEP_SIZE, noise_scale=NOISE_STD)
        found["torchebm"] = lambda: torchebm.sample(x=x.clone(), n_steps=MOVES)
    except ImportError:
        pass
    return found


def ratios(contenders: dict[str, Contender], seconds: float) -> dict[str, tuple[float, float]]:
    """Name -> (median seconds a call, median ratio to the first), timed in turn."""
    for call in contenders.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[next(iter(times))]) < 5:
        for name, call in contenders.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    limit = times[next(iter(times))]
    return {
        name: (
            statistics.median(taken),
            statistics.median(a / b for a, b in zip(taken, limit, strict=True)),
        )
        for name, taken in times.items()
    }


def memory_of(size: str, batch: int, name: str) -> float:
    """Growth of a process's peak memory by one call, in MiB."""
    network, shape = network_of(size)
    x = torch.rand(batch, *shape) * 2 - 1
    call = samplers(network, x)[name]
    before = peak_memory()
    call()
    return peak_memory() - before


def sampling_table(args: Benchmark) -> str:
    """Markdown table of Langevin moves."""
    lines = [
        "| network | chains | method | ms a move | x bare loop | peak memory, MiB |",
        "|---|---|---|---|---|---|",
    ]
    context = multiprocessing.get_context("spawn")
    for size in args.sizes:
        network, shape = network_of(size)
        for batch in args.batches:
            x = torch.rand(batch, *shape) * 2 - 1
            rows = ratios(samplers(network, x), args.seconds)
            for name, (seconds, ratio) in rows.items():
                memory = "-"
                if args.memory:
                    with ProcessPoolExecutor(1, mp_context=context) as pool:
                        memory = f"{pool.submit(memory_of, size, batch, name).result():.0f}"
                cells = (
                    size,
                    batch,
                    name,
                    f"{1000 * seconds / MOVES:.2f}",
                    f"{ratio:.2f}",
                    memory,
                )
                lines.append("| " + " | ".join(map(str, cells)) + " |")
                print(lines[-1], flush=True)
    return "\n".join(lines)


def training_table(sizes: tuple[str, ...]) -> str:
    """Markdown table of training steps: each recipe's iteration against plain's, in turn."""
    lines = ["| network | recipe | ms an iteration | x plain |", "|---|---|---|---|"]
    for size in sizes:
        _, shape = network_of(size)
        x, y = torch.rand(640, *shape) * 2 - 1, torch.arange(640) % 10
        seconds: dict[str, list[float]] = {}
        for _ in range(3):
            for name in sorted(RECIPES, key=lambda name: name != "plain"):
                recipe = replace(RECIPES[name], epochs=1, head="joint")
                network, _ = network_of(size)
                trainer = jem.Trainer(jem.JEM(network), recipe, device="cpu")
                seconds.setdefault(name, []).append(seconds_per_update(trainer, (x, y), 4))
        for name, taken in seconds.items():
            ratio = statistics.median(a / b for a, b in zip(taken, seconds["plain"], strict=True))
            milliseconds = 1000 * statistics.median(taken)
            lines.append(f"| {size} | {name} | {milliseconds:.1f} | {ratio:.2f} |")
            print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    """Time and print both tables."""
    args = tyro.cli(Benchmark)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    sampling = sampling_table(args)
    training = training_table(args.sizes)
    print(f"\ntorch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print(sampling, "\n\n", training, sep="")


if __name__ == "__main__":
    main()
