"""Find or build the network of a run: by shape, by name, or by `module:factory`."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import torch
from torch import nn

from jem.checks import check_choice, refuse
from jem.errors import InputError
from jem.networks.architectures import NETWORKS, Network, mlp, small_cnn
from jem.networks.heads import Head
from jem.randomness import derive_seed, global_generators_kept

NetworkFactory = Callable[[tuple[int, ...], int], nn.Module]
"""Shape of one input and number of classes -> module."""


def network_for(shape: Sequence[int], num_classes: int, *, head: Head = "factored") -> Network:
    """Choose a network by input shape: `small_cnn` for images of 8 pixels or more, else `mlp`.

    Args:
        shape: Shape of one input: (D,) for a table, (C, H, W) for images.
        num_classes: K >= 1.
        head: `"factored"` trains steadier; `"joint"` is the reading of the JEM paper.

    Returns:
        A network (B, *shape) -> (B, K).
    """
    if len(shape) == 3 and min(shape[1:]) >= 8:
        return small_cnn(shape, num_classes, head=head)
    return mlp(shape, num_classes, head=head)


def make_network(
    given: nn.Module | NetworkFactory | str | None,
    shape: Sequence[int],
    num_classes: int,
    head: Head,
    seed: int,
) -> nn.Module:
    """Make the network of a run: a copy of yours, one by name, or the usual one for a shape.

    Args:
        given: A module, a function (shape, number of classes) -> module, a name as
            `network_from_text` takes it, or None.
        shape: Shape of one input.
        num_classes: K.
        head: Head of networks of ours, unless the name says another.
        seed: Seed of new weights; torch's global generator is left as it was.

    Returns:
        A network (B, *shape) -> (B, K).

    Raises:
        InputError: If this is neither a module nor a function.
    """
    if isinstance(given, nn.Module):
        return copy.deepcopy(given)
    if given is not None and not isinstance(given, str) and not callable(given):
        wanted = "be a torch module, a name or a function (shape, number of classes) -> module"
        refuse("network", wanted, type(given).__name__)
    with global_generators_kept():
        torch.manual_seed(derive_seed(seed, "network") % 2**32)
        if given is None:
            return network_for(shape, num_classes, head=head)
        if isinstance(given, str):
            return network_from_text(given, shape, num_classes, head=head)
        return given(tuple(shape), num_classes)


def network_from_text(
    text: str, shape: Sequence[int], num_classes: int, *, head: Head = "factored"
) -> nn.Module:
    """Build a network from its name and sizes, or from `module:factory`.

    Args:
        text: `NAME` or `NAME:key=value,...` with a name of `NETWORKS`, such as
            `wide_resnet:depth=16,width=4,norm=group`; or what `network_from_reference` takes.
        shape: Shape of one input, without the batch axis.
        num_classes: K.
        head: Head of a network of ours, unless the text says another.

    Returns:
        A network (B, *shape) -> (B, K).

    Raises:
        InputError: If a name, a key or a value is unknown or out of range, or a network of your
            own cannot be built.

    Example:
        >>> network_from_text("mlp:width=16,depth=2", (4,), 3).spec["width"]
        16
    """
    name, _, sizes = text.partition(":")
    if name not in NETWORKS:
        if not sizes or "=" in sizes:
            refuse("network", f"be one of {', '.join(NETWORKS)}, or module:factory", repr(text))
        return network_from_reference(text, shape, num_classes)
    kinds = {p.name: type(p.default) for p in signature(NETWORKS[name]).parameters.values()}
    del kinds["shape"], kinds["num_classes"]
    arguments: dict[str, Any] = {"head": head}
    for pair in sizes.split(",") if sizes else ():
        key, _, value = (word.strip() for word in pair.partition("="))
        if key not in kinds:
            refuse("network", f"set only {', '.join(kinds)} of {name}", repr(pair))
        try:
            arguments[key] = kinds[key](value)
        except ValueError:
            refuse(key, "be a whole number" if kinds[key] is int else "be a number", repr(value))
    return NETWORKS[name](shape, num_classes, **arguments)


def network_from_spec(spec: dict[str, Any]) -> Network:
    """Build a network again from its `.spec`.

    Args:
        spec: `{"name": ..., **arguments}`, as a run folder keeps it.

    Returns:
        A freshly initialised network of that kind.

    Raises:
        InputError: If the name or an argument is unknown, or one is missing or out of range.
    """
    arguments = {key: value for key, value in spec.items() if key != "name"}
    check_choice("network", spec.get("name"), NETWORKS)
    try:
        return NETWORKS[spec["name"]](**arguments)
    except TypeError as error:  # an argument is missing, unknown or of the wrong type
        raise InputError(f"cannot build the network {spec}: {error}") from error


def network_from_reference(reference: str, shape: Sequence[int], num_classes: int) -> nn.Module:
    """Build a network of the user's from `module:factory`, called as factory(shape, num_classes).

    Args:
        reference: Such as `"my_package.nets:make"`; the module is imported.
        shape: Shape of one input, without the batch axis.
        num_classes: K.

    Returns:
        The module that the factory returned.

    Raises:
        InputError: If the module or the factory is not found or fails, or no torch module comes
            back.
    """
    module_name, _, factory_name = reference.partition(":")
    if not module_name or not factory_name:
        raise InputError(f"a network of your own is named 'module:factory', but got {reference!r}")
    try:
        factory = getattr(importlib.import_module(module_name), factory_name)
    except (ImportError, AttributeError) as error:
        hint = ""
        if module_name.endswith(".py"):
            hint = "; a module is named without .py"
        elif isinstance(error, ModuleNotFoundError) and error.name == module_name.split(".")[0]:
            hint = f"; run in the folder that holds {error.name}.py, or put it on PYTHONPATH"
        raise InputError(
            f"cannot find the network factory {reference!r}: {error}{hint}"
        ) from error
    except Exception as error:
        raise InputError(f"importing {module_name!r} failed: {_in_one_line(error)}") from error
    try:
        network = factory(tuple(shape), num_classes)
    except Exception as error:
        raise InputError(
            f"{reference!r} was called with (shape, num_classes) = "
            f"({tuple(shape)}, {num_classes}) and failed: {_in_one_line(error)}"
        ) from error
    if not isinstance(network, nn.Module):
        raise InputError(
            f"{reference!r} must return a torch.nn.Module, but got {type(network).__name__}"
        )
    if spec_of(network) is None:
        network.spec = reference  # type: ignore[assignment]
    return network


def spec_of(network: nn.Module) -> dict[str, Any] | str | None:
    """How a network can be built again: name and arguments, `module:factory`, or None.

    Args:
        network: The network. Those of `jem.networks` and of `network_from_reference` say it in
            `network.spec`; a network of your own does where you set it.
    """
    spec = getattr(network, "spec", None)
    ours = isinstance(spec, dict) and spec.get("name") in NETWORKS
    return spec if ours or (isinstance(spec, str) and ":" in spec) else None


def _in_one_line(error: Exception) -> str:
    """Kind and first lines of an error in the user's code."""
    first = " ".join(line.strip() for line in str(error).splitlines()[:2])
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
