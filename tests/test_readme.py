"""The examples of the documents run as they stand, one after the other."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run_examples(name):
    """Run the blocks of Python of a document; return what they named."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
    assert blocks
    names = {}
    for block in blocks:
        exec(compile(block, name, "exec"), names)
    return names


@pytest.mark.slow
def test_examples_of_the_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_examples("README.md")
    assert names["drawn"].shape[0] == 8
    assert (tmp_path / "model.pt").exists()
    assert (tmp_path / "wine" / "report.html").exists()


def test_examples_on_your_data():
    names = run_examples("docs/your_data.md")
    assert names["data"].train.x.shape == (240, 4)
    assert names["classifier"].foreign_columns(names["in_cents"])[0] == ("fee",)
