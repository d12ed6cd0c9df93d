"""The images of each epoch, and their batches for Keras' `fit` on one device or several."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache

import keras
import numpy as np
import tensorflow as tf

from mnist_exp.data import Split
from mnist_exp.training.augmentation import Augmentation
from mnist_exp.training.device_loop import EVALUATION_BATCH, Epochs


def batch_order(seed: int, epoch: int, images: int) -> np.ndarray:
    """int32 (images,): the order of the training images in an epoch, a pure function of its arguments."""
    return np.random.default_rng([seed, epoch]).permutation(images).astype(np.int32)


@contextmanager
def epochs_of(train: Split, seed: int, augmentation: Augmentation | None, span: range) -> Iterator[Epochs]:
    """Yields the function from an epoch to its images and their order.

    Augmented images lie in the order in which the epoch takes them. A thread augments the next epoch of `span` while
    one trains, so there are two in memory. When the context is left, the thread ends after its block of images.
    """
    if augmentation is None:
        yield lru_cache(maxsize=1)(lambda epoch: (train, batch_order(seed, epoch, len(train.labels))))
        return
    ended = threading.Event()
    made: dict[int, Future[tuple[Split, np.ndarray]]] = {}  # this epoch's and the next one's

    def make(epoch: int) -> tuple[Split, np.ndarray]:
        order = batch_order(seed, epoch, len(train.labels))
        shuffled = Split(train.images[order], train.labels[order])
        return augmentation.split(shuffled, epoch, ended.is_set), np.arange(len(order), dtype=np.int32)

    with ThreadPoolExecutor(1, "augmentation") as thread:

        def begin(epoch: int) -> None:
            if epoch in span and epoch not in made:
                made[epoch] = thread.submit(make, epoch)

        def epochs(epoch: int) -> tuple[Split, np.ndarray]:  # called by each chunk of an epoch
            made.pop(epoch - 1, None)
            begin(epoch)
            found = made[epoch].result()
            begin(epoch + 1)
            return found

        begin(span.start)  # while the programs compile
        try:
            yield epochs
        finally:
            ended.set()


def training_batches(
    train: Split, epochs: Epochs, augmented: bool, batch_size: int, replicas: int, span: range
) -> tf.data.Dataset:
    """The epochs of `span`, one after the other, as batches in the order that the device loop sees.

    `train` has the shapes and types of the epochs' images and labels. It is what they are if nothing is augmented.
    """
    pixels, labels = tf.constant(train.images), tf.constant(train.labels)
    where, weights, padded_size = padded_batches(len(train.labels), batch_size, replicas)
    weight_of = tf.constant(weights)

    def epoch_batches(epoch: tf.Tensor) -> tf.data.Dataset:
        if augmented:
            parts = tf.numpy_function(lambda e: tuple(epochs(int(e))[0]), [epoch], [pixels.dtype, labels.dtype])
            parts[0].set_shape(pixels.shape)
            parts[1].set_shape(labels.shape)
            elements = tuple(tf.gather(part, where) for part in parts)
        else:
            order = tf.numpy_function(lambda e: epochs(int(e))[1][where], [epoch], tf.int32)
            order.set_shape(where.shape)
            elements = (order,)
        return tf.data.Dataset.from_tensor_slices((*elements, weight_of)).batch(padded_size)

    def gather(*parts: tf.Tensor) -> tuple[tf.Tensor, ...]:
        *chosen, weight = parts
        if not augmented:
            chosen = [tf.gather(pixels, chosen[0]), tf.gather(labels, chosen[0])]
        return (*chosen, weight) if replicas > 1 else tuple(chosen)

    return tf.data.Dataset.range(span.start, span.stop).flat_map(epoch_batches).map(gather).prefetch(2)


def validation_batches(split: Split, replicas: int) -> tf.data.Dataset:
    """A split in batches that the replicas can divide equally; weights keep the metrics those of its own images."""
    places, weights, size = padded_whole(len(split.labels), replicas)
    parts = (split.images[places], split.labels[places], *([weights] if replicas > 1 else []))
    return tf.data.Dataset.from_tensor_slices(parts).batch(size)


def padded_batches(images: int, batch_size: int, replicas: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Places in an epoch's order, their weights, and the size of a batch that the replicas divide equally.

    Some images of a batch come twice, the second time with weight 0. The weights of the others make the loss the mean
    over the batch's own images, so the gradient is that of one device. `OwnMeans` corrects the epoch's metrics. Batch
    normalisation is not exact: it sees the repeated images.
    """
    firsts = range(0, images, batch_size)
    parts = [_padded(np.arange(first, min(first + batch_size, images)), replicas) for first in firsts]
    places, weights = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return places, weights, _multiple(batch_size, replicas)


def padded_whole(images: int, replicas: int) -> tuple[np.ndarray, np.ndarray, int]:
    """As `padded_batches`, for a split that is scored whole: only its last batch has repeated images."""
    return *_padded(np.arange(images), replicas), _multiple(EVALUATION_BATCH, replicas)


def _padded(places: np.ndarray, replicas: int) -> tuple[np.ndarray, np.ndarray]:
    """The places and repeated ones, in all a multiple of `replicas`, and their weights.

    A repeated place weighs 0, each other place so much that the weights are 1 on average.
    """
    count = len(places)
    size = _multiple(count, replicas)
    return np.resize(places, size), np.where(np.arange(size) < count, size / count, 0).astype(np.float32)


def _multiple(count: int, replicas: int) -> int:
    return -(-count // replicas) * replicas


class OwnMeans(keras.callbacks.Callback):
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
        """Keep the running metrics before the last batch."""
        if batch == self.params["steps"] - 2:
            # `logs` is a mean of the replicas' own results, which do not hold all of one another's images.
            self.before = {name: float(value) for name, value in self.model.get_metrics_result().items()}

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Correct the part of the last batch."""
        logs = {} if logs is None else logs  # Keras hands the same dictionary to the callbacks after this one
        for name, mean in self.before.items():
            logs[name] = mean + (logs[name] - mean) * self.factor


def untuned(elements: tf.data.Dataset) -> tf.data.Dataset:
    """Without autotuning: there is nothing to tune, and its end was waited for, up to the length of the training."""
    options = tf.data.Options()
    options.autotune.enabled = False
    return elements.with_options(options)
