"""The rules for values, by key."""

import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mnist_exp.config.schema import LISTS, READ
from mnist_exp.config.targets import is_ours, signature
from mnist_exp.data import Subset

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

_MONITOR = _choice("val_loss", "val_accuracy")

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
    "threads": _optional(_integer(1, MAX_THREADS)),
    "execution": _choice("auto", "device_loop", "keras"),
    "devices": Rule(
        "auto, cpu, gpu, or cpu:N or gpu:N with N from 2 to 99",
        lambda v: isinstance(v, str) and re.fullmatch(r"auto|(cpu|gpu)(:([2-9]|[1-9]\d))?", v) is not None,
    ),
    "precision": _choice("float32", "mixed_bfloat16", "mixed_float16"),
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
    "kernel_size": Rule(
        "a whole number of at least 1, or a list with one for each filter",
        lambda v: _COUNT.holds(v) or _list_of(_COUNT).holds(v),
    ),
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
    "keras.callbacks.EarlyStopping.monitor": _MONITOR,
    "keras.callbacks.EarlyStopping.patience": _COUNT,
    "keras.callbacks.EarlyStopping.min_delta": _NOT_NEGATIVE,
    "keras.callbacks.EarlyStopping.restore_best_weights": _BOOLEAN,
    "keras.callbacks.ReduceLROnPlateau.monitor": _MONITOR,
    "keras.callbacks.ReduceLROnPlateau.factor": _number("above 0, below 1", lambda v: 0 < v < 1),
    "keras.callbacks.ReduceLROnPlateau.patience": _COUNT,
    "keras.callbacks.ReduceLROnPlateau.min_delta": _NOT_NEGATIVE,
    "keras.callbacks.ReduceLROnPlateau.cooldown": _integer(0),
    "keras.callbacks.ReduceLROnPlateau.min_lr": _NOT_NEGATIVE,
    "mnist_exp.training.callbacks.swa.start": _SHARE_BELOW_1,
    "mnist_exp.training.callbacks.tensorboard.histograms": _BOOLEAN,
    "mnist_exp.training.callbacks.lr_range.points": _integer(10),
    "lowest": _number("above 0, below 1", lambda v: 0 < v < 1),
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
    "fall": _number("above 0, up to 1", lambda v: 0 < v <= 1),
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


def rule_of(key: str) -> Rule | None:
    """The rule of a flat key such as `trainer.epochs`; None if it has none."""
    return RULES.get(key) or RULES.get(key.rpartition(".")[2])


def rule_in(group: str, node: Any, key: str) -> Rule | None:
    """The rule of a key of a node with a `_target_`; None if it has none."""
    if group == "data" and key in Subset._fields:
        return None if _is_targets_own(node, key) else RULES[f"data.{key}"]
    if not is_ours(node):
        return RULES[key] if key in READ.get(group, ()) and key in RULES else None
    # Keras' layers and callbacks use the names of our keys with other meanings, `factor` for example.
    return RULES.get(f"{node['_target_']}.{key}") or (None if group in LISTS else rule_of(f"{group}.{key}"))


def _is_targets_own(node: Mapping[str, Any], key: str) -> bool:
    """Whether the target of a data node has an argument with the name of a key that the run applies."""
    try:
        return key in signature(node.get("_target_")).keywords
    except LookupError:  # `_target_mistakes` says so
        return False
