"""Where a model computes: devices by name, and the layout of weights that suits them."""

import torch

from jem.errors import InputError
from jem.model import JEM, check_model
from jem.networks.foreign import lay_out


def choose_device(name: str) -> torch.device:
    """Device by name; `"auto"` is the accelerator that torch finds, else the CPU.

    Raises:
        InputError: If it is unknown or not there.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if found is None else found
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        if reason.startswith("Expected one of"):  # every kind of device that torch has heard of
            reason = "expected cpu, cuda, cuda:0, mps or auto"
        elif "aten::" in reason:  # and every kind that it has an operation for
            reason = "this machine, or this build of torch, has none"
        raise InputError(f"device {name!r} cannot be used: {reason}") from error
    return device


def place(model: JEM, device: torch.device) -> JEM:
    """Move a model to a device, with its convolutions laid out as they are fastest there.

    On CPUs and CUDA the weights of 2-D convolutions, and so the activations between them, get
    their channels side by side: `docs/benchmarks.md` has what that saves. Values stay the same. A
    network that cannot stand it gets torch's own layout back when it is called.

    Raises:
        InputError: If this is no `JEM`.
    """
    check_model(model)
    model.to(device)
    if device.type in ("cpu", "cuda"):
        lay_out(model, torch.channels_last)
    return model
