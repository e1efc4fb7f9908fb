"""`jem data`: what there is to train on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from jem.commands.runs import load_data


@dataclass
class Data:
    """List the named data sets, or describe one."""

    name: tyro.conf.Positional[str | None] = None
    """A named set, a file or a folder."""
    data_root: Path | None = None
    """Folder of downloaded data sets; the environment variable JEM_DATA if left out."""
    download: bool = False
    """Download a named data set that is missing."""
    label_column: str | None = None
    """Column of a .csv file that holds the labels, if not called label, class, target or y."""
    image_size: int | None = None
    """Pixels a side that a folder's images are brought to."""
    skip_damaged: bool = False
    """Leave out images of a folder that cannot be read, and say how many."""


def run(argv: list[str]) -> int:
    """List or describe data sets."""
    args: Data = tyro.cli(Data, args=argv, prog="jem data")
    from jem.data import NAMES

    if args.name is not None:
        splits = load_data(
            args.name,
            root=args.data_root,
            download=args.download,
            label_column=args.label_column,
            image_size=args.image_size,
            skip_damaged=args.skip_damaged,
        )
        print(splits.describe())
        return 0

    for name, description in NAMES.items():
        print(f"{name:15}{description}")
    print(_YOUR_OWN)
    return 0


_YOUR_OWN = """
Your own:
  mine.npz   `images` (N, H, W), (N, H, W, C) or (N, C, H, W), or `x` (N, D), and `labels` (N,)
  mine.csv   a line of names, columns of numbers, and one of labels: label, class, target or y,
             or the one that --label-column names
  pictures/  a folder for each class, of images of one size, or any with --image-size 32
`jem data NAME` describes any of them."""
