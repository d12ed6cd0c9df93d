"""Reads logged configs. A stranger may have written them, so they are data and name only allowed functions.

Nothing here composes, resolves, imports or calls the targets of a config. An accepted config contains numbers, texts
and lists of these. A `_target_` that is not on the allow list needs the user's permission (`--trust`).
"""

import ast
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mnist_exp.config import (
    ARGUMENTS,
    CONF_DIR,
    LISTS,
    LOGGED_DEFAULTS,
    Config,
    ConfigError,
    LoggedConfig,
    SweepConfig,
    check,
    explain,
    flatten,
)
from mnist_exp.config.targets import definitions

MAX_BYTES = 2**16
MAX_DEPTH = 6  # a logged config nests three deep
MAX_SCALAR = 1000
MAX_LAYERS = 64  # entries of a list, and blocks: Keras takes seconds to build a hundred layers
MAX_INTEGER = 2**31 - 1  # TensorFlow counts in 32 bits
ADVICE = "--trust runs it if you know where it comes from"
# No optimizer or schedule by itself.
_BASES = {"LearningRateSchedule", "LossScaleOptimizer", "MultiOptimizer", "Optimizer", "OptimizerMap"}
_RETURNS = {"data": "Dataset", "callbacks": "keras.callbacks.Callback", "scores": "dict[str, float]"}
_KERAS = {
    "optimizer": "optimizers",
    "schedule": "optimizers.schedules",
    "augment": "layers",
    "callbacks": "callbacks",
}
# Of Keras' callbacks, those that write no file, open no connection and take no function.
_CALLBACKS = {"EarlyStopping", "ReduceLROnPlateau", "SwapEMAWeights", "TerminateOnNaN"}
_PACKAGE = {
    "model": "models",
    "loss": "losses",
    "schedule": "schedules",
    "data": "data",
    "augment": "augment",
    "callbacks": "training.callbacks",
    "scores": "scores",
}


def read_config(content: bytes, *, trusted: bool = False) -> Config:
    """Reads and checks the config of a recorded run, without its tracking store.

    Args:
        content: the bytes of a `config.yaml`.
        trusted: whether any `_target_` and any value is allowed.

    Raises:
        ConfigError: it is not plain data, names a function that is not allowed, or is invalid; one line per mistake.
    """
    tree = _parse(content)
    mistakes = list(_foreign(tree))
    if not trusted:
        mistakes += [*_costly(tree), *(line for group in ARGUMENTS for line in _unsafe_group(tree, group))]
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    # As in the defaults list of a logged config: keys that came after it was logged have today's defaults.
    groups = [group for entry in LOGGED_DEFAULTS if isinstance(entry, dict) for group in entry if "/" not in group]
    defaults = {group: OmegaConf.load(CONF_DIR / group / "default.yaml") for group in groups}
    tree.pop("defaults", None)
    try:
        config = check(OmegaConf.merge(OmegaConf.structured(LoggedConfig), {"name": "???"}, defaults, tree))  # type: ignore[arg-type]
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    config.tracking.uri, config.sweep, config.resume = None, SweepConfig(), None
    return config


def _parse(content: bytes) -> dict[str, Any]:
    """YAML to dicts, lists and scalars, without tags, aliases, interpolations, or more of it than a config needs."""
    if len(content) > MAX_BYTES:
        raise ConfigError(f"config.yaml must have at most {MAX_BYTES:,} bytes, got {len(content):,}")
    try:
        text = content.decode()
        oddity = next(_oddities(text), None)
        loaded = None if oddity else OmegaConf.to_container(OmegaConf.create(text))
    except UnicodeDecodeError as error:
        raise ConfigError(f"config.yaml must be UTF-8 text: {error.reason} at byte {error.start}") from error
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        said = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ConfigError(f"config.yaml is not a config: {'; '.join(said[:2])}") from error
    if oddity:
        raise ConfigError(f"config.yaml {oddity}")
    if not isinstance(loaded, dict):
        raise ConfigError(f"config.yaml must hold keys and values, got a {type(loaded).__name__}")
    return loaded  # type: ignore[return-value]


