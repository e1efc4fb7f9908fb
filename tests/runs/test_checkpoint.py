import io
import pickle
from pathlib import Path

import pytest
import torch

from jem.errors import RunFolderError
from jem.runs.checkpoint import Checkpoints, deserialise, serialise


def state(value=1.0):
    return {
        "modules": {"model": {"weight": torch.full((3, 2), value, dtype=torch.float64)}},
        "optimizers": {"parameters": {"state": {0: {"step": torch.tensor(3.0)}}}},
        "generators": {"chains": torch.Generator().manual_seed(4).get_state()},
        "progress": {"iteration": 7, "seconds": 0.5, "name": "a", "none": None},
        "settings": {"domain": (torch.tensor(-1.0), torch.tensor(1.0)), "classes": ("a", "b")},
    }


def same(first, second):
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, tuple | list):
        return type(first) is type(second) and all(map(same, first, second))
    return first == second


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints")


# -- bytes


@pytest.mark.parametrize("flip", [0x01, 0x10, 0xFF])
def test_flipped_bits_anywhere_are_refused_or_harmless(flip):
    content = serialise({"format": 1, "x": torch.arange(5.0), "y": (1, "two", None)})
    expected, refused = deserialise(content), 0
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= flip
        try:
            loaded = deserialise(bytes(flipped))
        except RunFolderError:
            refused += 1
        else:  # padding between the parts and dates of the archive carry nothing
            assert same(loaded, expected), position
    assert refused > 300


class Bomb:
    """Unpickling this touches a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


@pytest.mark.parametrize("make", [torch.save, pickle.dump])
def test_a_file_that_would_run_code_is_refused_and_does_not_run(tmp_path, make):
    went_off, file = tmp_path / "went off", io.BytesIO()
    make({"format": 1, "x": Bomb(went_off)}, file)
    pickle.loads(pickle.dumps(Bomb(went_off)))  # it is a live one
    went_off.unlink()
    with pytest.raises(RunFolderError, match="cannot read checkpoint"):
        deserialise(file.getvalue())
    assert not went_off.exists()


@pytest.mark.parametrize("content", [{"format": 2}, {}, {"model_state_dict": {}}, [1, 2]])
def test_another_format_is_refused(content):
    file = io.BytesIO()
    torch.save(content, file)
    with pytest.raises(RunFolderError, match="is not a checkpoint of format 1"):
        deserialise(file.getvalue())


# -- the checkpoints of a run


@pytest.mark.parametrize("in_memory", [False, True])
def test_the_newest_are_kept_and_come_back(tmp_path, in_memory):
    checkpoints = Checkpoints(None if in_memory else tmp_path / "deep" / "checkpoints", keep=2)
    assert checkpoints.iterations() == []
    for iteration in (0, 5, 10, 123_456_789):
        checkpoints.save(iteration, state(float(iteration)))
    assert checkpoints.iterations() == [10, 123_456_789]
    assert same(checkpoints.load(10), {"format": 1, **state(10.0)})
    assert checkpoints.load_latest()[0] == 123_456_789
    checkpoints.drop(123_456_789)
    assert checkpoints.load_latest()[0] == 10


def test_checkpoints_in_between_do_not_push_out_the_fixed_ones(tmp_path):
    checkpoints = Checkpoints(tmp_path, every=10, keep=2)
    for iteration in (0, 10, 20, 23, 27):
        checkpoints.save(iteration, state())
    assert checkpoints.fixed_iterations() == [10, 20]
    assert checkpoints.iterations() == [10, 20, 27]
    checkpoints.save(30, state())
    assert checkpoints.iterations() == [20, 30]


def test_checkpoints_in_memory_are_copies():
    checkpoints, weight = Checkpoints(None), torch.zeros(3)
    checkpoints.save(1, {"weight": weight})
    weight += 1
    assert torch.equal(checkpoints.load(1)["weight"], torch.zeros(3))


def damage(path, how):
    content = path.read_bytes()
    if how == "flipped":
        middle = content.index(torch.full((2,), 2.0, dtype=torch.float64).numpy().tobytes())
        path.write_bytes(content[:middle] + b"\x00" * 16 + content[middle + 16 :])
    else:
        path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("how", ["flipped", "truncated"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(checkpoints, how):
    checkpoints.save(1, state(1.0))
    checkpoints.save(2, state(2.0))
    damage(checkpoints.path(2), how)
    with pytest.warns(UserWarning, match=r"00000002.pt: .*continuing from update 1 instead"):
        iteration, loaded = checkpoints.load_latest()
    assert iteration == 1
    assert same(loaded, {"format": 1, **state(1.0)})
    with pytest.raises(RunFolderError, match=r"00000002\.pt"):
        checkpoints.load(2)


def test_if_none_is_usable_every_problem_is_named(checkpoints):
    with pytest.raises(RunFolderError, match=r"no usable checkpoint in .*there is none"):
        checkpoints.load_latest()
    for iteration in (1, 2):
        checkpoints.save(iteration, state(2.0))
        damage(checkpoints.path(iteration), "truncated")
    with pytest.raises(RunFolderError, match=r"no usable checkpoint.*00000002.pt.*00000001.pt"):
        checkpoints.load_latest()


def test_a_damaged_newer_checkpoint_is_neither_gone_back_to_nor_kept_for_an_older_one(tmp_path):
    checkpoints = Checkpoints(tmp_path, every=10, keep=2)
    for iteration in (0, 10, 20):
        checkpoints.save(iteration, state(float(iteration)))
    damage(checkpoints.path(20), "truncated")  # the run was resumed from 10
    assert checkpoints.roll_back(checkpoints.fixed_iterations(15), last=-1) == 10
    assert checkpoints.iterations() == [10]
    for iteration in (20, 30, 40):
        checkpoints.save(iteration, state())
    damage(checkpoints.path(40), "truncated")
    checkpoints.save(35, state())
    assert checkpoints.iterations() == [30, 35, 40]
    assert checkpoints.roll_back(checkpoints.fixed_iterations(36), last=-1) == 30
