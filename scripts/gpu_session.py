"""What the pieces of `gpu_check.py` share: networks, recipes, a budget, and the report."""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import math
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jem import RECIPES, networks
from jem.data.splits import DataPart
from jem.randomness import named_generator
from jem.runs.folder import write_atomically
from jem.training.recipe import Recipe

Figures = dict[str, Any]
SHAPE, CLASSES = (3, 32, 32), 10


def medium(
    shape: tuple[int, ...], num_classes: int, *, head: str, stem: int, widths: tuple[int, ...]
) -> nn.Module:
    """A stem, then blocks conv - pool - norm - SiLU - conv - norm - SiLU; the head keeps position.

    Args:
        shape: (C, H, W).
        num_classes: K.
        head: `"joint"` or `"factored"`.
        stem: Channels of the first convolution.
        widths: Channels of the blocks, each of which halves the side.
    """
    layers: list[nn.Module] = [nn.Conv2d(shape[0], stem, 3, padding=1), nn.SiLU()]
    for now, wider in itertools.pairwise((stem, *widths)):
        layers += [nn.Conv2d(now, wider, 3, padding=1), nn.AvgPool2d(2)]
        layers += [nn.GroupNorm(8, wider), nn.SiLU(), nn.Conv2d(wider, wider, 3, padding=1)]
        layers += [nn.GroupNorm(8, wider), nn.SiLU()]
    layers += [nn.AvgPool2d(2), nn.Flatten()]
    features = widths[-1] * math.prod(side // 2 ** (len(widths) + 1) for side in shape[1:])
    return nn.Sequential(*layers, networks.HEADS[head](features, num_classes))


NETS: dict[str, Callable[..., nn.Module]] = {
    "medium": partial(medium, stem=32, widths=(64, 128, 256)),
    "wide": partial(medium, stem=64, widths=(128, 256, 512)),
    "wrn-28-10": networks.wide_resnet,
}
TINY: dict[str, Callable[..., nn.Module]] = {
    "medium": partial(medium, stem=8, widths=(8, 8)),
    "wide": partial(medium, stem=8, widths=(8, 16)),
    "wrn-28-10": partial(networks.wide_resnet, depth=10, width=1),
}


class Session:
    """Runs pieces within a budget, keeps what they return, and goes on where it was stopped.

    Args:
        data: The archive, or its folder.
        out: Folder for the report and pictures.
        budget: Seconds in all.
        device: `"cuda"` or `"cpu"`.
        tiny: Make everything small.

    Attributes:
        report: What `gpu_check.json` holds.
    """

    def __init__(self, *, data: Path, out: Path, budget: float, device: str, tiny: bool) -> None:
        self.data, self.out, self.tiny, self.device = data, out, tiny, torch.device(device)
        self.end = time.monotonic() + budget
        self.nets = TINY if tiny else NETS
        self.path = out / "gpu_check.json"
        out.mkdir(parents=True, exist_ok=True)
        self.report: Figures = {"pieces": {}}
        if self.path.exists():
            self.report = json.loads(self.path.read_text())
        name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
        self.report |= {"torch": torch.__version__, "device": name}

    def network(self, name: str, head: str | None, num_classes: int = CLASSES) -> nn.Module:
        """A network of this session's size with one body, always from the same seed."""
        torch.manual_seed(0)
        return self.nets[name](SHAPE, num_classes, head=head or "factored")

    def piece(self, name: str, seconds: float, work: Callable[[], Figures]) -> None:
        """Run a piece unless it is done, or too little time is left for it; keep its figures.

        Args:
            name: Its name.
            seconds: How long it should take; it is stopped after three times as long.
            work: Returns its figures.
        """
        done, left = self.report["pieces"], self.end - time.monotonic()
        if name in done and not done[name].keys() & {"error", "skipped"}:
            return
        start = time.monotonic()
        if left < seconds:
            done[name] = {"skipped": f"{left:.0f} s left, expected {seconds:g} s"}
        else:
            try:
                with at_most(min(3 * seconds, left) + 5):
                    done[name] = work()
            except Exception:
                done[name] = {"error": traceback.format_exc()}
            done[name]["took"] = round(time.monotonic() - start, 2)
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        write_atomically(self.path, json.dumps(self.report, indent=1, default=float).encode())
        shown = {k: v for k, v in done[name].items() if not isinstance(v, dict | list)}
        print(f"{left:4.0f} s left  {name}: {str(shown)[-300:]}", flush=True)


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise `TimeoutError` in what takes longer, as soon as it is back in Python."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"took more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def noise_part(count: int) -> DataPart:
    """Examples without meaning, for what does not depend on them."""
    x = torch.rand(count, *SHAPE, generator=named_generator(0, "examples")) * 2 - 1
    return DataPart(x, torch.arange(count) % CLASSES)


def recipe_for(name: str, batch: int, **changes: Any) -> Recipe:  # noqa: ANN401
    """`plain` or `fast` at a batch size: at 64 as it comes, else B/4 chains and B/8 outliers."""
    changes = {"batch_size": batch, "augment_flip": True, "augment_shift": 3} | changes
    if name == "fast" and batch != 64:
        chains = max(batch // 4, 1)
        changes |= {"num_chains": chains, "buffer_size": max(4 * chains, 128)}
        changes |= {"outlier_count": max(batch // 8, 1)}
    return replace(RECIPES[name], **changes)
