"""The rules for values. `check` runs once per config, before TensorFlow is imported, and names every mistake."""

import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any, NamedTuple

from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mnist_exp.config.schema import ARGUMENTS, CONF_DIR, LISTS, OFFERED, READ, Config, ConfigError, flatten, nodes
from mnist_exp.config.targets import Signature, is_ours, signature, subset
from mnist_exp.data import DataError, Subset, check_validation
from mnist_exp.errors import first_line

MAX_THREADS = 1024  # TensorFlow starts twice as many threads at once


class Rule(NamedTuple):
    """A rule for a value, in words and as a test."""

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

_BETWEEN_0_AND_1 = _number("above 0, below 1", lambda v: 0 < v < 1)

_TURN = _number("of degrees from 0 to 180", lambda v: 0 <= v <= 180)

_SLANT = _number("of degrees from 0 to below 90", lambda v: 0 <= v < 90)

_TEXT = Rule(
    "text of 1 to 200 printable characters", lambda v: isinstance(v, str) and 0 < len(v) <= 200 and v.isprintable()
)

# fmt: off
ACTIVATIONS = ("relu", "leaky_relu", "relu6", "elu", "celu", "selu", "gelu", "silu", "swish", "mish", "tanh", "sigmoid",
               "softplus", "softsign", "hard_sigmoid", "hard_silu", "hard_swish", "hard_tanh", "squareplus", "linear")
INITIALIZERS = ("glorot_uniform", "glorot_normal", "he_uniform", "he_normal", "lecun_uniform", "lecun_normal",
                "orthogonal")
# fmt: on

# Metrics that a search may optimise. The test set is never selected on.
OBJECTIVES = ("final_val_accuracy", "final_val_loss", "fit_seconds", "parameters")

# A key of this package or of Keras means the same in every group, so each rule is stated once. A user's own target may
# give the same name another meaning, so only its keys in `READ` have a rule.
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
    "layer_norm": _BOOLEAN,
    "input_noise": _SHARE,  # the range that Keras' own layer takes
    "noise": _SHARE,
    "kernel_initializer": _choice(*INITIALIZERS),
    "kernel_size": _COUNT,
    "global_pooling": _BOOLEAN,
    "dense": _list_of(_COUNT),
    "depth": Rule("6n + 2 for a whole number n: 8, 14, 20 ...", lambda v: type(v) is int and v >= 8 and v % 6 == 2),
    "patch_size": _COUNT,
    "token_units": _COUNT,
    "channel_units": _COUNT,
    "heads": _COUNT,
    "mlp_units": _COUNT,
    "checkpoint": _BOOLEAN,
    "batch_norm": _BOOLEAN,
    "learning_rate": _POSITIVE,
    "momentum": _SHARE_BELOW_1,
    "nesterov": _BOOLEAN,
    "rho": _SHARE_BELOW_1,
    "beta_1": _SHARE_BELOW_1,
    "keras.optimizers.Lion.beta_1": _BETWEEN_0_AND_1,
    "keras.optimizers.ScheduleFreeAdamW.beta_1": _BETWEEN_0_AND_1,  # it divides by it
    "beta_2": _SHARE_BELOW_1,
    "adam_beta_1": _SHARE_BELOW_1,
    "adam_beta_2": _SHARE_BELOW_1,
    "epsilon": _POSITIVE,
    "initial_accumulator_value": _NOT_NEGATIVE,
    "label_smoothing": _SHARE_BELOW_1,
    "class_weight": Rule(
        "null, balanced, or a list with a number of at least 0 for each class",
        lambda v: v in (None, "balanced") or _list_of(_NOT_NEGATIVE).holds(v),
    ),
    "gamma": _NOT_NEGATIVE,
    "mnist_exp.scores.top_k.k": _COUNT,
    "mnist_exp.scores.calibration.bins": _COUNT,
    "beta_2_decay": _number("below 0", lambda v: float("-inf") < v < 0),
    "epsilon_1": _POSITIVE,
    "epsilon_2": _POSITIVE,
    "clip_threshold": _POSITIVE,
    "learning_rate_power": _number("of at most 0", lambda v: float("-inf") < v <= 0),
    "l1_regularization_strength": _NOT_NEGATIVE,
    "l2_regularization_strength": _NOT_NEGATIVE,
    "l2_shrinkage_regularization_strength": _NOT_NEGATIVE,
    "beta": _NOT_NEGATIVE,
    "warmup_steps": _integer(0),
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
    **{
        f"mnist_exp.augment.{key}": rule
        for key, rule in {
            "shift.pixels": _NOT_NEGATIVE,
            "rotate.degrees": _TURN,
            "zoom.share": _SHARE_BELOW_1,
            "shear.degrees": _SLANT,
            "affine.shift_pixels": _NOT_NEGATIVE,
            "affine.rotate_degrees": _TURN,
            "affine.zoom_share": _SHARE_BELOW_1,
            "affine.shear_degrees": _SLANT,
            "elastic.alpha": _POSITIVE,
            "elastic.sigma": _POSITIVE,
            "crop.pixels": _COUNT,
            "cutout.pixels": _COUNT,
            "noise.stddev": _NOT_NEGATIVE,
            "cutmix.alpha": _POSITIVE,
        }.items()
    },
    "keras.layers.RandomFlip.mode": _choice("horizontal", "vertical", "horizontal_and_vertical"),
    "keras.layers.MixUp.alpha": _POSITIVE,
    "split_seed": _integer(0, 2**31 - 1),
    "data.train_size": Rule(
        "null, a count of at least 1, or a share between 0 and 1",
        lambda v: v is None or _COUNT.holds(v) or (isinstance(v, float) and 0 < v < 1),
    ),
    "data.label_noise": _optional(_SHARE),
    "data.imbalance": _optional(_number("of at least 1", lambda v: v >= 1)),
    "data.fold": _optional(_integer(0)),
    "data.folds": _optional(_integer(2)),
    "sweep.objective": Rule(
        f"a list of one or several of {', '.join(OBJECTIVES)}",
        lambda v: v and all(name in OBJECTIVES for name in v) and len(set(v)) == len(v),
    ),
    "sweep.seeds": _COUNT,
}

