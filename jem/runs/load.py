"""Load the trained model of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from jem.data.scaling import Scaling
from jem.devices import choose_device, place
from jem.errors import InputError, RunFolderError
from jem.model import JEM
from jem.networks import network_from_reference, network_from_spec
from jem.randomness import global_generators_kept
from jem.runs.checkpoint import Checkpoints
from jem.runs.folder import RunFolder
from jem.sampling.settings import SamplerSettings


def model_settings(model: JEM) -> dict[str, Any]:
    """What a model keeps beside its parameters, as tensors and plain values."""
    return {
        "input_shape": model.input_shape,
        "classes": model.classes,
        "domain": model.domain,
        "scaling": None if model.scaling is None else model.scaling.state_dict(),
        "sampler": None if model.sampler is None else model.sampler.state_dict(),
    }


def restore_settings(model: JEM, settings: dict[str, Any]) -> None:
    """Give a model what `model_settings` took from another."""
    model.input_shape = None if settings["input_shape"] is None else tuple(settings["input_shape"])
    model.classes = None if settings["classes"] is None else tuple(settings["classes"])
    model.domain = settings["domain"]
    scaling, sampler = settings["scaling"], settings["sampler"]
    model.scaling = None if scaling is None else Scaling.from_state_dict(scaling)
    model.sampler = None if sampler is None else SamplerSettings.from_state(sampler)


def build_network(spec: dict[str, Any] | str | None, settings: dict[str, Any]) -> nn.Module:
    """Build the network of a run from what its checkpoint says of it.

    Args:
        spec: Name and arguments, or `module:factory`, or None for a network that only its owner
            can build.
        settings: What `model_settings` returned.

    Raises:
        InputError: If the network cannot be built from this.
    """
    if isinstance(spec, dict):
        return network_from_spec(spec)
    if isinstance(spec, str):
        return network_from_reference(spec, settings["input_shape"], len(settings["classes"]))
    raise InputError(
        "this run was trained on a network of your own; pass it: jem.load(run, network=my_network)"
        ", or --network module:factory. A run finds it by itself after jem train --network, or "
        'Trainer(..., metadata={"network": "module:factory"})'
    )


def load(run: str | Path, network: nn.Module | None = None, *, device: str = "cpu") -> JEM:
    """Load the model of a run: averaged weights, evaluation mode, sampler settings and all.

    Args:
        run: The run folder.
        network: The network that was trained, freshly built, if it is not one of `jem.networks`.
        device: Where to put it.

    Returns:
        The model, ready to classify, score and sample.

    Raises:
        RunFolderError: If the folder holds no usable checkpoint.
        InputError: If `network` is needed, or does not fit the weights.
    """
    folder = RunFolder(run)
    if not folder.checkpoints.is_dir():
        raise RunFolderError(f"{folder.path} holds no run: there is no folder `checkpoints` in it")
    _, state = Checkpoints(folder.checkpoints).load_latest()
    if network is None:
        with global_generators_kept():  # its first weights are overwritten
            network = build_network(state["network"], state["settings"])
    model = JEM(network)
    try:
        model.load_state_dict(state["modules"]["average"])
    except RuntimeError as error:
        raise InputError(
            f"`network` does not fit the weights in {folder.path}: "
            f"{str(error).splitlines()[-1].strip()}"
        ) from error
    restore_settings(model, state["settings"])
    return place(model, choose_device(str(device))).eval()
