"""How much more several processes train than one, on one machine.

    python scripts/benchmark_scaling.py --processes 1 2

Every process has a thread and the same share of a batch, so the batch grows with their number
(weak scaling). Counts take turns; printed are medians. Efficiency is the rate of examples over
that of as many lone processes: 1 means that the exchange of gradients costs nothing.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace

import torch
import tyro

import jem
from jem import networks
from jem.training.recipes import RECIPES


@dataclass
class Benchmark:
    """What to time."""

    processes: tuple[int, ...] = (1, 2)
    """Numbers of processes; the first is the measure."""
    size: int = 28
    """Pixels a side of the made-up images."""
    batch_size: int = 64
    """Examples and chains an update, of each process."""
    updates: int = 60
    """Updates of a turn; the first sixth is not timed."""
    turns: int = 3
    """How often the counts take turns."""
    job: bool = False
    """Be one of the processes."""


def job(args: Benchmark) -> None:
    """Train on noise; the first process prints the seconds of an update."""
    torch.set_num_threads(1)
    count = int(os.environ["WORLD_SIZE"])
    rows = args.batch_size * count
    x = torch.rand(rows * args.updates, 1, args.size, args.size) * 2 - 1
    y = torch.arange(len(x)) % 10
    recipe = replace(
        RECIPES["fast"], epochs=1, batch_size=rows, num_chains=rows, buffer_size=4 * rows
    )
    alone = recipe.resolved(x.shape[1:], args.updates).outlier_count or 0
    recipe = replace(recipe, outlier_count=alone * count)
    seconds = []

    class Timed(jem.Trainer):
        def update(self, batch: object) -> object:
            outcome = super().update(batch)
            seconds.append(time.perf_counter())
            return outcome

    trainer = Timed(jem.JEM(networks.network_for(x.shape[1:], 10)), recipe, device="cpu")
    trainer.fit((x, y))
    first = args.updates // 6
    if trainer.ranks.first:
        print((seconds[-1] - seconds[first]) / (args.updates - 1 - first))


def turn(args: Benchmark, count: int) -> float:
    """Seconds of an update in `count` processes."""
    words = [f"--size={args.size}", f"--batch-size={args.batch_size}", f"--updates={args.updates}"]
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}"]
    command += ["--standalone", __file__, "--job", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    """Time, and print the table."""
    args = tyro.cli(Benchmark)
    if args.job:
        job(args)
        return
    rounds = [{n: turn(args, n) for n in args.processes} for _ in range(args.turns)]
    print(
        f"\n{args.size}x{args.size}, recipe fast, {args.batch_size} examples a process; "
        f"torch {torch.__version__}, {os.cpu_count()} cores\n"
    )
    print("| processes | examples a second | efficiency (range) |\n|---|---|---|")
    least = args.processes[0]
    for n in args.processes:
        rate = statistics.median(args.batch_size * n / times[n] for times in rounds)
        shares = [times[least] / times[n] for times in rounds]
        spread = f"{min(shares):.2f} to {max(shares):.2f}"
        print(f"| {n} | {rate:.0f} | {statistics.median(shares):.2f} ({spread}) |")


if __name__ == "__main__":
    main()
