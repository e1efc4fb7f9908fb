"""Files without pickle: what comes back is what went in, and a damaged file is refused."""

import math
import sys

import pytest
import safetensors.torch
import torch

import jem
from jem.errors import InputError, RunFolderError
from jem.runs.safetensors_file import from_safetensors, to_safetensors

TIED = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
STATE = {
    "format": 1,
    "weights": {"a.weight": TIED, "tied": TIED, "b": TIED.t(), "half": TIED.bfloat16()},
    "plain": {"none": None, "yes": True, "text": "é\n|", "float": 0.1, "inf": math.inf},
    "nested": ([1, (2.5, torch.tensor(7))], (), {}),
    "exact": torch.tensor([math.pi], dtype=torch.float64),
}


def same(found, wanted):
    if isinstance(wanted, torch.Tensor):
        return found.dtype == wanted.dtype and torch.equal(found, wanted)
    if isinstance(wanted, dict):
        found, wanted = list(found.items()), list(wanted.items())
    if isinstance(wanted, list | tuple):
        alike = type(found) is type(wanted) and len(found) == len(wanted)
        return alike and all(map(same, found, wanted))
    return found == wanted and type(found) is type(wanted)


@pytest.fixture
def path(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(to_safetensors(STATE))
    return tmp_path / "model.safetensors"


def test_tensors_and_plain_values_come_back_as_they_were(path):
    assert same(from_safetensors(path), STATE)
    alone = safetensors.torch.load_file(path)  # what others read
    assert torch.equal(alone["weights.a.weight"], TIED)


def test_a_flipped_bit_is_found_wherever_it_is(path):
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            found = from_safetensors(path)
        except RunFolderError:
            continue
        assert same(found, STATE)  # in a space, or in a name that nothing asks for


def test_other_files_are_refused_in_one_line(path):
    whole = path.read_bytes()
    foreign = safetensors.torch.save({"weight": TIED})
    for content in (b"", b"junk", whole[:100], whole[:-1], foreign):
        path.write_bytes(content)
        with pytest.raises(RunFolderError, match=r"cannot read .*model\.safetensors") as refused:
            jem.load(path)
        assert "\n" not in str(refused.value)
    with pytest.raises(RunFolderError, match="cannot read"):
        jem.load(path.parent / "none.safetensors")


def test_the_missing_package_is_named(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(InputError, match=r"pip install 'jem-classifier\[hub\]'"):
        jem.load(path)
