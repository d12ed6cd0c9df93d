"""Allowed imports: each folder has a level, and imports only go down."""

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
from mnist_exp.provenance.source import NOT_COMPUTING

PACKAGE = Path(mnist_exp.__file__).parent
ROOT = Path(__file__).parent.parent
LEVELS = (
    {"errors", "redact"},
    {"augment", "console", "losses", "models", "provenance", "schedules", "scores"},
    {"data"},
    {"config", "training", "tracking", "figures"},
    {"builders"},
    {"experiment"},
    {"sweep", "analysis", "commands"},
    {"reproduction"},  # begins a run as a job of a sweep does
    {"job", "evaluation"},
    {"train", "compare", "decide", "evaluate", "predict", "reproduce", "sync", "relocate", "api", "__main__"},
    {"__init__"},
)
LEVEL = {place: level for level, places in enumerate(LEVELS) for place in places}
# Where each library may be imported: a folder or file at the top of the package, or one file in a folder.
TENSORFLOW = {"augment", "models", "losses", "schedules", "training", "builders", "experiment", "sweep/preflight"}
LIBRARIES = {
    "tensorflow": TENSORFLOW,
    "keras": TENSORFLOW | {"api"},  # as a type
    "cv2": {"augment"},
    "mlflow": {"tracking"},
    "hydra": {"train", "job", "sweep", "config"},
    "omegaconf": {"train", "api", "sweep", "config", "experiment", "reproduction"},
    "yaml": {"config/untrusted"},
    "optuna": {"sweep"},
    "matplotlib": {"figures"},
    "scipy": {"analysis/statistics", "analysis/sequential"},
    "jinja2": {"analysis/render"},
    "pandas": {"api"},
    "rich": {"console"},
    "psutil": {"provenance"},
    "PIL": {"data/formats", "api"},
    "pickle": {"sweep/processes"},  # from this program to its own workers
    "cloudpickle": {"sweep/processes"},
}
FILES = sorted(PACKAGE.rglob("*.py"))
# Identity names these by their contents' results, such as a folder's digest, or they only record.
RECORDING = {"console", "errors", "figures", "provenance", "redact", "tracking"}


def name_of(path):
    return path.relative_to(PACKAGE).as_posix().removesuffix(".py")


def place(path):
    """The folder, or the file at the top, that a file belongs to."""
    return name_of(path).split("/")[0]


def imports(path, *, only_top=False):
    """Dotted names a file imports, at its top or anywhere."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if only_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(path):
    """The places of the package that a file imports."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("mnist_exp.")}


def reached_from(first, without=frozenset()):
    """The places that a place imports, and those that they import."""
    reached, left = set(), {first}
    while left:
        now = left.pop()
        reached.add(now)
        left |= {name for path in FILES if place(path) == now for name in own(path)} - reached - without
    return reached


def test_every_place_has_a_level_and_every_name_exists():
    assert {place(path) for path in FILES} == LEVEL.keys()
    imported = {name.split(".")[0] for path in FILES for name in imports(path)}
    assert imported >= LIBRARIES.keys()
    for name in {*RECORDING, *(name.removesuffix(".py") for name in NOT_COMPUTING)}.union(*LIBRARIES.values()):
        assert (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file(), f"there is no {name}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_down(path):
    for used in own(path) - {place(path)}:
        assert LEVEL[used] < LEVEL[place(path)], f"{place(path)} may not import {used}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_libraries_stay_where_they_belong(path):
    for library in {name.split(".")[0] for name in imports(path)} & LIBRARIES.keys():
        assert {place(path), name_of(path)} & LIBRARIES[library], f"{name_of(path)} may not import {library}"


def test_numpy_reads_no_pickle():
    calls = [node for path in FILES for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.Call)]
    loads = [ast.unparse(call) for call in calls if ast.unparse(call.func) in ("np.load", "np.lib.format.read_array")]
    assert loads
    assert [text for text in loads if "allow_pickle=False" not in text] == []


@pytest.mark.parametrize("path", [path for path in FILES if place(path) != "tracking"], ids=name_of)
def test_only_tracking_knows_the_types_of_mlflow(path):
    """Other folders get a `RunInfo`, which has neither `info` nor `data`."""
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"\.info\.\w+|\.data\.(?:metrics|params|tags)\b|mlflow\.entities", text) == []


def test_every_place_that_a_run_computes_with_is_part_of_its_identity():
    computing = reached_from("experiment", frozenset(RECORDING))
    assert not computing & {name.removesuffix(".py") for name in NOT_COMPUTING}


SLOW = {"tensorflow", "keras", "mlflow", "sklearn", "matplotlib", "optuna", "pandas"}
QUICK = {
    "__init__",
    "__main__",
    "api",
    "commands",
    "compare",
    "config",
    "console",
    "data",
    "decide",
    "errors",
    "job",
    "provenance",
    "redact",
    "relocate",
    "reproduce",
    "reproduction",
    "sweep",
    "sync",
    "train",
}
# Imported by the worker processes, or once TensorFlow is.
NOT_QUICK = {"sweep/preflight", "sweep/preload", "sweep/optuna_search"}


@pytest.mark.parametrize("path", [p for p in FILES if place(p) in QUICK and name_of(p) not in NOT_QUICK], ids=name_of)
def test_code_that_runs_before_tensorflow_imports_nothing_slow_at_its_top(path):
    assert not {top.split(".")[0] for top in imports(path, only_top=True)} & SLOW


def test_compare_reaches_nothing_that_imports_tensorflow():
    assert not reached_from("compare") & TENSORFLOW


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
        ("mnist_exp", ("optuna", "notebook")),
        ("hydra_plugins", ()),
        ("tests", ("test", "optuna")),
        ("benchmarks", ("bench", "test", "optuna")),
    ],
)
def test_every_imported_package_is_declared(folder, extras):
    names = {name.partition(".")[0] for path in (ROOT / folder).rglob("*.py") for name in imports(path)}
    ours = {"mnist_exp", "hydra_plugins", "tests", "benchmarks", *(path.stem for path in (ROOT / folder).rglob("*.py"))}
    asked = {plain(requirement.name) for requirement in declared(*extras)}
    foreign = names - sys.stdlib_module_names - ours
    undeclared = {name for name in foreign if not asked & set(map(plain, DISTRIBUTIONS.get(name, [name])))}
    assert undeclared == set()


def test_installed_packages_satisfy_the_declared_versions():
    for requirement in declared("test"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            assert requirement.specifier.contains(importlib.metadata.version(requirement.name), prereleases=True)


def test_no_test_imports_another():
    for path in (ROOT / "tests").rglob("*.py"):
        assert not [name for name in imports(path) if name.startswith("tests.") and ".test_" in name], path
