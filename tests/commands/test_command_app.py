"""`jem app`: what it serves, and what it refuses."""

import pytest

QUICK = ["--quiet", "--device", "cpu", "--no-report", "--epochs", "1"]


@pytest.fixture(scope="module")
def runs(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    for name in ("iris", "wine"):
        assert run("train", "--data", name, "--out", folder / name, *QUICK) == 0
    return folder


@pytest.fixture
def served(monkeypatch):
    """What would be served, and where, in place of serving it."""
    uvicorn = pytest.importorskip("uvicorn", reason="needs the extra `app`")
    found = []
    monkeypatch.setattr(uvicorn, "run", lambda page, **where: found.append((page, where)))
    return found


def test_a_page_is_served_on_this_machine_alone(run, runs, served, capsys):
    assert run("app", runs / "iris", runs / "iris" / "model.pt", "--no-browser") == 0
    [(page, where)] = served
    assert callable(page)
    assert (where["host"], where["port"]) == ("127.0.0.1", 7860)
    shown = capsys.readouterr()
    assert "http://127.0.0.1:7860" in shown.out
    assert "other machines" not in shown.err
    assert run("app", runs / "iris", "--no-browser", "--host", "0.0.0.0") == 0
    assert "other machines can reach this page" in capsys.readouterr().err


def test_models_of_other_data_and_what_is_no_run_are_refused(refused, runs, served):
    assert "classes" in refused("app", runs / "iris", runs / "wine", "--no-browser")
    assert "gone" in refused("app", runs / "gone", "--no-browser")
    assert served == []
