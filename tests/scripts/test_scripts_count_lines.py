"""The count of lines: what counts as code, and when it fails."""

import importlib
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def count_lines(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("count_lines")


def test_docstrings_comments_and_blank_lines_are_no_code(count_lines, tmp_path):
    (tmp_path / "a.py").write_text(
        '"""A docstring\nof two lines."""\n\n# a comment\nx = 1  # another\n'
        '"""What x is."""\n\n\ndef f():\n    """Docs."""\n    return (\n        "text"\n    )\n'
    )
    assert count_lines.count_code(tmp_path / "a.py") == 5


def test_each_budget_that_is_passed_is_named(count_lines, monkeypatch):
    monkeypatch.setattr(count_lines, "CODE", {"jem": 8_500, "tests": 10_000})
    monkeypatch.setattr(count_lines, "FILES", {"jem": 85})
    code = {Path("jem/a.py"): 9_000, Path("tests/a.py"): 10_000}
    code |= {Path(f"jem/{i}.py"): 1 for i in range(85)}
    lines = dict.fromkeys(code, 1) | {Path("jem/a.py"): 401, Path("tests/a.py"): 900}
    passed = count_lines.passed_budgets(code, lines)
    assert len(passed) == 3
    assert "9,085" in passed[0]
    assert "86 files" in passed[1]
    assert "jem/a.py has 401 lines" in passed[2]
    assert not count_lines.passed_budgets({Path("jem/a.py"): 8_500}, {Path("jem/a.py"): 400})
