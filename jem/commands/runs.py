"""What commands that look at a finished run share: its configuration, and the data it names."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jem.errors import InputError

if TYPE_CHECKING:
    from jem.data.parts import DataSplits
    from jem.data.streams import InputStream
    from jem.model import JEM


def read_config(run: Path) -> dict[str, Any]:
    """`config.json` of a run.

    Raises:
        RunFolderError: If the folder holds no run, or the file is damaged.
    """
    from jem.training.run_folder import RunFolder

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
    from jem.training.run_folder import load

    sys.path.insert(0, str(Path.cwd()))
    network = None
    if reference is not None:
        config = read_config(run)
        shape, classes = config.get("input_shape"), config.get("classes")
        if not shape or not classes:
            raise InputError(f"{run} does not say the input shape and classes of its network")
        network = network_from_reference(reference, shape, len(classes))
    return load(run, network, device=device)


def load_data(name: str, *, quiet: bool = False, **options: Any) -> DataSplits:  # noqa: ANN401
    """`jem.data.load` with a sign of life while the images of a folder are read.

    Args:
        name: A named set, a file or a folder.
        quiet: Show nothing.
        options: Those of `jem.data.load`.
    """
    from jem.data import load

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

    return stream_inputs(
        path,
        model.input_shape or (),
        batch_size=batch_size,
        label_column=label_column or config.get("label_column"),
        columns=config.get("columns"),
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
        InputError: If the run does not say where its data are, and nobody else does.
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
    return load_data(name, quiet=quiet, root=root, seed=config["seed"], **options)


def check_out(out: Path) -> None:
    """Refuse what cannot become a file, before the work."""
    if not out.parent.is_dir():
        raise InputError(f"--out: there is no folder {out.parent}")
    if out.is_dir():
        raise InputError(f"--out: expected a file to write, but {out} is a folder")
    if out.exists() and not out.is_file():  # a device would be replaced by a file
        raise InputError(f"--out: expected a file to write, but {out} is no ordinary file")
