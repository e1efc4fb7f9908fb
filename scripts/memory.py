"""Peak memory of a process, for the benchmarks beside this file."""

from __future__ import annotations

import resource
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_memory() -> float:
    """Most memory that this process has held so far, MiB.

    Linux hands `ru_maxrss` down to a child, across exec: a small process that a large one started
    looks large. `VmHWM` is of this program alone.
    """
    if STATUS.exists():
        fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
