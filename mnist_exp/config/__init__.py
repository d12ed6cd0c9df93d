"""A run's config: its schema, the rules its values obey, its targets, and what identifies a run."""

from mnist_exp.config.identity import (
    STAND_INS,
    changes_result,
    identity,
    option_defaults,
    params,
    semantic,
)
from mnist_exp.config.rules import ACTIVATIONS, MAX_THREADS, RULES, Rule, check, check_batch, explain
from mnist_exp.config.schema import (
    CONF_DIR,
    FACTS,
    LOGGED_DEFAULTS,
    PACKAGE,
    READ,
    Config,
    ConfigError,
    SweepConfig,
    TrackingConfig,
    TrainerConfig,
    TrialConfig,
    flatten,
    to_yaml,
)
from mnist_exp.config.targets import build, signature, targets

__all__ = [
    "ACTIVATIONS",
    "CONF_DIR",
    "FACTS",
    "LOGGED_DEFAULTS",
    "MAX_THREADS",
    "PACKAGE",
    "READ",
    "RULES",
    "STAND_INS",
    "Config",
    "ConfigError",
    "Rule",
    "SweepConfig",
    "TrackingConfig",
    "TrainerConfig",
    "TrialConfig",
    "build",
    "changes_result",
    "check",
    "check_batch",
    "explain",
    "flatten",
    "identity",
    "option_defaults",
    "params",
    "semantic",
    "signature",
    "targets",
    "to_yaml",
]
