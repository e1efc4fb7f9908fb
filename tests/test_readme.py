"""The examples of the README run as they stand."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.slow
def test_examples_run_one_after_the_other(tmp_path, monkeypatch):
    assert BLOCKS
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in BLOCKS:
        exec(compile(block, str(README), "exec"), names)
    assert names["drawn"].shape[0] == 8
    assert (tmp_path / "model.pt").exists()
    assert (tmp_path / "wine" / "report.html").exists()
