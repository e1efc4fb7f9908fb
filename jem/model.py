"""A classifier read as a joint energy model: logits in, energies and densities out."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from jem.checks import callers_level, check_inputs, refuse
from jem.data.scaling import Scaling, unit_warning
from jem.errors import InputError
from jem.networks.companion import Companion
from jem.networks.foreign import logits_of, why_no_density
from jem.networks.heads import energy_of as energy_of
from jem.networks.heads import log_density as log_density
from jem.sampling.base_density import BaseDensity
from jem.sampling.base_distributions import SamplerSettings


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put every submodule in evaluation mode, and afterwards each one back in the mode it had.

    Args:
        module: The module to switch; its parameters, buffers and gradients are not touched.
    """
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for submodule, training in modes:
            submodule.training = training


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without a graph, giving plain tensors also where inference mode is on.

    Args:
        model: The model; afterwards every submodule is in the mode that it had.
    """
    with torch.inference_mode(False), torch.no_grad(), evaluation_mode(model):
        yield


def on_model(model: JEM, x: Tensor) -> Tensor:
    """Copy inputs to where the parameters are, and to their precision.

    Always a copy: a network that works in place must not reach the user's data.
    """
    like = next((p for p in model.parameters() if p.is_floating_point()), x)
    return x.to(like.device, like.dtype, copy=True)


def batched_logits(model: JEM, x: Tensor, batch_size: int = 256, *, alone: bool = False) -> Tensor:
    """Logits in evaluation mode and without gradients: the one way from many inputs to logits.

    Args:
        model: The model.
        x: Inputs in the network's units, shape (N, *shape), on any device.
        batch_size: Inputs computed at once.
        alone: Leave out the base, which changes no probability.

    Returns:
        Logits, shape (N, K), in float32 at least, on the model's device.

    Raises:
        InputError: If inputs do not fit, or the network gives NaN.
    """
    logits_of = model._network_logits if alone else model.logits
    with inference(model):
        logits = torch.cat([logits_of(on_model(model, r)) for r in torch.split(x, batch_size)])
    if bool(logits.isnan().any()):
        row = int(logits.isnan().any(dim=1).nonzero()[0])
        raise InputError(f"the network gives NaN for input {row}")
    return logits


def check_model(model: object) -> None:
    """Check that a model is a `JEM`, compiled or not.

    Raises:
        InputError: If it is anything else, such as the network alone.
    """
    if not isinstance(getattr(model, "_orig_mod", model), JEM):  # where torch.compile keeps it
        remedy = "wrap it, jem.JEM(network)" if isinstance(model, nn.Module) else ""
        refuse("model", "be a jem.JEM", type(model).__name__, remedy)


def check_network(model: JEM, x: Tensor, *, density: bool = True) -> Tensor:
    """Look at a network in evaluation mode, before anything that it says is believed.

    Args:
        model: The model.
        x: One or two inputs, shape (B, *shape).
        density: Whether it is to give a density.

    Returns:
        Its logits, shape (B, K), without a graph.

    Raises:
        InputError: If it does not take such inputs, is random, lets rows of a batch interact, or
            leaves no density.
    """
    check_inputs("x", x, model.input_shape)
    with torch.inference_mode(False), torch.enable_grad(), evaluation_mode(model):
        x = on_model(model, x).requires_grad_()
        logits = model._network_logits(x.clone())  # some networks change what they are given
        of: list[Tensor] = [p for p in model.network.parameters() if p.requires_grad] or [x]
        if density and (why := why_no_density(logits, of)):
            raise InputError(
                f"the network must return logits, but {why}: remove the layer that makes "
                "probabilities"
            )
    with inference(model):
        together = logits.detach()
        again = model._network_logits(x.clone())
        alone = torch.cat([model._network_logits(row[None].clone()) for row in x])
    allowed = 0.01 * (1 + together.abs().max())
    if (together - again).abs().max() > allowed / 100:
        raise InputError(
            "in evaluation mode the network gave different logits for the same input twice: let "
            "its dropout follow the mode, `training=self.training`"
        )
    if (together - alone).abs().max() > allowed:
        raise InputError(
            "in evaluation mode the logits of one input depend on the other inputs of the batch: "
            "batch normalisation must keep running statistics"
        )
    return together


class JEM(nn.Module):
    r"""Any network x -> logits, read as an energy-based model of the inputs.

    With logits f(x) in R^K, the joint energy is E(x, y) = -f(x)[y]; summing the class out gives
    E(x) = -logsumexp_y f(x)[y] and log p(x) = -E(x) - log Z with an unknown log Z. p(y|x) is the
    usual softmax, so `model(x)` is still the classifier that it was. K = 1 is the plain
    energy-based model. Some networks hold an `energy_network`: two towers, and `jem.companion`.
    Then energies of inputs, and samples, are those of `density_model`, which runs that alone.

    `logits`, `energy` and `log_density` are differentiable and run in the mode that the network is
    in; `predict_proba` runs in evaluation mode without gradients and restores the mode.

    `state_dict` holds the network's weights, and as extra state what the model knows besides.
    `load_state_dict` takes weights without that too, and leaves the rest as it is.

    Args:
        network: Maps (B, *shape) to logits (B, K). Rows must not interact in evaluation mode.
            Training puts all of it in training mode: batch normalisation takes statistics of
            data alone, for chains too, and moves its own where parameters are frozen. The recipe's
            `freeze_norm_and_dropout` prevents that; `finetune` sets it.
        input_shape: Shape of one input without the batch axis; set by training if left out.
        classes: Names of the K classes, in the order of the logits; set by training if left out.
        domain: Lower and upper bound of the inputs, numbers or tensors that broadcast to
            `input_shape`: sampling stays inside. Set by training if left out.
        scaling: What turns raw data into inputs; see `preprocess`.

    Attributes:
        sampler: Settings of the sampler (`jem.sampling.SamplerSettings`), set by training.
        base: What the density of vectors has by construction (`jem.sampling.BaseDensity`).

    References:
        Grathwohl et al. (2020), Your classifier is secretly an energy based model,
        arXiv:1912.03263.

    Example:
        >>> model = JEM(nn.Linear(2, 3))
        >>> x = torch.zeros(5, 2)
        >>> model(x).shape, model.energy(x).shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        input_shape: Sequence[int] | None = None,
        classes: Sequence[str] | None = None,
        domain: tuple[Tensor | float, Tensor | float] | None = None,
        scaling: Scaling | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            refuse("network", "be a torch.nn.Module", type(network).__name__)
        self.network = network
        self.input_shape = None if input_shape is None else tuple(int(n) for n in input_shape)
        self.classes = None if classes is None else tuple(str(name) for name in classes)
        self.domain = domain
        self.scaling = scaling
        self.sampler: Any = None
        self.base: BaseDensity | None = None

    def get_extra_state(self) -> dict[str, Any]:
        """What `state_dict` holds beside the weights: tensors and plain values."""
        return {
            "input_shape": self.input_shape,
            "classes": self.classes,
            "domain": self.domain,
            "scaling": None if self.scaling is None else self.scaling.state_dict(),
            "sampler": None if self.sampler is None else self.sampler.state_dict(),
            "base": None if self.base is None else self.base.state(),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over what `get_extra_state` gave."""
        shape, classes = state["input_shape"], state["classes"]
        self.input_shape = None if shape is None else tuple(shape)
        self.classes = None if classes is None else tuple(classes)
        self.domain = state["domain"]
        scaling, sampler = state["scaling"], state["sampler"]
        self.scaling = None if scaling is None else Scaling.from_state_dict(scaling)
        self.sampler = None if sampler is None else SamplerSettings.from_state(sampler)
        base = state.get("base")
        self.base = (
            None if base is None else BaseDensity(**base).to(self.device).train(self.training)
        )

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        *others: Any,  # noqa: ANN401
    ) -> None:
        # torch would call weights without extra state incomplete.
        state_dict.setdefault(f"{prefix}_extra_state", self.get_extra_state())
        super()._load_from_state_dict(state_dict, prefix, *others)

    @property
    def domain(self) -> tuple[Tensor, Tensor] | None:
        """Lower and upper bounds of the inputs, each broadcastable to `input_shape`, or None."""
        return self._domain

    @domain.setter
    def domain(self, bounds: tuple[Tensor | float, Tensor | float] | None) -> None:
        if bounds is None:
            self._domain = None
            return
        low, high = (torch.as_tensor(b, dtype=torch.float32).detach().cpu() for b in bounds)
        if not bool((low < high).all()):
            refuse("domain", "be (low, high) with low < high", bounds)
        self._domain = (low, high)

    def forward(self, x: Tensor) -> Tensor:
        """Logits f(x), shape (B, K): see `logits`."""
        return self.logits(x)

    def logits(self, x: Tensor) -> Tensor:
        """Logits f(x) of the network, in float32 at least; with a `base`, plus that, in float64.

        Args:
            x: Inputs in the network's units, shape (B, *shape).

        Returns:
            Logits, shape (B, K).

        Raises:
            InputError: If the inputs are no float tensor of the model's input shape, or the
                network returns anything but a two-dimensional tensor.
        """
        check_inputs("x", x, self.input_shape, least=0)
        if self.base is None:
            return self._network_logits(x)
        return self.base.logits_with_base(x, self._network_logits)

    def _network_logits(self, x: Tensor) -> Tensor:
        return logits_of(self.network, x)

    @property
    def density_model(self) -> JEM:
        """The model that has the density: itself, or that of the energy network it holds."""
        network: Any = self.network
        if getattr(network, "energy_network", None) is None:
            return self
        classes = [""] if network.energy_outputs == 1 else self.classes
        model = JEM(network.energy_network, classes=classes, domain=self.domain)
        model.input_shape, model.sampler, model.base = self.input_shape, self.sampler, self.base
        return model

    @property
    def trained(self) -> JEM:
        """The model that training runs: itself, or the `density_model` of a companion."""
        return self.density_model if isinstance(self.network, Companion) else self

    def energy(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Energy E(x) = -logsumexp f(x), or E(x, y) = -f(x)[y].

        Args:
            x: Inputs, shape (B, *shape).
            y: Class indices, shape (B,), or None.

        Returns:
            Energies, shape (B,), nats; low = compatible.
        """
        return energy_of((self.density_model if y is None else self).logits(x), y)

    def log_density(self, x: Tensor) -> Tensor:
        """Log-density log p(x) + log Z = -E(x): *unnormalised*, and no likelihood.

        Its scale is nominal too: the usual chains run far below temperature 1. It ranks inputs.

        Args:
            x: Inputs, shape (B, *shape).

        Returns:
            Log-density, shape (B,), nats; high = likely.
        """
        return log_density(self.density_model.logits(x))

    def predict_proba(self, x: Tensor) -> Tensor:
        """Class probabilities p(y|x) = softmax f(x), in evaluation mode and without gradients.

        Args:
            x: Inputs, shape (B, *shape).

        Returns:
            Probabilities, shape (B, K); rows sum to one.

        Raises:
            InputError: If the model has a single output (K = 1), and so no classes.
        """
        check_inputs("x", x, self.input_shape)
        logits = batched_logits(self, x, alone=True)
        if logits.shape[1] == 1:
            raise InputError("a model with one output (K = 1) has no classes; use `log_density`")
        # A companion's logits are wider than its classifier's, whose softmax this is to the bit.
        dtype = torch.promote_types(on_model(self, x[:0]).dtype, torch.float32)
        return (logits - logits.amax(dim=1, keepdim=True)).to(dtype).softmax(dim=1)

    def preprocess(self, raw: ArrayLike | Tensor) -> Tensor:
        """Turn raw data into what the network takes: layout, dtype and scale.

        Args:
            raw: One input or a batch, in the raw units of the training data (for example uint8
                images).

        Returns:
            Inputs, shape (B, *input_shape), float32, on the model's device.

        Raises:
            InputError: If the shape does not fit, or a value is no number; NaN stays NaN.

        Warns:
            UserWarning: If the inputs look as if they were in other units (`unit_warning`).
        """
        if self.scaling is None:
            raise InputError(
                "this model keeps no input scaling; pass inputs in the network's own units, "
                "or set `model.scaling` (jem.data.Scaling)"
            )
        x = self.scaling(raw)
        if doubt := unit_warning(x, self.scaling, self.domain):
            warnings.warn(doubt, stacklevel=callers_level())
        return x.to(self.device)

    @property
    def device(self) -> torch.device:
        """Where the parameters are (CPU for a network that has none)."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The column of the user's table that each number comes from, if columns have names."""
        return None if self.scaling is None else self.scaling.columns

    def bounds(self, device: torch.device | str | None = None) -> tuple[Tensor, Tensor] | None:
        """Return the domain's bounds on a device, as kernels take them.

        Args:
            device: Where to put them; the model's own device if None.
        """
        if self._domain is None:
            return None
        low, high = self._domain
        where = self.device if device is None else device
        return low.to(where), high.to(where)
