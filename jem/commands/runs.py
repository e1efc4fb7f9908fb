"""A trained run as commands use it: its settings, model and data, each read once."""

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jem.checks import refuse
from jem.commands.settings import RunConfig, settings_of
from jem.data import NAMES, load
from jem.data.files import InputStream, check_options, stream_inputs
from jem.data.scaling import Layout, Scaling
from jem.data.splits import DataPart, DataSplits
from jem.errors import InputError
from jem.model import JEM
from jem.networks import network_from_text
from jem.progress import ProgressBar
from jem.runs.checkpoint import Checkpoints
from jem.runs.folder import RunFolder
from jem.runs.model_file import build_model, read_model
from jem.training.monitor import read_metrics

Read = str | Path | None
"""A file or folder that a command reads, or None."""


@dataclass
class Run:
    """A run folder or a model file, with its model.

    Attributes:
        path: The folder or file.
        config: Its settings.
        model: The trained model.
        content: What `jem.runs.model_file.read_model` found: detector and temperature too.
    """

    path: Path
    config: RunConfig
    model: JEM
    content: dict[str, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return self.model.input_shape or ()

    def raw_units(self, x: Tensor) -> Tensor:
        """Inputs in the units of the training data, on the CPU."""
        x = x.cpu()
        return x if self.model.scaling is None else self.model.scaling.invert(x)

    def inputs(
        self,
        path: Path,
        *,
        batch_size: int,
        label_column: str | None = None,
        skip_damaged: bool = False,
    ) -> tuple[InputStream, Scaling]:
        """Open inputs, and find what brings them to the network's units.

        Args:
            path: What `jem.data.files.stream_inputs` takes.
            batch_size: Inputs a batch.
            label_column: Column of a `.csv` file to leave out.
            skip_damaged: Leave out damaged images of a folder.

        Raises:
            InputError: If an option belongs to another kind of file, or inputs do not fit.
        """
        if path.exists():
            check_options(path, label_column, None, skip_damaged)
        scaling = self.model.scaling
        columns = None if scaling is None else scaling.encoding
        if columns is None:  # else names decide, and a column of labels need not be there
            label_column = label_column or self.config.label_column
        stream = stream_inputs(
            path,
            self.shape,
            batch_size=batch_size,
            label_column=label_column,
            columns=columns,
            skip_damaged=skip_damaged,
        )
        if stream.from_images and scaling is not None:
            return stream, scaling.for_bytes()
        if stream.from_images:
            raise InputError(
                f"{self.path} has no input scaling, so jem cannot convert image files: give an "
                ".npy file in the network's own units"
            )
        if scaling is None:
            note(f"{self.path} has no input scaling: inputs must be in the network's own units")
            layout: Layout = "table" if len(self.shape) == 1 else "channels_first"
            scaling = Scaling.of_range(self.shape, layout, -1.0, 1.0)
        return stream, scaling

    def splits(
        self, data: str | None = None, data_root: str | None = None, *, quiet: bool = False
    ) -> DataSplits:
        """The data of the run, divided as they were for training.

        Args:
            data: Where the data are now; where training found them if None. Files of whole parts
                that are gone from where they were are looked for beside it.
            data_root: Folder of downloaded sets; that of the run if None.
            quiet: Show nothing.

        Raises:
            InputError: If nobody says where the data are, or they are not those of the run.
        """
        config = self.config
        name = data or config.data
        if name is None:
            raise InputError(
                f"{self.path} does not say what data it was trained on: name them with --data"
            )
        path = Path(name).expanduser()
        options: dict[str, Any] = {}
        for part, file in (("validation", config.validation), ("test", config.test)):
            if file is not None:  # it may have moved with the data
                there = Path(file).expanduser()
                options[part] = there if there.exists() else path.parent / there.name
        gone = [str(file) for file in (path, *options.values()) if not file.exists()]
        if gone and name not in NAMES:
            remedy = "its validation and test files are looked for beside it"
            refuse("--data", "say where the data are now", f"{gone[0]}, which is gone", remedy)
        # `data` may be another kind of source than in training
        if path.is_dir():
            options |= {"image_size": config.image_size, "skip_damaged": config.skip_damaged}
        elif path.suffix.lower() == ".csv":
            options |= {"label_column": config.label_column}
        root = data_root or config.data_root
        splits = load_data(name, quiet=quiet, root=root, seed=config.seed, **options)
        if self.model.classes and {*self.model.classes} == {*splits.classes}:
            splits = splits.in_order(self.model.classes)
        check_same_data(self.path, config, splits)
        _check_fit(self.model, splits)
        return splits


def run_config(path: Path) -> RunConfig:
    """Read the settings of a run folder or a model file.

    Raises:
        RunFolderError: If the folder holds no run, or the file is damaged.
    """
    values = read_model(path)["metadata"] if path.is_file() else RunFolder(path).read_config()
    return settings_of(values, str(path), strict=False)


def shipped_values(config: RunConfig) -> dict[str, Any]:
    """What a model file keeps of a run: how inputs are read, and no path of this machine."""
    names = ("label_column", "image_size", "skip_damaged", "seed", "data_checksum")
    return {name: config.values[name] for name in names if config.values.get(name) is not None}


def open_run(path: Path, network: str | None = None, *, device: str = "cpu") -> Run:
    """Load the settings and the model of a run.

    Args:
        path: The run folder, or a model file.
        network: `module:factory` of a network that the run does not name, looked for where the
            command runs.
        device: Where to put the model.

    Raises:
        RunFolderError: If the folder holds no run, or is damaged.
        InputError: If the network cannot be built, or does not fit the weights.
    """
    config, built, content = run_config(path), None, read_model(path)
    if network is not None:
        settings = content["weights"]["_extra_state"]
        shape, classes = settings["input_shape"], settings["classes"]
        if not shape or not classes:
            raise InputError(f"{path} does not say the input shape and classes of its network")
        built = network_from_text(network, shape, len(classes))
    if path.is_dir():
        _note_if_unfinished(path, config.values.get("iterations", 0))
    return Run(path, config, build_model(content, path, built, device=device), content)


def _note_if_unfinished(path: Path, total: int) -> None:

    folder = RunFolder(path)
    done = Checkpoints(folder.checkpoints).iterations()[-1]
    # A run may also end before its time because it was told to: it then logs an end.
    if done < total and not (folder.metrics.exists() and read_metrics(folder.metrics, "end")):
        note(
            f"training was not finished ({done:,} of {total:,} updates): "
            f"jem train --out {path} --resume continues"
        )


def note_if_as_given(run: Run) -> None:
    """Say so if the run trained nothing: its samples are only as good as the network it got."""
    if why := run.config.values.get("as_given"):
        note(f"{run.path} did not train the density ({why}): its network is unchanged")


def note(text: str) -> None:
    """Print a line beside the results, on the standard error stream."""
    print(f"jem: {text}", file=sys.stderr)


def load_data(name: str, *, quiet: bool = False, **options: Any) -> DataSplits:  # noqa: ANN401
    """`jem.data.load`, with a sign of life while the images of a folder are read.

    Args:
        name: A named set, a file or a folder.
        quiet: Show nothing.
        options: Those of `jem.data.load`.
    """
    if not name:
        raise InputError("expected the name of a data set, a file or a folder, but got ''")
    is_folder = Path(name).expanduser().is_dir()
    with ProgressBar(f"reading the images in {name}", quiet=quiet or not is_folder):
        return load(name, **options)


def checksum(splits: DataSplits) -> str:
    """Tell data from others, wherever they lie: labels in order, and the training inputs.

    Of the inputs of a table it takes the order of rows by each column, which the rounding of means
    and deviations on another machine does not change; of images read when asked for, names and
    sizes.
    """
    found = hashlib.sha256(repr(splits.classes).encode())
    for part in splits.parts.values():
        found.update(part.y.numpy().tobytes())
    if isinstance(splits.train, DataPart):
        x = splits.train.x
        inputs = x if x.ndim > 2 else x.argsort(dim=0, stable=True)
        found.update(np.ascontiguousarray(inputs.numpy()).ravel().data)
    else:
        for file in splits.train.sources:
            found.update(f"{file.parent.name}/{file.name} {file.stat().st_size}\n".encode())
    return found.hexdigest()


def check_same_data(path: Path, config: RunConfig, splits: DataSplits) -> None:
    """Check that data are those that a run was trained on: others would be divided differently.

    Raises:
        InputError: If they differ. A run that was begun in Python keeps no checksum.
    """
    if config.values.get("data_checksum") not in (None, checksum(splits)):
        raise InputError(
            f"the data {splits.name} are not those that {path} was trained on, so the parts would "
            "differ: give the original data, or train again"
        )


def _check_fit(model: JEM, splits: DataSplits) -> None:
    """Refuse data whose shape, classes or scaling are not those of the model."""
    ours, theirs = model.scaling, splits.scaling
    fits = model.input_shape == splits.input_shape
    fits &= model.classes in (splits.classes, ("0",))  # of a density alone
    if fits and ours is not None:
        fits = torch.equal(ours.shift, theirs.shift) and torch.equal(ours.scale, theirs.scale)
    if not fits:
        raise InputError(
            f"{splits.name} is not what the run was trained on: its shape, classes or scaling "
            "differ; name the data of the run with --data"
        )


def check_out(out: Path, *read: Read, force: bool = True) -> Path:
    """Check that a file can be written, before the work.

    Args:
        out: The file that the user named.
        read: What the command reads, and must not overwrite.
        force: Whether it may overwrite another file.

    Returns:
        The file, with `~` expanded.

    Raises:
        InputError: If its folder is missing, it is a folder, a device or one of `read`, or it is
            there and must not be overwritten.
    """
    out = out.expanduser()
    if not out.parent.is_dir():
        raise InputError(f"--out: there is no folder {out.parent}")
    if out.exists() and not out.is_file():  # replacing a device would leave a file in its place
        kind = "a folder" if out.is_dir() else "not an ordinary file"
        raise InputError(f"--out must name a file to write, got {out}, which is {kind}")
    for source in (Path(name).expanduser() for name in read if name is not None):
        if out.exists() and source.exists() and out.samefile(source):
            raise InputError(f"--out: {out} is read, and would be overwritten: choose another")
    if out.exists() and not force:
        raise InputError(f"--out: {out} is there already: name another, or overwrite it (--force)")
    return out
