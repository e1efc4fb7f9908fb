"""Data sets by name, the user's arrays and files, and out-of-distribution sets."""

from jem.data.arrays import from_arrays as from_arrays
from jem.data.batches import BatchStream as BatchStream
from jem.data.named import NAMES as NAMES
from jem.data.named import load as load
from jem.data.scaling import Scaling as Scaling
from jem.data.shifts import CORRUPTIONS as CORRUPTIONS
from jem.data.shifts import OOD_SETS as OOD_SETS
from jem.data.shifts import corrupt as corrupt
from jem.data.shifts import hold_out as hold_out
from jem.data.shifts import make_ood_set as make_ood_set
from jem.data.splits import DataPart as DataPart
from jem.data.splits import DataSplits as DataSplits
from jem.data.splits import LazyPart as LazyPart
