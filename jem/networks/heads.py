"""Heads: what turns the features of a network into logits, and how logits are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from jem.checks import refuse
from jem.errors import InputError
from jem.networks.foreign import copied

Head = Literal["joint", "factored", "towers"]


class JointHead(nn.Module):
    """The plain reading: logits are one linear map of the features."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_features, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, F) to logits (B, K), in the weights' precision under autocast too."""
        with torch.autocast(features.device.type, enabled=False):
            logits: Tensor = self.linear(features.to(self.linear.weight.dtype))
        return logits


class FactoredHead(JointHead):
    r"""A classifier and a density that do not pull at each other: p(x, y) = p(x) p(y|x).

    .. math:: f(x)[y] = \log \mathrm{softmax}(h(x))[y] + g(x)

    The softmax of these logits is that of h, and their logsumexp is exactly g(x), so E(x) = -g(x):
    cross-entropy has no gradient through g, and does not raise the density of data as a
    by-product.
    """

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__(num_features, num_classes + 1)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, F) to logits (B, K), in the weights' precision under autocast too."""
        return factored_logits(super().forward(features))


def factored_logits(out: Tensor) -> Tensor:
    """log_softmax(h) + g, shape (B, K), of h and g side by side, shape (B, K + 1)."""
    return out[:, :-1].log_softmax(dim=1) + out[:, -1:]


class Factored(nn.Module):
    """A network whose last linear layer gives g beside the logits: see `factored`.

    Args:
        network: Returns what its last linear layer gives, h and g side by side.
        layer: Name of that layer.
    """

    def __init__(self, network: nn.Module, layer: str) -> None:
        super().__init__()
        self.network, self.layer = network, layer
        self._checked = False

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, *shape) to logits (B, K)."""
        if not self._checked:
            self._check(x)
        return factored_logits(self.network(x))

    def _check(self, x: Tensor) -> None:
        """Compare what the network returns with what the layer gives, once."""
        given: list[Tensor] = []
        layer = self.network.get_submodule(self.layer)
        hook = layer.register_forward_hook(lambda module, inputs, output: given.append(output))
        out = None
        try:
            with torch.no_grad():
                out = self.network(x.clone())
        except RuntimeError:
            if not given:  # inputs of another shape: the layer is not to blame
                raise
        finally:
            hook.remove()
        if len(given) != 1 or not isinstance(out, Tensor) or not given[0].equal(out):
            raise InputError(
                f"the output of the network is not that of its layer {self.layer!r}, called once: "
                "name the layer that gives the logits, factored(network, layer=...)"
            )
        self._checked = True


def factored(network: nn.Module, layer: str | None = None) -> Factored:
    """Give any network the factored head: its last linear layer gets one more output, g.

    The logits become log_softmax(h(x)) + g(x), as with `FactoredHead`. The trained rows of the
    layer stay, so the softmax is what it was; g begins at random.

    Args:
        network: A network that ends in a linear layer, which gives the logits; it is copied.
        layer: Name of that layer, such as `"fc"`; the last one of the network if None.

    Returns:
        A network (B, *shape) -> (B, K). The first batch checks that the layer comes last.

    Raises:
        InputError: If there is no such layer, or its weights are used elsewhere too.

    Example:
        >>> body = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 3))
        >>> factored(body)(torch.zeros(5, 2)).shape
        torch.Size([5, 3])
    """
    network = copied(network)
    linear = {name: m for name, m in network.named_modules() if type(m) is nn.Linear and name}
    layer = next(reversed(linear), "") if layer is None else layer
    if layer not in linear:
        wanted = f"name a linear layer ({', '.join(linear) or 'the network has none'})"
        refuse("layer", wanted, repr(layer), "or keep the classifier apart: jem.companion")
    old = linear[layer]
    owners = [p is old.weight for _, p in network.named_parameters(remove_duplicate=False)]
    if sum(owners) != 1:
        raise InputError(f"{layer!r} shares its weights with another layer: use jem.companion")
    new = nn.Linear(old.in_features, old.out_features + 1).to(old.weight)
    with torch.no_grad():
        new.weight[:-1] = old.weight
        new.bias[:-1] = 0.0 if old.bias is None else old.bias
    new.train(old.training)
    network.set_submodule(layer, new)
    return Factored(network, layer)


HEADS: dict[str, Callable[[int, int], nn.Module]] = {"joint": JointHead, "factored": FactoredHead}


def log_density(logits: Tensor) -> Tensor:
    r"""Log-density of inputs whose logits are at hand: *unnormalised*, and no likelihood.

    .. math:: \log p(x) + \log Z = \log \sum_y \exp f(x)[y]

    Args:
        logits: f(x), shape (B, K).

    Returns:
        Log-density, shape (B,), nats; high = likely.
    """
    return torch.logsumexp(logits, dim=1)


def energy_of(logits: Tensor, y: Tensor | None = None) -> Tensor:
    r"""Energy from logits, of the input alone or of the input with a class.

    .. math:: E(x, y) = -f(x)[y], \qquad E(x) = -\log \sum_y \exp f(x)[y]

    Args:
        logits: f(x), shape (B, K).
        y: Class indices, shape (B,); `None` sums the classes out.

    Returns:
        Energies, shape (B,), nats; low = compatible.

    Raises:
        InputError: If `y` does not hold one class index a row.

    References:
        Grathwohl et al. (2020), arXiv:1912.03263, equations 5 and 6.

    Example:
        >>> energy_of(torch.zeros(1, 4)).item()
        -1.3862943649291992
    """
    if y is None:
        return -log_density(logits)
    if not isinstance(y, Tensor) or y.is_floating_point() or y.dtype == torch.bool:
        refuse("y", "be a tensor of class indices", getattr(y, "dtype", type(y).__name__))
    if y.shape != logits.shape[:1]:  # `gather` would quietly drop the rows that have no index
        refuse("y", f"have shape ({len(logits)},)", tuple(y.shape))
    y = y.to(logits.device, torch.long)
    if y.is_inference():  # no gradient goes past such a tensor
        y = y.clone()
    try:
        return -logits.gather(1, y[:, None]).squeeze(1)
    except RuntimeError:
        low, high = int(y.min()), int(y.max())
        if 0 <= low <= high < logits.shape[1]:
            raise
        refuse("y", f"lie in 0..{logits.shape[1] - 1}", f"{low}..{high}")
