"""Callbacks of every training: what it reports and what its checkpoints keep; and those that the config asks for."""

import math
import sys
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mnist_exp import console
from mnist_exp.errors import RequestError, RunError
from mnist_exp.training import checkpoint
from mnist_exp.training.device_loop import state

OnEpoch = Callable[[int, dict[str, float], str], bool | None]
WithinEpoch = Callable[[float, dict[str, float]], None]
TICK_SECONDS = 0.1
PAUSE_SECONDS, WRITING = 10.0, 0.02  # between checkpoints within an epoch; share of the time that these may take


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


# What callbacks of Keras keep from one epoch to the next.
_KERAS_STATE: dict[type, tuple[str, ...]] = {
    keras.callbacks.EarlyStopping: ("wait", "best", "best_epoch", "stopped_epoch", "best_weights"),
    keras.callbacks.ReduceLROnPlateau: ("wait", "best", "cooldown_counter"),
    keras.callbacks.TensorBoard: (),
    keras.callbacks.TerminateOnNaN: (),
}


def not_resumable(callbacks: Mapping[str, keras.callbacks.Callback]) -> list[str]:
    """Keys of callbacks whose state no checkpoint holds: a continued run may differ from an uninterrupted one."""
    return [key for key, held in callbacks.items() if not (_has_state(held) or type(held) in _KERAS_STATE)]


def best_epoch(callbacks: Mapping[str, keras.callbacks.Callback]) -> int | None:
    """The epoch, from 1, whose weights early stopping restored; None if there is no early stopping that restores."""
    stopping = [held for held in callbacks.values() if isinstance(held, keras.callbacks.EarlyStopping)]
    return next((held.best_epoch + 1 for held in reversed(stopping) if held.restore_best_weights), None)


def _has_state(callback: keras.callbacks.Callback) -> bool:
    return hasattr(callback, "get_state") and hasattr(callback, "set_state")


def _acts_on_batches(callback: keras.callbacks.Callback) -> bool:
    """Whether batch hooks of a callback may have effects, which would come twice for chunks that a checkpoint has."""
    names = "on_batch_begin", "on_batch_end", "on_train_batch_begin", "on_train_batch_end"
    usual = keras.callbacks.Callback
    own = any(getattr(getattr(callback, name), "__func__", None) is not getattr(usual, name) for name in names)
    return own and type(callback) not in _KERAS_STATE


class Checkpoints(keras.callbacks.Callback):
    """Very last of the callbacks: saves the state that the rest of the training depends on, and restores it.

    It saves after each epoch. In a longer epoch it also saves between two chunks of the device loop, so that a killed
    run loses `PAUSE_SECONDS` of training, or a chunk if that takes longer. Files that take long to write are written
    less often: writing takes at most the share `WRITING` of the time.
    """

    def __init__(
        self,
        folder: Path | None,
        report: Report,
        callbacks: Mapping[str, keras.callbacks.Callback],
        *,
        within_epochs: bool,  # whether `fit` can begin between two chunks
    ) -> None:
        super().__init__()
        self.folder, self.report = folder, report
        self.callbacks = callbacks
        self.within_epochs = folder is not None and within_epochs and not any(map(_acts_on_batches, callbacks.values()))
        self.found = checkpoint.load(folder) if folder is not None else None

    def restore(self, model: keras.Model) -> tuple[int, int]:
        """Load the checkpoint into a compiled model. Returns the finished epochs, and finished chunks after them."""
        if self.found is None:
            return 0, 0
        with model.distribute_strategy.scope():
            for variable, value in zip(state(model), self.found.arrays, strict=False):  # the rest is the callbacks'
                variable.assign(value)
        self.report.before = self.found.state["seconds"]
        for metrics, weights in self.found.state["rows"]:
            self.report.add(metrics, weights)
        self.report.stopped = self.found.state["stopped"]
        return self.found.epoch, self.found.chunk

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Restore the callbacks' state: Keras' own reset theirs when the training begins."""
        if self.found is None:
            return
        states = self.found.state.get("callbacks", {})
        if "stopping" in self.found.state:  # as earlier versions kept it
            best_weights = self.found.arrays[len(state(self.model)) :] or None
            states["early_stopping"] = {**self.found.state["stopping"], "best_weights": best_weights}
        for key in states.keys() & self.callbacks.keys():
            if _has_state(self.callbacks[key]):
                self.callbacks[key].set_state(states[key])
            else:
                vars(self.callbacks[key]).update(states[key])

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Restore what belongs to a part of an epoch; Keras has just reset its running metrics."""
        self.passed = 0  # chunks that `fit` passes over
        if self.found is not None and self.found.chunk and epoch == self.found.epoch:
            self.passed = self.found.chunk
            for variable, value in zip(self.model.metrics_variables, self.found.state["running"], strict=True):
                variable.assign(value)
            self.report.began -= self.found.state["epoch_seconds"]
        self.next = time.perf_counter() + PAUSE_SECONDS  # when to save within the epoch

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Write a checkpoint now and then."""
        began = time.perf_counter()
        if self.within_epochs and began >= self.next and self.passed < batch + 1 < self.params["steps"]:
            running = [keras.ops.convert_to_numpy(variable) for variable in self.model.metrics_variables]
            self._save(self.report.epoch, batch + 1, running=running, epoch_seconds=began - self.report.began)
            ended = time.perf_counter()
            self.next = ended + max(PAUSE_SECONDS, (ended - began) / WRITING)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Write a checkpoint."""
        self._save(epoch + 1)

    def _save(self, epochs: int, chunk: int = 0, **within: Any) -> None:
        if self.folder is None:
            return
        arrays = [keras.ops.convert_to_numpy(variable) for variable in state(self.model)]
        content = {"rows": self.report.rows, "stopped": self.report.stopped, "seconds": self.report.seconds()}
        content["callbacks"] = {key: self._state_of(callback) for key, callback in self.callbacks.items()}
        try:
            checkpoint.save(self.folder, checkpoint.Checkpoint(epochs, content | within, arrays, chunk))
        except OSError as error:  # a full disk is no reason to end the training
            console.say(f"checkpoint after {epochs} epochs not written: {error}", sys.stderr)

    @staticmethod
    def _state_of(callback: keras.callbacks.Callback) -> Any:
        if _has_state(callback):
            return callback.get_state()
        return {name: getattr(callback, name) for name in _KERAS_STATE.get(type(callback), ())}


