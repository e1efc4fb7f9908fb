"""Real data sets by name, a person's own arrays and files, and foreign inputs to test against."""

from jem.data.arrays import from_arrays
from jem.data.augment import augment
from jem.data.batches import BatchStream, as_part
from jem.data.files import load_file
from jem.data.foreign import foreign_set, hold_out
from jem.data.named import NAMES, load
from jem.data.parts import DataPart, DataSplits, LazyPart, split_indices
from jem.data.scaling import Scaling
from jem.data.shifts import CORRUPTIONS, FOREIGN, corrupt, rotations

__all__ = [
    "CORRUPTIONS",
    "FOREIGN",
    "NAMES",
    "BatchStream",
    "DataPart",
    "DataSplits",
    "LazyPart",
    "Scaling",
    "as_part",
    "augment",
    "corrupt",
    "foreign_set",
    "from_arrays",
    "hold_out",
    "load",
    "load_file",
    "rotations",
    "split_indices",
]
