"""Identity and params of a run, and the one table of keys that change no result."""

import functools
import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mnist_exp.config.schema import (
    ARGUMENTS,
    CONF_DIR,
    LISTS,
    RENAMED_EXECUTIONS,
    Config,
    early_stopping,
    flatten,
    nodes,
)
from mnist_exp.data import Subset
from mnist_exp.redact import redact

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
# A null here is as good as no key, which earlier versions did not have: it stays out of the identity.
NULL_IS_ABSENT = [f"data.{key}" for key in Subset._fields]


def changes_result(key: str) -> bool:
    """Whether a flat key such as `trainer.epochs` can change a run's result; False for `STAND_INS` and keys below."""
    return not any(key == other or key.startswith(f"{other}.") for other in STAND_INS)


def semantic(config: Config) -> dict[str, Any]:
    """The flat keys of a config that can change a result, with their values; of `LISTS` also the order of the keys."""
    flat = flatten(asdict(config)).items()
    found = {key: v for key, v in flat if changes_result(key) and not (v is None and key in NULL_IS_ABSENT)}
    return found | {group: list(getattr(config, group)) for group in LISTS}


def params(config: Config) -> dict[str, str]:
    """The flattened config as texts, in the words of the command line: `optimizer: adam` instead of a `_target_`.

    A target that is none of this package's options stands as it is: `model: my_models.tiny`.
    """
    flat = {key: v for key, v in flatten(asdict(config)).items() if not key.startswith(("sweep.", "resume"))}
    flat |= {group: ",".join(getattr(config, group)) or None for group in LISTS}  # the options' names in their order
    for group, place, node in nodes(config):
        target = flat.pop(f"{place}._target_")
        if group not in LISTS:
            given = frozenset((key, _text(value)) for key, value in flatten(node).items())
            flat[group] = closest_option(group, given) or target
        elif target != _target(group, place.partition(".")[2]):
            flat[place] = target
    # A value is secret by its content, such as an address with a password, or by its key.
    return {key: redact(f"{key}={_text(value)}").removeprefix(f"{key}=") for key, value in flat.items()}


def current_params(logged: Mapping[str, str]) -> dict[str, str]:
    """The params of a run of any version, with a `_target_` for each option.

    Keys that its version lacked get the value that describes the run.
    """
    found = {"loss._target_": "mnist_exp.losses.cross_entropy", "callbacks": "None", "scores": "None"}
    found |= {**dict.fromkeys(NULL_IS_ABSENT, "None"), **_with_targets(logged)}
    if found["loss._target_"] == "mnist_exp.losses.cross_entropy":
        found = {"loss.label_smoothing": "0.0", "loss.class_weight": "None", **found}
    if (execution := found.get("trainer.execution")) in RENAMED_EXECUTIONS:
        found["trainer.execution"] = RENAMED_EXECUTIONS[execution]
    monitor, patience = found.pop("trainer.early_stopping", "None"), found.pop("trainer.patience", "3")
    if monitor != "None":
        found["callbacks"] = ",".join(name for name in (found["callbacks"], "early_stopping") if name != "None")
        found |= {f"callbacks.early_stopping.{k}": str(v) for k, v in early_stopping(monitor, patience).items()}
    return found


def _with_targets(logged: Mapping[str, str]) -> dict[str, str]:
    """The params with targets for the options' names, which earlier versions logged beside a short name."""
    found = dict(logged)
    for group in ARGUMENTS:
        if group in LISTS:
            for key in found.get(group, "None").split(","):
                target = found.pop(f"{group}.{key}", None) or _target(group, key)
                if target is not None:
                    found.setdefault(f"{group}.{key}._target_", target)
        elif found.get(group, "None") != "None":
            option = found.pop(group)
            found.setdefault(f"{group}._target_", _target(group, option) or option)
    return found


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, list) else str(value)


@functools.cache
def _target(group: str, option: str) -> str | None:
    """The `_target_` of an option of this package; None if there is no such option or it has none."""
    values = _options(group).get(option, {})
    return values.get(f"{option}._target_" if group in LISTS else "_target_")


def option_defaults(group: str, given: Mapping[str, str]) -> tuple[str | None, dict[str, str]]:
    """The option of a config group that logged values came from, as far as its file tells.

    Args:
        group: such as `optimizer`.
        given: its keys, without the group, to their values as text.

    Returns:
        The option's name, None when it is the default one or none fits; and its own values as text.
    """
    option = closest_option(group, frozenset(given.items()))
    if option is None:
        return None, {}
    chosen = OmegaConf.load(CONF_DIR / "train.yaml").defaults
    default = next(entry[group] for entry in chosen if isinstance(entry, DictConfig) and group in entry)
    return None if option == default else option, _options(group)[option]


def by_group(params: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The params of each config group, without the group in their names: `optimizer.beta_1` becomes `beta_1`."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for key, text in params.items():
        group, dot, name = key.partition(".")
        if dot:
            found[group][name] = text
    return found


@functools.cache
def closest_option(group: str, given: frozenset[tuple[str, str]]) -> str | None:
    """The option with the same `_target_` as a logged node, and the fewest other values; None if there is none."""
    target = dict(given).get("_target_")
    fits = [
        (len(values.items() - given), option)
        for option, values in _options(group).items()
        if values.get("_target_") == target
    ]
    return min(fits)[1] if fits else None


@functools.cache
def _options(group: str) -> dict[str, dict[str, str]]:
    """The values of each option of a group, as text."""
    nodes: dict[str, Any] = {
        path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in (CONF_DIR / group).glob("*.yaml")
    }
    return {
        option: {str(key): _text(value) for key, value in flatten(node).items()}
        for option, node in nodes.items()
        if isinstance(node, dict)
    }


def identity(config: Config, factors: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of everything that can change a run's result.

    Args:
        config: the checked config.
        factors: environment factors, see `provenance.environment_factors`. Without any: the identity of the config.
    """
    text = json.dumps({"config": semantic(config), **factors}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
