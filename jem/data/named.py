"""Data sets by name: some come with scikit-learn, some are downloaded, some are generated."""

import difflib
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.datasets

from jem.checks import refuse
from jem.data.arrays import from_arrays
from jem.data.files import check_options, load_arrays
from jem.data.images import load_folder
from jem.data.splits import DataSplits
from jem.errors import InputError

NAMES: dict[str, str] = {
    "digits": "1,797 handwritten digits, 8 x 8 grey, 10 classes; comes with scikit-learn",
    "fashion_mnist": "70,000 pictures of clothing, 28 x 28 grey, 10 classes; download",
    "mnist": "70,000 handwritten digits, 28 x 28 grey, 10 classes; download",
    "cifar10": "60,000 photographs, 32 x 32 colour, 10 classes; download",
    "cifar100": "60,000 photographs, 32 x 32 colour, 100 classes; download",
    "svhn": "99,289 house numbers, 32 x 32 colour, 10 classes; download",
    "breast_cancer": "569 rows, 30 measurements of tumours, 2 classes; comes with scikit-learn",
    "wine": "178 rows, 13 measurements of wines, 3 classes; comes with scikit-learn",
    "iris": "150 rows, 4 measurements of flowers, 3 classes; comes with scikit-learn",
    "two_moons": "2,000 points in the plane, two interleaved half circles; generated",
    "rings": "2,000 points in the plane, two concentric rings; generated",
}
DOWNLOADED = ("fashion_mnist", "mnist", "cifar10", "cifar100", "svhn")

DATA_ROOT_VARIABLE = "JEM_DATA"


def load(
    name: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    download: bool = False,
    seed: int = 0,
    label_column: str | None = None,
    image_size: int | None = None,
    skip_damaged: bool = False,
    memory_limit: int = 2 * 1024**3,
    validation: str | os.PathLike[str] | None = None,
    test: str | os.PathLike[str] | None = None,
) -> DataSplits:
    """Load a data set by its name in `NAMES`, or the user's own from a file or folder.

    Args:
        name: A known name, or the path of an `.npz` file, a `.csv` file or a folder of images with
            one subfolder a class. A `Path` is never taken for a known name.
        root: Folder of downloaded sets; the environment variable JEM_DATA if None.
        download: Whether a missing set may be downloaded into `root`.
        seed: Decides which example goes to which part.
        label_column: Column of a `.csv` file that holds the labels; otherwise one called label,
            class, target or y.
        image_size: Pixels a side that images of a folder are brought to: scaled to cover the
            square, and the middle cut out. None takes them as they are, all of one size.
        skip_damaged: Leave out images of a folder that cannot be read, with one warning that says
            how many; otherwise they are refused.
        memory_limit: Bytes above which a folder of images, as float32, stays on disk.
        validation: File or folder of the validation part, of the kind of `name`, where you have
            divided the data yourself; otherwise it is taken from them.
        test: The same for the test part.

    Returns:
        Four parts in network units. Sets with an official test part keep it.

    Raises:
        InputError: If the name is unknown, or the data are missing or not as expected.

    Warns:
        UserWarning: If the known name is also that of a file or folder here.

    Example:
        >>> load("digits").input_shape
        (1, 8, 8)
    """
    path, given = Path(name).expanduser(), dict[str, Path]()
    for part, source in (("validation", validation), ("test", test)):
        if source is not None:
            given[part] = Path(source).expanduser()
            if not given[part].exists() or given[part].is_dir() != path.is_dir():
                kind = "folder of images" if path.is_dir() else "file"
                refuse(part, f"be a {kind}, as the data are", f"'{source}'")
    known = isinstance(name, str) and name in NAMES
    check_options(str(name) if known else path, label_column, image_size, skip_damaged)
    if known and given:
        refuse("name", "be a file or folder, since you gave parts of it", f"'{name}'")
    if isinstance(name, str) and known:
        if path.exists():
            warnings.warn(
                f"{name} means the named data set: write './{name}' for the file or folder that "
                "has this name",
                stacklevel=2,
            )
        large = name in DOWNLOADED
        found = _load_downloaded(name, root, download, seed) if large else _load_small(name, seed)
        return replace(found, notes=())
    if path.is_dir():
        return load_folder(
            path,
            seed=seed,
            image_size=image_size,
            skip_damaged=skip_damaged,
            memory_limit=memory_limit,
            given=given,
        )
    if not path.exists():
        if not isinstance(name, str) or path.suffix or len(path.parts) > 1:
            refuse(str(path), "be an .npz file, a .csv file or a folder of images", "no such path")
        close = difflib.get_close_matches(name.lower().replace("-", "_"), NAMES, 1, 0.5)
        remedy = f"did you mean {close[0]}?" if close else ""
        expected = f"be a file, a folder or one of {', '.join(NAMES)}"
        refuse("name", expected, f"'{name}'", remedy)
    return load_arrays(path, seed=seed, label_column=label_column, given=given)


def _load_small(name: str, seed: int) -> DataSplits:
    """Load a set that comes with scikit-learn, or that it makes: always the same points."""
    if name == "two_moons":
        x, y = sklearn.datasets.make_moons(2_000, noise=0.1, random_state=0)
        return from_arrays(x, y, name=name, seed=seed, classes=["upper", "lower"])
    if name == "rings":
        x, y = sklearn.datasets.make_circles(2_000, noise=0.05, factor=0.5, random_state=0)
        return from_arrays(x, y, name=name, seed=seed, classes=["outer", "inner"])
    found = getattr(sklearn.datasets, f"load_{name}")()
    if name == "digits":
        counts = (1237, 100, 100, 360)
        return from_arrays(found.images, found.target, name=name, seed=seed, counts=counts)
    classes = [str(label) for label in found.target_names]
    return from_arrays(found.data, found.target, name=name, seed=seed, classes=classes)


def _load_downloaded(
    name: str, root: str | os.PathLike[str] | None, download: bool, seed: int
) -> DataSplits:
    """Load a set of torchvision, keeping its test part."""
    root = root or os.environ.get(DATA_ROOT_VARIABLE)
    if not root:
        remedy = "give --data-root (root= in Python)"
        refuse(DATA_ROOT_VARIABLE, f"name the folder that holds {name}", "nothing", remedy)
    folder = Path(root).expanduser()
    train = _read_official(name, folder, download, train=True)
    test = _read_official(name, folder, download, train=False)
    return from_arrays(
        *_images_and_labels(train),
        name=name,
        seed=seed,
        test=_images_and_labels(test),
        channels="first" if name == "svhn" else "last",
        classes="0123456789" if name in ("mnist", "svhn") else train.classes,
    )


def _read_official(name: str, folder: Path, download: bool, *, train: bool) -> Any:  # noqa: ANN401
    import torchvision.datasets  # takes a second, which only those who download should pay

    read = getattr(torchvision.datasets, name.upper().replace("FASHION_", "Fashion"))
    svhn = {"split": "train" if train else "test"}
    which: dict[str, Any] = svhn if name == "svhn" else {"train": train}
    try:
        return read(root=str(folder), download=download, **which)
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        if download:
            raise InputError(f"could not download {name} into {folder}: {error}") from error
        remedy = "give --download (download=True in Python) or another --data-root"
        refuse(
            str(folder), f"hold the data set {name}", f"none or a damaged one ({error})", remedy
        )


def _images_and_labels(official: Any) -> tuple[Any, Any]:  # noqa: ANN401
    labels = official.labels if hasattr(official, "labels") else official.targets
    return np.asarray(official.data), np.asarray(labels)
