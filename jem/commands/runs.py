"""What commands that look at a finished run share: its configuration, and the data it names."""

from __future__ import annotations

import hashlib
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jem.errors import InputError

if TYPE_CHECKING:
    from jem.data.splits import DataSplits
    from jem.data.streams import InputStream
    from jem.model import JEM


def read_config(run: Path) -> dict[str, Any]:
    """`config.json` of a run.

    Raises:
        RunFolderError: If the folder holds no run, or the file is damaged.
    """
    from jem.runs.folder import RunFolder

    return RunFolder(run).read_config()


def load_model(run: Path, reference: str | None = None, *, device: str = "cpu") -> JEM:
    """The model of a run; a network of one's own is looked for where the command runs.

    Args:
        run: The run folder.
        reference: The network, `module:factory`; what the run says of it if None.
        device: Where to put the model.

    Raises:
        RunFolderError: If the folder holds no run, or is damaged.
        InputError: If the network cannot be built, or does not fit the weights.
    """
    from jem.networks import network_from_reference
    from jem.runs.load import load

    sys.path.insert(0, str(Path.cwd()))
    network = None
    if reference is not None:
        config = read_config(run)
        shape, classes = config.get("input_shape"), config.get("classes")
        if not shape or not classes:
            raise InputError(f"{run} does not say the input shape and classes of its network")
        network = network_from_reference(reference, shape, len(classes))
    model = load(run, network, device=device)
    _doubt_end(run)
    return model


def _doubt_end(run: Path) -> None:
    """Say so if the training of a run was stopped or killed."""
    from jem.runs.checkpoint import Checkpoints
    from jem.runs.folder import RunFolder
    from jem.training.log import read_metrics

    folder = RunFolder(run)
    done = Checkpoints(folder.checkpoints).iterations()[-1]
    total = read_config(run).get("iterations", 0)
    # A run may also end before its time because it was told to.
    if done < total and not (folder.metrics.exists() and read_metrics(folder.metrics, "end")):
        note(
            f"training was not finished ({done:,} of {total:,} updates): "
            f"jem train --out {run} --resume goes on"
        )


def load_data(name: str, *, quiet: bool = False, **options: Any) -> DataSplits:  # noqa: ANN401
    """`jem.data.load` with a sign of life while the images of a folder are read.

    Args:
        name: A named set, a file or a folder.
        quiet: Show nothing.
        options: Those of `jem.data.load`.
    """
    from jem.data import load

    if not name:
        raise InputError("expected the name of a data set, a file or a folder, but got ''")
    with ExitStack() as stack:
        if not quiet and Path(name).expanduser().is_dir():
            from rich.console import Console
            from rich.markup import escape

            status = Console(stderr=True).status(f"reading the images in {escape(name)}")
            stack.enter_context(status)
        return load(name, **options)


def note(text: str) -> None:
    """Say something beside the results, on the standard error stream."""
    print(f"jem: {text}", file=sys.stderr)


def doubt_density(run: Path) -> None:
    """Say so if the run trained nothing: what is drawn is only as good as what it was given."""
    if why := read_config(run).get("as_given"):
        note(f"{run} trained no density ({why}): this is drawn from the network as it was given")


def checksum(splits: DataSplits) -> str:
    """What tells data from others, wherever they lie: labels in order, and the training inputs.

    For the inputs of a table stands the order of rows by each column, which another machine's
    rounding of mean and deviation does not change; for images that are read when asked for, names
    and sizes.
    """
    import numpy as np

    from jem.data.splits import PART_NAMES, DataPart

    found = hashlib.sha256(repr(splits.classes).encode())
    for name in PART_NAMES:
        found.update(getattr(splits, name).y.numpy().tobytes())
    if isinstance(splits.train, DataPart):
        x = splits.train.x
        inputs = x if x.ndim > 2 else x.argsort(dim=0, stable=True)
        found.update(np.ascontiguousarray(inputs.numpy()).ravel().data)
    else:
        for file in splits.train.sources:
            found.update(f"{file.parent.name}/{file.name} {file.stat().st_size}\n".encode())
    return found.hexdigest()


def refuse_other_data(run: Path, config: dict[str, Any], splits: DataSplits) -> None:
    """Hold a run to the data that it was trained on, which others would divide anew.

    Raises:
        InputError: If they differ; runs without a checksum, older or begun in Python, take any.
    """
    if config.get("data_checksum") not in (None, checksum(splits)):
        raise InputError(
            f"the data {splits.name} do not fit the run: they are not those that {run} was "
            "trained on, and would be divided in another way; give the old ones, or train anew"
        )


def inputs_of(
    path: Path,
    model: JEM,
    config: dict[str, Any],
    *,
    batch_size: int,
    label_column: str | None = None,
    skip_damaged: bool = False,
) -> InputStream:
    """Inputs of a file or folder for a run, read as its own data were.

    Args:
        path: What `jem.data.streams.stream_inputs` takes.
        model: The model of the run.
        config: Its configuration.
        batch_size: Inputs a batch.
        label_column: Column of a `.csv` file to leave out; that of the run if None.
        skip_damaged: Leave out damaged images of a folder.
    """
    from jem.data.streams import stream_inputs

    columns = config.get("columns")
    if columns is None:  # else names decide, and a column of labels need not be there
        label_column = label_column or config.get("label_column")
    return stream_inputs(
        path,
        model.input_shape or (),
        batch_size=batch_size,
        label_column=label_column,
        columns=columns,
        resize=config.get("image_size") is not None,
        skip_damaged=skip_damaged,
    )


def splits_of(
    run: Path,
    config: dict[str, Any],
    data: str | None = None,
    data_root: Path | None = None,
    *,
    quiet: bool = False,
) -> DataSplits:
    """The data of a run, divided as it was for training.

    Args:
        run: The run folder, for messages.
        config: Its configuration.
        data: Where the data are now; where the run found them if None.
        data_root: Folder of downloaded sets; that of the run if None.
        quiet: Show nothing.

    Raises:
        InputError: If the run does not say where its data are, and nobody else does; or if they
            are not those that it was trained on.
    """
    name = data or config.get("data")
    if not isinstance(name, str):
        raise InputError(f"{run} does not say what data it was trained on: name them with --data")
    root = data_root or config.get("data_root")
    path, options = Path(name).expanduser(), {}  # what the run was told may be of another source
    if path.is_dir():
        options["image_size"] = config.get("image_size")
        options["skip_damaged"] = bool(config.get("skip_damaged"))
    elif path.suffix.lower() == ".csv":
        options["label_column"] = config.get("label_column")
    root = None if root is None else Path(root)
    splits = load_data(name, quiet=quiet, root=root, seed=config["seed"], **options)
    refuse_other_data(run, config, splits)
    return splits


def check_out(out: Path, *read: str | Path | None) -> None:
    """Refuse what cannot become a file, before the work.

    Args:
        out: The file to write.
        read: Files that must not be written over, or what may be none.
    """
    if not out.parent.is_dir():
        raise InputError(f"--out: there is no folder {out.parent}")
    if out.is_dir():
        raise InputError(f"--out: expected a file to write, but {out} is a folder")
    if out.exists() and not out.is_file():  # a device would be replaced by a file
        raise InputError(f"--out: expected a file to write, but {out} is no ordinary file")
    for source in (Path(name).expanduser() for name in read if name is not None):
        if out.exists() and source.exists() and out.samefile(source):
            raise InputError(f"--out: {out} is read, and would be lost: choose another name")
