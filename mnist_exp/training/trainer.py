"""The one training loop: compile, fit, predict. It knows nothing of Hydra, MLflow or the command line."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import keras
import tensorflow as tf

from mnist_exp.data import Dataset
from mnist_exp.errors import RequestError, RunError
from mnist_exp.training import checkpoint
from mnist_exp.training.augmentation import Augmentation, soft
from mnist_exp.training.batches import OwnMeans, epochs_of, training_batches, untuned, validation_batches
from mnist_exp.training.device_loop import build_optimizer_state, chunks, device_loop, state

OnEpoch = Callable[[int, dict[str, float], str], bool | None]
WithinEpoch = Callable[[float, dict[str, float]], None]
TICK_SECONDS = 0.1
# Steps a call: a tick of the progress bar, the time a Ctrl-C waits, and 2 ms of overhead.
CHUNK_XLA, CHUNK_GRAPH = 500, 50


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


class Training(NamedTuple):
    """What `fit` trains by."""

    loss: keras.losses.Loss
    optimizer: keras.Optimizer  # built by the caller, so that its schedule may know the number of steps
    epochs: int  # passes over the training images
    batch_size: int  # images a step, over all replicas
    seed: int  # of the order of the images
    execution: Execution
    augmentation: Augmentation | None = None  # of the training images
    # Their batch hooks fire once a chunk of steps in the device loop. Checkpoints hold the state of those that have
    # `get_state` and `set_state`, and of the first EarlyStopping that restores the best weights.
    callbacks: Mapping[str, keras.callbacks.Callback] = MappingProxyType({})
    checkpoints: Path | None = None  # folder to continue from, if it has a checkpoint, and to write one to each epoch


def fit(
    model: keras.Model,
    dataset: Dataset,
    training: Training,
    *,
    on_epoch: OnEpoch = lambda epoch, metrics, weights: False,
    within_epoch: WithinEpoch = lambda epochs, metrics: None,
) -> Fitted:
    """Train `model` in place and report each epoch.

    The rest of a training that continues from a checkpoint equals that of an uninterrupted one to the last bit. The
    checkpoint holds weights, optimizer, seeds of random layers and the callbacks' state. Batches and augmented images
    are functions of seed and epoch.

    Args:
        model: uint8 images in, logits out; built under the strategy's scope when there is one.
        dataset: trains on its `train` part, validates on its `validation` part.
        training: how.
        on_epoch: called with the epoch, from 1, its metrics and the digest of the weights after it;
            first with the epochs that a checkpoint already has. True ends the training.
        within_epoch: called now and then with the epochs done, a fraction, and Keras' running `loss` and `accuracy`.

    Raises:
        Diverged: the training loss became NaN or infinite.
        RequestError: mirrored execution of an optimizer that clips by norm.
    """
    execution, optimizer = training.execution, training.optimizer
    if execution.name == "mirrored" and (optimizer.clipnorm or optimizer.global_clipnorm):
        raise RequestError("optimizer.global_clipnorm needs one device: mirrored ones clip before they sum")
    mixed = training.augmentation is not None and training.augmentation.mixing
    accuracy = keras.metrics.CategoricalAccuracy if mixed else keras.metrics.SparseCategoricalAccuracy
    model.compile(
        optimizer=optimizer,
        loss=training.loss,
        **{"weighted_metrics" if execution.name == "mirrored" else "metrics": [accuracy(name="accuracy")]},
        jit_compile=execution.xla and execution.name == "keras",
    )
    report = _Report(len(dataset.train.labels), on_epoch, within_epoch)
    keep = _Checkpoints(training.checkpoints, report, training.callbacks)
    done = keep.restore(model)
    with _feed(model, dataset, training, done) as feed:
        feed.model.fit(
            untuned(feed.elements),
            steps_per_epoch=feed.per_epoch,
            validation_data=untuned(feed.validation),
            initial_epoch=done,
            epochs=done if report.stopped else training.epochs,
            callbacks=[*feed.callbacks, *training.callbacks.values(), report, keep],
            shuffle=False,
            verbose=0,
        )
    stopping = keep.stopping
    best = stopping.best_epoch + 1 if stopping is not None else len(report.rows)
    history = {name: [metrics[name] for metrics, _ in report.rows] for name in report.rows[0][0]}
    return Fitted(history, best, feed.compile_seconds, report.seconds())


class _Feed(NamedTuple):
    """The arguments of Keras' `fit`, and the model to call it on."""

    model: keras.Model  # in the device loop the cached model, not the caller's
    elements: tf.data.Dataset
    per_epoch: int  # elements an epoch
    validation: tf.data.Dataset
    compile_seconds: float
    callbacks: Sequence[keras.callbacks.Callback] = ()  # before all others


