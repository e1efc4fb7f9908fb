"""Find or build the network of a run: by shape, by name, or by `module:factory`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from jem.checks import check_choice, check_integer, refuse
from jem.errors import InputError
from jem.networks.architectures import NETWORKS, Network, Towers, network_for, towers, usual_head
from jem.networks.companion import Classifier, Companion, companion
from jem.networks.foreign import copied, in_one_line
from jem.networks.heads import Factored, Head
from jem.randomness import derive_seed, global_generators_kept

NetworkFactory = Callable[[tuple[int, ...], int], nn.Module]
"""Shape of one input and number of classes -> module."""


def make_network(
    given: nn.Module | NetworkFactory | str | None,
    shape: Sequence[int],
    num_classes: int,
    head: Head | Literal["companion", "density"] | None,
    seed: int,
) -> nn.Module:
    """Make the network of a run: a copy of yours, one by name, or the usual one for a shape.

    Args:
        given: A module, a function (shape, number of classes) -> module, a name as
            `network_from_text` takes it, or None.
        shape: Shape of one input.
        num_classes: K; the head `"density"` has one output in any case.
        head: Head of networks of ours, unless the name says another; the `usual_head` if None.
            Beside yours `"towers"` puts a density, and so does None if inputs are images;
            `"companion"` makes it the classifier of a companion. Else yours keeps its own head.
        seed: Seed of new weights; torch's global generator is left as it was.

    Returns:
        A network (B, *shape) -> (B, K).

    Raises:
        InputError: If this is neither a module nor a function, the function fails, or there is no
            classifier for a companion.
    """
    if head == "density":
        num_classes, head = 1, "joint"
    if head == "companion":
        if given is None or (isinstance(given, str) and given.partition(":")[0] in NETWORKS):
            wanted = "be a classifier that you have trained, since the head is a companion"
            refuse("network", wanted, repr(given), "name your function, module:factory")
        if isinstance(given, Companion):
            return copied(given)
        classifier = make_network(given, shape, num_classes, "joint", seed)
        with global_generators_kept():
            torch.manual_seed(derive_seed(seed, "network") % 2**32)
            return companion(classifier, input_shape=shape, num_classes=num_classes)
    if isinstance(given, nn.Module):
        return _beside(copied(given), head, shape, num_classes, seed)
    if given is not None and not isinstance(given, str) and not callable(given):
        wanted = "be a torch module, a name or a function (shape, number of classes) -> module"
        refuse("network", wanted, type(given).__name__)
    with global_generators_kept():
        torch.manual_seed(derive_seed(seed, "network") % 2**32)
        if given is None:
            return network_for(shape, num_classes, head=head)
        if isinstance(given, str):
            network = network_from_text(given, shape, num_classes, head=head)
        else:
            network = _made_by(given, "the function `network`", shape, num_classes)
    return _beside(network, head, shape, num_classes, seed)


def _beside(
    network: nn.Module, head: Head | None, shape: Sequence[int], num_classes: int, seed: int
) -> nn.Module:
    """A network of the user's, with a density beside it where the head is `towers`.

    With that, the user's network becomes the classifier that it is without a density. One body for
    both costs some networks accuracy (docs/benchmarks.md), so images have it so unless asked.
    """
    ready = Network, Towers, Companion, Factored
    beside = head == "towers" or (head is None and len(shape) == 3)
    if not beside or isinstance(network, ready):
        return network
    with global_generators_kept():
        torch.manual_seed(derive_seed(seed, "energy network") % 2**32)
        return towers(network, input_shape=shape, num_classes=num_classes)


def network_from_text(
    text: str, shape: Sequence[int], num_classes: int, *, head: Head | None = None
) -> nn.Module:
    """Build a network from its name and sizes, or from `module:factory`.

    Args:
        text: `NAME` or `NAME:key=value,...` with a name of `NETWORKS`, such as
            `wide_resnet:depth=16,width=4,norm=group`; or what `network_from_reference` takes.
        shape: Shape of one input, without the batch axis.
        num_classes: K.
        head: Head of a network of ours, unless the text says another; the `usual_head` if None.

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
    arguments: dict[str, Any] = {"head": head or usual_head(shape)}
    for pair in sizes.split(",") if sizes else ():
        key, _, value = (word.strip() for word in pair.partition("="))
        if key not in kinds:
            refuse("network", f"set only {', '.join(kinds)} of {name}", repr(pair))
        try:
            arguments[key] = kinds[key](value)
        except ValueError:
            refuse(key, "be a whole number" if kinds[key] is int else "be a number", repr(value))
    return NETWORKS[name](shape, num_classes, **arguments)


