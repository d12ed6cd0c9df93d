"""The one training loop: compile, fit, predict. It knows nothing of Hydra, MLflow or the command line."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from mnist_exp.data import Dataset, Split
from mnist_exp.errors import RequestError, RunError
from mnist_exp.training import checkpoint
from mnist_exp.training.device_loop import EVALUATION_BATCH, Orders, build_optimizer_state, resident, state, stretches

OnEpoch = Callable[[int, dict[str, float], str], bool | None]
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
    seconds: float  # of all sittings, compiling included


def choose_execution(wanted: str, model: keras.Model, devices: int, *, gpu: bool) -> Execution:
    """Decide by the layers and the devices, never by timing: two runs of one config must run alike.

    Measured on two cores, seconds an epoch of MNIST: an MLP takes 1.2 in plain `fit`, 0.5 resident, 0.23 resident
    with XLA; a CNN takes 21, 15 and 400, because XLA's convolutions on a CPU are naive loops.

    Raises:
        RequestError: `resident` was asked for on several devices.
    """
    slow = [
        layer.name for layer in model._flatten_layers(include_self=False) if _slow_in_cpu_xla(layer)
    ]  # of models within it, too
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
    convolves = any("Conv" in kind.__name__ for kind in type(layer).__mro__)  # a subclass may have any name
    draws = any(isinstance(held, keras.random.SeedGenerator) for held in vars(layer).values())
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
    on_epoch: OnEpoch = lambda epoch, metrics, weights: False,
    within_epoch: WithinEpoch = lambda epochs, metrics: None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    checkpoints: Path | None = None,
) -> Fitted:
    """Train `model` in place and report each epoch.

    What a checkpoint holds makes the rest of the training equal, to the last bit, to that of an uninterrupted one:
    weights, optimizer, seeds of random layers, early stopping. Batches are a function of seed and epoch.

    Args:
        model: uint8 images in, logits out; built under the strategy's scope when there is one.
        optimizer: built by the caller, so that its schedule may know the number of steps.
        dataset: trains on its `train` part, validates on its `validation` part.
        epochs: passes over the training images.
        batch_size: images a step, over all replicas.
        seed: of the order of the images.
        execution: from `choose_execution`.
        on_epoch: called with the epoch, from 1, its metrics and the digest of the weights after it;
            first with the epochs that a checkpoint already has. True ends the training.
        within_epoch: called now and then with the epochs done, a fraction, and Keras' running `loss` and `accuracy`.
        callbacks: any Keras callbacks. Their batch hooks fire once a stretch of steps in resident execution,
            and checkpoints hold the state of no other than `early_stopping`'s.
        checkpoints: folder to continue from, where it has a checkpoint, and to write one to after each epoch.

    Raises:
        Diverged: the training loss became NaN or infinite.
        RequestError: mirrored execution of an optimizer that clips by norm.
    """
    if execution.name == "mirrored" and (optimizer.clipnorm or optimizer.global_clipnorm):
        raise RequestError("optimizer.global_clipnorm needs one device: mirrored ones clip before they sum")
    accuracy = "weighted_metrics" if execution.name == "mirrored" else "metrics"
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **{accuracy: [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]},
        jit_compile=execution.xla and execution.name == "keras",
    )
    report = _Report(len(dataset.train.labels), on_epoch, within_epoch)
    stopping = [c for c in callbacks if isinstance(c, keras.callbacks.EarlyStopping) and c.restore_best_weights]
    keep = _Checkpoints(checkpoints, report, stopping[0] if stopping else None)
    done = keep.restore(model)
    with _feed(model, dataset, batch_size, seed, execution, done) as feed:
        feed.model.fit(
            _untuned(feed.elements),
            steps_per_epoch=feed.per_epoch,
            validation_data=_untuned(feed.validation),
            initial_epoch=done,
            epochs=done if report.stopped else epochs,
            callbacks=[*feed.callbacks, *callbacks, report, keep],
            shuffle=False,
            verbose=0,
        )
    best = stopping[0].best_epoch + 1 if stopping else len(report.rows)
    history = {name: [metrics[name] for metrics, _ in report.rows] for name in report.rows[0][0]}
    return Fitted(history, best, feed.compile_seconds, report.seconds())


class _Feed(NamedTuple):
    """What `fit` is called on and with."""

    model: keras.Model  # in resident execution a twin of the caller's
    elements: tf.data.Dataset
    per_epoch: int  # elements an epoch
    validation: tf.data.Dataset
    compile_seconds: float
    callbacks: Sequence[keras.callbacks.Callback] = ()  # before all others


@contextmanager
def _feed(
    model: keras.Model, dataset: Dataset, batch_size: int, seed: int, execution: Execution, first_epoch: int
) -> Iterator[_Feed]:
    images = len(dataset.train.labels)

    @lru_cache(maxsize=1)  # asked for by each stretch of an epoch
    def orders(epoch: int) -> np.ndarray:
        return batch_order(seed, epoch, images)

    if execution.name == "resident":
        cut = stretches(orders, images, batch_size, STRETCH_XLA if execution.xla else STRETCH_GRAPH)
        with resident(model, dataset.train, dataset.validation, batch_size, cut, xla=execution.xla) as (twin, seconds):
            numbers = tf.data.Dataset.range(first_epoch * cut.per_epoch, 2**62)
            yield _Feed(twin, numbers, cut.per_epoch, tf.data.Dataset.range(1), seconds)
    else:
        replicas = model.distribute_strategy.num_replicas_in_sync
        elements, per_epoch = _epochs(dataset.train, orders, batch_size, replicas, first_epoch)
        validation = _validation_batches(dataset.validation, replicas)
        means = [_OwnMeans(images, batch_size, replicas)] if replicas > 1 else []
        yield _Feed(model, elements, per_epoch, validation, 0.0, means)


def _epochs(
    split: Split, orders: Orders, batch_size: int, replicas: int, first_epoch: int
) -> tuple[tf.data.Dataset, int]:
    """All epochs from a first on, one after the other, as batches in the order that the device loop sees.

    Each batch is divided equally among the replicas: some of its images come twice, the second time with weight 0. The
    weights of the others make the loss the mean over the batch's own images, so the gradient is that of one device.
    `_OwnMeans` corrects the epoch's metrics. Batch normalisation is not exact: it sees the repeated images.
    """
    images, replicated = len(split.labels), replicas > 1
    pixels, labels = tf.constant(split.images), tf.constant(split.labels)
    padded_size = _multiple(batch_size, replicas)
    places, weights = map(np.concatenate, zip(*(
        _padded(np.arange(first, min(first + batch_size, images)), replicas) for first in range(0, images, batch_size)
    ), strict=True))  # fmt: skip
    weights = tf.constant(weights)

    def epoch_batches(epoch: tf.Tensor) -> tf.data.Dataset:
        order = tf.numpy_function(lambda e: orders(int(e))[places], [epoch], tf.int32)
        order.set_shape(places.shape)
        return tf.data.Dataset.from_tensor_slices((order, weights)).batch(padded_size)

    def gather(chosen: tf.Tensor, weight: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return (tf.gather(pixels, chosen), tf.gather(labels, chosen), *([weight] if replicated else []))

    batches = tf.data.Dataset.range(first_epoch, 2**31).flat_map(epoch_batches).map(gather)
    return batches.prefetch(2), -(-images // batch_size)


def _validation_batches(split: Split, replicas: int) -> tf.data.Dataset:
    """A split in batches that the replicas can divide equally; weights keep the metrics those of its own images."""
    places, weights = _padded(np.arange(len(split.labels)), replicas)
    parts = (split.images[places], split.labels[places], *([weights] if replicas > 1 else []))
    return tf.data.Dataset.from_tensor_slices(parts).batch(_multiple(EVALUATION_BATCH, replicas))


def _padded(places: np.ndarray, replicas: int) -> tuple[np.ndarray, np.ndarray]:
    """The places and repeated ones, in all a multiple of `replicas`, and their weights.

    A repeated place weighs 0, each other place so much that the weights are 1 on average.
    """
    count = len(places)
    size = _multiple(count, replicas)
    return np.resize(places, size), np.where(np.arange(size) < count, size / count, 0).astype(np.float32)


def _multiple(count: int, replicas: int) -> int:
    return -(-count // replicas) * replicas


class _OwnMeans(keras.callbacks.Callback):
    """First of the callbacks of padded batches: makes the epoch's metrics means over its own images.

    Keras weighs each batch by its padded size. All batches but the last are padded alike, so the share of the last one
    is all that is wrong. The metrics before it and after it give its part, and the factor corrects this part.
    """

    def __init__(self, images: int, batch_size: int, replicas: int) -> None:
        super().__init__()
        full, last = divmod(images - 1, batch_size)
        last, padded = last + 1, _multiple(last + 1, replicas)
        self.factor = last / images * (full * _multiple(batch_size, replicas) + padded) / padded
        self.before: dict[str, float] = {}  # the running metrics before the last batch

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if batch == self.params["steps"] - 2:
            # `logs` is a mean of the replicas' own results, which do not hold all of one another's images.
            self.before = {name: float(value) for name, value in self.model.get_metrics_result().items()}

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        logs = {} if logs is None else logs  # Keras hands the same dictionary to the callbacks after this one
        for name, mean in self.before.items():
            logs[name] = mean + (logs[name] - mean) * self.factor


def _untuned(elements: tf.data.Dataset) -> tf.data.Dataset:
    """Without autotuning: there is nothing to tune, and its end was waited for, up to the length of the training."""
    options = tf.data.Options()
    options.autotune.enabled = False
    return elements.with_options(options)


class _Report(keras.callbacks.Callback):
    """Last of the callbacks: names and times an epoch's metrics, hands them on, and stops at a loss that is none."""

    def __init__(self, images: int, on_epoch: OnEpoch, within_epoch: WithinEpoch) -> None:
        super().__init__()
        self.images, self.on_epoch, self.within_epoch = images, on_epoch, within_epoch
        self.ticked = 0.0
        self.rows: list[tuple[dict[str, float], str]] = []  # metrics and digest of the weights, an epoch each
        self.stopped = False
        self.before = 0.0  # seconds of earlier sittings
        self.entered = time.perf_counter()

    def seconds(self) -> float:
        """Of all sittings until now."""
        return self.before + time.perf_counter() - self.entered

    def add(self, metrics: dict[str, float], weights: str) -> None:
        """Report the next epoch."""
        self.rows.append((metrics, weights))
        self.stopped = bool(self.on_epoch(len(self.rows), metrics, weights)) or self.stopped

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
        self.stopped = self.model.stop_training  # by a callback before this one
        self.add(metrics, weights_digest(self.model))
        self.model.stop_training = self.stopped
        if not math.isfinite(logs["loss"]):
            raise Diverged(f"train_loss is {logs['loss']} after epoch {epoch + 1}; a smaller learning rate may help")


