"""Checkpoints of the official JEM code and its descendants, read by layout into our networks.

Read are the wide residual networks of JEM, JEM++, SADA-JEM and HDGE (a body `f` with the heads
`class_output` and `energy_output`) and of VERA (a body with its own head). DAT (other units and no
biases) and EGC (a U-net) are other networks, and are refused.
"""

from __future__ import annotations

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
from jem.sampling.base_distributions import UniformBase
from jem.sampling.langevin import LangevinStep
from jem.sampling.settings import SamplerSettings

Head = Literal["class_output", "energy_output"]
Layout = Literal["jem", "vera"]

_PREFIXES: dict[str, Layout] = {"f.": "jem", "logp_net.": "vera", "": "vera"}
_PARTS = {"branch.0": "bn1", "branch.2": "conv1", "branch.4": "bn2", "branch.6": "conv2"}
_PARTS |= {"shortcut": "shortcut.0"}
# Heads that joint training never uses, the queue of HDGE, and second names of the same tensors
# in the `yopo` bodies of JEM++.
_SPARE = re.compile(
    r"f\.linear\.|energy_output\.|class_output\.|queue_(logit|ptr)$|f\.(layer_one|other_layers)\."
)


class OfficialCheckpoint(NamedTuple):
    """What was found in a checkpoint; every key of the file's weights is accounted for."""

    model: JEM  # evaluation mode, on the CPU
    chains: Tensor | None  # (capacity, C, H, W) replay buffer, as `ReplayBuffer` takes it
    layout: Layout  # how the file is laid out
    unused: tuple[str, ...]  # keys that have no part in the logits: spare heads, second names
    unmapped: tuple[str, ...]  # other keys of the file that the network has no place for
    missing: tuple[str, ...]  # tensors of the network that the file does not hold


def load_official(
    path: str | Path,
    *,
    head: Head = "class_output",
    input_shape: Sequence[int] | None = None,
    classes: Sequence[str] | None = None,
    strict: bool = True,
) -> OfficialCheckpoint:
    """Read a checkpoint of the official JEM code; a file that would run code is refused.

    Depth, width, norm and number of classes follow from the tensors. The model takes images in
    [-1, 1], and keeps the scaling from bytes to that. Networks without norm get the sampler of the
    official code (uniform start, step 1, noise 0.01, 20 moves), but clipped to the domain; those
    with batch norm (JEM++, SADA-JEM) start chains from class Gaussians that are not in the file,
    so their `model.sampler` stays None. Batch norm has torch's momentum of 0.1, where the official
    code trains with 0.9.

    Args:
        path: The file, as `torch.save` wrote it.
        head: `"class_output"`, or `"energy_output"` for a network trained with `--uncond` (K = 1);
            VERA's networks have one head, which is taken.
        input_shape: (C, H, W); None takes that of the replay buffer, else 32 x 32.
        classes: Names of the classes; None numbers them.
        strict: Refuse a file with `unmapped` or `missing` tensors. Without it, missing ones keep
            the values that a fresh network has.

    Returns:
        The model and what else is in the file.

    Raises:
        InputError: If the file cannot be read, holds more than tensors and plain values, is of
            another network, or does not fit exactly (`strict`).

    References:
        Grathwohl et al. (2020), arXiv:1912.03263. Yang and Ji (2021), JEM++, arXiv:2109.09032.
    """
    path = Path(path)
    state, chains = _weights_and_chains(_read(path), path)
    prefix = _prefix_of(state, path)
    layout = _PREFIXES[prefix]
    head_name = head if layout == "jem" else f"{prefix}linear"
    arguments = _arguments(state, prefix, head_name, path)
    shape = _shape_of(state[f"{prefix}conv1.weight"], chains, input_shape)
    with global_generators_kept():  # the first weights are overwritten
        network = wide_resnet(shape, **arguments)

    names = {ours: _theirs(ours, prefix, head_name, arguments) for ours in network.state_dict()}
    keys = _Keys.sort(names, state)
    if strict and (keys.unmapped or keys.missing):
        raise InputError(
            f"{path} does not fit exactly: the network has no place for {_listed(keys.unmapped)}, "
            f"and the file nothing for {_listed(keys.missing)}; strict=False loads the rest"
        )
    try:
        network.load_state_dict({ours: state[names[ours]] for ours in keys.found}, strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"{path} does not fit a wide residual network: {reason}") from error
    model = JEM(
        network,
        input_shape=shape,
        classes=_names(classes, arguments["num_classes"]),
        domain=(-1.0, 1.0),
        scaling=Scaling.of_bytes(shape, "channels_last"),
    ).eval()
    if arguments["norm"] == "none":
        model.sampler = _official_chain(shape, arguments["num_classes"])
    return OfficialCheckpoint(model, chains, layout, keys.unused, keys.unmapped, keys.missing)


class _Keys(NamedTuple):
    """Names on both sides, sorted by whether the other side has them."""

    found: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    unmapped: tuple[str, ...]

    @classmethod
    def sort(cls, names: Mapping[str, str], state: Mapping[str, Tensor]) -> _Keys:
        """Sort tensors of the network, given as our name -> official name, and keys of a file."""
        taken = set(names.values())
        left_over = [key for key in state if key not in taken]
        return cls(
            found=tuple(ours for ours, theirs in names.items() if theirs in state),
            missing=tuple(ours for ours, theirs in names.items() if theirs not in state),
            unused=tuple(key for key in left_over if _SPARE.match(key)),
            unmapped=tuple(key for key in left_over if not _SPARE.match(key)),
        )


