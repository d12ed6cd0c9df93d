"""Who may import what: the dependency direction is part of the product."""

import ast
import contextlib
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import mnist_exp
from mnist_exp.provenance import NOT_COMPUTING

PACKAGE = Path(mnist_exp.__file__).parent
TENSORFLOW = {"models", "schedules", "augment", "devices", "resident", "trainer", "run", "preflight"}
ALLOWED = {
    "tensorflow": TENSORFLOW,
    "keras": TENSORFLOW,
    "mlflow": {"tracking"},
    "hydra": {"config", "launcher", "run", "search", "sweep", "train"},
    "omegaconf": {"config", "launcher", "run", "search", "sweep", "train", "trust"},
    "yaml": {"trust"},
    "optuna": {"search"},
    "matplotlib": {"plots", "charts"},
    "scipy": {"stats"},
    "rich": {"terminal"},
    "psutil": {"provenance"},
}
# Which of the package's own modules a module may know; entry points and `run` may know any.
OWN = {
    "config": {"data", "redact"},
    "data": {"provenance"},
    "models": set(),
    "redact": set(),
    "schedules": set(),
    "augment": {"data"},
    "devices": set(),
    "resident": {"data"},
    "checkpoint": set(),
    "trainer": {"checkpoint", "data", "resident"},
    "metrics": set(),
    "plots": {"metrics"},
    "modules": {"redact"},
    "provenance": {"modules", "redact"},
    "database": set(),
    "tracking": {"database", "provenance", "redact"},
    "terminal": {"redact"},
    "search": {"config", "terminal"},
    "launcher": {"provenance", "terminal", "tracking"},
    "preloaded": {"sweep", "tracking"},
    "preflight": {"config", "data", "devices", "provenance", "run", "tracking"},
    "sweep": {
        *("config", "data", "devices", "launcher", "modules", "plots", "preflight", "provenance", "redact"),
        *("resident", "run", "search", "terminal", "tracking"),
    },
    "trust": {"config"},
    "record": {"modules"},
    "agreement": {"config", "modules", "record"},
    "stats": set(),
    "leaderboard": {"config", "metrics", "stats", "tracking"},
    "significance": {"leaderboard", "metrics", "stats"},
    "predictions": {"tracking"},
    "charts": {"metrics", "plots"},
    "pictures": {
        "charts",
        "data",
        "leaderboard",
        "metrics",
        "plots",
        "predictions",
        "report",
        "stats",
        "tracking",
    },
    "page": {"report"},
    "inspection": {"config", "leaderboard", "predictions", "report", "stats", "tracking"},
    "report": {"leaderboard", "metrics", "stats", "significance", "terminal"},
}
ROOT = Path(__file__).parent.parent
MODULES = sorted(PACKAGE.glob("*.py"))


def imports(path, *, only_top=False):
    """Dotted names a file imports, at its top or anywhere."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if only_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(path):
    """The package's own modules that a file imports."""
    known = {p.stem for p in MODULES} - {"__init__"}
    return {part for name in imports(path) if name.startswith("mnist_exp.") for part in name.split(".")[1:2]} & known


def test_every_module_that_a_run_computes_with_is_part_of_its_identity():
    reached, recording = {"run"}, {"modules", "plots", "provenance", "redact", "terminal", "tracking"}
    for _ in MODULES:
        reached |= {
            part
            for path in MODULES
            if path.stem in reached - recording
            for name in imports(path)
            if name.startswith("mnist_exp.")
            for part in name.split(".")[1:2]
        } & {path.stem for path in MODULES} - {"__init__"}
    assert not {f"{name}.py" for name in reached - recording} & NOT_COMPUTING
    assert {path.name for path in MODULES} >= NOT_COMPUTING


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_libraries_stay_where_they_belong(path):
    for package in {name.split(".")[0] for name in imports(path)} & ALLOWED.keys():
        assert path.stem in ALLOWED[package], f"{path.name} may not import {package}"


@pytest.mark.parametrize("path", [p for p in MODULES if p.stem in OWN], ids=lambda path: path.stem)
def test_modules_depend_in_one_direction(path):
    assert own(path) <= OWN[path.stem], f"{path.name} may not import {sorted(own(path) - OWN[path.stem])}"


@pytest.mark.parametrize(
    "name",
    ["config", "data", "launcher", "record", "reproduce", "search", "sweep", "terminal", "train", "trust", "agreement"],
)
def test_what_answers_before_tensorflow_imports_it_nowhere_at_its_top(name):
    slow = {"tensorflow", "keras", "mlflow", "sklearn", "matplotlib", "optuna"}
    found = {top.split(".")[0] for top in imports(PACKAGE / f"{name}.py", only_top=True)}
    assert not found & slow


DISTRIBUTIONS = importlib.metadata.packages_distributions()


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(*extras):
    """Distributions that pyproject.toml asks for, in the core and in extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(text for extra in extras for text in project["optional-dependencies"][extra])]
    return [Requirement(text) for text in asked]


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("mnist_exp", ("optuna",)),
        ("hydra_plugins", ()),
        ("tests", ("test", "optuna")),
        ("benchmarks", ("bench", "test", "optuna")),
    ],
)
def test_everything_that_is_imported_is_declared(folder, extras):
    own = {"mnist_exp", "hydra_plugins", "tests", "benchmarks"}
    names = {name.partition(".")[0] for path in (ROOT / folder).rglob("*.py") for name in imports(path)}
    foreign = names - sys.stdlib_module_names - own - {path.stem for path in (ROOT / folder).rglob("*.py")}
    asked = {plain(requirement.name) for requirement in declared(*extras)}
    undeclared = {name for name in foreign if not asked & set(map(plain, DISTRIBUTIONS.get(name, [name])))}
    assert undeclared == set()


def test_what_is_declared_is_met_by_what_is_installed():
    for requirement in declared("test"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            assert requirement.specifier.contains(importlib.metadata.version(requirement.name), prereleases=True)


def test_compare_reaches_nothing_that_imports_tensorflow():
    reached, left = set(), {"compare"}
    while left:
        name = left.pop()
        reached.add(name)
        left |= own(PACKAGE / f"{name}.py") - reached
    assert not reached & TENSORFLOW
