"""Real data sets by name, a person's own arrays and files, and foreign inputs to test against."""

from jem.data.arrays import from_arrays
from jem.data.augment import augment
from jem.data.batches import BatchStream, as_part
from jem.data.corruptions import CORRUPTIONS, OOD_SETS, corrupt, rotations
from jem.data.files import load_file
from jem.data.named import NAMES, load
from jem.data.ood_sets import hold_out, make_ood_set
from jem.data.scaling import Scaling
from jem.data.splits import DataPart, DataSplits, LazyPart, split_indices

__all__ = [
    "CORRUPTIONS",
    "NAMES",
    "OOD_SETS",
    "BatchStream",
    "DataPart",
    "DataSplits",
    "LazyPart",
    "Scaling",
    "as_part",
    "augment",
    "corrupt",
    "from_arrays",
    "hold_out",
    "load",
    "load_file",
    "make_ood_set",
    "rotations",
    "split_indices",
]
