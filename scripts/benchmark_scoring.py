"""Memory and rate of `jem score` on far more inputs than a batch holds.

    python scripts/benchmark_scoring.py

Memory: the peak of a process that scores many inputs beside that of one that scores few. Rate: the
whole command (reading, scaling, scoring, writing the table) against a bare loop of forward passes
over the same inputs, which lie ready in memory. The two take turns in one process, and what is
printed is the median of their ratios, so a busy machine slows both alike.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import contextlib
import io
import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from memory import peak_memory

import jem
from jem import networks
from jem.cli import main as command
from jem.runs.model_file import save
from jem.serving.scorer import fit_scorer
from jem.training.recipes import RECIPES
from jem.training.trainer import Trainer


@dataclass
class Benchmark:
    """What to measure."""

    count: int = 1_000_000
    """Inputs of 8 x 8 of the large file."""
    few: int = 10_000
    """Inputs of the small file."""
    turn: int = 100_000
    """Inputs of each turn of the race."""
    turns: int = 7
    """How often command and bare loop take turns."""
    batch_size: int = 256
    """Inputs at a time, of both."""
    threads: int | None = None
    """Threads of torch; all cores if left out."""


def make_run(folder: Path) -> None:
    """The default network on digits, hardly trained: time does not depend on the weights."""
    digits = jem.data.load("digits")
    network = networks.network_for(digits.input_shape, 10, head=RECIPES["fast"].head)
    model = jem.JEM(network, classes=digits.classes, domain=digits.domain, scaling=digits.scaling)
    recipe = replace(RECIPES["fast"], epochs=1)
    Trainer(model, recipe, run_dir=folder, device="cpu").fit(digits.train)
    scorer = fit_scorer(model, digits)
    save(model, folder / "model.pt", detector=scorer.detector, temperature=scorer.temperature)


def write_inputs(path: Path, count: int) -> None:
    """Made-up images in the units of digits, 0 to 16, as float32, written in parts."""
    rng = np.random.default_rng(0)
    array = np.lib.format.open_memmap(path, "w+", np.float32, (count, 8, 8))
    for first in range(0, count, 100_000):
        array[first : first + 100_000] = rng.uniform(0, 16, array[first : first + 100_000].shape)
    array.flush()


def score(run: Path, inputs: Path, args: Benchmark) -> float:
    """Run the command; returns its seconds."""
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    words = [
        "score",
        run,
        inputs,
        "--out",
        run / "scores.csv",
        "--force",
        "--batch-size",
        args.batch_size,
    ]
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        status = command([*map(str, words), "--device", "cpu", "--quiet"])
    assert status == 0
    return time.perf_counter() - start


def score_and_measure(run: Path, inputs: Path, args: Benchmark) -> tuple[float, float]:
    """Seconds of the command, and peak memory of this process in MiB."""
    seconds = score(run, inputs, args)
    return seconds, peak_memory()


def bare_loop(model: jem.JEM, x: torch.Tensor, batch_size: int) -> float:
    """Seconds of forward passes alone."""
    start = time.perf_counter()
    with torch.no_grad():
        for batch in x.split(batch_size):
            model(batch)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print two tables."""
    args = tyro.cli(Benchmark)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        run, inputs = Path(name) / "run", Path(name) / "x.npy"
        make_run(run)
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
        print("| inputs | file, MiB | peak memory, MiB | seconds |\n|---|---|---|---|")
        for count in (args.few, args.count):
            write_inputs(inputs, count)
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                seconds, peak = pool.submit(score_and_measure, run, inputs, args).result()
            size = inputs.stat().st_size / 2**20
            print(f"| {count:,} | {size:.0f} | {peak:.0f} | {seconds:.1f} |", flush=True)
        write_inputs(inputs, args.turn)
        model = jem.load(run)
        x = model.preprocess(np.load(inputs))
        bare_loop(model, x, args.batch_size)
        pairs = [
            (score(run, inputs, args), bare_loop(model, x, args.batch_size))
            for _ in range(args.turns)
        ]
    ours, bare = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = [a / b for a, b in pairs]
    print("\n| | inputs a second | times the bare loop |\n|---|---|---|")
    print(f"| bare loop | {args.turn / bare:,.0f} | 1.00 |")
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"| jem score | {args.turn / ours:,.0f} | {statistics.median(ratios):.2f} ({spread}) |")


if __name__ == "__main__":
    main()
