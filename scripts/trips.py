"""Count the files that a value passes through: an example, a model, an input.

    python scripts/trips.py

Runs each trip once on tiny data, and watches every call of a function of `jem` that is handed the
value or something made of it: pictures, arrays and tensors of the data, what holds one, a model.
Files are listed in the order of the first visit. The second number counts all files in which
anything runs meanwhile.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import jem
from jem.cli import main as command

ROOT = str(Path(jem.__file__).parent) + os.sep
SIDE = 16


def holds_inputs(value: Any, depth: int = 2) -> bool:  # noqa: ANN401
    """Whether a value is an input, a batch of inputs, or holds one."""
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.ndim >= 2 and tuple(value.shape[-2:]) == (SIDE, SIDE)
    if isinstance(value, Image.Image):
        return True
    if depth and isinstance(value, tuple | list):
        return any(holds_inputs(item, depth - 1) for item in list(value)[:4])
    if depth and type(value).__module__.startswith("jem.data"):
        return any(holds_inputs(item, depth - 1) for item in vars(value).values())
    return False


def holds_model(value: Any) -> bool:  # noqa: ANN401
    """Whether a value is a model or holds one."""
    return isinstance(value, jem.JEM) or any(
        isinstance(item, jem.JEM) for item in getattr(value, "__dict__", {}).values()
    )


def visited(run: Callable[[], object], holds: Callable[[Any], bool]) -> tuple[list[str], int]:
    """Files in which a function is handed such a value, in order, and how many run at all."""
    seen: dict[str, None] = {}
    ran: set[str] = set()

    def watch(frame: Any, event: str, _: object) -> None:  # noqa: ANN401
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(ROOT):
            return
        ran.add(code.co_filename)
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        if any(holds(frame.f_locals[name]) for name in names if name in frame.f_locals):
            seen.setdefault(code.co_filename.removeprefix(ROOT))

    sys.setprofile(watch)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            run()
    finally:
        sys.setprofile(None)
    return list(seen), len(ran)


def pictures(folder: Path) -> Path:
    """A folder of two classes of 40 random pictures."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(40):
            pixels = rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:02}.png")
    return folder


def train(folder: Path) -> tuple[jem.JEM, Any]:
    """Read pictures and train on them for an epoch."""
    data = jem.data.load(str(folder))
    network = jem.networks.network_for(data.input_shape, len(data.classes))
    model = jem.JEM(network, classes=data.classes, domain=data.domain, scaling=data.scaling)
    recipe = replace(jem.RECIPES["fast"], epochs=1)
    jem.Trainer(model, recipe, seed=0).fit(data.train, data.validation)
    return model, data


def main() -> None:
    """Run the three trips and print the files of each."""
    with tempfile.TemporaryDirectory() as name:
        folder, run = pictures(Path(name) / "pictures"), Path(name) / "run"
        with contextlib.redirect_stdout(io.StringIO()):
            command(["train", "--data", str(folder), "--epochs", "1", "--out", str(run),
                     "--no-report", "--quiet"])  # fmt: skip
        model, data = train(folder)
        out = str(Path(name) / "scores.csv")
        trips = {
            "an example, from a folder of pictures to an update": visited(
                lambda: train(folder), holds_inputs
            ),
            "a model, to its report": visited(
                lambda: jem.write_report(model, data, Path(name) / "page"), holds_model
            ),
            "an input, to its verdict": visited(
                lambda: command(["score", str(run), str(folder / "cat"), "--out", out, "--quiet"]),
                holds_inputs,
            ),
        }
        for what, (files, ran) in trips.items():
            print(f"{what}: {len(files)} files, of {ran} that run\n  " + "\n  ".join(files))


if __name__ == "__main__":
    main()
