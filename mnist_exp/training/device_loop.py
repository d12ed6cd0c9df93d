"""The device loop: many training steps in one compiled program, behind `keras.Model.fit`.

The uint8 images are in the memory of the device. Each call of the train function runs a chunk of an epoch as one
`tf.while_loop`. A step gathers a batch, takes Keras' own `train_step` and updates Keras' own metrics. So Python, the
input pipeline and the launch of kernels cost time once a chunk instead of once a step.

Compiled programs are cached per architecture, because compiling one takes a second and TensorFlow never frees it (some
10 MiB). A run copies its state into the cached model, trains that, and copies the state back.
"""

import gc
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from mnist_exp.data import Split

EVALUATION_BATCH = 1000
CACHED = 16  # programs; a sweep over fewer combinations compiles each of them once
Logs = dict[str, tf.Tensor]  # Keras' running metrics
Function = Any  # a tf.function
# An epoch, from 0, to its images and their order, int32 (n,). The same `Split` object as long as the images are equal.
Epochs = Callable[[int], tuple[Split, np.ndarray]]


class Chunks(NamedTuple):
    """Epochs cut into chunks of steps. `fit` iterates over the numbers of the chunks, `per_epoch` of them an epoch."""

    epochs: Epochs
    bounds: np.ndarray  # int32 (per_epoch + 1,): chunk i takes the steps bounds[i] to bounds[i + 1] - 1

    @property
    def per_epoch(self) -> int:
        """Chunks an epoch."""
        return len(self.bounds) - 1

    def __call__(self, number: int) -> tuple[Split, np.ndarray, int, int]:
        """The arguments of a program for a chunk, counted over all epochs: images, order, first and end step."""
        epoch, part = divmod(number, self.per_epoch)
        return *self.epochs(epoch), int(self.bounds[part]), int(self.bounds[part + 1])


