"""The device loop over several devices: many steps a call, in which each device takes its part of each batch.

As in `device_loop` the uint8 images are in the memory of the devices, and Keras' own `train_step` takes the steps. The
loop contains `strategy.run`: if `strategy.run` contained the loop, the devices could not sum their gradients. On two
logical CPUs an epoch of the `mlp` takes 0.8 s so, and 4.8 s in `fit` with a call for each step.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mnist_exp.data import Split
from mnist_exp.training.batches import padded_batches, padded_whole
from mnist_exp.training.device_loop import Chunks, Logs, functions_of_fit


@contextmanager
def mirrored_loop(model: keras.Model, train: Split, validation: Split, batch_size: int, cut: Chunks) -> Iterator[None]:
    """Makes `fit` of a mirrored model train one chunk of steps per call, and validate in one call.

    Args:
        model: compiled, with its optimizer built.
        train: has the shapes and types of the images that `cut` chooses.
        validation: scored whole in each call.
        batch_size: images per step, over all devices.
        cut: `fit` iterates over the numbers of its chunks. Its last chunk is the last batch alone.
    """
    replicas = model.distribute_strategy.num_replicas_in_sync
    with model.distribute_strategy.scope():
        model._symbolic_build(data_batch=(train.images[:1], train.labels[:1], np.ones(1, np.float32)))
    images = len(validation.labels)
    train_program = _Program(model, model.train_step, train, *padded_batches(len(train.labels), batch_size, replicas))
    test_program = _Program(model, model.test_step, validation, *padded_whole(images, replicas))
    everything = validation, np.arange(images, dtype=np.int32)
    # So Keras does not hand the numbers of the chunks to the devices. On two logical CPUs that made an epoch take 4.4 s
    # instead of 0.8 s.
    strategy, model._distribute_strategy = model._distribute_strategy, None
    try:
        with functions_of_fit(
            model,
            lambda numbers: train_program(*cut(int(next(numbers)))),
            lambda _: test_program(*everything, 0, test_program.steps),
        ):
            yield
    finally:
        model._distribute_strategy = strategy


@lru_cache(maxsize=4)
def _variables(strategy: tf.distribute.Strategy, use: str, *kinds: tuple[tuple[int, ...], Any]) -> list[tf.Variable]:
    """Mirrored variables of these shapes and dtypes, kept for the next run: TensorFlow did not free their memory."""
    with strategy.scope():
        return [tf.Variable(tf.zeros(shape, dtype), trainable=False) for shape, dtype in kinds]


class _Program:
    """Takes steps on a split: called with the split, the order of its images, a first and an end step.

    Images, labels, order and weights are mirrored variables: tensors would be copied to the devices again and again.
    """

    def __init__(
        self, model: keras.Model, step: Callable, split: Split, where: np.ndarray, weights: np.ndarray, size: int
    ) -> None:
        self.where = where = where.astype(np.int32)  # places in the order
        self.steps = -(-len(where) // size)
        before_last = self.steps - 1
        self.split: Split | None = None
        self.order: np.ndarray | None = None
        strategy = model.distribute_strategy
        kinds = [(array.shape, array.dtype) for array in (*split, where, weights)]
        variables = _variables(strategy, step.__name__, *kinds)
        self.images, self.labels, self.chosen, self.weights = variables
        self.weights.assign(weights)

        def take(place: tf.Tensor, share: int) -> None:
            """Each device takes a step on its share of a batch that begins at a place."""

            def on_one() -> None:
                images, labels, chosen, weights = (variable.read_value() for variable in variables)
                begin = [place + tf.distribute.get_replica_context().replica_id_in_sync_group * share]
                part = tf.slice(chosen, begin, [share])
                step((tf.gather(images, part), tf.gather(labels, part), tf.slice(weights, begin, [share])))

            strategy.run(on_one)

        @tf.function(autograph=False)
        def batches(first: tf.Tensor, end: tf.Tensor) -> Logs:
            def body(index: tf.Tensor) -> tf.Tensor:
                take(index * size, size // strategy.num_replicas_in_sync)
                return index + 1

            tf.while_loop(lambda index: index < end, body, [first], parallel_iterations=1)
            return model.get_metrics_result()

        @tf.function(autograph=False)
        def last() -> Logs:
            take(before_last * size, (len(where) - before_last * size) // strategy.num_replicas_in_sync)
            return model.get_metrics_result()

        self.batches, self.last = batches, last

    def __call__(self, split: Split, order: np.ndarray, first: int, end: int) -> Logs:
        if split is not self.split:  # the first epoch, or another one of augmented images
            self.split = split
            self.images.assign(split.images)
            self.labels.assign(split.labels)
        if order is not self.order:
            self.order = order
            self.chosen.assign(order[self.where])
        logs: Logs = {}
        if first < self.steps - 1:
            logs = self.batches(tf.constant(first), tf.constant(min(end, self.steps - 1)))
        return self.last() if end == self.steps else logs
