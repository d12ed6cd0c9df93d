"""Keras models: raw uint8 images in, logits out; scaling to 0..1 is part of the model.

A builder takes the image shape (height, width, channels) and the number of classes, then its config by keyword.
"""

from collections.abc import Sequence

import keras
import tensorflow as tf

Shape = tuple[int, int, int]


@keras.saving.register_keras_serializable(package="mnist_exp")
class Dropout(keras.layers.Dropout):
    """Dropout (Srivastava et al. 2014) whose mask costs next to nothing inside a compiled loop.

    Keras draws with the Philox generator, which XLA computes on a CPU eight times slower than the whole training
    step; threefry costs nothing measurable. Replicas of a mirrored model draw different masks. The mask depends on
    the layer's seed and the number of masks drawn before, both held in `seed_generator`.
    """

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Float (batch, ...) in and out; scaled by 1 / (1 - rate) where kept, so that the mean stays."""
        if not training or self.rate == 0:
            return inputs
        seed = tf.cast(self.seed_generator.next(), tf.int32)
        replica = tf.distribute.get_replica_context()
        if replica is not None and replica.num_replicas_in_sync > 1:
            seed = tf.random.experimental.stateless_fold_in(seed, replica.replica_id_in_sync_group, alg="threefry")
        uniform = tf.random.stateless_uniform(tf.shape(inputs), seed, alg="threefry")
        scale = tf.cast(1 / (1 - self.rate), inputs.dtype)
        return tf.where(uniform >= self.rate, inputs * scale, tf.zeros_like(inputs))


def linear(image_shape: Shape, num_classes: int) -> keras.Model:
    """Softmax regression; (784 + 1) x 10 parameters on MNIST."""
    images, pixels = _pixels(image_shape)
    return _classifier(images, keras.layers.Flatten()(pixels), num_classes)


def mlp(
    image_shape: Shape,
    num_classes: int,
    *,
    hidden: Sequence[int],
    activation: str,
    dropout: float,
    batch_norm: bool,
) -> keras.Model:
    """Dense layers of the given sizes, each followed by dropout."""
    images, pixels = _pixels(image_shape)
    features = keras.layers.Flatten()(pixels)
    for units in hidden:
        features = Dropout(dropout)(_dense(features, units, activation, batch_norm))
    return _classifier(images, features, num_classes)


def residual(
    image_shape: Shape,
    num_classes: int,
    *,
    width: int,
    blocks: int,
    activation: str,
    dropout: float,
    batch_norm: bool,
) -> keras.Model:
    """Per block: a on the input, b and c side by side on a, merged as concat(b + c, b + c, c)."""
    images, pixels = _pixels(image_shape)
    features = keras.layers.Flatten()(pixels)
    for _ in range(blocks):
        a = _dense(features, width, activation, batch_norm)
        b = _dense(a, width, activation, batch_norm)
        c = _dense(a, width, activation, batch_norm)
        both = keras.layers.Add()([b, c])
        features = Dropout(dropout)(keras.layers.Concatenate()([both, both, c]))
    return _classifier(images, features, num_classes)


def cnn(
    image_shape: Shape,
    num_classes: int,
    *,
    filters: Sequence[int],
    activation: str,
    dropout: float,
    batch_norm: bool,
) -> keras.Model:
    """3x3 convolutions, each halved by 2x2 max pooling; images must be at least 2 ** len(filters) pixels wide.

    Raises:
        ValueError: more filters than the image can be halved.
    """
    if min(image_shape[:2]) < 2 ** len(filters):
        raise ValueError(f"model.filters: {len(filters)} poolings need images of {2 ** len(filters)} pixels or more")
    images, features = _pixels(image_shape)
    for channels in filters:
        features = keras.layers.Conv2D(channels, 3, padding="same", use_bias=not batch_norm)(features)
        features = keras.layers.MaxPooling2D()(_activated(features, activation, batch_norm))
    features = Dropout(dropout)(keras.layers.Flatten()(features))
    return _classifier(images, features, num_classes)


def _pixels(image_shape: Shape) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    images = keras.Input(image_shape, dtype="uint8", name="images")
    return images, keras.layers.Rescaling(1 / 255)(images)


def _dense(features: keras.KerasTensor, units: int, activation: str, batch_norm: bool) -> keras.KerasTensor:
    return _activated(keras.layers.Dense(units, use_bias=not batch_norm)(features), activation, batch_norm)


def _activated(features: keras.KerasTensor, activation: str, batch_norm: bool) -> keras.KerasTensor:
    if batch_norm:  # over the whole batch, not a replica's part of it
        features = keras.layers.BatchNormalization(synchronized=True)(features)
    return keras.layers.Activation(activation)(features)


def _classifier(images: keras.KerasTensor, features: keras.KerasTensor, num_classes: int) -> keras.Model:
    # float32 whatever the policy: the loss of half-precision logits would lose digits.
    logits = keras.layers.Dense(num_classes, dtype="float32", name="logits")(features)
    return keras.Model(images, logits)
