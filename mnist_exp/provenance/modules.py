"""The user's own modules: those that a config's targets import, without Python's, installed packages and this one.

They are found by reading source files, never by importing them. A run records the files; `reproduce` restores them.
"""

import ast
import functools
import importlib.util
import pkgutil
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import NamedTuple

from mnist_exp.errors import RequestError
from mnist_exp.redact import shows_secret

FOLDER = "code"  # of a run's artifacts
MAX_FILE, MAX_ALL, MAX_FILES = 2**20, 2**22, 300  # bytes, bytes, number
IMPORTERS = ("import_module", "__import__")
INSTALLED = {"site-packages", "dist-packages"}
_PACKAGE = Path(__file__).resolve().parent.parent


class UserCode(NamedTuple):
    """The user's own modules that a run computes with."""

    files: Mapping[str, bytes]  # contents by path: module `a.b` at code/a/b.py, package `a` at code/a/__init__.py
    packages: frozenset[str]  # import names of the installed packages that these files import


@functools.cache
def user_code(targets: frozenset[str]) -> UserCode:
    """Finds the modules that define targets, and the modules that these import, without executing them.

    Imports inside functions count. A process reads each file once, because a later edit does not change its code.

    Args:
        targets: dotted paths of functions or classes.
    """
    files: dict[str, bytes] = {}
    packages, seen = set[str](), set[str]()
    left = [target.rpartition(".")[0] for target in targets]
    while left:
        name = left.pop()
        if not name or name in seen:
            continue
        seen.add(name)
        left.append(name.rpartition(".")[0])  # importing a.b runs a
        spec = _find(name)
        path = _file(spec)
        if spec is None and name != _PACKAGE.name and _is_installed(name):
            packages.add(name)
        elif spec is not None and path is not None:
            content = path.read_bytes()
            inner = path.name if path.suffix != ".py" else "__init__.py" if _is_package(spec) else f"{path.stem}.py"
            folders = name.split(".") if _is_package(spec) else name.split(".")[:-1]
            files["/".join((FOLDER, *folders, inner))] = content
            if path.suffix == ".py":
                left += _imports(content, name if _is_package(spec) else name.rpartition(".")[0])
    return UserCode(dict(sorted(files.items())), frozenset(packages))


def recordable(code: UserCode) -> tuple[dict[str, bytes], str]:
    """The files that a run records, and one line with the reason if some are not recorded."""
    kept = {
        name: content
        for name, content in code.files.items()
        if module_name(name) and len(content) <= MAX_FILE and not shows_secret(name, content.decode("utf-8", "replace"))
    }
    if len(kept) > MAX_FILES or sum(map(len, kept.values())) > MAX_ALL:
        kept = {}
    lost = [name.removeprefix(f"{FOLDER}/") for name in code.files.keys() - kept.keys()]
    if not lost:
        return kept, ""
    limits = f"not a .py file, contains a secret, over {MAX_FILE:,} bytes, or over {MAX_ALL:,} bytes in total"
    return kept, f"not recorded with the run: {', '.join(sorted(lost)[:5])} (each {limits})"


def module_name(file: str) -> str | None:
    """`a.b` for `code/a/b.py` and `code/a/b/__init__.py`; None if the path is not that of a module."""
    folder, *parts = file.removesuffix(".py").split("/")
    if folder != FOLDER or not file.endswith(".py") or len(file) > 150 or not all(map(str.isidentifier, parts)):
        return None
    return ".".join(parts[:-1] if parts[-1:] == ["__init__"] else parts) or None


def changed(files: Mapping[str, bytes]) -> list[str]:
    """Names of the recorded modules that differ on this machine or are missing."""
    paths = {name: _file(_find(module_name(name) or "")) for name in files}
    differ = (name for name, path in paths.items() if path is None or path.read_bytes() != files[name])
    return sorted(filter(None, map(module_name, differ)))


