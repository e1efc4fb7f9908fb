"""Holds the one-way order of imports: every file can be read without those above it."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import jem

ROOT = Path(jem.__file__).parent

# What a folder, or a file of the top level, may import, beside itself and what its own row names.
# Errors, checks and randomness are the ground floor: everybody may import them.
GROUND = {"errors", "checks", "randomness", "progress"}
MAY_IMPORT = {
    "errors": set(),
    "checks": {"errors"},
    "randomness": {"errors", "checks"},
    "progress": {"errors"},
    "networks": set(),
    "data": set(),
    "sampling": set(),
    "attacks": {"sampling"},
    "objectives": {"model", "sampling"},
    "plotting": {"runs"},
    "devices": {"model", "networks"},
    "model": {"data", "networks", "sampling"},
    "runs": {"data", "devices", "model", "networks", "sampling"},
    "training": {
        "attacks", "data", "devices", "generation", "model", "networks", "objectives", "plotting",
        "runs", "sampling",
    },
    "generation": {"data", "model", "sampling"},
    "evaluation": {
        "attacks", "data", "generation", "model", "networks", "plotting", "sampling",
    },
    "serving": {"data", "evaluation", "model", "networks", "runs"},
    "app": {"data", "generation", "model", "plotting", "serving"},
    "report": {
        "data", "evaluation", "generation", "model", "networks", "plotting", "runs", "sampling",
        "serving",
    },
    "estimator": {
        "data", "evaluation", "generation", "model", "networks", "objectives", "report",
        "sampling", "serving", "training",
    },
}  # fmt: skip
TOP = {"", "__main__", "cli", "commands"}
"""The public names and the command line: they may import everything, and nobody imports them."""


def module_name(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def annotation_blocks(tree):
    """`if TYPE_CHECKING:` blocks: what only a type checker imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from (inner for statement in node.body for inner in ast.walk(statement))


def imports(name):
    """Full names of the modules that a module imports when it runs, also inside functions."""
    tree = ast.parse(MODULES[name].read_text())
    left_out, found = set(annotation_blocks(tree)), set()
    for node in ast.walk(tree):
        if node in left_out:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (submodules & MODULES.keys()) or {node.module}
    return found


def part(name):
    """`jem.training.recipe` -> `training`; the package itself -> the empty text."""
    return name.split(".")[1] if "." in name else ""


def test_the_parser_sees_the_imports_that_it_judges():
    assert "jem.sampling.langevin" in imports("jem.sampling")
    assert len(MODULES) > 30
    assert any(name.split(".")[0] == "matplotlib" for name in imports("jem.plotting"))


@pytest.mark.parametrize("name", [name for name in MODULES if part(name) not in TOP])
def test_a_file_imports_only_what_stands_below_it(name):
    inner = {part(n) for n in imports(name) if n.split(".")[0] == "jem" and n != "jem"}
    assert inner <= MAY_IMPORT[part(name)] | {part(name)} | (
        GROUND if part(name) not in GROUND else set()
    )


def test_no_files_import_each_other_in_a_circle():
    graph = {
        name: imports(name) & MODULES.keys() - {name, "jem"} for name in MODULES if name != "jem"
    }
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_sampling_knows_nothing_but_torch():
    for name in MODULES:
        if part(name) == "sampling":
            assert {n.split(".")[0] for n in imports(name)} <= {
                "jem", "torch", "math", "typing", "collections", "dataclasses", "functools",
                "itertools", "__future__",
            }  # fmt: skip


@pytest.mark.parametrize("name", [name for name in MODULES if name != "jem.plotting"])
def test_only_plotting_draws(name):
    drawing = {n for n in imports(name) if n.split(".")[0] == "matplotlib"}
    # The letters among the OOD sets are set in a font that matplotlib brings along.
    assert drawing <= ({"matplotlib"} if name == "jem.data.shifts" else set())


@pytest.mark.parametrize("name", [name for name in MODULES if part(name) not in TOP])
def test_only_the_command_line_prints(name):
    calls = (n for n in ast.walk(ast.parse(MODULES[name].read_text())) if isinstance(n, ast.Call))
    assert not [call.lineno for call in calls if ast.unparse(call.func) == "print"]


def test_the_public_names_are_there_and_listed():
    assert {name for name in jem.__all__ if not hasattr(jem, name)} == set()
    blocks = annotation_blocks(ast.parse(MODULES["jem"].read_text()))
    imported = {
        alias.asname or alias.name for node in blocks for alias in getattr(node, "names", ())
    }
    assert imported == set(jem.__all__)  # what a type checker finds is what there is
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        jem.nothing  # noqa: B018
