"""A trained model for others: as an ONNX file, and its scores in the protocol of pytorch-ood.

An ONNX file runs without this package and without PyTorch. The graph takes raw inputs, as
`model.preprocess` does (the scaling is inside), a batch of any size, and returns what a service
needs: logits, energy, log-density, class, calibrated probabilities and, with a fitted detector, a
p-value, the verdict and its reason. Gradients are not part of it: samples and the scores that need
them stay in Python.
"""

import importlib
import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from jem import __version__
from jem.checks import refuse
from jem.errors import InputError
from jem.evaluation.calibration.temperature import TemperatureScaling
from jem.evaluation.ood.detector import OODDetector
from jem.evaluation.ood.fitted import Option
from jem.evaluation.ood.scores import REASONS
from jem.model import JEM, check_model, energy_of, evaluation_mode
from jem.networks.foreign import copied, in_one_line
from jem.runs.folder import write_atomically

INPUT = "inputs"
OUTPUTS = (
    "logits", "energy", "log_density", "class_index", "probabilities", "p_value", "is_ood",
    "reason",
)  # fmt: skip
"""Names in the exported graph; the last three are there only where a detector was given."""


def export_onnx(
    model: JEM,
    path: str | Path,
    *,
    detector: OODDetector | None = None,
    temperature: TemperatureScaling | None = None,
) -> dict[str, Any]:
    """Write a model as an ONNX file, for onnxruntime and other engines.

    The file takes one input, `inputs`, a batch of any size B, in raw units: those of the training
    data, as they were before any scaling, such as 0 to 255 for 8-bit images.

    - Images: float32 (8-bit ones are cast first), (B, H, W, C) or (B, C, H, W), whichever the
      training data had; grey images have their axis C = 1 too.
    - Tables: float64, (B, D), since columns such as time stamps do not fit 32 bits.
    - A model without `scaling`: float32 in the network's own units, (B, *input_shape).

    The metadata name `input_shape` (without B) and `layout`, and of tables `columns`: how text,
    dates and missing values became the D numbers. Nothing checks the values: an input with NaN
    gets NaN for logits and energy, and is flagged; one on another scale gets nonsense.

    A network in half precision is exported in float32, which every engine computes in.

    Args:
        model: The model, exported in evaluation mode; it is left as it was.
        path: The file to write, whole or not at all.
        detector: A fitted detector of this model, of any score but `"odin"`. It adds the outputs
            `p_value`, `is_ood` and `reason`, an index of `jem.evaluation.ood.REASONS`, which the
            metadata list. With `"knn"` the file holds the features of all training inputs.
        temperature: Calibrates the output `probabilities`, (B, K); None leaves them as they are.
            `class_index` is the most probable one, whose name is in the metadata. A
            `jem.fit_scorer` has both a detector and a temperature.

    Returns:
        What the file says of itself in its metadata: version, names of the classes, input shape
        and layout, and the detector's score, threshold and acceptance, where there are any.

    Raises:
        InputError: If a package is missing, the network cannot be traced, the input shape is not
            known, the detector cannot be exported, or onnxruntime, where it is installed, does not
            take the file.
        RunFolderError: If the file cannot be written.

    Example:
        `jem.export_onnx(model, "model.onnx", detector=detector)`, then
        `onnxruntime.InferenceSession("model.onnx").run(["logits", "is_ood"], {"inputs": raw})`.
    """
    for name in ("onnx", "onnxscript"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise InputError(
                f"ONNX needs the package {name!r}: pip install 'jem-classifier[onnx]'"
            ) from error
    check_model(model)
    if detector is not None:
        _check_detector(model, detector)
    if any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters()):
        model = copied(model).float()
    graph = _Graph(model, detector, temperature)
    example = graph.example()
    with torch.no_grad(), evaluation_mode(graph), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer and the exporter, about their own parts
        try:
            graph(example)  # what a network checks at its first call is no part of the graph
            batch = {"inputs": {0: torch.export.Dim("batch")}}
            program = torch.export.export(graph, (example,), dynamic_shapes=batch)
            _forget_sources(program)
            exported: Any = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=[INPUT],
                output_names=list(OUTPUTS if detector is not None else OUTPUTS[:5]),
            )
        except Exception as error:  # it fails in many ways, few of them with a type of their own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise InputError(
                f"the network cannot be traced: {reason} (its forward must not branch on values, "
                "and must take a batch of any size)"
            ) from error
    proto, about = exported.model_proto, _metadata(model, example, detector)
    about["temperature"] = graph.temperature
    _name_batch(proto)
    for key, value in about.items():
        proto.metadata_props.add(key=key, value=json.dumps(value))
    content = proto.SerializeToString()
    _read_back(content, example)
    write_atomically(Path(path), content)
    return about


def _read_back(content: bytes, example: Tensor) -> None:
    """Refuse a file that onnxruntime does not take, where it is installed."""
    try:
        import onnxruntime
    except ImportError:
        return
    try:
        onnxruntime.InferenceSession(content).run(None, {INPUT: example.numpy(force=True)})
    except Exception as error:
        raise InputError(
            f"onnxruntime does not take the exported network: {in_one_line(error)[:300]} "
            "(`model.float()` brings it to the usual precision)"
        ) from error


