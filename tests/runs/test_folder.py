import signal
import subprocess
import sys

import pytest

from jem.errors import RunFolderError
from jem.runs.folder import RunFolder


def test_a_folder_is_made_and_knows_its_files(tmp_path):
    folder = RunFolder(str(tmp_path / "deep" / "run"))
    folder.create()
    folder.create()
    assert folder.path.is_dir()
    assert list(folder.path.iterdir()) == []
    assert not folder.holds_run()
    folder.write_config({"recipe": "fast", "seed": 3})
    assert folder.holds_run()
    assert folder.read_config() == {"recipe": "fast", "seed": 3}


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "a file").touch()
    for path in (tmp_path / "a file", tmp_path / "a file" / "run"):
        with pytest.raises(RunFolderError, match="cannot write to the run folder"):
            RunFolder(path).create()


def test_files_of_others_are_not_written_over(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("of another tool")
    (tmp_path / "notes.txt").write_text("in nobody's way")
    folder = RunFolder(tmp_path)
    with pytest.raises(RunFolderError, match=r"holds metrics\.jsonl, which no run there wrote"):
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
from jem.errors import RunFolderError
from jem.runs.folder import RunFolder
try:
    with RunFolder(sys.argv[1]).locked():
        print("held", flush=True)
        sys.stdin.readline()
except RunFolderError as error:
    print(error, flush=True)
"""


def enter(path):
    return subprocess.Popen(
        [sys.executable, "-c", ENTER, str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_second_process_is_refused_until_the_first_leaves(tmp_path):
    with RunFolder(tmp_path).locked(), enter(tmp_path) as second:
        assert "another process is training in" in second.stdout.readline()
    with RunFolder(tmp_path).locked():
        pass  # it was given back


def test_a_process_that_is_killed_frees_the_folder(tmp_path):
    with enter(tmp_path) as first:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(RunFolderError, match="another process"), RunFolder(tmp_path).locked():
            pass
        first.send_signal(signal.SIGKILL)
        first.wait()
    with RunFolder(tmp_path).locked():
        pass
