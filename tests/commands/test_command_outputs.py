"""Commands do not write over what they read, nor over what they did not write."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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


def test_the_picture_may_be_replaced_unless_it_lies_in_a_folder_that_is_read(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "1.png")
    assert Drawing.at(tmp_path / "1.png").picture == tmp_path / "1.png"
    with pytest.raises(InputError, match=r"1\.png would be lost"):
        Drawing.at(tmp_path / "1.png", tmp_path)


@pytest.mark.parametrize("name", ["t.png", "d", "d.npz"])
def test_only_an_earlier_drawing_is_replaced_beside_the_picture(tmp_path, name):
    (tmp_path / "t.csv").write_text("u,v,label\n1,2,yes\n")
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 2)), labels=[0, 1])
    with pytest.raises(InputError, match="would be lost"):
        Drawing.at(tmp_path / name, table=True)
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 2)), metadata="as a drawing has it")
    shutil.copy(tmp_path / "d.npz", tmp_path / "t.npz")
    assert Drawing.at(tmp_path / name, table=True)
    with pytest.raises(InputError, match="is read"):  # unless it is read now
        Drawing.at(tmp_path / name, tmp_path / f"{Path(name).stem}.npz", table=True)
