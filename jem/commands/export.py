"""`jem export`: a trained model as an ONNX file, or as a safetensors file for a model hub."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jem.commands.runs import check_out, open_run
from jem.runs.model_file import write_model
from jem.runs.safetensors_file import SUFFIX
from jem.serving.export import export_onnx
from jem.serving.scorer import scorer_from_state


@dataclass
class ExportFlags:
    """Write a model as an ONNX file, which runs without this package and without PyTorch.

    It takes a batch of raw inputs, in the units of the training data, and gives class_index,
    calibrated probabilities, log_density, p_value, is_ood (the verdict) and reason. Needs
    pip install 'jem-classifier[onnx]'.

    If the name ends in .safetensors: the model file as model hubs ask for it, without pickle. jem
    reads it like model.pt. Needs pip install 'jem-classifier[hub]'.
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Run folder, or a model file such as RUN/model.pt."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """The .onnx or .safetensors file to write. A command that fails writes none."""
    force: bool = False
    """Overwrite that file if it is there."""
    acceptance_rate: float | None = None
    """Share of inputs like the training data to accept. If None: that of the run (0.95)."""
    network: str | None = None
    """`module:factory` of your own network, if the run does not name it."""


def export(argv: list[str]) -> int:
    """Write the file, and say what it takes and gives."""
    args = tyro.cli(ExportFlags, args=argv, prog="jem export")
    run = open_run(args.run, args.network)
    out = check_out(args.out, args.run / "model.pt", args.run, force=args.force)
    scorer = scorer_from_state(run.content, run.model, run.path)
    if args.acceptance_rate is not None:
        scorer.detector.set_acceptance_rate(args.acceptance_rate)
    detector = scorer.detector
    if out.suffix == SUFFIX:
        write_model(out, run.content | {"detector": detector.state_dict()})
        print(f"{out}: jem.load_scorer and jem score read it")
    else:
        about = export_onnx(run.model, out, detector=detector, temperature=scorer.temperature)
        shape = ", ".join(map(str, about["input_shape"]))
        units = "float32, in the units of the training data"
        print(f"{out}: takes `inputs` of shape (B, {shape}), {units}")
    print(
        f"threshold: accepts {detector.acceptance_rate:.4g} of inputs like the "
        f"{detector.num_calibration:,} of the calibration part"
    )
    return 0
