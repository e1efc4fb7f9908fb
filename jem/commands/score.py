"""`jem score`: class, calibrated probability, p-value and verdict for every input of a file."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from jem.commands.runs import check_out, inputs_of, load_model, note, read_config, splits_of
from jem.errors import InputError, RunFolderError
from jem.runs.files import replacing

if TYPE_CHECKING:
    from torch import Tensor

    from jem.data.arrays import Array
    from jem.data.splits import DataSplits
    from jem.data.streams import InputStream
    from jem.model import JEM
    from jem.serving.scorer import Prediction, Scorer


@dataclass
class Score:
    """Classify and score inputs, however many: a row of a .csv file for each.

    Columns: input (its number from 0, or its file), class, probability of that class, the same
    calibrated, log_density (unnormalised, nats), p_value (small = foreign) and ood (the verdict).
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Run folder."""
    inputs: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="INPUTS")]
    """An .npy, .npz (images or x) or .csv file in the units of the training data; an image, or a
    folder of images, whose bytes 0 to 255 stand for the range of the training data."""
    out: Path = Path("scores.csv")
    """The .csv file to write, whole or not at all."""
    score: str | None = None
    """The score that decides, such as log_density, entropy or knn; that of the run if left out.
    The column `score` is added for any but log_density."""
    acceptance_rate: float | None = None
    """Share of in-distribution inputs to accept; that of the run (0.95) if left out."""
    network: str | None = None
    """The network of a run on one of your own, `module:factory`, called with (shape, classes)."""
    data: str | None = None
    """Where the data of the run are now, if a detector has to be fitted and they were moved."""
    data_root: Path | None = None
    """Folder of downloaded data sets, for the same."""
    label_column: str | None = None
    """Column of a .csv file to leave out."""
    skip_damaged: bool = False
    """Leave out images of a folder that cannot be read, and say how many."""
    batch_size: int = 256
    """Inputs at a time."""
    device: str = "auto"
    """cpu, cuda, mps, or auto."""
    quiet: bool = False
    """Show no progress."""


def run(argv: list[str]) -> int:
    """Score the inputs of a file and write a table."""
    args: Score = tyro.cli(Score, args=argv, prog="jem score")
    from jem.data.files import refuse_unfit

    args.out = args.out.expanduser()
    config = read_config(args.run)
    check_out(args.out, args.inputs, args.data, config.get("data"))
    if args.batch_size < 1:
        raise InputError(f"--batch-size must be at least 1, but got {args.batch_size}")
    model = load_model(args.run, args.network, device=args.device)
    if args.inputs.exists():
        refuse_unfit(args.inputs, args.label_column, None, args.skip_damaged)
    stream = inputs_of(
        args.inputs,
        model,
        config,
        batch_size=_read_at_once(args.batch_size, model.input_shape or ()),
        label_column=args.label_column,
        skip_damaged=args.skip_damaged,
    )
    scale = _scaling(args, model, stream)
    scorer = _scorer(args, model, config)
    count = rejected = 0
    # A file name need not be text; its bytes are written as they are.
    written = replacing(args.out, "t", encoding="utf-8", errors="surrogateescape", newline="")
    with written as file, _progress(args, stream) as advance:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_header(scorer))
        for names, raw in stream.batches:
            table = _table(args.inputs, names, raw, lambda raw: scorer.predict(scale(raw)))
            if not count and not stream.from_images and model.scaling is not None:
                _doubt_units(args, model, raw)
            writer.writerows(_rows(scorer, names, table))
            count, rejected = count + len(names), rejected + int(table.is_ood.sum())
            advance(len(names))
    detector = scorer.detector
    print(
        f"{count:,} inputs, {rejected:,} rejected ({rejected / count:.2%}): {args.out}\n"
        f"threshold: accepts {detector.acceptance_rate:.4g} of inputs like the "
        f"{detector.num_calibration:,} of the calibration part"
    )
    return 0


def _read_at_once(batch_size: int, shape: Sequence[int]) -> int:
    """Inputs to read and write at a time: up to 16 batches, while they are small."""
    return batch_size * max(1, min(16, 2**22 // max(1, batch_size * math.prod(shape))))


def _scorer(args: Score, model: JEM, config: dict[str, Any]) -> Scorer:
    """What the run has saved, where it is what was asked for; otherwise fitted anew."""
    from jem.serving.scorer import DETECTOR_FILE, Scorer, fit_scorer

    saved, reason = None, f"there is no {args.run / DETECTOR_FILE}"
    if (args.run / DETECTOR_FILE).exists():
        try:
            saved = Scorer.load(args.run / DETECTOR_FILE, model)
            reason = f"{args.run / DETECTOR_FILE} has the score '{saved.detector.score_name}'"
        except RunFolderError as error:
            reason = str(error)
    if saved is not None and args.score in (None, saved.detector.score_name):
        saved.detector.batch_size = args.batch_size
        if args.acceptance_rate is not None:
            saved.detector.accepting(args.acceptance_rate)
        return saved
    splits = splits_of(args.run, config, args.data, args.data_root, quiet=args.quiet)
    _check_same_data(model, splits)
    score = args.score or "log_density"
    note(f"{reason}: fitting '{score}' on the calibration part of {splits.name}")
    return fit_scorer(
        model,
        splits,
        score=score,
        acceptance_rate=args.acceptance_rate,
        batch_size=args.batch_size,
    )


def _check_same_data(model: JEM, splits: DataSplits) -> None:
    """Refuse data whose units or classes are not those of the run."""
    import torch

    ours, theirs = model.scaling, splits.scaling
    same = (model.input_shape, model.classes) == (splits.input_shape, splits.classes)
    if same and ours is not None:
        pairs = (ours.shift, theirs.shift), (ours.scale, theirs.scale)  # older runs: 32 bits
        same = all(torch.equal(a.float(), b.float()) for a, b in pairs)
    if not same:
        raise InputError(
            f"{splits.name} is not what the run was trained on: its shape, classes or scaling "
            f"differ; name the data of the run with --data"
        )


def _scaling(args: Score, model: JEM, stream: InputStream) -> Callable[[Array], Tensor]:
    """What brings raw inputs to the network's units."""
    from jem.data.scaling import Scaling
    from jem.evaluation.ood.features import as_batch

    shape = model.input_shape or ()
    if model.scaling is not None:
        # White is white, in whatever range the training data were stored.
        return Scaling.of_bytes(shape, "channels_last") if stream.from_images else model.scaling
    if stream.from_images:
        raise InputError(
            f"{args.run} keeps no scaling, so it takes no images: give an .npy file in the "
            f"network's own units"
        )
    note(f"{args.run} keeps no scaling: inputs are taken to be in the network's own units")
    return lambda raw: as_batch(raw, shape)