def network_from_spec(
    spec: dict[str, Any] | str,
    shape: Sequence[int] = (),
    num_classes: int = 0,
    classifier: Classifier | None = None,
) -> nn.Module:
    """Build a network again from what `spec_of` says of it.

    Args:
        spec: `{"name": ..., **arguments}`, or what `network_from_reference` takes.
        shape: Shape of one input, for a network that is named by a reference.
        num_classes: Its outputs.
        classifier: That of a companion or of towers, where the spec does not say how it is built.

    Returns:
        A freshly initialised network of that kind.

    Raises:
        InputError: If the name or an argument is unknown, or one is missing or out of range.
    """
    if isinstance(spec, str):
        return network_from_reference(spec, shape, num_classes)
    arguments = {key: value for key, value in spec.items() if key != "name"}
    if spec.get("name") == "towers":
        held, shape = arguments.pop("classifier_spec"), arguments["input_shape"]
        own: Any = classifier or network_from_spec(held, shape, arguments["num_classes"])
        return towers(own, **arguments)
    if spec.get("name") == "companion":
        held, energy_network = arguments.pop("classifier_spec"), arguments["energy_network"]
        shape = arguments["input_shape"]
        if classifier is None:
            classifier = network_from_spec(held, shape, arguments["num_classes"])
        if energy_network is not None:
            arguments["energy_network"] = network_from_spec(energy_network, shape, 1)
        return companion(classifier, **arguments)
    check_choice("network", spec.get("name"), NETWORKS)
    try:
        return NETWORKS[spec["name"]](**arguments)
    except TypeError as error:  # an argument is missing, unknown or of the wrong type
        raise InputError(f"cannot build the network {spec}: {error}") from error


def network_from_reference(reference: str, shape: Sequence[int], num_classes: int) -> nn.Module:
    """Build a network of the user's from `module:factory`, called as factory(shape, num_classes).

    All three may come from a model file that somebody sent: it can name any function of an
    installed package, such as `subprocess:call`. So it is called with whole numbers or not at all.

    Args:
        reference: Such as `"my_package.nets:make"`; the module is imported, where nothing else has
            its name from the working folder too.
        shape: Shape of one input, without the batch axis.
        num_classes: K.

    Returns:
        The module that the factory returned.

    Raises:
        InputError: If the module or the factory is not found or fails, no torch module comes back,
            or shape and classes are no whole numbers.
    """
    module_name, _, factory_name = reference.partition(":")
    if not module_name or not factory_name:
        refuse("network", "be named module:factory, if it is your own", repr(reference))
    for size in shape:
        check_integer("shape", size, 1)
    check_integer("num_classes", num_classes, 1)
    folder = str(Path.cwd())
    sys.path.append(folder)  # last, and for the moment: its files may have any name
    try:
        factory = _imported(module_name, factory_name)
        network = _made_by(factory, repr(reference), shape, num_classes)
    finally:
        del sys.path[-1 - sys.path[::-1].index(folder)]
    if spec_of(network) is None:
        network.spec = reference  # type: ignore[assignment]
    return network


def _imported(module_name: str, factory_name: str) -> NetworkFactory:
    """A function of the user's, by the name of its module and its own."""
    try:
        factory: NetworkFactory = getattr(importlib.import_module(module_name), factory_name)
    except (ImportError, AttributeError) as error:
        hint = ""
        if module_name.endswith(".py"):
            hint = "; a module is named without .py"
        elif isinstance(error, ModuleNotFoundError) and error.name == module_name.split(".")[0]:
            hint = f"; run in the folder that holds {error.name}.py, or put it on PYTHONPATH"
        raise InputError(
            f"cannot find the network factory '{module_name}:{factory_name}': {error}{hint}"
        ) from error
    except Exception as error:
        raise InputError(f"importing {module_name!r} failed: {in_one_line(error)}") from error
    return factory


def _made_by(
    factory: NetworkFactory, name: str, shape: Sequence[int], num_classes: int
) -> nn.Module:
    """What a function of the user's makes of the shape of one input and the number of classes."""
    try:
        network = factory(tuple(shape), num_classes)
    except Exception as error:
        raise InputError(
            f"{name} was called with (shape, num_classes) = ({tuple(shape)}, {num_classes}) and "
            f"failed: {in_one_line(error)}"
        ) from error
    if not isinstance(network, nn.Module):
        raise InputError(f"{name} must return a torch.nn.Module, but got {type(network).__name__}")
    return network


def spec_of(network: nn.Module | None) -> dict[str, Any] | str | None:
    """How a network can be built again: name and arguments, `module:factory`, or None.

    Args:
        network: The network. Those of `jem.networks` and of `network_from_reference` say it in
            `network.spec`; a network of your own does where you set it.
    """
    if isinstance(network, Companion):
        energy_network = None if network.usual else spec_of(network.energy_network)
        if energy_network is None and not network.usual:
            return None
        return {
            "name": "companion",
            "classifier_spec": spec_of(network.classifier.module),
            "energy_network": energy_network,
            "input_shape": list(network.input_shape),
            "num_classes": network.num_classes,
        }
    spec = getattr(network, "spec", None)
    ours = isinstance(spec, dict) and spec.get("name") in {*NETWORKS, "towers"}
    return spec if ours or (isinstance(spec, str) and ":" in spec) else None