# Names of runs and experiments may become file names, so they must not lead out of a folder.
NAMES = ("name", "experiment", "resume", "init_from", "tracking.experiment")

# Hydra's advice on an option of a group applies to a YAML file, or is itself refused.
_ADVICE = (
    (
        rf"Could not override '({'|'.join(ARGUMENTS)})'\. No match in the defaults list\.\nTo append .* use (\S+)",
        r"\1 is not in the defaults list of this config; change its values by key, \1.KEY=VALUE; "
        r"only a config without \1 takes \2",
    ),
    (r"Multiple values for (\S+)\. To override a value use 'override \S+ (.+)'", r"\1 has an option: \1=\2 changes it"),
    (r"(Config group override must be a string or a list)\. Got (\w+)", r"\1, the name of an option, got \2"),
    (r"(\S+) appears more than once in the final defaults list", r"\1 has an option: \1=OPTION changes it"),
)


def check(composed: DictConfig) -> Config:
    """Turns a config that Hydra composed into a `Config` whose values all obey the rules.

    Raises:
        ConfigError: the message has one line for each mistake, with the key, the rule and the received value.
    """
    try:
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    if not isinstance(config, Config):
        raise ConfigError("the config must have `schema` first in its defaults list, see conf/train.yaml")
    if config.augment == {"_target_": None}:  # as earlier versions logged no augmentation
        config.augment = {}
    mistakes = list(_mistakes(config))
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    for group, _, node in nodes(config):
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
    """An error of Hydra, OmegaConf or YAML in one line, with the valid keys or the rule if there is one."""
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
            lines = [lines[0].rstrip("."), first_line(cause)]
        else:
            lines = [f"{cause.full_key}: {lines[0]}" if cause.full_key else lines[0]]
        if isinstance(cause, KeyError | AttributeError) and isinstance(cause.parent_node, DictConfig):
            lines.append("its keys: " + ", ".join(sorted(map(str, cause.parent_node))))
        elif cause.full_key and (rule := _rule(cause.full_key)):
            lines.append(f"it must be {rule.says}")
    return "; ".join(lines)


def _quoting(error: OverrideParseException) -> str:
    """Advice on quotes for a text that Hydra's grammar reads as something else."""
    key, equals, value = error.override.partition("=")
    if not equals or not value.isprintable() or value[:1] in tuple("[{'\""):
        return ""
    quoted = f"{key}='{value.replace(chr(39), chr(92) + chr(39))}'"
    typed = shlex.quote(quoted) if set(quoted) & set('"$`!\\') else f'"{quoted}"'
    return f"; a text with special characters stands in quotes, and these in quotes of the shell: {typed}"


def _rule(key: str) -> Rule | None:
    return RULES.get(key) or RULES.get(key.rpartition(".")[2])


def _rule_in(group: str, node: Any, key: str) -> Rule | None:
    if group == "data" and key in Subset._fields:
        return None if _is_targets_own(node, key) else RULES[f"data.{key}"]
    if not is_ours(node):
        return RULES[key] if key in READ.get(group, ()) and key in RULES else None
    # Keras' layers and callbacks use the names of our keys with other meanings, `factor` for example.
    return RULES.get(f"{node['_target_']}.{key}") or (None if group in LISTS else _rule(f"{group}.{key}"))


def _is_targets_own(node: Mapping[str, Any], key: str) -> bool:
    """Whether the target of a data node has an argument with the name of a key that the run applies."""
    try:
        return key in signature(node.get("_target_")).keywords
    except LookupError:  # `_target_mistakes` says so
        return False