def _doubt_units(args: Score, model: JEM, raw: Array) -> None:
    """Say so if the first inputs look as if they were in other units than the training data."""
    from jem.data.scaling import unit_warning

    assert model.scaling is not None, "asked for only with a scaling"
    doubt = unit_warning(raw, model.scaling(raw), model.scaling, model.domain)
    if doubt is not None:
        note(f"{args.inputs}: {doubt}")


def _table(
    path: Path, names: Sequence[str], raw: Array, judge: Callable[[Array], Prediction]
) -> Prediction:
    """Score a batch; an error names the input that it is about."""
    try:
        return judge(raw)
    except InputError as error:
        if len(names) == 1:
            raise InputError(f"{path}, input {names[0]}, taken alone: {error}") from error
        for name, row in zip(names, raw, strict=True):
            _table(path, [name], row[None], judge)
        raise


def _header(scorer: Scorer) -> list[str]:
    names = ["input", "class", "probability", "calibrated_probability", "log_density", "score"]
    if scorer.detector.score_name == "log_density":
        names.remove("score")
    return [*names, "p_value", "ood"]


def _rows(scorer: Scorer, names: Sequence[str], table: Prediction) -> Iterator[tuple[str, ...]]:
    classes, indices = scorer.model.classes, table.class_index.tolist()
    labels = indices if classes is None else [classes[index] for index in indices]
    figures = [table.probability, table.calibrated_probability, table.log_density]
    if scorer.detector.score_name != "log_density":
        figures.append(table.score)
    shown = ([f"{value:.6g}" for value in column.tolist()] for column in [*figures, table.p_value])
    verdicts = ["true" if flag else "false" for flag in table.is_ood.tolist()]
    return zip(names, labels, *shown, verdicts, strict=True)


@contextmanager
def _progress(args: Score, stream: InputStream) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; yields what moves it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    off = args.quiet or not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), disable=off) as bar:
        task = bar.add_task("scoring", total=stream.total)
        yield lambda count: bar.advance(task, count)
