"""The documentation site: `make docs` builds it from the documents as they stand."""

import re
from typing import Any

import latex2mathml.converter
from docutils.nodes import SkipNode

import jem

project, author, version = "jem", "the jem contributors", jem.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "docs/index"
include_patterns = ["docs/*.md", "notebooks/*.ipynb", "*.md"]
html_theme, html_title = "furo", f"jem {version}"
html_copy_source = False
nb_execution_mode = "off"  # the tests run the notebooks; their results are kept in them
myst_heading_anchors = 4
autodoc_member_order = "bysource"
default_role = "code"  # names stand in single backticks
html_math_renderer = "mathml"


def _formula(translator: Any, node: Any, display: str) -> None:
    translator.body.append(latex2mathml.converter.convert(node.astext(), display=display))
    raise SkipNode


def _as_written(
    app: Any, what: str, name: str, found: Any, options: Any, lines: list[str]
) -> None:
    """Docstrings are not written in the markup of this tool, to which a star means emphasis."""
    lines[:] = [re.sub(r"(?<![`*\w])\*(?=\w)", r"\\*", line) for line in lines]


def _is_skipped(app: Any, what: str, name: str, *found: Any) -> bool | None:
    return True if re.fullmatch(r"set_\w+_request", name) else None  # of scikit-learn


def setup(app: Any) -> None:
    """Formulas become MathML, which browsers show without a script from the network."""
    app.add_html_math_renderer(
        "mathml",
        (lambda translator, node: _formula(translator, node, "inline"), None),
        (lambda translator, node: _formula(translator, node, "block"), None),
    )
    app.connect("autodoc-process-docstring", _as_written)
    app.connect("autodoc-skip-member", _is_skipped)
