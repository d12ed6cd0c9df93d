"""What a run's config may hold: its schema, the rules its values obey, and what identifies a run.

A config is checked here once, before TensorFlow is imported: names and types by the schema when Hydra composes,
values by `RULES`, arguments of a `_target_` against the signature in its source.
"""

import ast
import functools
import hashlib
import importlib.util
import inspect
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, OverrideParseException
from hydra.utils import get_object
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mnist_exp.data import DataError, check_validation
from mnist_exp.errors import RequestError
from mnist_exp.redact import redact

PACKAGE = Path(__file__).resolve().parent.parent
# In a wheel the conf tree lies inside the package, in a checkout beside it.
CONF_DIR = next(path for path in (PACKAGE / "conf", PACKAGE.parent / "conf") if path.is_dir())

MAX_THREADS = 1024  # TensorFlow starts all that it is given, at once and twice


class ConfigError(RequestError):
    """The config makes no sense."""


@dataclass
class TrainerConfig:
    """See conf/trainer/default.yaml for values and meaning."""

    epochs: int = MISSING
    batch_size: int = MISSING
    execution: str = MISSING
    devices: str = MISSING
    threads: int | None = MISSING
    precision: str = MISSING
    early_stopping: str | None = MISSING
    patience: int = MISSING
    checkpoint: bool = MISSING
    profile: bool = MISSING


@dataclass
class TrackingConfig:
    """See conf/tracking/default.yaml for values and meaning."""

    uri: str | None = MISSING
    experiment: str = MISSING


@dataclass
class TrialConfig:
    """The trial of an Optuna study that a run is when the study may stop it early; set by mnist_exp.sweep.search."""

    id: int | None = None
    storage: str | None = None
    study: str | None = None
    pruner: str | None = None


@dataclass
class SweepConfig:
    """How a multirun goes about its runs; README.md says what the values mean."""

    skip_finished: bool = True
    on_error: str = "continue"
    retries: int = 1
    preflight: str = "first"
    objective: list[str] = field(default_factory=lambda: ["final_val_accuracy"])
    seeds: int = 1
    id: str | None = None  # set by mnist_exp.sweep.callback when a multirun starts
    data: str | None = None  # likewise: what data=auto means in all of its runs
    trial: TrialConfig = field(default_factory=TrialConfig)


@dataclass
class Config:
    """One run. The group nodes are plain dicts with a `_target_`, so that a new option needs no schema."""

    experiment: str | None = None  # the preset's name
    name: str = "${hydra:runtime.choices.model}-${hydra:runtime.choices.optimizer}"
    seed: int = 0
    resume: str | None = None  # a run to continue
    init_from: str | None = None  # a finished run whose weights to begin with; `run` gets its id
    model: Any = MISSING
    optimizer: Any = MISSING
    schedule: Any = MISSING
    data: Any = MISSING
    augment: Any = MISSING
    trainer: TrainerConfig = MISSING
    tracking: TrackingConfig = MISSING
    sweep: SweepConfig = field(default_factory=SweepConfig)


ConfigStore.instance().store(name="schema", node=Config)


class Rule(NamedTuple):
    """What a value must be, in words and as a test."""

    says: str
    holds: Callable[[Any], bool]
    real: bool = False  # a whole number becomes a float: Keras refuses learning_rate=1, and 1 and 1.0 are one value


def _integer(low: int, high: float = float("inf")) -> Rule:
    bound = f"at least {low}" if high == float("inf") else f"between {low} and {high}"
    return Rule(f"a whole number, {bound}", lambda v: type(v) is int and low <= v <= high)


def _number(says: str, holds: Callable[[float], bool]) -> Rule:
    return Rule(
        f"a number {says}", lambda v: type(v) in (int, float) and v <= sys.float_info.max and holds(v), real=True
    )


def _choice(*options: str) -> Rule:
    return Rule("one of " + ", ".join(options), lambda v: v in options)


def _optional(rule: Rule) -> Rule:
    return Rule(f"null or {rule.says}", lambda v: v is None or rule.holds(v), rule.real)


def _list_of(rule: Rule) -> Rule:
    says = f"a list, each entry {rule.says}"
    return Rule(says, lambda v: isinstance(v, list) and all(rule.holds(entry) for entry in v))


