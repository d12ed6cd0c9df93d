"""Augments the training images of an epoch by Keras layers, as a pure function of the seed and the epoch.

Every execution trains on the same augmented images, and a continued run on those of an uninterrupted one: before each
block of images the seed generators of the layers are set from (seed, epoch, block).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError

import keras
import numpy as np
import tensorflow as tf

from mnist_exp.data import Split
from mnist_exp.errors import RequestError

BLOCK = 8000 * 28 * 28  # values that are augmented at once: 8,000 images of MNIST, 25 MB in float32
SAMPLE = 64  # images on which the layers are checked
TRIES = 4  # draws in which a layer that mixes labels has to do so at least once


class Augmentation:
    """Layers that are applied one after the other.

    Attributes:
        layers: by their key in the config.
        mixing: keys of the layers that mix labels. If there are any, the labels of the run are soft.

    Args:
        layers: Keras layers from float32 images (n, height, width, channels) in 0 to 255 to such images. They draw from
            `keras.random.SeedGenerator`s that they hold. A layer that mixes labels, such as `keras.layers.MixUp`, takes
            and returns a dictionary of `images` and `labels`, float32 (n, num_classes), one-hot at first.
        seed: the run's.
        images: uint8 (n, height, width, channels), some of the training images, to check the layers on.
        num_classes: of the data set.

    Raises:
        RequestError: a layer changes the shape, makes labels that are no shares, or differs in two calls with equal
            seeds.
    """

    def __init__(self, layers: Mapping[str, keras.Layer], seed: int, images: np.ndarray, num_classes: int) -> None:
        self.layers, self.seed, self.num_classes = layers, seed, num_classes
        self.mixing: tuple[str, ...] = ()
        sample = tf.cast(images[:SAMPLE], tf.float32)
        for key, layer in layers.items():
            if not isinstance(layer, keras.Layer):
                raise RequestError(f"augment.{key}._target_ must return a keras.Layer, got {type(layer).__name__}")
            self._check_images(key, layer, sample)
            if hasattr(layer, "transform_labels") and self._mixes(key, layer, sample):
                self.mixing += (key,)
        self._apply = tf.function(self._layers_of, autograph=False)

    def split(self, split: Split, epoch: int, cancelled: Callable[[], bool] = lambda: False) -> Split:
        """Augment the images of an epoch.

        Args:
            split: in the order in which the epoch trains on it. The labels are integers.
            epoch: from 0.
            cancelled: asked before each block of images.

        Returns:
            Images, uint8 of the same shape. Labels: the same, or float32 (n, num_classes) if layers mix them.

        Raises:
            CancelledError: `cancelled` returned True.
        """
        size = max(SAMPLE, BLOCK // math.prod(split.images.shape[1:]))
        images = np.empty_like(split.images)
        labels = np.empty((len(images), self.num_classes), np.float32) if self.mixing else split.labels.copy()
        for number, first in enumerate(range(0, len(images), size)):
            if cancelled():
                raise CancelledError
            block = slice(first, first + size)
            with tf.device("CPU"):  # the training has the GPU
                self._set_generators(epoch, number)
                tensors = [tf.constant(part[block]) for part in split]
                # A plain call warns of retracing if a process augments few blocks in each of many runs.
                images[block], labels[block] = self._apply.get_concrete_function(*tensors)(*tensors)
        return Split(images, labels)

    def _check_images(self, key: str, layer: keras.Layer, sample: tf.Tensor) -> None:
        results = []
        for _ in range(2):
            self._set_generators(0, 0)
            results.append(np.asarray(layer(sample, training=True)))
        if results[0].shape != sample.shape:
            raise RequestError(f"augment.{key} must keep the images' shape, got {results[0].shape[1:]}")
        if not np.array_equal(results[0], results[1]):
            raise RequestError(
                f"augment.{key} must draw from a keras.random.SeedGenerator that is an attribute of the layer: two "
                "calls with the same seed gave different images, so a run could not be reproduced"
            )

    def _mixes(self, key: str, layer: keras.Layer, sample: tf.Tensor) -> bool:
        """Whether a layer changes labels. Most of Keras' image layers take labels and return them as they are."""
        labels = tf.one_hot(tf.range(len(sample)) % self.num_classes, self.num_classes)
        mixes = False
        for number in range(TRIES):
            self._set_generators(0, number)
            mixed = np.asarray(layer({"images": sample, "labels": labels}, training=True)["labels"])
            shares = mixed.shape == labels.shape and mixed.min() >= 0 and np.allclose(mixed.sum(axis=1), 1, atol=1e-3)
            if not shares:
                raise RequestError(
                    f"augment.{key} must return labels of shape {tuple(labels.shape)} whose shares of the classes sum "
                    f"to 1 for each image, got shape {mixed.shape}"
                )
            mixes = mixes or not np.array_equal(mixed, labels)
        return mixes

    def _layers_of(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        values = tf.cast(images, tf.float32)
        if self.mixing:
            labels = tf.one_hot(labels, self.num_classes)
        for key, layer in self.layers.items():
            if key in self.mixing:
                both = layer({"images": values, "labels": labels}, training=True)
                values, labels = both["images"], both["labels"]
            else:
                values = layer(values, training=True)
        return tf.cast(tf.clip_by_value(tf.round(values), 0.0, 255.0), tf.uint8), labels

    def _set_generators(self, epoch: int, block: int) -> None:
        for number, generator in enumerate(self._generators()):
            drawn = np.random.SeedSequence([self.seed, epoch, block, number]).generate_state(2)
            generator.state.assign(drawn)

    def _generators(self) -> Iterator[keras.random.SeedGenerator]:
        for layer in self.layers.values():
            for part in layer._flatten_layers():  # layers within it, too
                yield from (held for held in vars(part).values() if isinstance(held, keras.random.SeedGenerator))


def soft(split: Split, num_classes: int) -> Split:
    """A split with one-hot labels, float32 (n, num_classes), as runs need whose training labels are mixed."""
    return Split(split.images, np.eye(num_classes, dtype=np.float32)[split.labels])
