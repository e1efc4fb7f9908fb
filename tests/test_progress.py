import io

import pytest

from jem.progress import ProgressBar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def shown(monkeypatch):
    def show(stream, **options):
        monkeypatch.setattr("sys.stderr", stream)
        monkeypatch.setenv("TERM", "xterm")
        with ProgressBar("scoring", total=3, **options) as bar:
            bar.update(2, detail="accuracy 0.9")
            bar.stage("writing [1]")
            bar.message("done [2]")
        return stream.getvalue()

    return show


def test_a_terminal_shows_a_bar_with_title_count_and_detail(shown):
    text = shown(Terminal())
    assert "2/3" in text
    assert "accuracy 0.9" in text
    assert "writing [1]" in text
    assert "done [2]" in text


def test_elsewhere_there_are_plain_lines_and_no_bar(shown):
    assert shown(io.StringIO()) == "writing [1]\ndone [2]\n"


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_quiet_shows_nothing(shown, stream):
    assert shown(stream(), quiet=True) == ""