class _Checkpoints(keras.callbacks.Callback):
    """Very last of the callbacks: keeps what the rest of the training depends on, and starts from what was kept."""

    def __init__(self, folder: Path | None, report: _Report, stopping: keras.callbacks.EarlyStopping | None) -> None:
        super().__init__()
        self.folder, self.report, self.stopping = folder, report, stopping
        self.found = checkpoint.load(folder) if folder is not None else None

    def restore(self, model: keras.Model) -> int:
        """Put a compiled model where the checkpoint was taken; returns the epochs done."""
        if self.found is None:
            return 0
        with model.distribute_strategy.scope():
            build_optimizer_state(model)
            for variable, value in zip(state(model), self.found.arrays, strict=False):  # the rest is early stopping's
                variable.assign(value)
        self.report.before = self.found.state["seconds"]
        for metrics, weights in self.found.state["rows"]:
            self.report.add(metrics, weights)
        self.report.stopped = self.found.state["stopped"]
        return self.found.epoch

    def on_train_begin(self, logs: dict | None = None) -> None:
        if self.found is not None and self.stopping is not None:  # which has just forgotten all
            vars(self.stopping).update(self.found.state["stopping"])
            self.stopping.best_weights = self.found.arrays[len(state(self.model)) :] or None

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if self.folder is None:
            return
        arrays = [keras.ops.convert_to_numpy(variable) for variable in state(self.model)]
        content = {"rows": self.report.rows, "stopped": self.report.stopped, "seconds": self.report.seconds()}
        if self.stopping is not None:
            names = ("wait", "best", "best_epoch", "stopped_epoch")
            content["stopping"] = {name: getattr(self.stopping, name) for name in names}
            arrays += self.stopping.best_weights or []
        try:
            checkpoint.save(self.folder, checkpoint.Checkpoint(epoch + 1, content, arrays))
        except OSError as error:  # a full disk is no reason to end the training
            print(f"checkpoint of epoch {epoch + 1} not written: {error}", file=sys.stderr)


def weights_digest(model: keras.Model) -> str:
    """SHA-256 (hex) of a model's weights, in the order in which Keras lists them."""
    return checkpoint.digest(map(keras.ops.convert_to_numpy, model.weights))


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