def check(files: Iterable[str]) -> None:
    """Checks the paths of recorded modules.

    Raises:
        RequestError: a file is not a module, or would hide a module of Python, an installed package or this package.
    """
    reserved = {*sys.stdlib_module_names, *sys.builtin_module_names, _PACKAGE.name, "hydra_plugins"}
    installed = [place for place in sys.path if INSTALLED & set(Path(place).parts)]
    for name in files:
        top = (module_name(name) or "").partition(".")[0]
        if not top:
            raise RequestError(f"{name!r:.80} is not the path of a module, such as {FOLDER}/package/module.py")
        if top in reserved or PathFinder.find_spec(top, installed) is not None:
            raise RequestError(f"the recorded module {name} would hide {top}, which belongs to Python or is installed")


def write(files: Mapping[str, bytes], folder: Path) -> None:
    """Writes recorded modules into a folder from which they can be imported.

    Raises:
        RequestError: a symbolic link in the folder leads out of it.
    """
    for name, content in files.items():
        path = folder / name.removeprefix(f"{FOLDER}/")
        if path.is_symlink() or not path.parent.resolve().is_relative_to(folder.resolve()):
            raise RequestError(
                f"the recorded module {name} would be written outside {folder}, because of a symbolic link"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _find(name: str) -> ModuleSpec | None:
    """The spec of a user's module; None for other modules. `importlib.util.find_spec` would import parent packages."""
    parent, _, last = name.rpartition(".")
    try:
        if parent:
            above = _find(parent)
            spec = _find_below(name, (above.submodule_search_locations if above else None) or ())
        else:
            spec = importlib.util.find_spec(last) if last else None
    except (ImportError, ValueError):
        return None
    return spec if spec is not None and _is_users(spec) else None


def _find_below(name: str, places: Iterable[str]) -> ModuleSpec | None:
    found: list[str] = []
    for place in places:
        finder = pkgutil.get_importer(place)
        spec = finder.find_spec(name) if finder is not None else None
        if spec is not None and spec.loader is not None:
            return spec
        found += (spec.submodule_search_locations if spec is not None else None) or []
    namespace = ModuleSpec(name, None, is_package=True)
    namespace.submodule_search_locations = found
    return namespace if found else None


def _is_users(spec: ModuleSpec) -> bool:
    """Whether the module belongs neither to Python nor to an installed package nor to this package."""
    if spec.origin in ("built-in", "frozen"):
        return False
    places = [spec.origin] if spec.has_location and spec.origin else list(spec.submodule_search_locations or ())
    standard = [Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "platstdlib")]
    paths = [Path(place) for place in places if not INSTALLED & set(Path(place).parts)]
    return any(not any(p.resolve().is_relative_to(top) for top in (*standard, _PACKAGE)) for p in paths)


def _is_package(spec: ModuleSpec) -> bool:
    return spec.submodule_search_locations is not None


def _file(spec: ModuleSpec | None) -> Path | None:
    path = Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None
    return path if path is not None and path.is_file() else None


def _is_installed(name: str) -> bool:
    """Whether an installed package has this name."""
    try:
        spec = importlib.util.find_spec(name) if "." not in name else None
    except (ImportError, ValueError):
        return False
    places = [spec.origin or "", *(spec.submodule_search_locations or ())] if spec is not None else []
    return any(INSTALLED & set(Path(place).parts) for place in places)


def _imports(content: bytes, package: str) -> Iterator[str]:
    """Names that a module of `package` imports anywhere; some of them name functions."""
    try:
        nodes = list(ast.walk(ast.parse(content)))
    except (SyntaxError, ValueError):
        return
    for name in (name for node in nodes for name in _imported(node)):
        with suppress(ImportError):  # a relative import beyond the top package
            yield importlib.util.resolve_name(name, package or None)


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = "." * node.level + (node.module or "")
        joined = base if base.endswith(".") else f"{base}."
        return [base, *(f"{joined}{alias.name}" for alias in node.names)]
    function = node.func if isinstance(node, ast.Call) else None
    if isinstance(node, ast.Call) and getattr(function, "attr", getattr(function, "id", "")) in IMPORTERS:
        return [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    return []