class _Graph(nn.Module):
    """Raw inputs (B, ...) -> named outputs: what is traced."""

    shift: Tensor
    scale: Tensor
    calibration: Tensor

    def __init__(
        self, model: JEM, detector: OODDetector | None, temperature: TemperatureScaling | None
    ) -> None:
        super().__init__()
        self.temperature = 1.0 if temperature is None else temperature.temperature
        self.model, self.scaling, self.detector = model, model.scaling, detector
        if detector is not None:
            calibration = detector.state_dict()["calibration"].to(model.device)
            self.register_buffer("calibration", calibration)
        if model.scaling is not None:
            self.register_buffer("shift", model.scaling.shift.to(model.device))
            self.register_buffer("scale", model.scaling.scale.to(model.device))

    def example(self) -> Tensor:
        """Two raw inputs: a batch of one could be taken for a fixed size."""
        model, scaling = self.model, self.scaling
        shape = model.input_shape if scaling is None else scaling.input_shape
        if shape is None:
            refuse("model.input_shape", "be set for an exported graph", None)
        if scaling is not None and scaling.layout == "channels_last":
            shape = (*shape[1:], shape[0])
        table = scaling is not None and scaling.layout == "table"
        dtype = torch.float64 if table else torch.float32
        return torch.zeros(2, *shape, dtype=dtype, device=model.device)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        x = inputs if self.scaling is None else self._scaled(inputs)
        logits = self.model.logits(x)
        energy = energy_of(logits)
        outputs = {
            "logits": logits,
            "energy": energy,
            "log_density": -energy,
            "class_index": logits.argmax(dim=1),
            "probabilities": (logits / self.temperature).softmax(dim=1),
        }
        if self.detector is not None:
            assert self.detector.threshold is not None, "checked before"
            terms = self.detector.fitted_score.score(self.detector.fitted_score.views(x, logits))
            scores = terms.sum(dim=1)
            flagged = ~(scores >= self.detector.threshold)  # so NaN is flagged
            not_above = (self.calibration <= scores.double()[:, None]).sum(dim=1)
            outputs["p_value"] = (1 + not_above).double() / (1 + len(self.calibration))
            outputs |= {"is_ood": flagged, "reason": self.detector.reason_of(terms, flagged)}
        return outputs

    def _scaled(self, raw: Tensor) -> Tensor:
        """As `Scaling.__call__`, without its checks, which read values."""
        assert self.scaling is not None, "asked for only with a scaling"
        x = raw.movedim(-1, 1) if self.scaling.layout == "channels_last" else raw
        return ((x - self.shift) / self.scale).float()


def _forget_sources(program: torch.export.ExportedProgram) -> None:
    """Drop the notes that quote source lines and paths of this machine."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)


def _check_detector(model: JEM, detector: OODDetector) -> None:
    if detector.fitted_score.takes("inputs"):
        wanted = "have a score that needs no gradient of the inputs to be exported"
        refuse("detector", wanted, repr(detector.score_name))
    if detector.model is not model:
        refuse("detector", "belong to the model", "one of another model")
    if detector.threshold is None:
        refuse("detector", "be fitted", "one without a threshold", "call `fit` first")


def _metadata(model: JEM, example: Tensor, detector: OODDetector | None) -> dict[str, Any]:

    about: dict[str, Any] = {"jem_version": __version__, "input_shape": list(example.shape[1:])}
    about["layout"] = "network" if model.scaling is None else model.scaling.layout
    if model.scaling is not None and model.scaling.encoding is not None:
        about["columns"] = [column.plain() for column in model.scaling.encoding]
    if model.classes is not None:
        about["classes"] = list(model.classes)
    if detector is not None:
        about |= {"score": detector.score_name, "reasons": list(REASONS)}
        about |= {"threshold": detector.threshold, "acceptance_rate": detector.acceptance_rate}
    return about


def _name_batch(proto: Any) -> None:  # noqa: ANN401
    """Call the free axis `batch`, wherever it shows."""
    free = proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == free:
                dim.dim_param = "batch"


class PytorchOODAdapter:
    """A score in the protocol of the package pytorch-ood: `predict` is higher for OOD inputs.

    Args:
        model: The model.
        score: As for `OODDetector`.
        batch_size: Inputs computed at once.
        options: Passed to the score.

    Example:
        >>> import torch
        >>> adapter = PytorchOODAdapter(JEM(torch.nn.Linear(2, 3)), "entropy").fit([])
        >>> adapter.predict(torch.zeros(4, 2)).shape
        torch.Size([4])
    """

    def __init__(
        self, model: JEM, score: str = "log_density", batch_size: int = 256, **options: Option
    ) -> None:
        self.detector = OODDetector(model, score, None, batch_size, **options)

    def fit(self, loader: Iterable[tuple[Tensor, Tensor]]) -> Self:
        """Fit the scores that need training data; the others do not read it.

        Args:
            loader: Yields batches (x, y); inputs with y < 0 are OOD by that package's rule, and
                left out.
        """
        known = [(x[y >= 0], y[y >= 0]) for x, y in loader]
        self.detector.fit_reference(known).fit_maps(x for x, _ in known)
        return self

    def predict(self, x: Tensor) -> Tensor:
        """Minus the scores of inputs (B, *shape) in the network's units, shape (B,)."""
        return -self.detector.score(x)

    __call__ = predict