def weights_digest(model: keras.Model) -> str:
    """SHA-256 (hex) of a model's weights, in the order in which Keras lists them."""
    return checkpoint.digest(map(keras.ops.convert_to_numpy, model.weights))


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


def swa(*, start: float) -> keras.callbacks.Callback:
    """`WeightAverage`, by the name in the field: stochastic weight averaging."""
    return WeightAverage(start)


class WeightAverage(keras.callbacks.Callback):
    """Ends the training with the mean of the weights after each of its last epochs.

    Izmailov et al., 2018, https://arxiv.org/abs/1803.05407. The moving statistics of batch normalisation are averaged,
    too, as by PyTorch with `use_buffers=True`; the paper computes them anew.

    Args:
        start: the share of the epochs that come before those whose weights are averaged.
    """

    def __init__(self, start: float) -> None:
        super().__init__()
        self.start, self.count = start, 0
        self.sums: list[np.ndarray] = []  # float64, in the order in which Keras lists the weights

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Add the weights."""
        if epoch >= self.start * self.params["epochs"]:
            weights = [weight.astype(np.float64) for weight in self.model.get_weights()]
            self.sums = [a + b for a, b in zip(self.sums, weights, strict=True)] if self.count else weights
            self.count += 1

    def on_train_end(self, logs: dict | None = None) -> None:
        """Set the mean; a training that another callback ended before `start` keeps its weights."""
        if self.count:
            self.model.set_weights([total / self.count for total in self.sums])

    def get_state(self) -> dict[str, Any]:
        """What a continued training needs."""
        return {"count": self.count, "sums": self.sums}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.count, self.sums = state["count"], state["sums"]


def tensorboard(*, folder: Path, histograms: bool) -> keras.callbacks.Callback:
    """Write loss, accuracy, learning rate and, if asked for, the distribution of each weight, after each epoch.

    Raises:
        RequestError: TensorBoard is not installed.
    """
    if find_spec("tensorboard") is None:
        raise RequestError("callbacks=tensorboard needs the package tensorboard: pip install 'mnist_exp[tensorboard]'")
    return keras.callbacks.TensorBoard(str(folder / "tensorboard"), histogram_freq=int(histograms), write_graph=False)


def lr_range(*, points: int) -> keras.callbacks.Callback:
    """`RangeTest`."""
    return RangeTest(points)


class RangeTest(keras.callbacks.Callback):
    """Learning-rate range test: measures the loss while the schedule raises the rate (Smith, 2017).

    https://arxiv.org/abs/1506.01186. The training ends when the loss is more than four times its minimum, and the model
    gets its initial weights back, so that what follows does not meet numbers that are not finite.

    Args:
        points: losses to measure an epoch. The device loop divides an epoch into at least so many chunks.

    Attributes:
        rates: the geometric mean of the rates with which a point begins and the next one begins.
        losses: the mean loss of each point's images, before the steps on them.
    """

    def __init__(self, points: int) -> None:
        super().__init__()
        self.calls_per_epoch = points
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.initial: list[np.ndarray] = []

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Keep the initial weights."""
        self.initial = self.model.get_weights()

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        """Begin a point: Keras' running means are then of its images alone."""
        if batch % self._calls() == 0:
            self.model.reset_metrics()
            self.rate = self._rate()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """End a point."""
        if (batch + 1) % self._calls() and batch + 1 < self.params["steps"]:
            return
        self.rates.append(math.sqrt(self.rate * self._rate()))
        self.losses.append(float((logs or {})["loss"]))
        if not self.losses[-1] <= 4 * min(self.losses):  # NaN, too
            self.model.set_weights(self.initial)
            self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Make `loss` the mean over the points: that of the last one may not be finite."""
        if logs is not None:  # Keras hands the same dictionary to the callbacks after this one
            logs["loss"] = float(np.mean([loss for loss in self.losses if math.isfinite(loss)] or [math.nan]))

    def on_train_end(self, logs: dict | None = None) -> None:
        """Restore the initial weights."""
        self.model.set_weights(self.initial)

    def suggestion(self) -> float:
        """A tenth of the rate at which the loss, smoothed over five points, is lowest."""
        losses = [loss for loss in self.losses if math.isfinite(loss)]
        smooth = [np.mean(losses[max(0, n - 2) : n + 3]) for n in range(len(losses))]
        return self.rates[int(np.argmin(smooth))] / 10

    def get_state(self) -> dict[str, Any]:
        """What a continued training needs."""
        return {"rates": self.rates, "losses": self.losses, "initial": self.initial}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.rates, self.losses, self.initial = state["rates"], state["losses"], state["initial"]

    def _calls(self) -> int:
        """Calls a point: 1 in the device loop, where a call is a chunk of steps; else a call is one step."""
        return max(1, self.params["steps"] // self.calls_per_epoch)

    def _rate(self) -> float:
        return float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))


def range_test(callbacks: Mapping[str, keras.callbacks.Callback]) -> RangeTest | None:
    """The range test among the callbacks."""
    return next((callback for callback in callbacks.values() if isinstance(callback, RangeTest)), None)