def _oddities(text: str) -> Iterator[str]:
    """What YAML can do and a logged config does not, found before anything is built from it."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        where = f"line {event.start_mark.line + 1}:"
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            yield f"{where} aliases and anchors are not allowed"
        elif getattr(event, "tag", None):
            yield f"{where} the tag {event.tag} is not allowed"
        elif depth > MAX_DEPTH:
            yield f"{where} nested more than {MAX_DEPTH} deep"
        elif isinstance(event, yaml.ScalarEvent) and len(event.value) > MAX_SCALAR:
            yield f"{where} a value of more than {MAX_SCALAR} characters"
        elif isinstance(event, yaml.ScalarEvent) and ("${" in event.value or event.value == "<<"):
            yield f"{where} {event.value[:60]!r} is not allowed: a logged config holds values, not references"


def _foreign(tree: dict[str, Any]) -> Iterator[str]:
    """Keys and names that no run logs, whatever they would do."""
    known = [field.name for field in fields(Config)]
    for key in tree:
        if key == "hydra":
            yield "hydra: a logged config has no such node, and it is never merged"
        elif key not in (*known, "defaults"):
            yield f"{str(key)[:60]!r} is not a key of a config; its keys: {', '.join(known)}"
        elif isinstance(tree[key], dict) and not all(str(inner).isidentifier() for inner in tree[key]):
            yield f"{key} has a key that is no name, got {str(list(tree[key]))[:60]}"
    defaults = tree.get("defaults", [])
    if not isinstance(defaults, list) or any(entry not in LOGGED_DEFAULTS for entry in defaults):
        yield "defaults: a logged config composes nothing, its defaults are those that a run writes"


def _unsafe_group(tree: dict[str, Any], group: str) -> Iterator[str]:
    node = tree.get(group)
    if not isinstance(node, dict):
        return  # it is the default, or `check` refuses it
    if group not in LISTS:
        yield from _unsafe(group, group, node)
    elif node != {"_target_": None}:  # how earlier versions logged that there was no augmentation
        for key, inner in node.items():
            yield from _unsafe(group, f"{group}.{str(key)[:60]}", inner if isinstance(inner, dict) else {})


def _unsafe(group: str, place: str, node: dict[str, Any]) -> Iterator[str]:
    target = node.get("_target_")
    if target not in (allowed := builders(group)):
        yield f"{place}._target_ must be one of {', '.join(allowed)}, got {target!r}; {ADVICE}"
    for key, value in node.items():
        entries = value if isinstance(value, list) else [value]
        if any(isinstance(entry, dict | list) for entry in entries):
            yield f"{place}.{key} must be a number, a text, or a list of them, got {str(value)[:60]}; {ADVICE}"
        elif len(entries) > MAX_LAYERS or (key == "blocks" and type(value) is int and value > MAX_LAYERS):
            yield f"{place}.{key} must be at most {MAX_LAYERS} layers or values, got {str(value)[:60]}; {ADVICE}"
        elif group == "optimizer" and key != "_target_" and not all(map(_is_plain, entries)):
            # Muon searches the names of layers for `exclude_layers`: an expression may take for ever.
            yield f"{place}.{key} must have no text but plain names, got {str(value)[:60]!r}; {ADVICE}"


def _is_plain(value: Any) -> bool:
    """Whether a value is no text, or one without a sign that means something in a regular expression, but for dots."""
    return not isinstance(value, str) or re.fullmatch(r"[\w./-]*", value) is not None


def _costly(tree: dict[str, Any]) -> Iterator[str]:
    for key, value in flatten(tree).items():
        for entry in value if isinstance(value, list) else [value]:
            if type(entry) is int and abs(entry) > MAX_INTEGER:
                yield f"{key[:60]} must have no number beyond {MAX_INTEGER}, got {str(entry)[:20]}...; {ADVICE}"


def builders(group: str) -> list[str]:
    """What may stand as `_target_` of a group: this package's own builders, Keras' own optimizers and schedules.

    Read from source, for importing it would import TensorFlow.
    """
    module = _PACKAGE.get(group)
    found = [f"mnist_exp.{module}.{name}" for name in _functions(module, group)] if module is not None else []
    spec = importlib.util.find_spec("keras") if group in _KERAS else None
    if spec is not None and spec.origin is not None:
        public = Path(spec.origin).parent.joinpath(*_KERAS[group].split("."), "__init__.py")
        names = _classes(public, "preprocessing.image_preprocessing" if group == "augment" else "")
        found += [f"keras.{_KERAS[group]}.{name}" for name in names if group != "callbacks" or name in _CALLBACKS]
    return found


def _functions(module: str, group: str) -> Iterator[str]:
    """Public functions that take the run's arguments for a group, and of `data` and `scores` return the right type."""
    for name, node in definitions(f"mnist_exp.{module}").items():
        if isinstance(node, ast.FunctionDef) and not name.startswith("_"):
            returns = node.returns is not None and ast.unparse(node.returns)
            takes = tuple(argument.arg for argument in node.args.args) == ARGUMENTS[group]
            if takes and _RETURNS.get(group) in (None, returns):
                yield name


def _classes(path: Path, within: str) -> list[str]:
    """Classes that a public module of Keras re-exports from modules whose names contain `within`."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    names = [
        alias.asname or alias.name
        for node in body
        if isinstance(node, ast.ImportFrom) and within in (node.module or "")
        for alias in node.names
    ]
    return sorted(name for name in names if name[0].isupper() and name not in _BASES)
