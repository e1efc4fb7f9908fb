"""`jem score`: class, calibrated probability, p-value and verdict for every input of a file."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from torch import Tensor

from jem.checks import check_integer, counted
from jem.commands.runs import Run, check_out, note, open_run
from jem.data.scaling import unit_warning
from jem.errors import naming
from jem.progress import ProgressBar
from jem.runs.folder import replacing
from jem.serving.scorer import Prediction, Scorer, fit_scorer, scorer_from_state, usual_score


@dataclass
class ScoreFlags:
    """Classify inputs and reject those unlike the training data; writes a .csv file.

    It has a row for each input, with the columns input (number from 0, or file), class,
    probability, calibrated_probability, second_class and second_calibrated_probability (the next
    most probable class), log_density (unnormalised, nats), score (the one that decides, unless
    that is log_density), p_value (small: unlike the data), ood (the verdict) and reason (unlike
    the data, between classes, or both). Tables also get foreign_columns: the columns that make a
    rejected row unlike the data, the worst first. Columns of a .csv file that training left out,
    such as ids, come first.
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Run folder, or a model file such as RUN/model.pt."""
    inputs: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="INPUTS")]
    """An .npy, .npz (images or x) or .csv file in the units of the training data; an image, or a
    folder of images, whose size and values 0 to 255 are converted to those of training."""
    out: Path = Path("scores.csv")
    """The .csv file to write. A command that fails writes none."""
    force: bool = False
    """Overwrite that file if it is there."""
    score: str | None = None
    """The score that decides, such as combined or log_density, or several that add up, such as
    knn+max_probability. If None: that of the run."""
    acceptance_rate: float | None = None
    """Share of inputs like the training data to accept. If None: that of the run (0.95)."""
    network: str | None = None
    """`module:factory` of your own network, if the run does not name it."""
    data: str | None = None
    """Where the training data are now; only if the score has to be fitted and they were moved."""
    data_root: str | None = None
    """Folder of downloaded data sets."""
    label_column: str | None = None
    """Column of a .csv file to leave out."""
    skip_damaged: bool = False
    """Leave out images of a folder that cannot be read, and say how many."""
    batch_size: int = 256
    """Inputs in each batch."""
    device: str = "auto"
    """cpu, cuda, mps, or auto."""
    quiet: bool = False
    """Show no progress."""


def score(argv: list[str]) -> int:
    """Score the inputs of a file and write a table."""
    args: ScoreFlags = tyro.cli(ScoreFlags, args=argv, prog="jem score")
    check_integer("--batch-size", args.batch_size, 1)
    trained = open_run(args.run, args.network, device=args.device)
    out = check_out(args.out, args.inputs, args.data, trained.config.data, force=args.force)
    model, size = trained.model, args.batch_size * math.prod(trained.shape)
    stream, scale = trained.inputs(
        args.inputs,
        batch_size=args.batch_size * max(1, min(16, 2**22 // size)),  # read many small ones
        label_column=args.label_column,
        skip_damaged=args.skip_damaged,
    )
    scorer = _scorer(args, trained)
    count = rejected = 0
    # A file name need not be text; its bytes are written as they are.
    written = replacing(out, "t", encoding="utf-8", errors="surrogateescape", newline="")
    with written as file, ProgressBar("scoring", stream.total, quiet=args.quiet) as bar:
        writer = csv.writer(file, lineterminator="\n")
        for names, raw in stream.batches:
            with naming(f"{args.inputs}, inputs {names[0]} to {names[-1]}"):
                x = scale(raw)
                found = scorer.predict(x)
            columns = stream.beside | _columns(scorer, names, found)
            if model.base is not None:
                columns["foreign_columns"] = [";".join(row) for row in scorer.foreign_columns(x)]
            if not count:
                writer.writerow(columns)
                if model.scaling and (doubt := unit_warning(x, scale, model.domain)):
                    note(f"{args.inputs}: {doubt}")
            writer.writerows(zip(*columns.values(), strict=True))
            count, rejected = count + len(names), rejected + int(found.is_ood.sum())
            bar.update(count, stream.total)
    detector = scorer.detector
    for line in stream.notes:
        note(line)
    print(
        f"{counted(count, 'input')}, {rejected:,} rejected ({rejected / count:.2%}): {out}\n"
        f"threshold: accepts {detector.acceptance_rate:.4g} of inputs like the "
        f"{detector.num_calibration:,} of the calibration part"
    )
    return 0


def _scorer(args: ScoreFlags, run: Run) -> Scorer:
    """What the run has saved, where it is what was asked for; otherwise fitted again."""
    reason = f"{run.path} holds no detector"
    if run.content["detector"] is not None:
        saved = scorer_from_state(run.content, run.model, run.path)
        reason = f"{run.path} has the score '{saved.detector.score_name}'"
        if args.score in (None, saved.detector.score_name):
            saved.detector.batch_size = args.batch_size
            if args.acceptance_rate is not None:
                saved.detector.set_acceptance_rate(args.acceptance_rate)
            return saved
    splits = run.splits(args.data, args.data_root, quiet=args.quiet)
    score = args.score or usual_score(run.model, splits)
    note(f"{reason}: fitting '{score}' on the calibration part of {splits.name}")
    return fit_scorer(
        run.model,
        splits,
        score=score,
        acceptance_rate=args.acceptance_rate,
        batch_size=args.batch_size,
    )


def _columns(scorer: Scorer, names: Sequence[str], found: Prediction) -> dict[str, Sequence[Any]]:
    """The columns of the table, by their names."""
    classes = scorer.model.classes

    def named(indices: Tensor) -> list[Any]:
        return [k if classes is None else classes[k] for k in indices.tolist()]

    def shown(values: Tensor) -> list[str]:
        return [f"{value:.6g}" for value in values.tolist()]

    columns: dict[str, Sequence[Any]] = {
        "input": names,
        "class": named(found.class_index),
        "probability": shown(found.probability),
        "calibrated_probability": shown(found.calibrated_probability),
    }
    if found.calibrated_probabilities.shape[1] > 1:
        # Minus 1 at the most probable class, for others may be in a tie with it.
        taken = found.class_index[:, None]
        second = found.calibrated_probabilities.scatter(1, taken, -1.0).max(dim=1)
        columns["second_class"] = named(second.indices)
        columns["second_calibrated_probability"] = shown(second.values)
    columns["log_density"] = shown(found.log_density)
    if scorer.detector.score_name != "log_density":
        columns["score"] = shown(found.score)
    columns["p_value"] = shown(found.p_value)
    columns["ood"] = [str(flag).lower() for flag in found.is_ood.tolist()]
    return columns | {"reason": found.reason}
