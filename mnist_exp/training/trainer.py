"""The one training loop: compile, fit, predict. It knows nothing of Hydra, MLflow or the command line."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import keras
import tensorflow as tf

from mnist_exp.data import Dataset
from mnist_exp.errors import RequestError
from mnist_exp.models import CHEAP_RANDOM_LAYERS
from mnist_exp.training.augmentation import Augmentation, soft
from mnist_exp.training.batches import OwnMeans, epochs_of, training_batches, untuned, validation_batches
from mnist_exp.training.callbacks import Checkpoints, OnEpoch, Report, WithinEpoch, best_epoch
from mnist_exp.training.device_loop import build_optimizer_state, chunks, device_loop
from mnist_exp.training.devices import sum_gradients_first
from mnist_exp.training.mirrored_loop import mirrored_loop

# Steps a call: a tick of the progress bar, the time a Ctrl-C waits, and 2 ms of overhead.
CHUNK_XLA, CHUNK_GRAPH = 500, 50


class Execution(NamedTuple):
    """How the steps are run, and why so."""

    name: str  # device_loop or keras; on several devices mirrored or mirrored_keras
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

    Measured on two cores, seconds an epoch of MNIST: an MLP takes 1.2 in plain `fit`, 0.5 in the device loop, 0.23
    there with XLA; a CNN takes 21, 15 and 400, because XLA's convolutions on a CPU are naive loops.

    Raises:
        RequestError: `device_loop` was asked for on several devices.
    """
    slow = [
        layer.name for layer in model._flatten_layers(include_self=False) if _slow_in_cpu_xla(layer)
    ]  # of models within it, too
    xla = gpu or not slow
    why = "" if xla else f", without XLA, which is slow on a CPU for {', '.join(slow)}"
    if devices > 1:
        if wanted == "device_loop":
            raise RequestError("trainer.execution=device_loop runs on one device, trainer.devices asks for more")
        return Execution("mirrored_keras" if wanted == "keras" else "mirrored", False, f"{devices} devices")
    if wanted == "keras":
        return Execution("keras", xla, "asked for" + why)
    return Execution("device_loop", xla, ("one device" if wanted == "auto" else "asked for") + why)


def _slow_in_cpu_xla(layer: keras.Layer) -> bool:
    convolves = any("Conv" in kind.__name__ for kind in type(layer).__mro__)  # a subclass may have any name
    draws = any(isinstance(held, keras.random.SeedGenerator) for held in vars(layer).values())
    return convolves or (draws and not isinstance(layer, CHEAP_RANDOM_LAYERS))


class Training(NamedTuple):
    """What `fit` trains by."""

    loss: keras.losses.Loss
    optimizer: keras.Optimizer  # built by the caller, so that its schedule may know the number of steps
    epochs: int  # passes over the training images
    batch_size: int  # images a step, over all replicas
    seed: int  # of the order of the images
    execution: Execution
    augmentation: Augmentation | None = None  # of the training images
    # Their batch hooks fire once a chunk of steps, at least `calls_per_epoch` times an epoch if one has this attribute;
    # in plain `fit` once a step. Checkpoints also hold the state of Keras' own callbacks, and of others that have
    # `get_state` and `set_state`.
    callbacks: Mapping[str, keras.callbacks.Callback] = MappingProxyType({})
    checkpoints: Path | None = None  # folder to continue from, if it has a checkpoint, and to write them to


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
    """
    execution, optimizer = training.execution, training.optimizer
    mirrored = execution.name.startswith("mirrored")
    mixed = training.augmentation is not None and training.augmentation.mixing
    accuracy = keras.metrics.CategoricalAccuracy if mixed else keras.metrics.SparseCategoricalAccuracy
    model.compile(
        optimizer=optimizer,
        loss=training.loss,
        **{"weighted_metrics" if mirrored else "metrics": [accuracy(name="accuracy")]},
        jit_compile=execution.xla and execution.name == "keras",
    )
    with model.distribute_strategy.scope():  # Keras builds it while tracing, where ScheduleFreeAdamW reads no weights
        build_optimizer_state(model)
    if mirrored:
        sum_gradients_first(model.optimizer)
    report = Report(len(dataset.train.labels), on_epoch, within_epoch)
    keep = Checkpoints(training.checkpoints, report, training.callbacks, within_epochs=execution.name == "device_loop")
    done, chunk = keep.restore(model)
    with _feed(model, dataset, training, done, chunk) as feed:
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
    best = best_epoch(training.callbacks) or len(report.rows)
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
def _feed(model: keras.Model, dataset: Dataset, training: Training, first_epoch: int, chunk: int) -> Iterator[_Feed]:
    train, validation, batch_size = dataset.train, dataset.validation, training.batch_size
    images, xla, augmentation = len(train.labels), training.execution.xla, training.augmentation
    if augmentation is not None and augmentation.mixing:
        train, validation = (soft(split, dataset.num_classes) for split in (train, validation))
    span = range(first_epoch, training.epochs)
    with epochs_of(dataset.train, training.seed, augmentation, span) as epochs:
        name, replicas = training.execution.name, model.distribute_strategy.num_replicas_in_sync
        means = [OwnMeans(images, batch_size, replicas)] if replicas > 1 else []
        calls = max((getattr(callback, "calls_per_epoch", 1) for callback in training.callbacks.values()), default=1)
        longest = min(CHUNK_XLA if xla else CHUNK_GRAPH, max(1, -(-images // batch_size) // calls))
        cut = chunks(epochs, images, batch_size, longest, last_alone=name == "mirrored")
        first = first_epoch * cut.per_epoch
        if name == "device_loop":
            loop = device_loop(model, train, validation, batch_size, cut, xla=xla, done=first + chunk)
            with loop as (cached, seconds):
                numbers = tf.data.Dataset.range(first, 2**62)
                yield _Feed(cached, numbers, cut.per_epoch, tf.data.Dataset.range(1), seconds)
        elif name == "mirrored":
            with mirrored_loop(model, train, validation, batch_size, cut):
                numbers = tf.data.Dataset.range(first, 2**62)
                yield _Feed(model, numbers, cut.per_epoch, tf.data.Dataset.range(1), 0.0, means)
        else:
            batches = training_batches(train, epochs, augmentation is not None, batch_size, replicas, span)
            yield _Feed(model, batches, -(-images // batch_size), validation_batches(validation, replicas), 0.0, means)