_COUNT = _integer(1)
_BOOLEAN = Rule("true or false", lambda v: isinstance(v, bool))
_POSITIVE = _number("above 0", lambda v: 0 < v < float("inf"))
_NOT_NEGATIVE = _number("of at least 0", lambda v: 0 <= v < float("inf"))
_SHARE = _number("from 0 to 1", lambda v: 0 <= v <= 1)
_SHARE_BELOW_1 = _number("from 0 to below 1", lambda v: 0 <= v < 1)
_TEXT = Rule(
    "text of 1 to 200 printable characters", lambda v: isinstance(v, str) and 0 < len(v) <= 200 and v.isprintable()
)
# fmt: off
ACTIVATIONS = ("relu", "leaky_relu", "relu6", "elu", "celu", "selu", "gelu", "silu", "swish", "mish", "tanh", "sigmoid",
               "softplus", "softsign", "hard_sigmoid", "hard_silu", "hard_swish", "hard_tanh", "squareplus", "linear")
# fmt: on

# What a search may go by. The test set is scored, never selected on.
OBJECTIVES = ("final_val_accuracy", "final_val_loss", "fit_seconds", "parameters")

# A key's name means the same wherever it stands, so its rule is stated once. A user's own target gives its keys other
# meanings: of those only what `READ` names has a rule.
RULES: dict[str, Rule] = {
    "seed": _integer(0, 2**31 - 1),
    "name": _TEXT,
    "tracking.experiment": _TEXT,
    "tracking.uri": _optional(_TEXT),
    "resume": _optional(_TEXT),
    "init_from": _optional(_TEXT),
    "sweep.on_error": _choice("continue", "stop"),
    "sweep.retries": _integer(0),
    "sweep.preflight": _choice("first", "only"),
    "epochs": _COUNT,
    "batch_size": _COUNT,
    "patience": _COUNT,
    "threads": _optional(_integer(1, MAX_THREADS)),
    "execution": _choice("auto", "resident", "keras"),
    "devices": Rule(
        "auto, cpu, gpu, or cpu:N or gpu:N with N from 2 to 99",
        lambda v: isinstance(v, str) and re.fullmatch(r"auto|(cpu|gpu)(:([2-9]|[1-9]\d))?", v) is not None,
    ),
    "precision": _choice("float32", "mixed_bfloat16", "mixed_float16"),
    "early_stopping": _optional(_choice("val_loss", "val_accuracy")),
    "hidden": _list_of(_COUNT),
    "filters": Rule("a list of at least one whole number, each at least 1", lambda v: v and _list_of(_COUNT).holds(v)),
    "width": _COUNT,
    "blocks": _COUNT,
    "activation": _choice(*ACTIVATIONS),
    "dropout": _SHARE_BELOW_1,
    "checkpoint": _BOOLEAN,
    "batch_norm": _BOOLEAN,
    "learning_rate": _POSITIVE,
    "momentum": _SHARE_BELOW_1,
    "nesterov": _BOOLEAN,
    "rho": _SHARE_BELOW_1,
    "beta_1": _SHARE_BELOW_1,
    "keras.optimizers.Lion.beta_1": _number("above 0, below 1", lambda v: 0 < v < 1),
    "beta_2": _SHARE_BELOW_1,
    "adam_beta_1": _SHARE_BELOW_1,
    "adam_beta_2": _SHARE_BELOW_1,
    "epsilon": _POSITIVE,
    "initial_accumulator_value": _NOT_NEGATIVE,
    "weight_decay": _optional(_NOT_NEGATIVE),
    "global_clipnorm": _optional(_POSITIVE),
    "use_ema": _BOOLEAN,
    "ema_momentum": _SHARE,
    "alpha": _SHARE,
    "warmup": _SHARE_BELOW_1,
    "start": _SHARE,
    "final": _number("above 0, up to 1", lambda v: 0 < v <= 1),
    "factor": _number("above 0, up to 1", lambda v: 0 < v <= 1),
    "drops": Rule(
        "a rising list of numbers between 0 and 1",
        lambda v: _list_of(_SHARE_BELOW_1).holds(v) and v == sorted(set(v)) and 0 not in v,
    ),
    "split_seed": _integer(0, 2**31 - 1),
    "sweep.objective": Rule(
        f"a list of one or several of {', '.join(OBJECTIVES)}",
        lambda v: v and all(name in OBJECTIVES for name in v) and len(set(v)) == len(v),
    ),
    "sweep.seeds": _COUNT,
}

