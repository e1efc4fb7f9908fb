"""`jem data`: what there is to train on."""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from jem.commands.flags import DataFlags
from jem.commands.runs import load_data


@dataclass
class Data(DataFlags):
    """List the named data sets, or describe one."""

    name: tyro.conf.Positional[str | None] = None
    """A named set, a file or a folder."""


def run(argv: list[str]) -> int:
    """List or describe data sets."""
    args: Data = tyro.cli(Data, args=argv, prog="jem data")
    from jem.data import NAMES

    if args.name is not None:
        options = dict(vars(args))
        name, root = options.pop("name"), options.pop("data_root")
        print(load_data(name, root=root, **options).describe())
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
