"""A classifier that exists keeps its predictions; a network beside it learns the density."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from jem.checks import check_integer, refuse
from jem.errors import InputError
from jem.networks.architectures import usual_energy_network
from jem.networks.foreign import copied, why_no_density
from jem.networks.heads import log_density

GRID = 2.0**32
"""Log-densities are rounded to 1 / GRID in logits, so that adding them to logits is exact."""

Classifier = nn.Module | Callable[[Tensor], Any]
"""Maps inputs (B, *shape) to logits: a module, or a function that gives no gradients."""


class FrozenClassifier:
    """A classifier that answers in evaluation mode, and that nothing changes.

    It is no part of the module that holds it: not trained, averaged, saved in checkpoints or put
    in another mode. Copies of that module share it.

    Args:
        classifier: A module, of which a copy is kept; or a function, called without gradients.

    Attributes:
        module: The copy; None for a function.
    """

    def __init__(self, classifier: Classifier) -> None:
        self.module: nn.Module | None = None
        self._function: Callable[[Tensor], Any] = classifier
        if isinstance(classifier, nn.Module):
            self.module = copied(classifier).eval().requires_grad_(False)
            self._function = self.module

    def __deepcopy__(self, memo: Any) -> FrozenClassifier:  # noqa: ANN401
        return self

    def __call__(self, x: Tensor) -> Tensor:
        """Logits h(x) in float32, shape (B, K), of inputs (B, *shape)."""
        if self.module is None:
            with torch.no_grad():
                return _logits_of(self._function(x.detach())).to(x.device, torch.float32)
        like = next(self.module.parameters(), x)
        if like.device != x.device:
            self.module.to(x.device)
        return _logits_of(self.module(x.to(like.dtype))).float()


def _logits_of(output: Any) -> Tensor:  # noqa: ANN401
    """The logits in what classifiers return: alone, called so, or first in a tuple or dict."""
    if isinstance(output, Mapping):
        output = output.get("logits", next(iter(output.values()), None))
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, tuple | list) and output:
        output = output[0]
    try:
        return torch.as_tensor(output)
    except (TypeError, ValueError, RuntimeError) as error:
        wanted = "return logits, or a tuple, a dict or an object with `logits`"
        raise InputError(f"the classifier must {wanted}, got {type(output).__name__}") from error


class Companion(nn.Module):
    r"""A frozen classifier h and the energy network t that is trained beside it.

    .. math:: f(x)[y] = \log \mathrm{softmax}(h(x))[y] + \log \sum_k \exp t(x)[k]

    So p(y|x) is that of h, and E(x) that of t: see `companion`. `JEM` takes the energy of inputs
    from `energy_network` alone, and training never runs h.

    Args:
        classifier: h.
        energy_network: t, maps (B, *shape) to (B, K) or (B, 1); the usual one if None.
        input_shape: Shape of one input.
        num_classes: K.

    Attributes:
        classifier: The `FrozenClassifier`.
        energy_network: t.
        energy_outputs: Its outputs, K or 1.
        usual: Whether t is the usual one.
    """

    def __init__(
        self,
        classifier: Classifier,
        energy_network: nn.Module | None,
        input_shape: Sequence[int],
        num_classes: int,
    ) -> None:
        super().__init__()
        self.input_shape, self.num_classes = tuple(input_shape), num_classes
        self.classifier = FrozenClassifier(classifier)
        self.usual = energy_network is None
        self.energy_network = (
            usual_energy_network(input_shape, num_classes)
            if energy_network is None
            else energy_network
        )
        self.energy_outputs = num_classes
        if energy_network is not None:
            x = torch.zeros(1, *self.input_shape)
            like = next(energy_network.parameters(), x)
            with torch.no_grad():
                self.energy_outputs = copied(energy_network).eval()(x.to(like)).shape[-1]

    @property
    def has_class_gradients(self) -> bool:
        """Whether p(y|x) has a gradient with respect to x."""
        return self.classifier.module is not None

    def forward(self, x: Tensor) -> Tensor:
        """Logits of inputs (B, *shape), shape (B, K).

        In float64, and with the log-density rounded to a grid, so that adding it to the logits of
        h is exact: differences of logits, and so p(y|x), are those of h to the bit. Where there is
        no float64 (Metal) they are so up to rounding.
        """
        h = self.classifier(x)
        wide = torch.float32 if h.device.type == "mps" else torch.float64
        h, g = h.to(wide), log_density(self.energy_network(x).to(wide))
        shift = g[:, None] - h.logsumexp(dim=1, keepdim=True)
        if wide == torch.float64:
            shift = shift + ((shift * GRID).round() / GRID - shift).detach()
        logits: Tensor = h + shift
        return logits


def companion(
    classifier: Classifier,
    *,
    input_shape: Sequence[int],
    num_classes: int,
    energy_network: nn.Module | None = None,
) -> Companion:
    r"""Give a trained classifier a density that leaves its predictions as they are, to the bit.

    The logits are log_softmax(h(x)) + logsumexp(t(x)) with h the classifier and t a small network:
    E(x) = -logsumexp t(x), and p(y|x) = softmax h(x). Only t is trained, by any recipe that has
    chains, as a joint energy model of its own with the same classes; an update costs what t costs,
    however large h is. Samples of a class are drawn from t.

    The classifier is copied, and the copy is never changed: evaluation mode, no gradients for its
    parameters. Your own object is not touched. It may also be any function that returns logits,
    such as one that asks a service or runs an ONNX file. There is then no gradient from the class
    to the input, and counterfactuals are not possible.

    Args:
        classifier: Maps inputs (B, *input_shape) to logits (B, K), or to a tuple, a dict or an
            object that holds them as `logits` or first. Rows must not interact.
        input_shape: Shape of one input, without the batch axis.
        num_classes: K >= 2.
        energy_network: t, a module (B, *input_shape) -> (B, K), or (B, 1) for a density without
            classes; if None `small_cnn` for images, of more than 32 pixels a side after average
            pooling, else `mlp`, with the factored head.

    Returns:
        A network for `jem.JEM`.

    Raises:
        InputError: If the classifier does not return such logits, or ends in a softmax or sigmoid;
            or the energy network has another number of outputs.

    Example:
        >>> import jem
        >>> network = companion(nn.Linear(2, 3), input_shape=(2,), num_classes=3)
        >>> jem.JEM(network).predict_proba(torch.zeros(5, 2)).shape
        torch.Size([5, 3])
    """
    shape = tuple(int(n) for n in input_shape)
    check_integer("num_classes", num_classes, 2)
    made = Companion(classifier, energy_network, shape, num_classes)
    _check(made.classifier, shape, num_classes)
    if made.energy_outputs not in (1, num_classes):
        wanted = f"have {num_classes} outputs, one for each class, or one"
        refuse("energy_network", wanted, made.energy_outputs)
    return made


def _check(classifier: FrozenClassifier, shape: tuple[int, ...], num_classes: int) -> None:
    """Ask the classifier for the logits of two inputs."""
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    like = next(iter([] if classifier.module is None else classifier.module.parameters()), x)
    logits = classifier(x.to(like.device).requires_grad_())
    if logits.shape != (2, num_classes):
        wanted = f"return logits of shape (B, {num_classes}) for inputs (B, *{shape})"
        refuse("classifier", wanted, f"shape {tuple(logits.shape)} for two inputs")
    if why := why_no_density(logits, ()):
        refuse("classifier", "return logits", f"one that {why}", "leave it out or return its log")
