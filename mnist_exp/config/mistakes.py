"""Checks a config once, before TensorFlow is imported, and names every mistake."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mnist_exp.config.hydra_errors import explain
from mnist_exp.config.rules import rule_in, rule_of
from mnist_exp.config.schema import (
    ARGUMENTS,
    CONF_DIR,
    LISTS,
    OFFERED,
    READ,
    Config,
    ConfigError,
    LoggedConfig,
    flatten,
    nodes,
    today,
)
from mnist_exp.config.targets import Signature, is_ours, signature, subset
from mnist_exp.data import DataError, Subset, check_validation

# Names of runs and experiments may become file names, so they must not lead out of a folder.
NAMES = ("name", "experiment", "resume", "init_from", "tracking.experiment")


def check(composed: DictConfig) -> Config:
    """Turns a config that Hydra composed into a `Config` whose values all obey the rules.

    Raises:
        ConfigError: the message has one line for each mistake, with the key, the rule and the received value.
    """
    try:
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    if not isinstance(config, LoggedConfig):
        raise ConfigError("the config must have `schema` first in its defaults list, see conf/train.yaml")
    config = today(config)
    if config.augment == {"_target_": None}:  # as earlier versions logged no augmentation
        config.augment = {}
    mistakes = list(_mistakes(config))
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    for group, _, node in nodes(config):
        for key, value in node.items():
            rule = rule_in(group, node, key)
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


def _mistakes(config: Config) -> Iterator[str]:
    yield from _extras(config)
    yield from _node_mistakes(config)
    for key, value in flatten(asdict(config)).items():
        rule = rule_of(key) if key.partition(".")[0] not in ARGUMENTS else None
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
    yield from _unfit_callbacks(config)
    if config.trainer.execution == "device_loop" and ":" in config.trainer.devices:
        yield f"trainer.execution=device_loop runs on one device, got trainer.devices={config.trainer.devices}"


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


def _unfit_callbacks(config: Config) -> Iterator[str]:
    """Callbacks that need another schedule, or of which two decide on the final weights."""
    callbacks = {place: node for group, place, node in nodes(config) if group == "callbacks" and isinstance(node, dict)}
    schedule = config.schedule.get("_target_") if isinstance(config.schedule, dict) else None
    deciding = ["optimizer.use_ema"] if isinstance(config.optimizer, dict) and config.optimizer.get("use_ema") else []
    for place, node in callbacks.items():
        target = str(node.get("_target_"))
        for suffix, needed in (("ReduceLROnPlateau", "constant"), ("callbacks.lr_range", "lr_range")):
            if target.endswith(suffix) and is_ours(node) and schedule != f"mnist_exp.schedules.{needed}":
                yield f"{place} needs schedule={needed}, got {schedule}"
        if target == "mnist_exp.training.callbacks.swa" or (
            target == "keras.callbacks.EarlyStopping" and node.get("restore_best_weights")
        ):
            deciding.append(place)
    if len(deciding) > 1 and any(n.get("_target_") == "mnist_exp.training.callbacks.swa" for n in callbacks.values()):
        yield f"{' and '.join(deciding)} decide on the final weights: choose one of them"


def _extras(node: Any, prefix: str = "") -> Iterator[str]:
    """Keys that `+` added to those of the schema."""
    keys = [f.name for f in fields(node)]
    for key, value in vars(node).items():
        if key not in keys:
            yield f"{prefix}{key} is not a key of the config; valid here: {', '.join(keys)}"
        elif is_dataclass(value):
            yield from _extras(value, f"{prefix}{key}.")


def _value_mistakes(group: str, place: str, node: Any) -> Iterator[str]:
    if not isinstance(node, dict):
        return
    mappings = {key: value for key, value in node.items() if isinstance(value, dict)}  # in place of a single value
    for key, value in (flatten(node) | mappings).items():
        rule = rule_in(group, node, key)
        if rule is not None and not rule.holds(value):
            yield f"{place}.{key} must be {rule.says}, got {value!r}"


def _node_mistakes(config: Config) -> Iterator[str]:
    unnamed = {group: found for group in LISTS if not _named(found := getattr(config, group))}
    for group, found in unnamed.items():
        yield f"{group} must be none or options under keys of their own, as {group}=[a,b] makes; got {found!r}"
    for group, place, node in nodes(config):
        if group not in unnamed:
            found = list(_target_mistakes(group, place, node))
            yield from found
            named = {line.partition(" ")[0] for line in found}  # one mistake a key is enough
            yield from (line for line in _value_mistakes(group, place, node) if line.partition(" ")[0] not in named)


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
        unknown, keys = sorted(given - accepted - read), ", ".join(sorted(accepted)) or "none"
        if group == "model" and not is_ours(node) and len(unknown) > 1:  # those of the option that the config had
            yield f"{target} does not take {', '.join(unknown)}; its keys: {keys}; add model=linear: it has no keys"
        else:
            yield from (f"{place}.{key} is not a key of {target}; its keys: {keys}" for key in unknown)
        needed &= accepted
    for key in sorted(needed - given):
        yield f"{place}.{key} is required by {target} and missing"
    if group == "augment" and "seed" in given:
        yield f"{place}.seed must be left out: the run's seed decides, got {node['seed']!r}"