# Keys that cannot change a run's result, and the recorded fact that stands in for each (None: it needs none). Identity,
# the rows of `compare`, the factors of `reproduce` and resuming all go by this table.
STAND_INS: dict[str, str | None] = {
    "name": None,
    "experiment": None,
    "resume": None,
    "tracking": None,
    "sweep": None,
    "trainer.profile": None,
    "trainer.checkpoint": None,
    "trainer.threads": "threads",  # null means all cores
    "trainer.devices": "device",  # auto means whatever the machine has
    "data.path": "data",  # the fingerprint: equal images are equal wherever they lie
}

# Names of runs and experiments: whoever makes a file of one must not leave a folder by it.
NAMES = ("name", "experiment", "resume", "init_from", "tracking.experiment")


class Signature(NamedTuple):
    """The arguments that a target takes."""

    positional: tuple[str, ...]
    keywords: frozenset[str]
    required: frozenset[str]
    any_positional: bool  # *args
    any_keyword: bool  # **options


# What `run` hands to a builder before the config's own keys.
FACTS = {
    "model": ("image_shape", "num_classes"),
    "optimizer": (),
    "schedule": ("learning_rate", "total_steps"),
    "data": (),
    "augment": ("seed",),
}
# Of the config that a run logs: the types, defaults of keys that a later version adds, and how Hydra behaves.
LOGGED_DEFAULTS = [
    "schema",
    {"trainer": "default"},
    {"tracking": "default"},
    "hydra_settings",
    "_self_",
    {"override hydra/job_logging": "disabled"},
    {"override hydra/hydra_logging": "disabled"},
]
# Hydra's advice on a group's option is meant for a YAML file, or is refused in its turn.
_ADVICE = (
    (
        rf"Could not override '({'|'.join(FACTS)})'\. No match in the defaults list\.\nTo append .* use (\S+)",
        r"\1 is not in the defaults list of this config; change its values by key, \1.KEY=VALUE; "
        r"only a config without \1 takes \2",
    ),
    (r"Multiple values for (\S+)\. To override a value use 'override \S+ (.+)'", r"\1 has an option: \1=\2 changes it"),
    (r"(Config group override must be a string or a list)\. Got (\w+)", r"\1, the name of an option, got \2"),
    (r"(\S+) appears more than once in the final defaults list", r"\1 has an option: \1=OPTION changes it"),
)
# Keys that `run` reads itself, whatever the builder has defaults for.
READ = {"optimizer": {"learning_rate"}, "data": {"validation"}}


def check(composed: DictConfig) -> Config:
    """Turn what Hydra composed into a `Config` whose every value obeys the rules.

    Raises:
        ConfigError: with one line for each mistake, naming the key, the rule and what was received.
    """
    try:
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    if not isinstance(config, Config):
        raise ConfigError("the config must have `schema` first in its defaults list, see conf/train.yaml")
    mistakes = list(_mistakes(config))
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    for group in FACTS:
        node = getattr(config, group)
        for key, value in node.items():
            rule = _rule_in(group, node, key)
            if rule is not None and rule.real and type(value) is int:
                node[key] = float(value)
    return config


def check_batch(config: Config, images: int) -> None:
    """Refuses a batch that is larger than the training set.

    Raises:
        ConfigError: naming both.
    """
    size = config.trainer.batch_size
    if size > images:
        raise ConfigError(f"trainer.batch_size must be at most the {images} training images, got {size}")


def explain(error: Exception) -> str:
    """One line for what Hydra, OmegaConf or YAML says in several, with the valid keys or the rule if there is one."""
    cause = error.__cause__ or error.__context__ if isinstance(error, HydraException) else error
    text, _, _ = str(error).partition("\nConfig search path")
    for its, ours in _ADVICE:
        text = re.sub(its, ours, text)
    text = text.replace("\n\t", ", ").replace(":, ", ": ")  # Hydra's list of a group's options
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("    ")]
    if isinstance(error, OverrideParseException):
        said = [line for line in lines[:-1] if "Error parsing" not in line and "Lexer" not in line]
        return f"{error.override!r} is not of the form key=value{': ' * bool(said)}{''.join(said[:1])}{_quoting(error)}"
    if isinstance(cause, OmegaConfBaseException):
        if cause is not error:
            lines = [lines[0].rstrip("."), str(cause).splitlines()[0]]
        else:
            lines = [f"{cause.full_key}: {lines[0]}" if cause.full_key else lines[0]]
        if isinstance(cause, KeyError | AttributeError) and isinstance(cause.parent_node, DictConfig):
            lines.append("its keys: " + ", ".join(sorted(map(str, cause.parent_node))))
        elif cause.full_key and (rule := _rule(cause.full_key)):
            lines.append(f"it must be {rule.says}")
    return "; ".join(lines)


