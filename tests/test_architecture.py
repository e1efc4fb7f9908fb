"""Holds the one-way order of imports: every part can be read without those above it."""

import ast
from pathlib import Path

import pytest

import jem

ROOT = Path(jem.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
GROUPS = ("sampling", "objectives", "training", "evaluation", "generation", "classifier")
TOP = {"cli", "commands"}
"""The command line: it alone prints, and nobody imports it."""


def module_name(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def annotation_blocks(tree):
    """`if TYPE_CHECKING:` blocks: what only a type checker imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from (inner for statement in node.body for inner in ast.walk(statement))


def imports(name, type_checking=True):
    """Full names of the modules that a module imports, also inside functions."""
    tree = ast.parse(MODULES[name].read_text())
    left_out = set() if type_checking else set(annotation_blocks(tree))
    found = set()
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
    """`jem.training.recipe` -> `training`."""
    return name.split(".")[1] if "." in name else ""


def inner(name, type_checking=True):
    """Parts of the package that a module imports."""
    return {part(n) for n in imports(name, type_checking) if n == "jem" or n.startswith("jem.")}


def of(*parts):
    return [name for name in MODULES if part(name) in parts]


def test_the_parser_sees_the_imports_that_it_judges():
    assert "jem.sampling.base_distributions" in imports("jem.sampling.buffer")
    assert "jem.networks" in imports("jem.training.steps")  # from jem import networks
    assert len(MODULES) > 30
    assert "matplotlib.figure" in imports("jem.plotting")


@pytest.mark.parametrize("name", of("model", "networks", "data"))
def test_models_and_data_know_nothing_of_what_is_done_with_them(name):
    assert inner(name).isdisjoint({*GROUPS, *TOP, "plotting", ""})


@pytest.mark.parametrize("name", of("sampling"))
def test_sampling_knows_energies_only_as_functions(name):
    assert inner(name) <= {"errors", "sampling"}
    assert {n.split(".")[0] for n in imports(name)} <= {
        "jem", "torch", "math", "typing", "collections", "dataclasses", "functools", "__future__"
    }  # fmt: skip


@pytest.mark.parametrize("name", of("objectives"))
def test_objectives_know_tensors(name):
    assert inner(name) <= {"errors", "objectives"}


@pytest.mark.parametrize("name", of("generation", "evaluation", "plotting", "randomness"))
def test_generation_and_evaluation_never_know_training(name):
    assert inner(name).isdisjoint({"training", "classifier", *TOP})


@pytest.mark.parametrize("name", of("errors", "randomness", "writing"))
def test_the_ground_floor_imports_nothing_of_the_package_but_errors(name):
    assert inner(name) <= {"errors"} - {part(name)}


def test_pictures_know_arrays_not_models():
    assert inner("jem.plotting", type_checking=False) <= {"errors", "writing"}


@pytest.mark.parametrize("name", [n for n in MODULES if part(n) not in {*TOP, "__main__"}])
def test_nobody_imports_the_command_line_or_the_estimator(name):
    if name != "jem" and part(name) != "classifier":  # the public names, and its own parts
        assert "classifier" not in inner(name)
    assert inner(name).isdisjoint(TOP)


@pytest.mark.parametrize("name", [n for n in MODULES if n != "jem.plotting"])
def test_only_plotting_draws(name):
    annotated = part(name) == "evaluation"  # may name the type of a figure that it returns
    drawing = {n for n in imports(name, not annotated) if n.split(".")[0] == "matplotlib"}
    # The letters among the foreign data sets are set in a font that matplotlib brings along.
    assert drawing <= ({"matplotlib"} if name == "jem.data.ood_sets" else set())
    if annotated:
        named = {n for n in imports(name) if n.split(".")[0] == "matplotlib"}
        assert named <= {"matplotlib.figure"}


@pytest.mark.parametrize("name", [n for n in MODULES if part(n) not in TOP])
def test_only_the_command_line_prints(name):
    calls = (n for n in ast.walk(ast.parse(MODULES[name].read_text())) if isinstance(n, ast.Call))
    assert not [call.lineno for call in calls if ast.unparse(call.func) == "print"]


def test_the_public_names_are_there_and_listed():
    assert {name for name in jem.__all__ if not hasattr(jem, name)} == set()
    blocks = annotation_blocks(ast.parse(MODULES["jem"].read_text()))
    imported = {alias.name for node in blocks for alias in getattr(node, "names", ())}
    assert imported == set(jem.__all__)  # what a type checker finds is what there is
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        jem.nothing  # noqa: B018
