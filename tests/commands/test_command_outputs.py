"""Commands do not write over what they read, nor over what they did not write."""

from pathlib import Path

import pytest

from jem.commands.runs import check_out
from jem.commands.sample import Drawing
from jem.errors import InputError


@pytest.mark.parametrize(
    ("out", "named"),
    [("no/s.csv", "no folder"), (".", "folder"), ("/dev/null", "no ordinary file"), ("x", "read")],
)
def test_what_cannot_become_a_file_is_refused(tmp_path, monkeypatch, out, named):
    monkeypatch.chdir(tmp_path)
    Path("x").touch()
    with pytest.raises(InputError, match=named):
        check_out(Path(out), None, "gone", tmp_path / "x")


def test_home_is_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check_out(Path("~/s.csv")) == tmp_path / "s.csv"
    assert Drawing.at(Path("~/s")).picture == tmp_path / "s.png"


@pytest.mark.parametrize("there", ["d.png", "d.npz", "d.csv"])
def test_files_that_are_there_are_overwritten_only_by_force(tmp_path, there):
    (tmp_path / there).write_text("mine")
    with pytest.raises(InputError, match=r"is there already: name another, or overwrite it"):
        Drawing.at(tmp_path / "d.png", table=True)
    assert Drawing.at(tmp_path / "d.png", table=True, force=True).picture == tmp_path / "d.png"
    with pytest.raises(InputError, match="is read"):
        Drawing.at(tmp_path / "d.png", tmp_path / there, table=True, force=True)
