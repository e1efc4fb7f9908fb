"""Check and time training on a GPU in one command of a few minutes.

    python scripts/gpu_check.py --data FOLDER --out FOLDER --budget 500

First CUDA against the CPU, then CIFAR-10 (JPEG) end to end, then the time of an update. Writes
`gpu_check.json` after every piece, and pictures. A second call goes on with the pieces that failed
or were skipped. `--device cpu --tiny` runs every piece in seconds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from gpu_agreement import chains_agree, losses_agree, recovers, resumed_agrees
from gpu_session import Figures, Session
from gpu_timing import time_updates, waits
from gpu_training import train

ROWS = (
    ("medium", 512, "bfloat16", "eager", 10), ("wrn-28-10", 64, "bfloat16", "eager", 15),
    ("medium", 64, "bfloat16", "eager", 10), ("medium", 512, "float32", "eager", 10),
    ("wrn-28-10", 64, "float32", "eager", 20), ("wrn-28-10", 256, "bfloat16", "eager", 25),
    ("medium", 64, "bfloat16", "graph", 12), ("medium", 512, "bfloat16", "compile", 50),
    ("medium", 1024, "bfloat16", "eager", 10), ("medium", 512, "bfloat16", "graph", 12),
    ("wrn-28-10", 1024, "bfloat16", "eager", 60), ("medium", 64, "float32", "eager", 10),
)  # fmt: skip
"""Network, batch size, precision, mode and expected seconds; what matters most comes first."""


def pieces(session: Session) -> dict[str, tuple[float, Callable[[], Figures]]]:
    """Expected seconds and work of every piece, in their order."""
    agreement = {
        "losses": losses_agree, "chains": chains_agree,
        "resumed run": resumed_agrees, "recovery": recovers,
    }  # fmt: skip
    todo = {f"agree: {name}": (15.0, partial(work, session)) for name, work in agreement.items()}
    for recipe in ("plain", "fast"):
        todo[f"waits: {recipe}"] = (10.0, partial(waits, session, recipe))
    for name, seconds in (("wide", 150.0), ("medium", 100.0)):
        todo[f"train: {name}"] = (seconds, partial(train, session, name))
    for *row, seconds in ROWS:
        todo["time: " + " ".join(map(str, row))] = (seconds, partial(time_updates, session, *row))
    return todo


def main(arguments: list[str] | None = None) -> None:
    """Run every piece that is not done yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the archive, or it")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is found")
    parser.add_argument("--budget", type=float, default=500.0, help="seconds in all")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="everything small, to test it")
    session = Session(**vars(parser.parse_args(arguments)))
    for name, (seconds, work) in pieces(session).items():
        session.piece(name, seconds, work)
    print(json.dumps({n: p.get("ratio") for n, p in session.report["pieces"].items()}, indent=1))


if __name__ == "__main__":
    main()