@contextmanager
def _feed(model: keras.Model, dataset: Dataset, training: Training, first_epoch: int) -> Iterator[_Feed]:
    train, validation, batch_size = dataset.train, dataset.validation, training.batch_size
    images, xla = len(train.labels), training.execution.xla
    epochs = epochs_of(train, training.seed, training.augmentation)
    if training.augmentation is not None and training.augmentation.mixing:
        train, validation = (soft(split, dataset.num_classes) for split in (train, validation))
    if training.execution.name == "resident":
        cut = chunks(epochs, images, batch_size, CHUNK_XLA if xla else CHUNK_GRAPH)
        with device_loop(model, train, validation, batch_size, cut, xla=xla) as (cached, seconds):
            numbers = tf.data.Dataset.range(first_epoch * cut.per_epoch, 2**62)
            yield _Feed(cached, numbers, cut.per_epoch, tf.data.Dataset.range(1), seconds)
    else:
        replicas = model.distribute_strategy.num_replicas_in_sync
        batches = training_batches(epochs, training.augmentation is not None, batch_size, replicas, first_epoch)
        means = [OwnMeans(images, batch_size, replicas)] if replicas > 1 else []
        yield _Feed(model, batches, -(-images // batch_size), validation_batches(validation, replicas), 0.0, means)


class _Report(keras.callbacks.Callback):
    """Collects each epoch's metrics, passes them to `on_epoch`, and raises `Diverged` on a non-finite loss."""

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


# Callbacks of Keras that keep nothing from one epoch to the next.
_STATELESS = (keras.callbacks.TerminateOnNaN,)
# What Keras' early stopping keeps, besides the best weights.
_STOPPING_STATE = ("wait", "best", "best_epoch", "stopped_epoch")


def not_resumable(callbacks: Mapping[str, keras.callbacks.Callback]) -> list[str]:
    """Keys of callbacks whose state no checkpoint holds: a continued run may differ from an uninterrupted one."""
    stopping = _saved_stopping(callbacks)
    return [
        key
        for key, held in callbacks.items()
        if not (_has_state(held) or isinstance(held, _STATELESS) or held is stopping)
    ]


def _saved_stopping(callbacks: Mapping[str, keras.callbacks.Callback]) -> keras.callbacks.EarlyStopping | None:
    """Keras' early stopping whose state and best weights the checkpoints hold: the first that restores best weights."""
    stopping = (held for held in callbacks.values() if isinstance(held, keras.callbacks.EarlyStopping))
    return next((held for held in stopping if held.restore_best_weights), None)


def _has_state(callback: keras.callbacks.Callback) -> bool:
    return hasattr(callback, "get_state") and hasattr(callback, "set_state")


class _Checkpoints(keras.callbacks.Callback):
    """Very last of the callbacks: saves the state that the rest of the training depends on, and restores it."""

    def __init__(self, folder: Path | None, report: _Report, callbacks: Mapping[str, keras.callbacks.Callback]) -> None:
        super().__init__()
        self.folder, self.report = folder, report
        self.callbacks = {key: held for key, held in callbacks.items() if _has_state(held)}
        self.stopping = _saved_stopping(callbacks)
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
        if self.found is None:
            return
        for key, value in self.found.state.get("callbacks", {}).items():
            if key in self.callbacks:
                self.callbacks[key].set_state(value)
        if self.stopping is not None:  # which has just forgotten all
            vars(self.stopping).update(self.found.state["stopping"])
            self.stopping.best_weights = self.found.arrays[len(state(self.model)) :] or None

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if self.folder is None:
            return
        arrays = [keras.ops.convert_to_numpy(variable) for variable in state(self.model)]
        content = {"rows": self.report.rows, "stopped": self.report.stopped, "seconds": self.report.seconds()}
        content["callbacks"] = {key: callback.get_state() for key, callback in self.callbacks.items()}
        if self.stopping is not None:
            content["stopping"] = {name: getattr(self.stopping, name) for name in _STOPPING_STATE}
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