def _mistakes(config: Config) -> Iterator[str]:
    yield from _extras(config)
    yield from _node_mistakes(config)
    for key, value in flatten(asdict(config)).items():
        rule = _rule(key) if key.partition(".")[0] not in ARGUMENTS else None
        if rule is not None and not rule.holds(value):
            yield f"{key} must be {rule.says}, got {value!r}"
        elif key in NAMES and ".." in re.split(r"[/\\]", str(value)):
            yield f"{key} must be a name, not a path, got {value!r}"
    if isinstance(config.data, dict) and is_ours(config.data) and config.data.get("validation") is not None:
        try:
            check_validation(config.data["validation"])
        except DataError as error:
            yield str(error)
    yield from _fold_mistakes(config.data)
    if config.trainer.execution == "resident" and ":" in config.trainer.devices:
        yield f"trainer.execution=resident runs on one device, got trainer.devices={config.trainer.devices}"


def _fold_mistakes(node: Any) -> Iterator[str]:
    try:
        given = subset(node)
    except (LookupError, TypeError):  # of a node without a target that exists
        return
    fold, folds = given.fold, given.folds
    if (fold is None) != (folds is None):
        key, value = ("folds", fold) if folds is None else ("fold", folds)
        other = "fold" if folds is None else "folds"
        yield f"data.{other}={value} needs data.{key}; sweep=folds runs all folds"
    elif type(fold) is int and type(folds) is int and fold >= folds:
        yield f"data.fold must be between 0 and {folds - 1} with data.folds={folds}, got {fold}"
    if folds is not None and node.get("validation") == "test":
        yield "data.folds validates on parts of the training images, got data.validation=test"


def _extras(node: Any, prefix: str = "") -> Iterator[str]:
    """Keys that `+` added to those of the schema."""
    keys = [f.name for f in fields(node)]
    for key, value in vars(node).items():
        if key not in keys:
            yield f"{prefix}{key} is not a key of the config; valid here: {', '.join(keys)}"
        elif is_dataclass(value):
            yield from _extras(value, f"{prefix}{key}.")


def _value_mistakes(group: str, place: str, node: Any) -> Iterator[str]:
    for key, value in flatten(node).items() if isinstance(node, dict) else ():
        rule = _rule_in(group, node, key)
        if rule is not None and not rule.holds(value):
            yield f"{place}.{key} must be {rule.says}, got {value!r}"


def _node_mistakes(config: Config) -> Iterator[str]:
    unnamed = {group: found for group in LISTS if not _named(found := getattr(config, group))}
    for group, found in unnamed.items():
        yield f"{group} must be none or options under keys of their own, as {group}=[a,b] makes; got {found!r}"
    for group, place, node in nodes(config):
        if group not in unnamed:
            yield from _target_mistakes(group, place, node)
            yield from _value_mistakes(group, place, node)


def _named(found: Any) -> bool:
    """Whether each option of a group in `LISTS` is under a key of its own."""
    return isinstance(found, dict) and all(re.fullmatch(r"[A-Za-z]\w*", str(key)) for key in found)


def _target_mistakes(group: str, place: str, node: Any) -> Iterator[str]:
    if not isinstance(node, dict) or "_target_" not in node:
        options = sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))
        yield f"{place} must name an option ({', '.join(options)}) or have a _target_, got {node!r}"
        return
    try:
        taken = signature(node["_target_"])
    except LookupError as error:
        yield f"{place}._target_ {error}"
        return
    yield from _key_mistakes(group, place, node, taken)


def _key_mistakes(group: str, place: str, node: Mapping[str, Any], taken: Signature) -> Iterator[str]:
    target = node["_target_"]
    passed, read = ARGUMENTS[group], READ.get(group, set())
    if len(taken.positional) < len(passed) and not taken.any_positional:
        yield f"{place}._target_ must name what takes {', '.join(passed)} first, got {target!r}"
        return
    filled = set(taken.positional[: len(passed)])  # by the run, whatever their names are
    offered = set(OFFERED.get(group, ()))
    applied = Subset._fields if group == "data" else ()  # by the run, to what the target returns
    given, accepted = set(node) - {"_target_"} - ({*applied} - taken.keywords), taken.keywords - filled
    needed = taken.required - filled - offered | read
    if is_ours(node):
        accepted -= offered
    if not taken.any_keyword:
        for key in sorted(read - accepted):
            yield f"{place}._target_ must take {key}, got {target!r}"
        for key in sorted(given - accepted - read):
            yield f"{place}.{key} is not a key of {target}; its keys: {', '.join(sorted(accepted)) or 'none'}"
        needed &= accepted
    for key in sorted(needed - given):
        yield f"{place}.{key} is required by {target} and missing"
    if group == "augment" and "seed" in given:
        yield f"{place}.seed must be left out: the run's seed decides, got {node['seed']!r}"