def _read(path: Path) -> Any:  # noqa: ANN401
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # a damaged or hostile file can fail in any way at all
        raise InputError(
            f"{path} is no checkpoint of tensors and plain values alone, and nothing else is "
            f"loaded, since it could run code ({type(error).__name__})"
        ) from error


def _weights_and_chains(content: Any, path: Path) -> tuple[dict[str, Tensor], Tensor | None]:  # noqa: ANN401
    """Weights under their names without wrappers' prefixes, and the replay buffer if any."""
    chains = None
    if isinstance(content, Mapping) and "model_state_dict" in content:
        chains = content.get("replay_buffer")
        content = content["model_state_dict"]
    elif isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"].get("logp_net")
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"{path} holds no weights: expected a state dict of a network")
    state = {}
    for key, value in content.items():
        if not isinstance(value, Tensor):
            raise InputError(f"{path} is no state dict: {key!r} is a {type(value).__name__}")
        state[re.sub(r"^(module\.)+", "", str(key))] = value
    has_chains = isinstance(chains, Tensor) and chains.ndim == 4 and len(chains) > 0
    return state, chains if has_chains else None


def _prefix_of(state: Mapping[str, Tensor], path: Path) -> str:
    if any(re.match(r"(base_model\.)?block1\.layer\.", key) for key in state):
        raise InputError(
            f"{path} is of DAT, whose network (ReLU, no biases, its own normalisation) is another"
        )
    for prefix in _PREFIXES:
        if f"{prefix}layer1.0.conv1.weight" in state:
            break
    else:
        raise InputError(
            f"{path} holds no wide residual network of the official code: expected keys such as "
            f"'f.layer1.0.conv1.weight', but got {_listed(tuple(state))}"
        )
    if f"{prefix}layer4.0.conv1.weight" in state:
        raise InputError(f"{path} has a fourth stage (for images of 64 pixels), ours has three")
    return prefix


def _arguments(state: Mapping[str, Tensor], prefix: str, head: str, path: Path) -> dict[str, Any]:
    """What `wide_resnet` needs to know, read off names and shapes."""
    needed = (f"{prefix}conv1.weight", f"{prefix}layer1.0.conv2.weight", f"{head}.weight")
    for key in needed:
        if key not in state:
            raise InputError(f"{path} holds no {key!r}")
    blocks = {
        key.split(".")[-3]
        for key in state
        if key.startswith(f"{prefix}layer1.") and key.endswith(".conv1.weight")
    }
    return {
        "depth": 6 * len(blocks) + 4,
        "width": state[needed[1]].shape[0] // 16,
        "norm": _norm_of(state, prefix, path),
        "num_classes": state[needed[2]].shape[0],
    }


def _norm_of(state: Mapping[str, Tensor], prefix: str, path: Path) -> str:
    if not any(key.startswith(f"{prefix}bn1.") for key in state):
        return "none"
    if f"{prefix}bn1.running_mean" not in state:
        raise InputError(f"{path} has a norm that ours lacks: only none and batch are read")
    if _PREFIXES[prefix] == "vera":
        raise InputError(f"{path} is of VERA with batch norm, which skips the first one")
    return "batch"


def _theirs(ours: str, prefix: str, head: str, arguments: Mapping[str, Any]) -> str:
    """Official name of a tensor of `wide_resnet(**arguments)`.

    Our body is one sequence: first convolution, the blocks of three stages, norm.
    """
    part, _, rest = ours.partition(".")
    if part == "head":
        return f"{head}.{rest.removeprefix('linear.')}"
    index, _, rest = rest.partition(".")
    blocks = (arguments["depth"] - 4) // 6
    if index == "0":
        return f"{prefix}conv1.{rest}"
    if int(index) > 3 * blocks:
        return f"{prefix}bn1.{rest}"
    stage, block = divmod(int(index) - 1, blocks)
    where, _, tensor = rest.rpartition(".")
    return f"{prefix}layer{stage + 1}.{block}.{_PARTS[where]}.{tensor}"


def _shape_of(
    first: Tensor, chains: Tensor | None, given: Sequence[int] | None
) -> tuple[int, ...]:
    if given is not None:
        shape = tuple(int(n) for n in given)
    else:
        shape = (first.shape[1], 32, 32) if chains is None else tuple(chains.shape[1:])
    if len(shape) != 3 or shape[0] != first.shape[1]:
        raise InputError(
            f"`input_shape` must be (C, H, W) with C = {first.shape[1]}, but got {shape}"
        )
    return shape


def _names(classes: Sequence[str] | None, num_classes: int) -> Sequence[str]:
    if classes is None:
        return [str(k) for k in range(num_classes)]
    if len(classes) != num_classes:
        raise InputError(
            f"`classes` must name {num_classes} classes, but got {len(classes)} names"
        )
    return classes


def _official_chain(shape: tuple[int, ...], num_classes: int) -> SamplerSettings:
    """The sampler of the official code: the README's 20 steps of size 1 and noise 0.01."""
    return SamplerSettings(
        init=UniformBase(-1.0, 1.0, shape),
        num_steps=20,
        step=LangevinStep(step_size=1.0, noise_std=0.01),
        class_frequencies=torch.full((num_classes,), 1 / num_classes),
    )


def _listed(keys: Sequence[str]) -> str:
    """Up to three keys, and how many more there are."""
    if not keys:
        return "nothing"
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(repr(key) for key in keys[:3]) + more
