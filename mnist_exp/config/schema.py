"""The schema of a config: names and types of all keys, and the groups whose nodes have a `_target_`."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf

from mnist_exp.data import Subset
from mnist_exp.errors import RequestError

PACKAGE = Path(__file__).resolve().parent.parent

# In a wheel the conf tree lies inside the package, in a checkout beside it.
CONF_DIR = next(path for path in (PACKAGE / "conf", PACKAGE.parent / "conf") if path.is_dir())


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
    checkpoint: bool = MISSING
    profile: bool = MISSING


@dataclass
class TrackingConfig:
    """See conf/tracking/default.yaml for values and meaning."""

    uri: str | None = MISSING
    experiment: str = MISSING


@dataclass
class TrialConfig:
    """The Optuna trial of a run that its study may stop early. `mnist_exp.sweep.optuna_search` sets it."""

    id: int | None = None
    storage: str | None = None
    study: str | None = None
    pruner: str | None = None


@dataclass
class SweepConfig:
    """How a sweep trains its runs; docs/sweeps.md describes the values."""

    skip_finished: bool = True
    on_error: str = "continue"
    retries: int = 1
    preflight: str = "first"
    objective: list[str] = field(default_factory=lambda: ["final_val_accuracy"])
    seeds: int = 1
    id: str | None = None  # set by mnist_exp.sweep.callback when a multirun starts
    data: str | None = None  # likewise: the data set that data=auto stands for in all of its runs
    label: str | None = None  # likewise: the values that set a run apart from the other runs of its sweep
    trial: TrialConfig = field(default_factory=TrialConfig)


@dataclass
class Config:
    """One run. The nodes of `ARGUMENTS` are plain dicts with a `_target_`, so that a new option needs no schema.

    Runs of earlier versions logged no `loss`, `callbacks` and `scores`. The defaults describe these runs.
    """

    experiment: str | None = None  # the preset's name
    name: str = "${hydra:runtime.choices.model}-${hydra:runtime.choices.optimizer}"
    seed: int = 0
    resume: str | None = None  # a run to continue
    init_from: str | None = None  # a finished run whose weights to begin with; `run` gets its id
    model: Any = MISSING
    loss: Any = field(default_factory=lambda: {"_target_": "mnist_exp.losses.cross_entropy"})
    optimizer: Any = MISSING
    schedule: Any = MISSING
    data: Any = field(default_factory=lambda: Subset()._asdict())  # keys that every data set has
    augment: Any = field(default_factory=dict)
    callbacks: Any = field(default_factory=dict)
    scores: Any = field(default_factory=dict)
    trainer: TrainerConfig = MISSING
    tracking: TrackingConfig = MISSING
    sweep: SweepConfig = field(default_factory=SweepConfig)


@dataclass
class LoggedTrainerConfig(TrainerConfig):
    """With the keys that earlier versions had, so that the configs that they logged compose."""

    early_stopping: str | None = None
    patience: int = 3


@dataclass
class LoggedConfig(Config):
    """A config of any version. `today` makes it one of this version."""

    trainer: LoggedTrainerConfig = MISSING


# Keys of earlier versions, and the keys that replace them.
REPLACED = {
    "trainer.early_stopping": "callbacks.early_stopping.monitor",
    "trainer.patience": "callbacks.early_stopping.patience",
}


# Values of `trainer.execution` and of the tag `execution` in earlier versions, and their names today.
RENAMED_EXECUTIONS = {"resident": "device_loop"}


def today(logged: LoggedConfig) -> Config:
    """The config with early stopping as a callback, where earlier versions had it in the trainer."""
    config, trainer = Config(), TrainerConfig()
    given = dict(vars(logged.trainer))  # also the keys that `+` added, which `check` will refuse
    monitor, patience = given.pop("early_stopping"), given.pop("patience")
    given["execution"] = RENAMED_EXECUTIONS.get(given["execution"], given["execution"])
    vars(trainer).update(given)
    vars(config).update(vars(logged), trainer=trainer)
    if monitor is not None:
        config.callbacks = {**config.callbacks, "early_stopping": early_stopping(monitor, patience)}
    return config


def early_stopping(monitor: str, patience: Any) -> dict[str, Any]:
    """The option `callbacks=early_stopping`, as `trainer.early_stopping` meant it."""
    target = {"_target_": "keras.callbacks.EarlyStopping", "monitor": monitor, "patience": patience}
    return {**target, "min_delta": 0.0, "restore_best_weights": True}


def run_name(config: Config | DictConfig) -> str:
    """The name of a run, such as `mlp-adam-lr=0.1-s0`: the values that its sweep varies, its seed and its fold."""
    label, fold = config.sweep.label, config.data.get("fold")
    return "-".join(
        [config.name, *([label] if label else []), f"s{config.seed}", *([f"f{fold}"] if type(fold) is int else [])]
    )


def _word(value: Any) -> str:
    """A value, or the options of a list, as a part of a name that a shell takes without quotes: [64, 32] is 64-32."""
    if isinstance(value, list | ListConfig | DictConfig):
        return "-".join(map(_word, value)) or "none"
    text = str(value).lower() if value is None or isinstance(value, bool) else str(value)
    if isinstance(value, float) and len(text) > 9:  # drawn by a search
        text = f"{value:.6g}"
    return re.sub(r"[^\w.+=-]+", "-", text).strip("-")


OmegaConf.register_new_resolver("mnist_exp.word", _word, replace=True)
ConfigStore.instance().store(name="schema", node=LoggedConfig)

# Groups, and the arguments that a run passes to their targets before the config's own keys.
ARGUMENTS: dict[str, tuple[str, ...]] = {
    "model": ("image_shape", "num_classes"),
    "loss": ("num_classes",),
    "optimizer": (),
    "schedule": ("learning_rate", "total_steps"),
    "data": (),
    "augment": (),
    "callbacks": (),
    "scores": ("logits", "labels"),
}
# Further arguments, which a run passes by keyword to the targets that take them. `class_counts`: int64 (num_classes,),
# the training images of each class. `folder`: the run's, as a Path. What a callback writes there becomes an artifact.
OFFERED: dict[str, tuple[str, ...]] = {"loss": ("class_counts",), "callbacks": ("folder",)}
# Groups of which a run can have several options, in the order given. Each option is a node under its own key.
LISTS = ("augment", "callbacks", "scores")
# Keys that a run reads itself, even if the target has a default for them.
READ = {"optimizer": {"learning_rate"}, "data": {"validation"}}

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


def nodes(config: Config) -> Iterator[tuple[str, str, Any]]:
    """Every node that should have a `_target_`: its group, its key such as `augment.rotate`, and the node."""
    for group in ARGUMENTS:
        found = getattr(config, group)
        if group not in LISTS:
            yield group, group, found
        elif isinstance(found, dict):
            yield from ((group, f"{group}.{key}", node) for key, node in found.items())


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model": {"width": 3}} to {"model.width": 3}; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def to_yaml(config: Config) -> str:
    """A complete config that `train --config-dir FOLDER --config-name config` accepts as it is."""
    header = "# Trains this run again: python -m mnist_exp.reproduce FILE, or with other values\n"
    header += "# python -m mnist_exp.train --config-dir FOLDER_OF_THIS_FILE --config-name config\n"
    content = asdict(config)
    del content["sweep"], content["resume"]  # a run that is trained again is not part of a sweep
    return header + OmegaConf.to_yaml(OmegaConf.create({"defaults": LOGGED_DEFAULTS, **content}))
