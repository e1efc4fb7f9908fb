"""One file that ships a model: weights, settings, and the threshold that was fitted for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from jem.checks import refuse
from jem.devices import choose_device, place
from jem.errors import InputError, RunFolderError
from jem.model import JEM, check_model
from jem.networks.build import network_from_reference, network_from_spec, spec_of
from jem.networks.companion import Classifier, Companion
from jem.randomness import global_generators_kept
from jem.runs.checkpoint import FORMAT, Checkpoints, deserialise, serialise
from jem.runs.folder import RunFolder, write_atomically
from jem.runs.safetensors_file import SUFFIX, from_safetensors, to_safetensors

if TYPE_CHECKING:
    from jem.evaluation.calibration.temperature import TemperatureScaling
    from jem.evaluation.ood.detector import OODDetector


def save(
    model: JEM,
    path: str | Path,
    *,
    detector: OODDetector | None = None,
    temperature: TemperatureScaling | None = None,
    metadata: dict[str, Any] | None = None,
) -> None:
    """Write a model as one file, which `jem.load`, `jem.load_scorer` and `jem score` read.

    The file holds tensors and plain values alone: reading it runs no code. A network of
    `jem.networks` is built again from its arguments. For a network of your own, set
    `network.spec = "module:factory"` before you save it, or pass it to `jem.load`. The file of a
    `jem.companion` holds the weights of its classifier too: pass the classifier.

    Args:
        model: The model, on any device.
        path: The file to write, whole or not at all. One that ends in `.safetensors` has that
            format, and holds no pickle (`pip install 'jem-classifier[hub]'`).
        detector: A fitted detector of this model, to keep with it.
        temperature: A fitted temperature, to keep with it.
        metadata: Plain values to keep too.

    Raises:
        InputError: If this is no `JEM`, or the detector is not fitted or is another model's.
        RunFolderError: If the file cannot be written.

    Example:
        >>> import jem, tempfile
        >>> network = jem.networks.mlp((2,), 3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     jem.save(jem.JEM(network, classes=["a", "b", "c"]), f"{folder}/model.pt")
        ...     jem.load(f"{folder}/model.pt").classes
        ('a', 'b', 'c')
    """
    check_model(model)
    plain: JEM = getattr(model, "_orig_mod", model)
    if detector is not None:
        if getattr(detector.model, "_orig_mod", detector.model) is not plain:
            refuse("detector", "belong to the model", "one of another model")
        if detector.threshold is None:
            refuse("detector", "be fitted", "one without a threshold", "call `fit` first")
    held = _classifier(getattr(plain.network, "_orig_mod", plain.network))
    state = {
        "network": spec_of(plain.network),
        "weights": plain.state_dict(),
        "classifier": None if held is None else held.state_dict(),
        "detector": None if detector is None else detector.state_dict(),
        "temperature": None if temperature is None else temperature.state_dict(),
        "metadata": metadata or {},
    }
    write_model(path, state)


def load(path: str | Path, network: Classifier | None = None, *, device: str = "cpu") -> JEM:
    """Load a model from its file or its run: averaged weights, evaluation mode, sampler and all.

    Args:
        path: What `jem.save` wrote, or a run folder: its `model.pt`, or its newest checkpoint
            where training has not come to its end.
        network: The network that was trained, freshly built, if it cannot be built from the file;
            of a companion its classifier will do.
        device: Where to put the model.

    Returns:
        The model, ready to classify, score and sample.

    Raises:
        RunFolderError: If the file is missing, damaged or no model, or the folder holds no run.
        InputError: If `network` is needed, or does not fit the weights.
    """
    return build_model(read_model(path), path, network, device=device)


def write_model(path: str | Path, state: dict[str, Any]) -> None:
    """Write what `read_model` reads, in the format that the ending of the file says.

    Args:
        path: The file to write, whole or not at all.
        state: What `read_model` returned, or `save` collected.

    Raises:
        InputError: If it ends in `.safetensors`, and that package is missing.
        RunFolderError: If the file cannot be written.
    """
    state = {**state, "format": FORMAT}
    safe = Path(path).suffix == SUFFIX
    write_atomically(Path(path), to_safetensors(state) if safe else serialise(state))


def read_model(path: str | Path) -> dict[str, Any]:
    """Read a model file or run folder, without building the model: see `build_model`.

    Args:
        path: As `load` takes it.

    Returns:
        `network`, `weights`, `detector`, `temperature` (None where there is none) and `metadata`.

    Raises:
        RunFolderError: As `load`.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        folder = RunFolder(path)
        if not folder.model.exists():
            if not folder.checkpoints.is_dir():
                raise RunFolderError(f"{path} holds no run: there is no `checkpoints` in it")
            _, state = Checkpoints(folder.checkpoints).load_latest()
            empty: dict[str, Any] = {"detector": None, "temperature": None, "metadata": {}}
            return {"network": state["network"], "weights": state["modules"]["average"]} | empty
        path = folder.model
    safe = path.suffix == SUFFIX
    state = from_safetensors(path) if safe else deserialise(path, "model file")
    if "weights" not in state:
        raise RunFolderError(f"{path} is not a model file: `jem.save` writes one")
    return state


def build_model(
    state: dict[str, Any],
    source: str | Path,
    network: Classifier | None = None,
    *,
    device: str = "cpu",
) -> JEM:
    """Build the model of what `read_model` returned.

    Args:
        state: What was read.
        source: Where from, for messages.
        network: As `load` takes it.
        device: Where to put the model.

    Raises:
        InputError: If `network` is needed, or does not fit the weights.
    """
    # torch.compile puts a prefix before the names of weights, in the file or in `network`.
    weights = {name.replace("_orig_mod.", ""): value for name, value in state["weights"].items()}
    spec = state["network"]
    beside = isinstance(spec, dict) and "classifier_spec" in spec  # a companion, or towers
    whole: Any = network
    if network is None or (beside and not hasattr(network, "energy_network")):
        with global_generators_kept():  # its first weights are overwritten
            whole = _build_network(spec, weights["_extra_state"], source, network)
    model = JEM(getattr(whole, "_orig_mod", whole))
    try:
        model.load_state_dict(weights)
        held = _classifier(model.network)
        if held is not None and state.get("classifier") is not None:
            held.load_state_dict(state["classifier"])
    except (RuntimeError, KeyError, TypeError) as error:
        raise InputError(
            f"`network` does not fit the weights in {source}: "
            f"{str(error).splitlines()[-1].strip()}"
        ) from error
    model.network = whole
    return place(model, choose_device(str(device))).eval()


def _build_network(
    spec: dict[str, Any] | str | None,
    settings: dict[str, Any],
    source: str | Path,
    classifier: Classifier | None = None,
) -> nn.Module:
    if isinstance(spec, dict) and (classifier or spec.get("classifier_spec", ...) is not None):
        return network_from_spec(spec, classifier=classifier)
    if isinstance(spec, str) and settings["input_shape"] and settings["classes"]:
        return network_from_reference(spec, settings["input_shape"], len(settings["classes"]))
    raise InputError(
        f"{source} holds a network of your own; pass it: jem.load({str(source)!r}, "
        'network=my_network), or --network module:factory. `network.spec = "module:factory"` '
        "before training lets it be found without that"
    )


def _classifier(network: nn.Module) -> nn.Module | None:
    """The classifier that a companion keeps outside of its own weights."""
    return network.classifier.module if isinstance(network, Companion) else None
