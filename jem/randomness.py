"""Named random generators: one seed at the edge, everything else derived from it."""

import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from jem.checks import check_integer

_TURN = threading.RLock()


@contextmanager
def global_generators_kept(devices: Sequence[torch.device] = ()) -> Iterator[None]:
    """Leave torch's global generators as they were, whatever is drawn from them meanwhile.

    They belong to the whole process, so one thread is inside at a time; others wait.

    Args:
        devices: CUDA devices whose generators to keep as well.
    """
    with _TURN, torch.random.fork_rng(devices=list(devices)):
        yield


def derive_seed(seed: int, *names: str | int) -> int:
    """Derive a 63-bit seed from a base seed and a path of names, independent of every other path.

    Args:
        seed: Base seed, any integer >= 0.
        names: What the generator is for, such as `"chains"` or `"batches", epoch`.

    Returns:
        An integer in [0, 2^63).

    Raises:
        InputError: If the seed is no integer, or negative.
    """
    check_integer("seed", seed, 0)
    keys = [zlib.crc32(name.encode()) if isinstance(name, str) else int(name) for name in names]
    # Keys in one list with the seed would be zero-padded: (name,) and (name, 0) would be the same.
    words = np.random.SeedSequence(int(seed), spawn_key=keys).generate_state(2, np.uint32)
    return ((int(words[0]) << 32) | int(words[1])) & (2**63 - 1)


def named_generator(
    seed: int, *names: str | int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Make a generator for one named purpose: the same path gives the same stream, on any machine.

    Args:
        seed: Base seed, any integer >= 0.
        names: What the generator is for.
        device: Where its numbers are drawn.

    Returns:
        A freshly seeded `torch.Generator`.
    """
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *names))
