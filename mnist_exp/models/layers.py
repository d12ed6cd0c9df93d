"""The layers that the builders of this folder share, from raw uint8 images to float32 logits."""

import math

import keras
import tensorflow as tf

Shape = tuple[int, int, int]


@keras.saving.register_keras_serializable(package="mnist_exp")
class Dropout(keras.layers.Dropout):
    """Dropout (Srivastava et al. 2014) with a mask that is cheap inside a compiled loop.

    With XLA on a CPU, Keras' Philox generator takes eight times as long as the rest of a small network's step.
    `_random_bits` does not, and its bits are the same in every execution.
    """

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Floats (batch, ...) in and out. Kept values are divided by 1 - rate, so that the mean stays."""
        if not training or self.rate == 0:
            return inputs
        kept = _random_bits(inputs, self.seed_generator) >= tf.constant(round(self.rate * 2**32), tf.uint32)
        scale = tf.cast(1 / (1 - self.rate), inputs.dtype)
        return tf.where(kept, inputs * scale, tf.zeros_like(inputs))


@keras.saving.register_keras_serializable(package="mnist_exp")
class GaussianNoise(keras.layers.GaussianNoise):
    """Adds normal noise of mean 0 and standard deviation `stddev`, drawn as cheaply as the masks of `Dropout`."""

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Floats (batch, ...) in and out. The noise is computed in float32."""
        if not training or self.stddev == 0:
            return inputs
        bits = _random_bits(inputs, self.seed_generator)
        # Box and Muller 1958: two uniform numbers, the first above 0, to one normal number.
        radius, angle = ((tf.cast(drawn, tf.float32) + 0.5) / 2**32 for drawn in (bits, _hash(bits ^ _SECOND)))
        normal = tf.sqrt(-2 * tf.math.log(radius)) * tf.cos(2 * math.pi * angle)
        return inputs + tf.cast(self.stddev * normal, inputs.dtype)


# Their random numbers are cheap inside a program that XLA compiles, unlike those of Keras' own layers.
CHEAP_RANDOM_LAYERS = (Dropout, GaussianNoise)
_SECOND = 0x9E3779B9  # any constant: it makes the second number of a position another hash than the first


def _random_bits(inputs: tf.Tensor, generator: keras.random.SeedGenerator) -> tf.Tensor:
    """uint32 of the shape of `inputs`: a hash of seed and number of draws (`generator` has both), replica and position.

    XLA fuses these few integer operations.
    """
    seed, drawn = tf.unstack(tf.cast(generator.next(), tf.uint32))
    replica = tf.distribute.get_replica_context()
    number = replica.replica_id_in_sync_group if replica is not None else 0
    key = _hash(_hash(_hash(seed) ^ drawn) ^ tf.cast(number, tf.uint32))
    positions = tf.reshape(tf.range(tf.size(inputs)), tf.shape(inputs))
    return _hash(_hash(tf.cast(positions, tf.uint32)) ^ key)


def _hash(x: tf.Tensor) -> tf.Tensor:
    """A uint32 hash without visible bias: `lowbias32` of https://nullprogram.com/blog/2018/07/31/."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ tf.bitwise.right_shift(x, tf.constant(shift, tf.uint32))) * tf.constant(factor, tf.uint32)
    return x ^ tf.bitwise.right_shift(x, tf.constant(16, tf.uint32))


def scaled_input(image_shape: Shape) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """The input layer of raw uint8 images, and its pixels scaled to 0..1."""
    images = keras.Input(image_shape, dtype="uint8", name="images")
    return images, keras.layers.Rescaling(1 / 255)(images)


def activated(
    features: keras.KerasTensor, activation: str, batch_norm: bool, *, layer_norm: bool = False, noise: float = 0.0
) -> keras.KerasTensor:
    """Batch or layer normalisation and Gaussian noise, if asked for, and the activation."""
    if batch_norm:  # synchronized: statistics of the whole batch, not of one replica's part
        features = keras.layers.BatchNormalization(synchronized=True)(features)
    if layer_norm:
        features = keras.layers.LayerNormalization()(features)
    if noise > 0:
        features = GaussianNoise(noise)(features)
    return keras.layers.Activation(activation)(features)


def classifier(images: keras.KerasTensor, features: keras.KerasTensor, num_classes: int) -> keras.Model:
    """A model whose last layer computes one logit for each class."""
    # Always float32, because a loss of half-precision logits would lose digits.
    logits = keras.layers.Dense(num_classes, dtype="float32", name="logits")(features)
    return keras.Model(images, logits)
