"""The process that trains: its random state, precision and signals, each left as found."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from jem.randomness import global_generators_kept


@contextmanager
def isolated_randomness(device: torch.device) -> Iterator[None]:
    """Leave torch's generator as it was; use deterministic algorithms on the CPU meanwhile.

    Both belong to the whole process: fits in threads take turns.
    """
    devices = [device] if device.type == "cuda" else []
    with global_generators_kept(devices):
        deterministic = torch.are_deterministic_algorithms_enabled()
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
        if device.type == "cpu":
            torch.use_deterministic_algorithms(True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
            torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


def lowered(precision: str, device: torch.device) -> torch.autocast:
    """Compute matrix products and convolutions in a precision (`Recipe.precision`).

    Casts of weights are not kept between the passes of a step: chains move without gradients of
    the weights, and what was cast there would have none later.
    """
    lower = precision == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=lower, cache_enabled=False)


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Turn SIGINT and SIGTERM into a flag; outside the main thread they keep their meaning."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in signals}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
