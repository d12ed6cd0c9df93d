"""Targets: reads the arguments of a `_target_` from its source, and calls it."""

import ast
import functools
import importlib.util
import inspect
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hydra.utils import get_object

from mnist_exp.config.schema import PACKAGE, Config, nodes
from mnist_exp.data import Subset
from mnist_exp.errors import first_line

AUTO = "mnist_exp.data.auto"  # a placeholder for another data set, whose keys it takes


class Signature(NamedTuple):
    """The arguments that a target takes."""

    positional: tuple[str, ...]
    keywords: frozenset[str]
    required: frozenset[str]
    any_positional: bool  # *args
    any_keyword: bool  # **options


def is_ours(node: Any) -> bool:
    """Whether this package or Keras defines the target of a group."""
    target = node.get("_target_") if isinstance(node, dict) else None
    return isinstance(target, str) and target.partition(".")[0] in (PACKAGE.name, "keras")


@functools.cache
def _signature(target: str) -> Signature:
    found = _definition(target)
    if found is None:
        return _imported(target)
    function, method = found
    given = function.args
    first = [a.arg for a in given.posonlyargs + given.args][method:]
    named = [a.arg for a in given.args + given.kwonlyargs][method and not given.posonlyargs :]
    bare = first[: len(first) - len(given.defaults)]
    bare += [a.arg for a, default in zip(given.kwonlyargs, given.kw_defaults, strict=True) if default is None]
    # Keras' classes pass their **kwargs to a base class that refuses unknown keys.
    free = given.kwarg is not None and not target.startswith("keras.")
    return Signature(tuple(first), frozenset(named), frozenset(bare), given.vararg is not None, free)


def signature(target: Any) -> Signature:
    """The arguments of a target, read from its source where they stand there: importing it would import TensorFlow.

    Args:
        target: dotted path of a function or class, such as `mnist_exp.models.mlp` or `keras.optimizers.Adam`.

    Raises:
        LookupError: no such module, or no such function or class in it.
    """
    if not isinstance(target, str) or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", target):
        raise LookupError(f"must be a dotted path to a function, got {target!r}")
    return _signature("mnist_exp.data.mnist" if target == AUTO else target)


def subset(node: Mapping[str, Any]) -> Subset:
    """The keys of a data node that the run applies itself. A target that takes an argument of that name gets it."""
    taken = signature(node["_target_"]).keywords
    return Subset(**{key: node.get(key) for key in Subset._fields if key not in taken})


def without_subset(node: Mapping[str, Any]) -> dict[str, Any]:
    """A data node without the keys that the run applies itself, and without those that are null in the schema alone."""
    found = signature(node["_target_"])
    return {
        key: value
        for key, value in node.items()
        if key not in Subset._fields or key in found.required or (key in found.keywords and value is not None)
    }


def _definition(target: str) -> tuple[ast.FunctionDef, bool] | None:
    """The function, or the class's `__init__`, in the module's source; and whether it is the latter."""
    module, _, name = target.rpartition(".")
    ours = target.startswith(f"{PACKAGE.name}.")
    node = definitions(module).get(name) if ours else _searched(module, name)
    known = ours or target.startswith("keras.")
    if node is None and known:
        raise LookupError(f"must name a function or class that exists, got {target!r}")
    return _called(node, known) if node is not None else None


def _searched(module: str, name: str) -> ast.FunctionDef | ast.ClassDef | None:
    """The function or class of this name in the source of a module of Keras or of the user."""
    for path in _sources(module):
        source = path.read_text(encoding="utf-8")
        if not re.search(rf"^(def|class) {name}\b", source, re.MULTILINE):
            continue  # parsing every file of Keras would take a second
        try:
            body = ast.parse(source).body
        except SyntaxError as error:
            raise LookupError(f"must name a function or class, but {path} is not Python: {error}") from error
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
                return node
    return None


@functools.cache
def definitions(module: str) -> dict[str, ast.FunctionDef | ast.ClassDef]:
    """The functions and classes of a module of this package, by name, read from source.

    Names that a folder's `__init__.py` imports from a file of that folder count as the folder's own, so that
    `mnist_exp.models.mlp` is found although `mnist_exp/models/dense.py` defines it.
    """
    place = PACKAGE.joinpath(*module.split(".")[1:])
    path = next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)
    found: dict[str, ast.FunctionDef | ast.ClassDef] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body if path is not None else ():
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith(f"{module}."):
            inner = definitions(node.module)
            found |= {alias.asname or alias.name: inner[alias.name] for alias in node.names if alias.name in inner}
    return found


def _called(node: ast.FunctionDef | ast.ClassDef, known: bool) -> tuple[ast.FunctionDef, bool] | None:
    if isinstance(node, ast.FunctionDef):
        return node, False
    inits = [f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"]
    if not inits and known:  # of this package and Keras no such class is meant to be a target
        inits = [f for f in ast.parse("def __init__(self): ...").body if isinstance(f, ast.FunctionDef)]
    return (inits[-1], True) if inits else None


def _imported(target: str) -> Signature:
    """The arguments of a target that its module inherits, re-exports or makes: known when it is imported only."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        parameters = inspect.signature(get_object(target)).parameters.values()
    except Exception as error:  # a user's module may raise anything when it is imported
        cause = error.__cause__ or error
        raise LookupError(
            f"must name a function or class that exists, got {target!r}: {type(cause).__name__}: {first_line(cause)}"
        ) from error
    kinds = {p.kind for p in parameters}
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return Signature(
        tuple(p.name for p in named if p.kind is not p.KEYWORD_ONLY),
        frozenset(p.name for p in named if p.kind is not p.POSITIONAL_ONLY),
        frozenset(p.name for p in named if p.default is p.empty),
        inspect.Parameter.VAR_POSITIONAL in kinds,
        inspect.Parameter.VAR_KEYWORD in kinds,
    )


def _sources(module: str) -> list[Path]:
    if module.startswith("keras."):  # its public modules re-export from keras/src: look in there
        spec = importlib.util.find_spec("keras")
        folder = Path(*module.split(".")[1:])
        places = spec.submodule_search_locations if spec is not None else None
        return sorted((Path(places[0]) / "src" / folder).rglob("*.py")) if places else []
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    return [Path(spec.origin)] if spec is not None and spec.origin and spec.origin.endswith(".py") else []


def targets(config: Config) -> frozenset[str]:
    """Every `_target_` of the config."""
    return frozenset(node["_target_"] for _, _, node in nodes(config))


def build(node: Mapping[str, Any], *arguments: Any, **offered: Any) -> Any:
    """Calls a node's `_target_` with the run's arguments first and the node's other keys by keyword.

    The target also gets those of `offered` that it takes as arguments, unless the node has a key of that name.
    """
    keywords = {key: value for key, value in node.items() if key != "_target_"}
    taken = signature(node["_target_"]).keywords if offered else frozenset()
    return get_object(node["_target_"])(*arguments, **{key: offered[key] for key in offered.keys() & taken} | keywords)