def _quoting(error: OverrideParseException) -> str:
    """How to give a text that Hydra's grammar takes for something else."""
    key, equals, value = error.override.partition("=")
    if not equals or not value.isprintable() or value[:1] in tuple("[{'\""):
        return ""
    quoted = f"{key}='{value.replace(chr(39), chr(92) + chr(39))}'"
    typed = shlex.quote(quoted) if set(quoted) & set('"$`!\\') else f'"{quoted}"'
    return f"; a text with special characters stands in quotes, and these in quotes of the shell: {typed}"


def _rule(key: str) -> Rule | None:
    return RULES.get(key) or RULES.get(key.rpartition(".")[2])


def _rule_in(group: str, node: Any, key: str) -> Rule | None:
    if not _ours(node):
        return RULES[key] if key in READ.get(group, ()) and key in RULES else None
    return RULES.get(f"{node['_target_']}.{key}") or _rule(f"{group}.{key}")


def _ours(node: Any) -> bool:
    """Whether this package or Keras defines the target of a group."""
    target = node.get("_target_") if isinstance(node, dict) else None
    return isinstance(target, str) and target.partition(".")[0] in (PACKAGE.name, "keras")


def _mistakes(config: Config) -> Iterator[str]:
    yield from _extras(config)
    for group in FACTS:
        yield from _target_mistakes(group, getattr(config, group))
    for key, value in flatten(asdict(config)).items():
        group, _, name = key.partition(".")
        rule = _rule_in(group, getattr(config, group), name) if group in FACTS else _rule(key)
        if rule is not None and not rule.holds(value):
            yield f"{key} must be {rule.says}, got {value!r}"
        elif key in NAMES and ".." in re.split(r"[/\\]", str(value)):
            yield f"{key} must be a name, not a path, got {value!r}"
    if isinstance(config.data, dict) and _ours(config.data) and config.data.get("validation") is not None:
        try:
            check_validation(config.data["validation"])
        except DataError as error:
            yield str(error)
    if config.trainer.execution == "resident" and ":" in config.trainer.devices:
        yield f"trainer.execution=resident runs on one device, got trainer.devices={config.trainer.devices}"


def _extras(node: Any, prefix: str = "") -> Iterator[str]:
    """Keys that `+` put beside those of the schema."""
    keys = [f.name for f in fields(node)]
    for key, value in vars(node).items():
        if key not in keys:
            yield f"{prefix}{key} is not a key of the config; valid here: {', '.join(keys)}"
        elif is_dataclass(value):
            yield from _extras(value, f"{prefix}{key}.")


def _target_mistakes(group: str, node: Any) -> Iterator[str]:
    if not isinstance(node, dict) or "_target_" not in node:
        options = sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))
        yield f"{group} must name an option ({', '.join(options)}) or have a _target_, got {node!r}"
        return
    target = node["_target_"]
    if group == "augment":
        if node != {"_target_": None}:
            yield f"augment must be none: this version applies no augmentation, got {node!r}"
        return
    if target == "mnist_exp.data.auto":  # a marker that takes the keys of what it may come to stand for
        target = "mnist_exp.data.mnist"
    try:
        taken = signature(target)
    except LookupError as error:
        yield f"{group}._target_ {error}"
        return
    yield from _key_mistakes(group, node, target, taken)


def _key_mistakes(group: str, node: Mapping[str, Any], target: str, taken: Signature) -> Iterator[str]:
    facts, read = FACTS[group], READ.get(group, set())
    if len(taken.positional) < len(facts) and not taken.any_positional:
        yield f"{group}._target_ must name what takes {', '.join(facts)} first, got {target!r}"
        return
    filled = set(taken.positional[: len(facts)])  # by `run`, under whatever name
    given, accepted = set(node) - {"_target_"}, taken.keywords - filled
    needed = taken.required - filled | read
    if not taken.any_keyword:
        for key in sorted(read - accepted):
            yield f"{group}._target_ must take {key}, got {target!r}"
        for key in sorted(given - accepted - read):
            yield f"{group}.{key} is not a key of {target}; its keys: {', '.join(sorted(accepted)) or 'none'}"
        needed &= accepted
    for key in sorted(needed - given):
        yield f"{group}.{key} is required by {target} and missing"


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
    # Keras' classes hand their **kwargs to a base that refuses what it does not know.
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
    return _signature(target)


