"""Checkpoints of the official JEM code and its descendants, read into our wide residual network.

The networks of JEM, JEM++, SADA-JEM and HDGE are read: a body `f` with the heads `class_output`
and `energy_output`.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from jem.data.scaling import Scaling
from jem.errors import InputError
from jem.model import JEM
from jem.networks import wide_resnet
from jem.randomness import global_generators_kept
from jem.sampling.base_distributions import SamplerSettings, UniformBase
from jem.sampling.langevin import LangevinStep

_PARTS = {"branch.0": "bn1", "branch.2": "conv1", "branch.4": "bn2", "branch.6": "conv2"}
_PARTS |= {"shortcut": "shortcut.0"}
# Tensors without a part in the logits: the head that joint training does not use, the queue of
# HDGE, and second names of the same tensors in the bodies of JEM++.
_SPARE = re.compile(
    r"f\.linear\.|energy_output\.|class_output\.|queue_(logit|ptr)$|f\.(layer_one|other_layers)\."
)


class OfficialCheckpoint(NamedTuple):
    """What was found in a checkpoint."""

    model: JEM  # evaluation mode, on the CPU
    chains: Tensor | None  # (capacity, C, H, W) replay buffer, as `ReplayBuffer` takes it


def load_official(
    path: str | Path,
    *,
    head: Literal["class_output", "energy_output"] = "class_output",
    classes: Sequence[str] | None = None,
) -> OfficialCheckpoint:
    """Read a checkpoint of the official JEM code; a file that would run code is refused.

    Depth, width, norm and number of classes follow from the tensors. The model takes images in
    [-1, 1], and keeps the scaling from bytes to that. Networks without norm get the sampler of the
    official code (uniform start, 20 steps of size 1, noise 0.01), but clipped to the domain. Those
    with batch norm (JEM++, SADA-JEM) start chains from class Gaussians, which are not in the file:
    their `model.sampler` stays None.

    Args:
        path: The file, as `torch.save` wrote it.
        head: `"class_output"`, or `"energy_output"` for a network trained with `--uncond` (K = 1).
        classes: Names of the classes; None numbers them.

    Returns:
        The model, and the replay buffer if the file holds one.

    Raises:
        InputError: If the file cannot be read, holds more than tensors and plain values, or is of
            another network.

    References:
        Grathwohl et al. (2020), arXiv:1912.03263. Yang and Ji (2021), JEM++, arXiv:2109.09032.

    Example:
        `jem.load_official("CIFAR10_MODEL.pt").model` classifies, scores and can be sampled.
    """
    path = Path(path)
    state, chains = _weights_and_chains(_read(path), path)
    try:
        arguments: dict[str, Any] = {
            "depth": 4 + 6 * len({k.split(".")[2] for k in state if k.startswith("f.layer1.")}),
            "width": state["f.layer1.0.conv2.weight"].shape[0] // 16,
            "norm": "batch" if "f.bn1.running_mean" in state else "none",
            "num_classes": len(state[f"{head}.weight"]),
        }
        channels = state["f.conv1.weight"].shape[1]
        shape = (channels, 32, 32) if chains is None else tuple(chains.shape[1:])
        with global_generators_kept():  # the first weights are overwritten
            network = wide_resnet(shape, **arguments)
        names = {ours: _theirs(ours, head, arguments["depth"]) for ours in network.state_dict()}
        network.load_state_dict({ours: state[theirs] for ours, theirs in names.items()})
        left = [k for k in state if k not in names.values() and not _SPARE.match(k)]
    except (KeyError, RuntimeError, InputError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"{path} must hold a wide residual network of JEM: {reason}") from error
    if left:
        raise InputError(f"{path} must hold a wide residual network of JEM, got also {left[:3]}")
    model = JEM(
        network,
        input_shape=shape,
        classes=classes or [str(k) for k in range(arguments["num_classes"])],
        domain=(-1.0, 1.0),
        scaling=Scaling.of_bytes(shape, "channels_last"),
    ).eval()
    if arguments["norm"] == "none":
        model.sampler = SamplerSettings(
            init=UniformBase(-1.0, 1.0, shape),
            num_steps=20,
            step=LangevinStep(step_size=1.0, noise_std=0.01),
            class_frequencies=torch.ones(arguments["num_classes"]) / arguments["num_classes"],
        )
    return OfficialCheckpoint(model, chains)


def _read(path: Path) -> Any:  # noqa: ANN401
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # a damaged or hostile file can fail in any way at all
        raise InputError(
            f"{path} must hold only tensors and plain values, got something else, which could "
            f"run code, or a damaged file ({type(error).__name__})"
        ) from error


def _weights_and_chains(content: Any, path: Path) -> tuple[dict[str, Tensor], Tensor | None]:  # noqa: ANN401
    """Weights under their names without the prefixes of wrappers, and the replay buffer if any."""
    chains = None
    if isinstance(content, Mapping) and "model_state_dict" in content:
        chains = content.get("replay_buffer")
        content = content["model_state_dict"]
    if not isinstance(content, Mapping) or not all(
        isinstance(v, Tensor) for v in content.values()
    ):
        raise InputError(f"{path} must hold the state dict of a network, got other contents")
    state = {re.sub(r"^(module\.)+", "", str(key)): value for key, value in content.items()}
    has_chains = isinstance(chains, Tensor) and chains.ndim == 4 and len(chains) > 0
    return state, chains if has_chains else None


def _theirs(ours: str, head: str, depth: int) -> str:
    """Official name of a tensor of `wide_resnet`.

    Our body is one sequence: first convolution, the blocks of three stages, norm.
    """
    part, _, rest = ours.partition(".")
    if part == "head":
        return f"{head}.{rest.removeprefix('linear.')}"
    index, _, rest = rest.partition(".")
    blocks = (depth - 4) // 6
    if index == "0":
        return f"f.conv1.{rest}"
    if int(index) > 3 * blocks:
        return f"f.bn1.{rest}"
    stage, block = divmod(int(index) - 1, blocks)
    where, _, tensor = rest.rpartition(".")
    return f"f.layer{stage + 1}.{block}.{_PARTS[where]}.{tensor}"