def chunks(epochs: Epochs, images: int, batch_size: int, longest: int, *, last_alone: bool = False) -> Chunks:
    """Cut each epoch evenly into chunks of at most `longest` steps. With `last_alone` the last step is a chunk."""
    steps = -(-images // batch_size) - last_alone
    bounds = np.linspace(0, steps, -(-steps // longest) + 1)
    if last_alone:
        bounds = np.append(bounds, steps + 1)
    return Chunks(epochs, bounds.astype(np.int32))


class Programs(NamedTuple):
    """A model and the functions that take its steps. An order chooses the images of the batches."""

    model: keras.Model
    batches: Function  # images, labels, order, first and end step
    rest: Function  # images, labels, order of the last, smaller batch
    test_batches: Function
    test_rest: Function


@contextmanager
def device_loop(
    model: keras.Model, train: Split, validation: Split, batch_size: int, cut: Chunks, *, xla: bool, done: int = 0
) -> Iterator[tuple[keras.Model, float]]:
    """Yields a model whose `fit` trains on `train`, one chunk of steps per call, and validates on `validation`.

    Args:
        model: compiled. Training starts from its state and at the end writes the trained state back into it.
        train: gives the programs the shapes and types of the images that `cut` chooses.
        validation: scored whole in each call.
        batch_size: images per step.
        cut: `fit` iterates over the numbers of its chunks.
        xla: whether XLA compiles the training steps.
        done: chunks that a checkpoint has, counted over all epochs. `fit` passes over them.

    Yields:
        The model to call `fit` on, which is the cached one, and the seconds that compiling took.
    """
    began = time.perf_counter()
    _build_state(model, train)
    evaluation_batch = min(EVALUATION_BATCH, len(validation.labels))
    description = _description(model)
    if description is None:
        programs = _programs(model, batch_size, evaluation_batch, xla)
    else:
        programs = _cached_programs(description, batch_size, evaluation_batch, xla)
        _build_state(programs.model, train)
    train_program = _Program(programs.batches, programs.rest, train, batch_size)
    test_program = _Program(programs.test_batches, programs.test_rest, validation, evaluation_batch)
    everything = validation, np.arange(len(validation.labels), dtype=np.int32)
    with ThreadPoolExecutor(1) as other:  # XLA compiles there while TensorFlow traces here
        compiled = other.submit(train_program.traced())
        train_program.trace_rest()
        test_program.traced()()
        test_program.trace_rest()
        compiled.result()
    compile_seconds = time.perf_counter() - began

    def take_chunk(numbers: Iterator[tf.Tensor]) -> Logs:
        number = int(next(numbers))
        return train_program(*cut(number)) if number >= done else programs.model.get_metrics_result()

    _copy_state(model, programs.model)
    try:
        with functions_of_fit(programs.model, take_chunk, lambda _: test_program(*everything, 0, test_program.steps)):
            yield programs.model, compile_seconds
    finally:
        _copy_state(programs.model, model)


@contextmanager
def functions_of_fit(model: keras.Model, train: Callable, test: Callable) -> Iterator[None]:
    """Makes Keras' `fit` call `train` and `test` instead of its own functions. Both get the iterator over the data."""

    def make_train_function(force: bool = False) -> None:
        model.train_function = train

    def make_test_function(force: bool = False) -> None:
        model.test_function = test

    model.make_train_function, model.make_test_function = make_train_function, make_test_function
    try:
        yield
    finally:
        del model.make_train_function, model.make_test_function
        model.train_function = model.test_function = None


def state(model: keras.Model) -> list[keras.Variable]:
    """Weights, seeds of random layers and all of the optimizer's: slots, averages, learning rate, iterations."""
    return [*model.variables, *model.optimizer.variables]


def build_optimizer_state(model: keras.Model) -> None:
    """Create the optimizer's variables, once: Keras' LossScaleOptimizer makes new ones at each call of `build`."""
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)


def _build_state(model: keras.Model, split: Split) -> None:
    """Create the variables of optimizer, loss and metrics: inside a loop they could not be created."""
    build_optimizer_state(model)
    images, labels = split.images[:1], tf.constant(split.labels[:1])
    logits = model(images)
    model.compute_loss(images, labels, logits)
    model.compute_metrics(images, labels, logits)
    model.reset_metrics()


def _description(model: keras.Model) -> str | None:
    """JSON of all that a program depends on: the model as it was compiled, without the value of a constant rate.

    None for a model with parts of a user's own, which may hold more than they put into their JSON.
    """
    scaled = getattr(model.optimizer, "inner_optimizer", model.optimizer)  # inside of Keras' LossScaleOptimizer
    losses = [model.loss] if isinstance(model.loss, keras.Loss) else []  # a text names one of Keras' own
    if not all(map(_is_known, (model.optimizer, scaled, *losses, *model._flatten_layers()))):
        return None
    tree = json.loads(model.to_json())
    optimizer = tree["compile_config"]["optimizer"]["config"]
    optimizer = optimizer.get("inner_optimizer", {"config": optimizer})["config"]
    if isinstance(optimizer.get("learning_rate"), float):  # a variable, as any other of the state
        optimizer["learning_rate"] = 0.0
    return json.dumps(tree, sort_keys=True)


def _is_known(part: Any) -> bool:
    """True if Keras or this package defines a layer, loss or optimizer and everything that it calls."""
    called = [type(part), *filter(callable, vars(part).values())]
    excluded = getattr(part, "_exclude_from_weight_decay", None)  # of an optimizer; its JSON leaves it out
    return not excluded and all(c.__module__.partition(".")[0] in ("keras", "mnist_exp") for c in called)


@lru_cache(maxsize=CACHED)
def _cached_programs(description: str, batch_size: int, evaluation_batch: int, xla: bool) -> Programs:
    return _programs(keras.models.model_from_json(description), batch_size, evaluation_batch, xla)


def free() -> None:
    """Frees the models of all cached programs, the slots of their optimizers, and Keras' state of them."""
    _cached_programs.cache_clear()
    keras.backend.clear_session()
    gc.collect()  # models are parts of reference cycles


def _copy_state(source: keras.Model, target: keras.Model) -> None:
    if source is not target:
        for ours, theirs in zip(state(source), state(target), strict=True):
            theirs.assign(ours)


def _programs(model: keras.Model, batch_size: int, evaluation_batch: int, xla: bool) -> Programs:
    # Validating is a fiftieth of the work: compiling it by XLA would cost more than it gains.
    return Programs(
        model, *_loop(model, model.train_step, batch_size, xla), *_loop(model, model.test_step, evaluation_batch, False)
    )


def _loop(model: keras.Model, step: Callable, size: int, xla: bool) -> tuple[Function, Function]:
    """The function that takes the steps first..end-1, of `size` images each, and one for the rest of an epoch."""

    def take(images: tf.Tensor, labels: tf.Tensor, chosen: tf.Tensor) -> None:
        step((tf.gather(images, chosen), tf.gather(labels, chosen)))

    @tf.function(jit_compile=xla, autograph=False)
    def batches(images: tf.Tensor, labels: tf.Tensor, order: tf.Tensor, first: tf.Tensor, end: tf.Tensor) -> Logs:
        def body(index: tf.Tensor) -> tf.Tensor:
            take(images, labels, tf.slice(order, [index * size], [size]))
            return index + 1

        tf.while_loop(lambda index: index < end, body, [first], parallel_iterations=1)
        return model.get_metrics_result()

    @tf.function(autograph=False)  # one step an epoch: compiling it by XLA would cost more than it gains
    def rest(images: tf.Tensor, labels: tf.Tensor, chosen: tf.Tensor) -> Logs:
        take(images, labels, chosen)
        return model.get_metrics_result()

    return batches, rest


class _Program:
    """Takes steps on a split: called with the split, the order of its images, a first and an end step."""

    def __init__(self, batches: Function, rest: Function, split: Split, size: int) -> None:
        self.batches, self.rest = batches, rest
        self._load(split)
        self.full = len(split.labels) // size
        self.whole = self.full * size
        self.steps = -(-len(split.labels) // size)

    def _load(self, split: Split) -> None:
        self.split, self.data = split, (tf.constant(split.images), tf.constant(split.labels))

    def __call__(self, split: Split, order: np.ndarray, first: int, end: int) -> Logs:
        if split is not self.split:  # an epoch of augmented images
            self._load(split)
        order = tf.constant(order)
        logs = self.batches(*self.data, order, tf.constant(first), tf.constant(min(end, self.full)))
        return self.rest(*self.data, order[self.whole :]) if end > self.full else logs

    def traced(self) -> Callable[[], Any]:
        """Trace the whole batches; returns a call that takes no step, for which XLA has to compile."""
        nothing = (*self.data, tf.range(len(self.data[1])), tf.constant(0), tf.constant(0))
        self.batches.get_concrete_function(*nothing)
        return lambda: self.batches(*nothing)

    def trace_rest(self) -> None:
        """Trace the last, smaller batch, if there is one."""
        if self.steps > self.full:
            self.rest.get_concrete_function(*self.data, tf.range(len(self.data[1]))[self.whole :])
