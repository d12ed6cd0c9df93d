"""Builds what a config names, and refuses objects that break a group's contract before the training begins."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from mnist_exp.config import Config, build
from mnist_exp.data import Dataset
from mnist_exp.errors import RequestError, first_line
from mnist_exp.models import Shape, check
from mnist_exp.training.augmentation import Augmentation
from mnist_exp.training.evaluation import Scores

TAKEN = {"loss", "accuracy", "calibration_error"}  # scores that every run has


@contextmanager
def explained(problem: str) -> Iterator[None]:
    """Turns any exception of a target into a RequestError that begins with `problem`."""
    try:
        yield
    except RequestError:
        raise
    except Exception as error:  # a user's function may raise anything
        raise RequestError(f"{problem}: {type(error).__name__}: {first_line(error)}") from error


def build_model(node: Mapping[str, Any], image_shape: Shape, num_classes: int) -> keras.Model:
    """A model from uint8 images to logits.

    Raises:
        RequestError: a user's builder returns something else. The tests check the models of this package.
    """
    model = build(node, image_shape, num_classes)
    if not node["_target_"].startswith("mnist_exp."):
        check(model, image_shape, num_classes)
    return model


def build_optimizer(node: Mapping[str, Any], schedule: Mapping[str, Any], total_steps: int) -> keras.Optimizer:
    """An optimizer whose base rate a schedule scales over the steps of the training.

    Raises:
        RequestError: the schedule returns no rate, or the optimizer's target no optimizer.
    """
    rate = build(schedule, node["learning_rate"], total_steps)
    if not schedule["_target_"].startswith("mnist_exp."):
        _check_rate(rate, total_steps)
    optimizer = build({**node, "learning_rate": rate})
    if not isinstance(optimizer, keras.Optimizer):
        raise RequestError(f"optimizer._target_ must return a keras.Optimizer, got {type(optimizer).__name__}")
    return optimizer


def _check_rate(rate: object, total_steps: int) -> None:
    """Keras also takes a function of no arguments, but a compiled loop would call it once and keep the first rate."""
    if not isinstance(rate, float | keras.optimizers.schedules.LearningRateSchedule):
        raise RequestError(
            f"schedule._target_ must return a float or a keras LearningRateSchedule, got {type(rate).__name__}"
        )
    for step in (0, total_steps - 1):
        value = np.asarray(rate if isinstance(rate, float) else rate(step))
        if value.shape != () or not 0 <= value < np.inf:
            raise RequestError(
                f"schedule._target_ must give a rate of at least 0 at each step, got {value} at step {step}"
            )


def build_loss(node: Mapping[str, Any], class_counts: np.ndarray, mixing: Sequence[str] = ()) -> keras.losses.Loss:
    """A loss on logits, float (n, num_classes), checked with the labels that the run will have.

    Args:
        node: of the config.
        class_counts: int64 (num_classes,), the training images of each class.
        mixing: keys of the layers of `augment` that mix labels. If there are any, the labels are soft, float32
            (n, num_classes), otherwise integers (n,).

    Raises:
        RequestError: the target returns no loss, or one that gives no finite number for equal logits.
    """
    num_classes = len(class_counts)
    loss = build(node, num_classes, class_counts=class_counts)
    if not isinstance(loss, keras.losses.Loss):
        raise RequestError(f"loss._target_ must return a keras.losses.Loss, got {type(loss).__name__}")
    labels = np.full((2, num_classes), 1 / num_classes, np.float32) if mixing else np.zeros(2, np.int64)
    because = f"loss._target_ must take soft labels, (n, num_classes), because augment.{', '.join(mixing)} mixes labels"
    with explained(because) if mixing else nullcontext():
        value = np.asarray(loss(labels, np.zeros((2, num_classes), np.float32)))
    if value.shape != () or not np.isfinite(value):
        raise RequestError(f"loss._target_ must give one finite number for two images of equal logits, got {value}")
    return loss


def build_augmentation(config: Config, dataset: Dataset) -> Augmentation | None:
    """The layers of `augment`, checked on some of the training images; None if there are none.

    Raises:
        RequestError: a layer breaks the contract, see `Augmentation`.
    """
    if not config.augment:
        return None
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")  # bfloat16 cannot tell all 256 values of a pixel apart after a rotation
    try:
        layers = {key: build(node) for key, node in config.augment.items()}
        return Augmentation(layers, config.seed, dataset.train.images, dataset.num_classes)
    finally:
        keras.config.set_dtype_policy(policy)


def build_callbacks(config: Config, folder: Path) -> dict[str, keras.callbacks.Callback]:
    """The callbacks of `callbacks` by their keys. Those that take `folder` may write files there.

    Raises:
        RequestError: a target returns no Keras callback.
    """
    callbacks = {key: build(node, folder=folder) for key, node in config.callbacks.items()}
    for key, callback in callbacks.items():
        if not isinstance(callback, keras.callbacks.Callback):
            raise RequestError(
                f"callbacks.{key}._target_ must return a keras.callbacks.Callback, got {type(callback).__name__}"
            )
    return callbacks


def build_scores(config: Config, num_classes: int) -> Scores:
    """The functions of `scores` by their keys, from logits and labels to `dict[str, float]`.

    Raises:
        RequestError: a function raises for random logits of made-up images, or returns something else.
    """
    found: Scores = {key: partial(_score, key, node) for key, node in config.scores.items()}
    labels = np.arange(4 * num_classes) % num_classes
    logits = np.random.default_rng(0).standard_normal((len(labels), num_classes)).astype(np.float32)
    for key, score in found.items():
        with explained(f"scores.{key} fails"):
            score(logits, labels)
    return found


def _score(key: str, node: Mapping[str, Any], logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    values = build(node, logits, labels)
    numbers = values if isinstance(values, dict) else {"": None}
    if not all(re.fullmatch(r"\w+", str(n)) and isinstance(v, float | int | np.floating) for n, v in numbers.items()):
        raise RequestError(f"scores.{key}._target_ must return names and numbers, dict[str, float], got {values!r:.80}")
    # A score of one number is logged under its key alone.
    named = {key if name == key else f"{key}_{name}": float(value) for name, value in values.items()}
    if taken := sorted(TAKEN & named.keys()):
        raise RequestError(f"scores.{key} must have another key: every run has {taken[0]} already")
    return named
