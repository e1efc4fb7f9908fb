"""The processes of a run, as `torchrun` starts them; the random state and signals of each.

Each process (a rank) has the same model, its own part of every batch and its own chains. A run's
settings mean the same however many there are: batch, chains and buffer are divided among them.
"""

import atexit
import gc
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from jem.checks import refuse
from jem.errors import JemError, RunFolderError
from jem.randomness import derive_seed, global_generators_kept

T = TypeVar("T")

LACKING = "does not have a deterministic implementation"
"""What torch says of an operation, after its name."""
LEAVE_SECONDS = 0.5
"""How long a process waits for its communication threads before it ends."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run; for a single one every method gives back what it was given.

    Attributes:
        rank: Which one this is, from 0. The first alone writes and shows.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and shows."""
        return self.rank == 0

    def share(self, total: int, name: str) -> int:
        """Part of each process in a number.

        Raises:
            InputError: If it cannot be divided evenly.
        """
        if total % self.count:
            refuse(name, f"be a multiple of the number of processes ({self.count})", total)
        return total // self.count

    def part(self, rows: Tensor) -> Tensor:
        """This process's rows of a tensor."""
        return rows if self.count == 1 else rows[self.rank :: self.count]

    def seed(self, seed: int) -> int:
        """Seed of what each process draws for itself; that of the first is the run's."""
        return seed if self.first else derive_seed(seed, "rank", self.rank)

    def mean(self, values: Tensor) -> Tensor:
        """Mean over all processes, each with as many values.

        The gradient is that of this process's part: gradients of parameters are averaged later.
        """
        mean = values.mean()
        if self.count == 1:
            return mean
        everywhere = self.total(mean.detach()) / self.count
        return mean + (everywhere - mean.detach())

    def total(self, value: Tensor) -> Tensor:
        """Sum over all processes, without a gradient."""
        if self.count == 1:
            return value
        value = value.detach().clone()
        dist.all_reduce(value)
        return value

    def all(self, flag: Tensor) -> Tensor:
        """Whether a flag is set in every process."""
        return flag if self.count == 1 else self.total(flag.long()) == self.count

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether a flag is set in some process."""
        return bool(self.total(torch.tensor(int(flag), device=device))) if self.count > 1 else flag

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in their order."""
        values: list[Any] = [value]
        if self.count > 1:
            values = [None] * self.count
            dist.all_gather_object(values, value)
        return values

    def agree(self, value: T) -> T:
        """The first process's value."""
        values = [value]
        if self.count > 1:
            dist.broadcast_object_list(values)
        return values[0]

    def copy(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the first one's parameters or running statistics."""
        for tensor in tensors if self.count > 1 else ():
            value = tensor.detach().contiguous()
            dist.broadcast(value, 0)
            tensor.detach().copy_(value)

    def average_gradients(self, model: nn.Module) -> None:
        """Give every parameter the mean of its gradients over all processes, in one collective."""
        if self.count == 1:
            return
        trained = [p for p in model.parameters() if p.requires_grad]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        mean = self.total(torch.cat([grad.flatten() for grad in grads])) / self.count
        for p, part in zip(trained, mean.split([p.numel() for p in trained]), strict=True):
            p.grad = part.view_as(p).to(p.dtype)


ONE_PROCESS = Processes()
"""The process of a run that `torchrun` did not start."""


def join() -> Processes:
    """Join the processes that `torchrun` started, or be the only one."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or "RANK" not in os.environ:
        return Processes()
    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        store, rank, count = next(iter(rendezvous("env://")))
        # A restarted job must not find the addresses of its dead processes.
        store = PrefixStore(f"start {restarts()}", store)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=count)
        atexit.register(_leave)
    return Processes(dist.get_rank(), dist.get_world_size())


def _leave() -> None:
    """Part from the other processes before the interpreter ends.

    A thread of the group lets go of a collective's tensors a moment after the collective is done,
    and aborts the process if the interpreter is ending by then: it is given that moment.
    """
    gc.collect()
    dist.destroy_process_group()
    time.sleep(LEAVE_SECONDS)


def restarts() -> int:
    """How often `torchrun` started this process again, after one of its job had died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


@contextmanager
def one_for_all(ranks: Processes) -> Iterator[None]:
    """Say what happened when another process of the job is gone.

    Raises:
        RunFolderError: In place of what the lost connection raised.
    """
    try:
        yield
    except JemError:
        raise
    except RuntimeError as error:
        lost = ("gloo", "nccl", "connection", "peer")
        if ranks.count == 1 or not any(word in str(error).lower() for word in lost):
            raise
        # There is nobody left to take leave of; and torchrun ends this process too, now: its
        # signal must not come before the message.
        atexit.unregister(_leave)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise RunFolderError(
            f"another process of this job of {ranks.count} ended, so this one stopped; "
            "start the job again with --resume, or let torchrun do it (--max-restarts)"
        ) from error


@contextmanager
def isolated_randomness(device: torch.device) -> Iterator[None]:
    """Leave torch's generator as it was; use deterministic algorithms on the CPU meanwhile.

    Both belong to the whole process: fits in threads take turns. An operation that has no such
    algorithm raises only where the user wants it so.
    """
    devices = [device] if device.type == "cuda" else []
    with global_generators_kept(devices):
        deterministic = torch.are_deterministic_algorithms_enabled()
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
        if device.type == "cpu":
            torch.use_deterministic_algorithms(True, warn_only=warn_only or not deterministic)
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
            torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


@contextmanager
def determinism_or_warning() -> Iterator[None]:
    """Give up deterministic algorithms until `isolated_randomness` ends, where one is missing."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        yield
    for text in (str(warning.message) for warning in told):
        if LACKING in text:
            torch.use_deterministic_algorithms(False)
            why = f"{text.split()[0]} in the network is not deterministic"
            warnings.warn(f"{why}: the same seed may not give the same bits", stacklevel=3)
            break


def lowered(precision: str, device: torch.device) -> torch.autocast:
    """Compute matrix products and convolutions in a precision (`Recipe.precision`).

    Casts of weights are not kept between the passes of an update: chains move without gradients of
    the weights, and what was cast there would have none later.
    """
    lower = precision == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=lower, cache_enabled=False)


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Turn the first SIGINT and the first SIGTERM into a flag; a second one ends what hangs.

    One of each may mean a single stop: `torchrun` sends the other after Ctrl-C. Outside the main
    thread they keep their meaning.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    signals = (signal.SIGINT, signal.SIGTERM)

    def heard(number: int, _: Any) -> None:  # noqa: ANN401
        stop.set()
        signal.signal(number, before[number])

    before: dict[int, Any] = {number: signal.signal(number, heard) for number in signals}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