def _definition(target: str) -> tuple[ast.FunctionDef, bool] | None:
    """The function, or the class's `__init__`, in the module's source; and whether it is the latter."""
    module, _, name = target.rpartition(".")
    known = _ours({"_target_": target})
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
                return _called(node, known)
    if known:
        raise LookupError(f"must name a function or class that exists, got {target!r}")
    return None


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
        text = str(cause).partition("\n")[0]
        raise LookupError(
            f"must name a function or class that exists, got {target!r}: {type(cause).__name__}: {text}"
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
    nodes = (getattr(config, group) for group in FACTS)
    return frozenset(node["_target_"] for node in nodes if node["_target_"] is not None)


def build(node: Mapping[str, Any], *facts: Any) -> Any:
    """Call a node's `_target_` with runtime facts first and the node's other keys by keyword."""
    keywords = {key: value for key, value in node.items() if key != "_target_"}
    return get_object(node["_target_"])(*facts, **keywords)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model": {"width": 3}} to {"model.width": 3}; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def changes_result(key: str) -> bool:
    """Whether a flat key such as `trainer.epochs` can change a run's result; False for `STAND_INS` and keys below."""
    return not any(key == other or key.startswith(f"{other}.") for other in STAND_INS)


def semantic(config: Config) -> dict[str, Any]:
    """The flat keys of a config that can change a result, with their values."""
    return {key: value for key, value in flatten(asdict(config)).items() if changes_result(key)}


def params(config: Config) -> dict[str, str]:
    """The flattened config as texts, and the short names of model and optimizer, which MLflow's UI has room for."""
    names = {group: getattr(config, group)["_target_"].rpartition(".")[2] for group in ("model", "optimizer")}
    flat = {key: v for key, v in flatten(asdict(config)).items() if not key.startswith(("sweep.", "resume"))}
    # A value is secret by its content, such as an address with a password, or by its key.
    return names | {key: redact(f"{key}={_text(value)}").removeprefix(f"{key}=") for key, value in flat.items()}


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, list) else str(value)


def option_defaults(group: str, given: Mapping[str, str]) -> tuple[str | None, dict[str, str]]:
    """The option of a config group that logged values came from, as far as its file tells.

    Args:
        group: such as `optimizer`.
        given: its keys, without the group, to their values as text.

    Returns:
        The option's name, None when it is the default one or none fits; and its own values as text.
    """
    fits = []
    for path in sorted((CONF_DIR / group).glob("*.yaml")):
        node = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(node, dict)
        values = {str(key): _text(value) for key, value in node.items()}
        if values.get("_target_") == given.get("_target_"):
            unlike = sum(given.get(key) != value for key, value in values.items())
            fits.append((unlike, path.stem, values))
    if not fits:
        return None, {}
    _, option, values = min(fits)
    chosen = OmegaConf.load(CONF_DIR / "train.yaml").defaults
    default = next(entry[group] for entry in chosen if isinstance(entry, DictConfig) and group in entry)
    return None if option == default else option, values


def identity(config: Config, facts: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of everything that can change a run's result.

    Args:
        config: the checked config.
        facts: the rest: data fingerprint, package source, library versions, threads, device kind; none: of the config
            alone.
    """
    text = json.dumps({"config": semantic(config), **facts}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def to_yaml(config: Config) -> str:
    """A complete config that `train --config-dir FOLDER --config-name config` accepts as it is."""
    header = "# Trains this run again: python -m mnist_exp.reproduce FILE, or with other values\n"
    header += "# python -m mnist_exp.train --config-dir FOLDER_OF_THIS_FILE --config-name config\n"
    content = asdict(config)
    del content["sweep"], content["resume"]  # training it again is no part of what it came about by
    return header + OmegaConf.to_yaml(OmegaConf.create({"defaults": LOGGED_DEFAULTS, **content}))
