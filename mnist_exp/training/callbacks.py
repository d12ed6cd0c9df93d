"""Callbacks of every training: what it reports and what its checkpoints keep; and those that the config asks for."""

import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import keras
import tensorflow as tf

from mnist_exp.errors import RunError
from mnist_exp.training import checkpoint
from mnist_exp.training.device_loop import build_optimizer_state, state

OnEpoch = Callable[[int, dict[str, float], str], bool | None]
WithinEpoch = Callable[[float, dict[str, float]], None]
TICK_SECONDS = 0.1


class Diverged(RunError):
    """The training loss is no longer a number."""


class Report(keras.callbacks.Callback):
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
        """Keep the time."""
        self.epoch, self.began = epoch, time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Show the running metrics now and then."""
        if logs and time.perf_counter() - self.ticked > TICK_SECONDS:
            self.ticked = time.perf_counter()
            self.within_epoch(self.epoch + (batch + 1) / self.params["steps"], logs)

    def on_test_begin(self, logs: dict | None = None) -> None:
        """Keep the time at which the epoch's training ended."""
        self.trained = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Report the epoch."""
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


class Checkpoints(keras.callbacks.Callback):
    """Very last of the callbacks: saves the state that the rest of the training depends on, and restores it."""

    def __init__(self, folder: Path | None, report: Report, callbacks: Mapping[str, keras.callbacks.Callback]) -> None:
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
        """Restore the callbacks' state: Keras' own reset theirs when the training begins."""
        if self.found is None:
            return
        for key, value in self.found.state.get("callbacks", {}).items():
            if key in self.callbacks:
                self.callbacks[key].set_state(value)
        if self.stopping is not None:  # which has just forgotten all
            vars(self.stopping).update(self.found.state["stopping"])
            self.stopping.best_weights = self.found.arrays[len(state(self.model)) :] or None

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Write a checkpoint."""
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
