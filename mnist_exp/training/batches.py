"""The images of each epoch, and their batches for Keras' `fit` on one device or several."""

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


def epochs_of(train: Split, seed: int, augmentation: Augmentation | None) -> Epochs:
    """The images of each epoch and their order. Augmented images lie in the order in which the epoch takes them."""

    @lru_cache(maxsize=1)  # asked for by each chunk of an epoch
    def epochs(epoch: int) -> tuple[Split, np.ndarray]:
        order = batch_order(seed, epoch, len(train.labels))
        if augmentation is None:
            return train, order
        shuffled = Split(train.images[order], train.labels[order])
        return augmentation.split(shuffled, epoch), np.arange(len(order), dtype=np.int32)

    return epochs


def training_batches(
    epochs: Epochs, augmented: bool, batch_size: int, replicas: int, first_epoch: int
) -> tf.data.Dataset:
    """All epochs from a first on, one after the other, as batches in the order that the device loop sees.

    Each batch is divided equally among the replicas: some of its images come twice, the second time with weight 0. The
    weights of the others make the loss the mean over the batch's own images, so the gradient is that of one device.
    `OwnMeans` corrects the epoch's metrics. Batch normalisation is not exact: it sees the repeated images.
    """
    split, order = epochs(first_epoch)
    images, padded_size = len(order), _multiple(batch_size, replicas)
    pixels, labels = tf.constant(split.images), tf.constant(split.labels)
    places, weights = [], []
    for first in range(0, images, batch_size):
        of_batch, weight = _padded(np.arange(first, min(first + batch_size, images)), replicas)
        places.append(of_batch)
        weights.append(weight)
    where, weight_of = np.concatenate(places), tf.constant(np.concatenate(weights))

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

    return tf.data.Dataset.range(first_epoch, 2**31).flat_map(epoch_batches).map(gather).prefetch(2)


def validation_batches(split: Split, replicas: int) -> tf.data.Dataset:
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
