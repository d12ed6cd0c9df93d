"""Many training steps in one compiled program, behind `keras.Model.fit`.

The uint8 images live on the device. Each call of the train function runs a stretch of an epoch as one
`tf.while_loop` that gathers a batch, takes Keras' own `train_step` and accumulates Keras' own metrics, so that the
interpreter, the input pipeline and the launch of kernels are paid once a stretch instead of once a step.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from mnist_exp.data import Split

EVALUATION_BATCH = 1000
Program = Callable[[np.ndarray, int, int], dict[str, tf.Tensor]]
Orders = Callable[[int], np.ndarray]


class Stretches(NamedTuple):
    """Epochs cut into stretches of steps; `fit` iterates over their numbers, `per_epoch` of them an epoch."""

    orders: Orders  # epoch, from 0, to the order of its images, int32 (n,)
    bounds: np.ndarray  # int32 (per_epoch + 1,): stretch i takes steps bounds[i] to bounds[i + 1] - 1

    @property
    def per_epoch(self) -> int:
        """Stretches an epoch."""
        return len(self.bounds) - 1

    def __call__(self, number: int) -> tuple[np.ndarray, int, int]:
        """What a program takes for stretch `number`, counted over all epochs: order, first and end step."""
        epoch, part = divmod(number, self.per_epoch)
        return self.orders(epoch), int(self.bounds[part]), int(self.bounds[part + 1])


def stretches(orders: Orders, images: int, batch_size: int, longest: int) -> Stretches:
    """Cut each epoch evenly into stretches of at most `longest` steps."""
    steps = -(-images // batch_size)
    return Stretches(orders, np.linspace(0, steps, -(-steps // longest) + 1).astype(np.int32))


@contextmanager
def resident(
    model: keras.Model, train: Split, validation: Split, batch_size: int, cut: Stretches, *, xla: bool
) -> Iterator[float]:
    """Inside, `model.fit` over `stretches` trains on `train` and validates on `validation`; yields compile seconds."""
    _build_state(model, train)
    began = time.perf_counter()
    train_program = _program(model, model.train_step, train, batch_size, xla)
    everything = np.arange(len(validation.labels), dtype=np.int32)
    evaluation_batch = min(EVALUATION_BATCH, len(validation.labels))
    test_steps = -(-len(validation.labels) // evaluation_batch)
    test_program = _program(model, model.test_step, validation, evaluation_batch, xla)
    train_program(cut(0)[0], 0, 0)  # no steps: compiles, computes nothing
    test_program(everything, 0, 0)
    compile_seconds = time.perf_counter() - began

    def make_train_function(force: bool = False) -> None:
        model.train_function = lambda numbers: train_program(*cut(int(next(numbers))))

    def make_test_function(force: bool = False) -> None:
        model.test_function = lambda _: test_program(everything, 0, test_steps)

    model.make_train_function, model.make_test_function = make_train_function, make_test_function
    try:
        yield compile_seconds
    finally:
        del model.make_train_function, model.make_test_function
        model.train_function = model.test_function = None


def _build_state(model: keras.Model, split: Split) -> None:
    """Create the variables of optimizer, loss and metrics: inside a loop they could not be created."""
    model.optimizer.build(model.trainable_variables)
    images, labels = split.images[:1], tf.constant(split.labels[:1])
    logits = model(images)
    model.compute_loss(images, labels, logits)
    model.compute_metrics(images, labels, logits)
    model.reset_metrics()


def _program(model: keras.Model, step: Callable, split: Split, batch_size: int, xla: bool) -> Program:
    """A function (order, first, end) that takes `step` on batches first..end-1 of the order."""
    images, labels = tf.constant(split.images), tf.constant(split.labels)
    full, rest = divmod(len(split.labels), batch_size)

    def take(order: tf.Tensor, index: tf.Tensor, size: int) -> tf.Tensor:
        chosen = tf.slice(order, [index * batch_size], [size])
        step((tf.gather(images, chosen), tf.gather(labels, chosen)))
        return index + 1

    @tf.function(jit_compile=xla, autograph=False)
    def full_batches(order: tf.Tensor, first: tf.Tensor, end: tf.Tensor) -> dict[str, tf.Tensor]:
        tf.while_loop(
            lambda index: index < end, lambda index: take(order, index, batch_size), [first], parallel_iterations=1
        )
        return model.get_metrics_result()

    @tf.function(autograph=False)  # one step an epoch: compiling it for its size would cost more than it gains
    def last_batch(order: tf.Tensor) -> dict[str, tf.Tensor]:
        take(order, tf.constant(full), rest)
        return model.get_metrics_result()

    def program(order: np.ndarray, first: int, end: int) -> dict[str, tf.Tensor]:
        order = tf.constant(order)
        logs = full_batches(order, tf.constant(first), tf.constant(min(end, full)))
        return last_batch(order) if end > full else logs

    return program
