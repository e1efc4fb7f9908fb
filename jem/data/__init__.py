"""Data sets by name, the user's arrays and files, and out-of-distribution sets."""

from jem.data.arrays import from_arrays
from jem.data.batches import BatchStream
from jem.data.corruptions import CORRUPTIONS, corrupt
from jem.data.named import NAMES, load
from jem.data.ood_sets import OOD_SETS, hold_out, make_ood_set
from jem.data.scaling import Scaling
from jem.data.splits import DataPart, DataSplits, LazyPart

__all__ = [
    "CORRUPTIONS",
    "NAMES",
    "OOD_SETS",
    "BatchStream",
    "DataPart",
    "DataSplits",
    "LazyPart",
    "Scaling",
    "corrupt",
    "from_arrays",
    "hold_out",
    "load",
    "make_ood_set",
]
