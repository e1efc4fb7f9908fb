"""A model card, `README.md` in the format of the Hugging Face Hub, from a report's figures."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from jem.report.page import read_report, template
from jem.runs.folder import write_atomically

MOST_CLASSES = 20
"""Classes that a card lists."""


def write_card(folder: str | Path) -> Path:
    """Write `README.md`, a model card, beside a `report.json`, from nothing but its figures.

    What the report does not hold is said to be not measured or not stated.

    Args:
        folder: A run folder, or what `jem.write_report` wrote into.

    Returns:
        The card; an older one is overwritten.

    Raises:
        RunFolderError: If there is no report, or another version of this package wrote it.
    """
    folder = Path(folder).expanduser()
    figures = read_report(folder / "report.json")
    card = folder / "README.md"
    files = {path.name for path in folder.iterdir()}
    text = render_card(figures, folder.resolve().name, files)
    write_atomically(card, text.encode(errors="backslashreplace"))
    return card


def render_card(figures: Mapping[str, Any], name: str, files: Collection[str] = ()) -> str:
    """Make the card.

    Args:
        figures: The content of a `report.json`.
        name: Heading.
        files: What lies beside it: it says how the model is read, and shows `samples.png`.
    """
    network = figures["run"]["config"].get("network")
    named = network.get("classifier_spec") if isinstance(network, dict) else network
    # A card is published: the folders of this machine are not.
    brief = {each["name"]: re.split(r"[\\/]", each["name"])[-1] for each in figures["ood"]["sets"]}

    def md(text: str) -> str:
        """One line, in which Markdown and HTML find none of their signs."""
        for name, last in brief.items():
            text = text.replace(name, last)
        return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", " ".join(text.split()))

    return template("card.md.j2", md=md).render(
        r=figures,
        name=name,
        files=files,
        own_network=named if named and ":" in named else None,
        brief=brief,
        most=MOST_CLASSES,
    )
