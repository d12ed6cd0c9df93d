"""Who may import what: the dependency direction is part of the product."""

import ast
from pathlib import Path

import pytest

import mnist_exp

PACKAGE = Path(mnist_exp.__file__).parent
TENSORFLOW = {"models", "schedules", "augment", "devices", "resident", "trainer", "run"}
ALLOWED = {
    "tensorflow": TENSORFLOW,
    "keras": TENSORFLOW,
    "mlflow": {"tracking"},
    "hydra": {"config", "run", "sweep", "train"},
    "omegaconf": {"config", "run", "sweep", "train"},
    "matplotlib": {"plots"},
    "rich": {"terminal"},
    "psutil": {"provenance"},
}
# Which of the package's own modules a module may know; entry points and `run` may know any.
OWN = {
    "config": {"data"},
    "data": set(),
    "models": set(),
    "schedules": set(),
    "augment": {"data"},
    "devices": set(),
    "resident": {"data"},
    "trainer": {"data", "resident"},
    "metrics": set(),
    "plots": {"metrics"},
    "provenance": set(),
    "tracking": set(),
    "terminal": set(),
    "sweep": {"config", "data", "terminal", "tracking"},
}
MODULES = sorted(PACKAGE.glob("*.py"))


def imports(path, *, only_top=False):
    """Dotted names a file imports, at its top or anywhere."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if only_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_libraries_stay_where_they_belong(path):
    for package in {name.split(".")[0] for name in imports(path)} & ALLOWED.keys():
        assert path.stem in ALLOWED[package], f"{path.name} may not import {package}"


@pytest.mark.parametrize("path", [p for p in MODULES if p.stem in OWN], ids=lambda path: path.stem)
def test_modules_depend_in_one_direction(path):
    known = {p.stem for p in MODULES} - {"__init__"}
    own = {part for name in imports(path) if name.startswith("mnist_exp.") for part in name.split(".")[1:2]} & known
    assert own <= OWN[path.stem], f"{path.name} may not import {sorted(own - OWN[path.stem])}"


@pytest.mark.parametrize("name", ["config", "data", "sweep", "terminal", "train"])
def test_what_answers_before_tensorflow_imports_it_nowhere_at_its_top(name):
    slow = {"tensorflow", "keras", "mlflow", "sklearn", "matplotlib"}
    found = {top.split(".")[0] for top in imports(PACKAGE / f"{name}.py", only_top=True)}
    assert not found & slow
