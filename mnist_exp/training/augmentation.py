"""Augments the training images of an epoch by Keras layers, as a pure function of the seed and the epoch.

Every execution trains on the same augmented images, and a continued run on those of an uninterrupted one: before each
block of images the seed generators of the layers are set from (seed, epoch, block).
"""

from collections.abc import Iterator, Mapping

import keras
import numpy as np
import tensorflow as tf

from mnist_exp.errors import RequestError

BLOCK = 8000  # images that are augmented at once: 25 MB of MNIST in float32
SAMPLE = 64  # images that `check` looks at


class Augmentation:
    """Layers that are applied one after the other.

    Args:
        layers: Keras layers from float32 images (n, height, width, channels) in 0 to 255 to such images, by their key
            in the config. They draw from `keras.random.SeedGenerator`s that they hold.
        seed: the run's.
    """

    def __init__(self, layers: Mapping[str, keras.Layer], seed: int) -> None:
        self.layers, self.seed = layers, seed
        self._apply = tf.function(self._layers_of, autograph=False)

    def images(self, images: np.ndarray, epoch: int) -> np.ndarray:
        """Augment the images of an epoch.

        Args:
            images: uint8 (n, height, width, channels), in the order in which the epoch trains on them.
            epoch: from 0.

        Returns:
            uint8, of the same shape.
        """
        done = np.empty_like(images)
        for number, first in enumerate(range(0, len(images), BLOCK)):
            self._set_generators(epoch, number)
            done[first : first + BLOCK] = self._apply(tf.constant(images[first : first + BLOCK]))
        return done

    def check(self, images: np.ndarray) -> None:
        """Refuse layers that break the contract.

        Args:
            images: uint8 (n, height, width, channels), some of the training images.

        Raises:
            RequestError: a layer changes the shape or the labels, or two calls with equal seeds differ.
        """
        sample = tf.cast(images[:SAMPLE], tf.float32)
        labels = tf.one_hot(tf.range(len(sample)) % 2, 2)
        for key, layer in self.layers.items():
            if not isinstance(layer, keras.Layer):
                raise RequestError(f"augment.{key}._target_ must return a keras.Layer, got {type(layer).__name__}")
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
            if hasattr(layer, "transform_labels"):
                self._set_generators(0, 0)
                if not np.array_equal(layer({"images": sample, "labels": labels}, training=True)["labels"], labels):
                    raise RequestError(f"augment.{key} must keep the labels: layers that mix labels are not supported")

    def _layers_of(self, images: tf.Tensor) -> tf.Tensor:
        values = tf.cast(images, tf.float32)
        for layer in self.layers.values():
            values = layer(values, training=True)
        return tf.cast(tf.clip_by_value(tf.round(values), 0.0, 255.0), tf.uint8)

    def _set_generators(self, epoch: int, block: int) -> None:
        for number, generator in enumerate(self._generators()):
            drawn = np.random.SeedSequence([self.seed, epoch, block, number]).generate_state(2)
            generator.state.assign(drawn)

    def _generators(self) -> Iterator[keras.random.SeedGenerator]:
        for layer in self.layers.values():
            for part in layer._flatten_layers():  # layers within it, too
                yield from (held for held in vars(part).values() if isinstance(held, keras.random.SeedGenerator))
