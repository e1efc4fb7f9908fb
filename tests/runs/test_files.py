"""A file is written whole or not at all, whatever happens meanwhile."""

import os

import pytest

from jem.errors import RunFolderError
from jem.runs.files import remove_unfinished, replacing, write_atomically


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "file"
    for content in (b"first", b"2", b""):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("at", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_as_it_was(tmp_path, monkeypatch, fill_disk, at):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with monkeypatch.context() as patch:
        fill_disk(patch, at)
        with pytest.raises(RunFolderError, match=r"cannot write .*file: No space left.*untouched"):
            write_atomically(path, b"new" * 100)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["file", "no folder/file", "a file/file"])
def test_a_place_that_cannot_be_written_is_named(tmp_path, name):
    (tmp_path / "a file").write_bytes(b"")
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "full").touch()
    with pytest.raises(RunFolderError, match="cannot write"):
        write_atomically(tmp_path / name, b"content")


def test_two_who_write_one_file_do_not_mix(tmp_path):
    path = tmp_path / "scores.csv"
    with replacing(path, "t") as first:
        first.write("first")
        with replacing(path, "t") as second:
            second.write("second")
        assert path.read_text() == "second"
        with pytest.raises(KeyError), replacing(path, "t"):
            raise KeyError
    assert path.read_text() == "first"
    assert os.listdir(tmp_path) == ["scores.csv"]


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    kept = {"file", "file.partial", "film.12345678.part", "a.0123456g.partial", "file.123.partial"}
    for name in (*kept, "file.0123abcd.partial"):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path)
    assert set(os.listdir(tmp_path)) == kept
    remove_unfinished(tmp_path / "no folder")
