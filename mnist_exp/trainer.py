"""The one training loop: compile, fit, predict. It knows nothing of Hydra, MLflow or the command line."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from mnist_exp import RequestError, RunError
from mnist_exp.data import Dataset, Split
from mnist_exp.resident import EVALUATION_BATCH, Orders, resident, stretches

OnEpoch = Callable[[int, dict[str, float]], None]
WithinEpoch = Callable[[float, dict[str, float]], None]
TICK_SECONDS = 0.1
# Steps a call: a tick of the progress bar, the time a Ctrl-C waits, and 2 ms of overhead.
STRETCH_XLA, STRETCH_GRAPH = 500, 50


class Diverged(RunError):
    """The training loss is no longer a number."""


class Execution(NamedTuple):
    """How the steps are run, and why so."""

    name: str  # resident, mirrored or keras
    xla: bool
    why: str


class Fitted(NamedTuple):
    """What `fit` measured; `history` holds one value an epoch for each metric."""

    history: dict[str, list[float]]
    best_epoch: int  # from 1: the epoch whose weights the model has
    compile_seconds: float


def choose_execution(wanted: str, model: keras.Model, devices: int, *, gpu: bool) -> Execution:
    """Decide by the layers and the devices, never by timing: two runs of one config must run alike.

    Measured on two cores, seconds an epoch of MNIST: an MLP takes 1.2 in plain `fit`, 0.5 resident, 0.23 resident
    with XLA; a CNN takes 21, 15 and 400, because XLA's convolutions on a CPU are naive loops.

    Raises:
        RequestError: `resident` was asked for on several devices.
    """
    slow = [layer.name for layer in model.layers if _slow_in_cpu_xla(layer)]
    xla = gpu or not slow
    why = "" if xla else f", without XLA, which is slow on a CPU for {', '.join(slow)}"
    if devices > 1:
        if wanted == "resident":
            raise RequestError("trainer.execution=resident runs on one device, trainer.devices asks for more")
        return Execution("mirrored", False, f"{devices} devices")
    if wanted == "keras":
        return Execution("keras", xla, "asked for" + why)
    return Execution("resident", xla, ("one device" if wanted == "auto" else "asked for") + why)


def _slow_in_cpu_xla(layer: keras.Layer) -> bool:
    convolves = "Conv" in type(layer).__name__
    draws = hasattr(layer, "seed_generator") and type(layer).__module__.startswith("keras.")
    return convolves or draws


def batch_order(seed: int, epoch: int, images: int) -> np.ndarray:
    """int32 (images,): the order of the training images in an epoch, a pure function of its arguments."""
    return np.random.default_rng([seed, epoch]).permutation(images).astype(np.int32)


def fit(
    model: keras.Model,
    optimizer: keras.Optimizer,
    dataset: Dataset,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    execution: Execution,
    on_epoch: OnEpoch = lambda epoch, metrics: None,
    within_epoch: WithinEpoch = lambda epochs, metrics: None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> Fitted:
    """Train `model` in place and report each epoch.

    Args:
        model: uint8 images in, logits out; built under the strategy's scope when there is one.
        optimizer: built by the caller, so that its schedule may know the number of steps.
        dataset: trains on its `train` part, validates on its `validation` part.
        epochs: passes over the training images.
        batch_size: images a step, over all replicas.
        seed: of the order of the images.
        execution: from `choose_execution`.
        on_epoch: called with the epoch, from 1, and its metrics.
        within_epoch: called now and then with the epochs done, a fraction, and Keras' running `loss` and `accuracy`.
        callbacks: any Keras callbacks. Their batch hooks fire once a stretch of steps in resident execution.

    Raises:
        Diverged: the training loss became NaN or infinite.
        RequestError: mirrored execution of an optimizer that clips by norm.
    """
    if execution.name == "mirrored" and (optimizer.clipnorm or optimizer.global_clipnorm):
        raise RequestError("optimizer.global_clipnorm needs one device: mirrored ones clip before they sum")
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
        jit_compile=execution.xla and execution.name == "keras",
    )
    report = _Report(len(dataset.train.labels), on_epoch, within_epoch)
    with _feed(model, dataset, batch_size, seed, execution) as (elements, per_epoch, validation, compile_seconds):
        model.fit(
            elements,
            steps_per_epoch=per_epoch,
            validation_data=validation,
            epochs=epochs,
            callbacks=[*callbacks, report],
            shuffle=False,
            verbose=0,
        )
    stopping = [c for c in callbacks if isinstance(c, keras.callbacks.EarlyStopping) and c.restore_best_weights]
    best = stopping[0].best_epoch + 1 if stopping else len(report.history["train_loss"])
    return Fitted(report.history, best, compile_seconds)


@contextmanager
def _feed(
    model: keras.Model, dataset: Dataset, batch_size: int, seed: int, execution: Execution
) -> Iterator[tuple[tf.data.Dataset, int, tf.data.Dataset, float]]:
    """Yield what `fit` iterates over, how often an epoch, what it validates on, and the seconds spent on compiling."""
    images = len(dataset.train.labels)

    @lru_cache(maxsize=1)  # asked for by each stretch of an epoch
    def orders(epoch: int) -> np.ndarray:
        return batch_order(seed, epoch, images)

    if execution.name == "resident":
        cut = stretches(orders, images, batch_size, STRETCH_XLA if execution.xla else STRETCH_GRAPH)
        with resident(model, dataset.train, dataset.validation, batch_size, cut, xla=execution.xla) as compile_seconds:
            yield tf.data.Dataset.range(2**62), cut.per_epoch, tf.data.Dataset.range(1), compile_seconds
    else:
        replicas = model.distribute_strategy.num_replicas_in_sync
        validation = _batches(dataset.validation, EVALUATION_BATCH)
        yield *_epochs(dataset.train, orders, batch_size, replicas), validation, 0.0


def _epochs(split: Split, orders: Orders, batch_size: int, replicas: int) -> tuple[tf.data.Dataset, int]:
    """All epochs one after the other, as batches in the same order as the resident execution sees them."""
    # Replicas of unequal parts would weigh images unequally: the last batch loses what cannot be shared equally.
    images = len(split.labels) - len(split.labels) % batch_size % replicas
    pixels, labels = tf.constant(split.images), tf.constant(split.labels)

    def epoch_batches(epoch: tf.Tensor) -> tf.data.Dataset:
        order = tf.numpy_function(lambda e: orders(int(e))[:images], [epoch], tf.int32)
        order.set_shape((images,))
        return tf.data.Dataset.from_tensor_slices(order).batch(batch_size)

    batches = tf.data.Dataset.range(2**31).flat_map(epoch_batches)
    batches = batches.map(lambda chosen: (tf.gather(pixels, chosen), tf.gather(labels, chosen)))
    return batches.prefetch(2), -(-images // batch_size)


def _batches(split: Split, batch_size: int) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((split.images, split.labels)).batch(batch_size)


class _Report(keras.callbacks.Callback):
    """Last of the callbacks: names and times an epoch's metrics, hands them on, and stops at a loss that is none."""

    def __init__(self, images: int, on_epoch: OnEpoch, within_epoch: WithinEpoch) -> None:
        super().__init__()
        self.images, self.on_epoch, self.within_epoch = images, on_epoch, within_epoch
        self.ticked = 0.0
        self.history: dict[str, list[float]] = {}

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self.epoch, self.began = epoch, time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if logs and time.perf_counter() - self.ticked > TICK_SECONDS:
            self.ticked = time.perf_counter()
            self.within_epoch(self.epoch + (batch + 1) / self.params["steps"], logs)

    def on_test_begin(self, logs: dict | None = None) -> None:
        self.trained = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        logs = logs or {}
        metrics = {
            "train_loss": logs["loss"],
            "train_accuracy": logs["accuracy"],
            "val_loss": logs["val_loss"],
            "val_accuracy": logs["val_accuracy"],
            "learning_rate": float(tf.convert_to_tensor(self.model.optimizer.learning_rate)),
            "epoch_seconds": time.perf_counter() - self.began,
            "images_per_second": self.images / (self.trained - self.began),
        }
        for name, value in metrics.items():
            self.history.setdefault(name, []).append(value)
        self.on_epoch(epoch + 1, metrics)
        if not math.isfinite(logs["loss"]):
            raise Diverged(f"train_loss is {logs['loss']} after epoch {epoch + 1}; a smaller learning rate may help")


def early_stopping(monitor: str, patience: int) -> keras.callbacks.Callback:
    """Stop after `patience` epochs without improvement of `val_loss` or `val_accuracy`; keep the best weights."""
    mode = "min" if monitor.endswith("loss") else "max"
    return keras.callbacks.EarlyStopping(monitor, patience=patience, mode=mode, restore_best_weights=True)


def profile(folder: Path, epochs: int) -> keras.callbacks.Callback:
    """Write a trace of the second epoch, the first without start-up costs, into `folder`; of the first if it is all."""
    traced = min(1, epochs - 1)

    def start(epoch: int, logs: dict) -> None:
        if epoch == traced:
            tf.profiler.experimental.start(str(folder))

    def stop(epoch: int, logs: dict) -> None:
        if epoch == traced:
            tf.profiler.experimental.stop()

    return keras.callbacks.LambdaCallback(on_epoch_begin=start, on_epoch_end=stop)


def predict(model: keras.Model, split: Split) -> np.ndarray:
    """float32 (n, classes): the logits of a split's images."""
    return np.asarray(model.predict(split.images, batch_size=EVALUATION_BATCH, verbose=0), np.float32)
