"""The layers that the builders of this folder share, from raw uint8 images to float32 logits."""

import keras
import tensorflow as tf

Shape = tuple[int, int, int]


@keras.saving.register_keras_serializable(package="mnist_exp")
class Dropout(keras.layers.Dropout):
    """Dropout (Srivastava et al. 2014) with a mask that is cheap inside a compiled loop.

    With XLA on a CPU, Keras' Philox generator takes eight times as long as the rest of a small network's step. This
    layer hashes its seed, the number of masks drawn before (both in `seed_generator`), the replica and the position to
    an integer. XLA fuses these few operations, and the bits are the same in every execution.
    """

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Floats (batch, ...) in and out. Kept values are divided by 1 - rate, so that the mean stays."""
        if not training or self.rate == 0:
            return inputs
        seed, drawn = tf.unstack(tf.cast(self.seed_generator.next(), tf.uint32))
        replica = tf.distribute.get_replica_context()
        number = replica.replica_id_in_sync_group if replica is not None else 0
        key = _hash(_hash(_hash(seed) ^ drawn) ^ tf.cast(number, tf.uint32))
        positions = tf.reshape(tf.range(tf.size(inputs)), tf.shape(inputs))
        kept = _hash(_hash(tf.cast(positions, tf.uint32)) ^ key) >= tf.constant(round(self.rate * 2**32), tf.uint32)
        scale = tf.cast(1 / (1 - self.rate), inputs.dtype)
        return tf.where(kept, inputs * scale, tf.zeros_like(inputs))


def _hash(x: tf.Tensor) -> tf.Tensor:
    """A uint32 hash without visible bias: `lowbias32` of https://nullprogram.com/blog/2018/07/31/."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ tf.bitwise.right_shift(x, tf.constant(shift, tf.uint32))) * tf.constant(factor, tf.uint32)
    return x ^ tf.bitwise.right_shift(x, tf.constant(16, tf.uint32))


def scaled_input(image_shape: Shape) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """The input layer of raw uint8 images, and its pixels scaled to 0..1."""
    images = keras.Input(image_shape, dtype="uint8", name="images")
    return images, keras.layers.Rescaling(1 / 255)(images)


def dense(features: keras.KerasTensor, units: int, activation: str, batch_norm: bool) -> keras.KerasTensor:
    """A dense layer with `activated` behind it."""
    return activated(keras.layers.Dense(units, use_bias=not batch_norm)(features), activation, batch_norm)


def activated(features: keras.KerasTensor, activation: str, batch_norm: bool) -> keras.KerasTensor:
    """Batch normalisation, if asked for, and the activation."""
    if batch_norm:  # synchronized: statistics of the whole batch, not of one replica's part
        features = keras.layers.BatchNormalization(synchronized=True)(features)
    return keras.layers.Activation(activation)(features)


def classifier(images: keras.KerasTensor, features: keras.KerasTensor, num_classes: int) -> keras.Model:
    """A model whose last layer computes one logit for each class."""
    # Always float32, because a loss of half-precision logits would lose digits.
    logits = keras.layers.Dense(num_classes, dtype="float32", name="logits")(features)
    return keras.Model(images, logits)
