"""A network that somebody else wrote: how it is copied, called and believed, in one place each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from types import MethodType, ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from jem.errors import InputError, JemError

Module = TypeVar("Module", bound=nn.Module)

ROUNDING = 1e-5
"""Of two gradients, what the smaller one's norm may be where rounding alone made it."""


def in_one_line(error: BaseException) -> str:
    """Kind and first lines of an error in the user's code."""
    first = " ".join(line.strip() for line in str(error).splitlines()[:2])
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def copied(module: Module) -> Module:
    """Copy a module, also one that holds what Python cannot copy.

    Tensors of an earlier forward, as spectral normalisation, hooks and some networks keep them,
    are copied without their graph; locks and open files are shared.

    Args:
        module: The module.
    """
    try:
        return deepcopy(module)
    except Exception:  # of any type: objects may define how they are copied
        memo: dict[int, Any] = {}
        _replace(module, memo, set())
        return deepcopy(module, memo)


def _replace(value: Any, memo: dict[int, Any], seen: set[int]) -> None:  # noqa: ANN401
    """Note a substitute for each part of an object that cannot be copied."""
    if id(value) in seen:
        return
    seen.add(id(value))
    try:
        deepcopy(value)
    except Exception:
        parts: Iterable[Any] = ()
        if isinstance(value, dict):
            parts = value.values()
        elif isinstance(value, list | tuple | set):
            parts = value
        elif isinstance(value, MethodType):
            parts = (value.__self__,)
        elif isinstance(value, Tensor):
            memo[id(value)] = value.detach().clone()
        elif hasattr(value, "__dict__") and not isinstance(value, ModuleType):
            parts = vars(value).values()
        else:
            memo[id(value)] = value
        for part in parts:
            _replace(part, memo, seen)


def lay_out(network: nn.Module, memory_format: torch.memory_format) -> None:
    """Lay out the weights of 2-D convolutions, and so the activations between them."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=memory_format)


def logits_of(network: nn.Module, x: Tensor) -> Tensor:
    """Ask a network for logits: the one place where it is called.

    Inputs get the precision of its weights. Where it fails with the channels of convolutions side
    by side, as `x.view(len(x), -1)` does, it gets torch's own layout, and keeps it if that helps.

    Args:
        network: Maps (B, *shape) to logits (B, K).
        x: Inputs, shape (B, *shape).

    Returns:
        Logits, shape (B, K), in float32 at least.

    Raises:
        InputError: For whatever the network raises, which is its cause; or if it returns anything
            but one row of logits an input.
    """
    like = next((p for p in network.parameters() if p.is_floating_point()), x)
    x, mode = x.to(like.dtype), " in training mode" if network.training else ""
    try:
        logits = network(x)
    except (JemError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        logits = _in_usual_layout(network, x)
        if logits is None:
            raise InputError(
                f"the network does not take inputs of shape {tuple(x.shape[1:])}{mode}: "
                f"{in_one_line(error)}"
            ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"the network must return logits of shape (B, K), but returned {came}{mode}"
        )
    if logits.shape[0] != x.shape[0]:  # `len` would fix the batch of an exported graph
        raise InputError(
            f"the network must return one row of logits for each input, got {len(logits)} rows "
            f"for {len(x)} inputs{mode}: a `view` or `cat` in it moves numbers between rows"
        )
    # Half precision near 32 is spaced a quarter of a nat: too coarse for an energy.
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _in_usual_layout(network: nn.Module, x: Tensor) -> Any:  # noqa: ANN401
    """What a network that failed returns in torch's own layout; None if that does not help."""
    weights = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d)]
    if any(w.stride(1) == 1 and w.shape[2:].numel() > 1 for w in weights):
        lay_out(network, torch.contiguous_format)
        try:
            return network(x)
        except Exception:  # the layout was not to blame
            lay_out(network, torch.channels_last)
    return None


def why_no_density(logits: Tensor, of: Sequence[Tensor]) -> str:
    """Say why logits leave no density: they are probabilities, or nothing changes log p(x).

    A sigmoid is read off the graph, since logits too may lie between 0 and 1. The second is asked
    of gradients, since a factored head too may begin with a constant.

    Args:
        logits: What a network returned, shape (B, K), with its graph.
        of: What the density should depend on, its parameters or its inputs.

    Returns:
        What the network does; empty if there is a density, or no way to know.
    """
    sums_to_one = ((logits.sum(dim=1) - 1).abs() < 1e-3).all()
    if logits.shape[1] > 1 and bool((logits >= 0).all() & sums_to_one):
        return "ends in a softmax"
    if type(logits.grad_fn).__name__ == "SigmoidBackward0":
        return "ends in a sigmoid"
    sizes = []
    try:
        for values in (logits.logsumexp(dim=1), logits[:, 0]):
            found = torch.autograd.grad(values.sum(), of, retain_graph=True, allow_unused=True)
            sizes.append(nn.utils.get_total_norm([g for g in found if g is not None]))
    except RuntimeError:  # no graph, or none that torch can go back along
        return ""
    if bool(sizes[0] <= ROUNDING * sizes[1]) and bool(sizes[1] > 0):
        return "ends in a softmax that is followed by a logarithm, so its density is constant"
    return ""
