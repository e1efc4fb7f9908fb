"""A run folder: who may write to it; and files that are written whole or not at all."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jem.errors import RunFolderError
from jem.runs.folder import RunFolder, remove_unfinished, replacing, write_atomically


def claim(path):
    return RunFolder(path).claimed(resume=False)


def test_a_folder_is_made_and_knows_its_files(tmp_path):
    folder = RunFolder(str(tmp_path / "deep" / "run"))
    with folder.claimed(resume=False):
        assert not folder.holds_run()
    folder.write_config({"recipe": "fast", "seed": 3})
    assert folder.holds_run()
    assert folder.read_config() == {"recipe": "fast", "seed": 3}


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "a file").touch()
    for path in (tmp_path / "a file", tmp_path / "a file" / "run"):
        with pytest.raises(RunFolderError, match="cannot write to the run folder"):
            claim(path).__enter__()


def test_files_of_others_are_not_written_over(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("of another tool")
    (tmp_path / "notes.txt").write_text("in nobody's way")
    folder = RunFolder(tmp_path)
    with pytest.raises(RunFolderError, match=r"would be overwritten \(metrics\.jsonl\)"):
        folder.claimed(resume=False).__enter__()
    assert (tmp_path / "metrics.jsonl").read_text() == "of another tool"
    (tmp_path / "metrics.jsonl").unlink()
    with folder.claimed(resume=False):
        pass


@pytest.mark.parametrize("content", [b"{", b"[1]", b"3", b"", b"\xff\xfe"])
def test_a_damaged_config_is_named(tmp_path, content):
    folder = RunFolder(tmp_path)
    folder.config.write_bytes(content)
    with pytest.raises(RunFolderError, match=r"config.json"):
        folder.read_config()


# -- the lock

ENTER = """
import sys
from jem.runs.folder import RunFolder
with RunFolder(sys.argv[1]).claimed(resume=False):
    print("held", flush=True)
    sys.stdin.readline()
"""


def enter(path):
    return subprocess.Popen(
        [sys.executable, "-c", ENTER, str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_process_that_is_killed_frees_the_folder(tmp_path):
    with enter(tmp_path) as first:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(RunFolderError, match="another process"), claim(tmp_path):
            pass
        first.send_signal(signal.SIGKILL)
        first.wait()
    with claim(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, number):
    def flock(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.warns(UserWarning, match="has no locks"), claim(tmp_path):
        write_atomically(tmp_path / "file", b"content")


# -- files


def test_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_atomically(Path("~/file"), b"content")
    assert RunFolder("~/run").path == tmp_path / "run"
    assert (tmp_path / "file").read_bytes() == b"content"


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
