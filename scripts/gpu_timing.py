"""Where the time of an update goes on a GPU, for `gpu_check.py`."""

from __future__ import annotations

import itertools
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from gpu_session import Figures, Session, noise_part, recipe_for

import jem
from jem.data.batches import as_part
from jem.objectives import Batch
from jem.training.recipe import Recipe
from jem.training.trainer import FLAG_EVERY, Trainer


def prepared(session: Session, name: str, recipe: Recipe) -> tuple[Trainer, Iterator[Batch]]:
    """A trainer just before its first update, and its batches, without end."""
    model = jem.JEM(session.network(name, recipe.head), domain=(-1.0, 1.0))
    trainer = Trainer(model, recipe, device=session.device.type)
    trainer.prepare(as_part(noise_part(4 * recipe.batch_size)))
    model.train()
    generator = trainer.context.generator
    epochs = (trainer.batches.epoch(n, 0, generator=generator) for n in itertools.count())
    return trainer, itertools.chain.from_iterable(epochs)


def graphed(trainer: Trainer, batches: Iterator[Batch]) -> Callable[[], Any]:
    """One update as a replay of a CUDA graph; batches are made outside and copied in."""
    first = next(batches)
    x = first.x.clone()
    static = first._replace(x=x, x_density=x, labels=first.labels.clone())
    cuda = trainer.device.type == "cuda"
    for group in trainer.state.optimizer.param_groups:
        group["capturable"] = cuda

    def step() -> None:
        trainer.state.progress.iteration = 1  # so that the flag is not read
        trainer.update(static)

    replay: Callable[[], Any] = step
    if cuda:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        if trainer.state.chains is not None:
            graph.register_generator_state(trainer.state.chains.generator)
        with torch.cuda.graph(graph):
            step()
        replay = graph.replay

    def update() -> None:
        fresh = next(batches)
        for name in ("x", "labels", "outliers"):
            if getattr(fresh, name) is not None:
                getattr(static, name).copy_(getattr(fresh, name))
        replay()

    return update


def time_updates(session: Session, name: str, batch: int, precision: str, mode: str) -> Figures:
    """Updates of `plain` and `fast`, and the ratio of their times."""
    found: Figures = {}
    size = 4 if session.tiny else batch
    for recipe in ("plain", "fast"):
        # In a thousand epochs the rate has hardly risen: noise is nothing to learn.
        changed = recipe_for(recipe, size, precision=precision, epochs=1000)
        found[recipe] = time_update(session, name, changed, mode)
    return {"ratio": round(found["fast"]["ms"] / found["plain"]["ms"], 3)} | found


def time_update(session: Session, name: str, recipe: Recipe, mode: str) -> Figures:
    """Time, peak memory and share of time outside kernels of an update."""
    cuda = session.device.type == "cuda"
    trainer, batches = prepared(session, name, recipe)
    if mode == "compile":
        backend = "inductor" if cuda else "eager"
        trainer.model.network.compile(backend=backend, dynamic=False)

    def eager() -> None:
        trainer.update(next(batches))

    update = graphed(trainer, batches) if mode == "graph" else eager
    counts = (1, 1) if session.tiny else (6, 20)
    times = []
    for count in (counts[0], *[counts[1]] * 3):  # the first warms up
        start = time.perf_counter()
        for _ in range(count):
            update()
        if cuda:
            torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / count * 1000)
        if cuda and len(times) == 1:
            torch.cuda.reset_peak_memory_stats()
    ms = statistics.median(times[1:])
    found: Figures = {"ms": ms, "examples_a_second": recipe.batch_size / ms * 1000}
    if not cuda:
        return found
    found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    kinds = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA]) as profile:
        for _ in range(4):
            update()
        torch.cuda.synchronize()
    ranges = ("Optimizer.", "ProfilerStep", "Torch-Compiled", "## ")
    events = [
        e for e in profile.events()
        if e.device_type == torch.autograd.DeviceType.CUDA and not e.name.startswith(ranges)
        and not getattr(e, "is_user_annotation", False)
    ]  # fmt: skip
    busy = sum(e.time_range.elapsed_us() for e in events) / 1000 / 4
    return found | {"kernels": len(events) / 4, "share_outside_kernels": max(0.0, 1 - busy / ms)}


def waits(session: Session, name: str) -> Figures:
    """How often the host waited for the device in a hundred updates, by line of the code.

    Expected are a read of the flag every `FLAG_EVERY` updates, and one copy of the order of the
    examples an epoch, which here has four updates.
    """
    trainer, batches = prepared(session, "medium", recipe_for(name, 8 if session.tiny else 128))
    cuda, count = session.device.type == "cuda", 2 if session.tiny else 2 * FLAG_EVERY
    for _ in range(2):
        trainer.update(next(batches))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if cuda:
            torch.cuda.set_sync_debug_mode("warn")
        for _ in range(count):
            trainer.update(next(batches))
        if cuda:
            torch.cuda.set_sync_debug_mode("default")
    seen = [w for w in caught if "synchroniz" in str(w.message)]
    lines = Counter(f"{Path(w.filename).name}:{w.lineno}" for w in seen)
    return {"updates": count, "waits": len(seen), "lines": dict(lines)}
