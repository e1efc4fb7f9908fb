"""The documents: their examples run as they stand, one after the other, and their links hold."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import jem
from jem.evaluation.ood import SCORES
from jem.networks import NETWORKS

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def run_examples(name):
    """Run the blocks of Python of a document; return what they named."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
    assert blocks
    names = {}
    for block in blocks:
        exec(compile(block, name, "exec"), names)
    return names


def prose(document):
    return re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)


def anchors(document):
    """Of its headings, as GitHub forms them."""
    headings = re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_and_names_of_files_hold(document):
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", prose(document)):
        other = document.parent / target if target else document
        assert other.exists(), target
        assert not anchor or anchor in anchors(other), f"{target}#{anchor}"
    for path in re.findall(r"`(?:jem/)?(\w+/[\w/]+\.py)`", prose(document)):
        assert (ROOT / "jem" / path).exists() or (ROOT / path).exists(), path


@pytest.mark.slow
def test_examples_of_the_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_examples("README.md")
    assert names["drawn"].shape[0] == 8
    assert (tmp_path / "model.pt").exists()
    assert (tmp_path / "wine" / "report.html").exists()


LONGER = ("how_to", "method", "reference", "your_network")


@pytest.mark.slow
@pytest.mark.parametrize("name", [f"docs/{name}.md" for name in LONGER])
def test_examples_of_the_longer_documents(name, tmp_path, monkeypatch):
    """What can fail is an example that raises."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(SCORES, "margin", None)  # which an example adds; taken out again
    run_examples(name)


def test_examples_for_contributors(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(NETWORKS, "linear", None)  # which an example adds; taken out again
    names = run_examples("CONTRIBUTING.md")
    assert names["again"].network.spec == names["network"].spec
    assert names["blobs"].input_shape == (2,)


def test_commands_that_the_forge_and_contributors_run_are_targets_of_the_makefile():
    texts = (ROOT / "CONTRIBUTING.md", ROOT / ".github" / "workflows" / "checks.yml")
    text = "\n".join(path.read_text() for path in texts)
    named = set(re.findall(r"^(?: *- run: )?make ([a-z-]+)", text, re.MULTILINE))
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"test", "check"} <= named <= set(targets)


def test_the_citation_names_this_version():
    assert f"\nversion: {jem.__version__}\n" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_has_every_public_name(tmp_path):
    words = ("-q", "-W", "--keep-going", "-c", "docs", ".", tmp_path)
    subprocess.run([sys.executable, "-m", "sphinx", *words], cwd=ROOT, check=True)
    page = (tmp_path / "docs" / "api.html").read_text()
    functions = {name for name in jem.__all__ if callable(getattr(jem, name))}
    assert functions == set(re.findall(r'id="jem\.(\w+)"', page)) & set(jem.__all__)
    assert "<math" in page
    assert not re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(?:https?:)?//', page)


def test_examples_on_your_data():
    names = run_examples("docs/your_data.md")
    assert names["data"].train.x.shape == (240, 4)
    assert names["classifier"].foreign_columns(names["in_cents"])[0] == ("fee",)
