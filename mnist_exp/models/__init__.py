"""Keras models: raw uint8 images in, logits out; scaling to 0..1 is part of the model.

A builder takes the image shape (height, width, channels) and the number of classes, then its config by keyword.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from mnist_exp.errors import RequestError, first_line

Shape = tuple[int, int, int]


@keras.saving.register_keras_serializable(package="mnist_exp")
class Dropout(keras.layers.Dropout):
    """Dropout (Srivastava et al. 2014) whose mask costs next to nothing inside a compiled loop.

    XLA on a CPU takes eight times as long for Keras' Philox generator as for the rest of a small network's step. Here
    a mask is an integer hash of the layer's seed, the number of masks drawn before (both held in `seed_generator`), the
    replica and the position: a few operations that XLA fuses, with the same bits in every execution.
    """

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Float (batch, ...) in and out; scaled by 1 / (1 - rate) where kept, so that the mean stays."""
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
    """3x3 convolutions, each followed by 2x2 max pooling and the activation; for images of 2 ** len(filters) pixels up.

    Raises:
        RequestError: more filters than the image can be halved.
    """
    if min(image_shape[:2]) < 2 ** len(filters):
        raise RequestError(f"model.filters: {len(filters)} poolings need images of {2 ** len(filters)} pixels or more")
    images, features = _pixels(image_shape)
    for channels in filters:
        features = keras.layers.Conv2D(channels, 3, padding="same", use_bias=not batch_norm)(features)
        # Pooling first, as in https://arxiv.org/abs/2404.00498: the same for relu, at a quarter of the work.
        features = _activated(keras.layers.MaxPooling2D()(features), activation, batch_norm)
    features = Dropout(dropout)(keras.layers.Flatten()(features))
    return _classifier(images, features, num_classes)


# TensorFlow's operations. LogSoftmax is not among them: it changes no loss and no class.
_ACTIVATIONS = ("Softmax", "Sigmoid", "Tanh", "Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Softplus", "Softsign")
_SAME_VALUES = ("Identity", "Cast", "Reshape", "Squeeze", "ExpandDims", "Transpose", "StopGradient")


def check(model: object, image_shape: Shape, num_classes: int) -> None:
    """Refuse a builder's result that is not a model from uint8 images to float32 logits. Builds an unbuilt model.

    The model is traced, not run. So this also sees an activation inside a nested model, and allocates nothing.

    Raises:
        RequestError: names the rule and the result.
    """
    if not isinstance(model, keras.Model):
        raise RequestError(f"model._target_ must return a keras.Model, got {type(model).__name__}")
    try:
        if not model.built:
            model(keras.Input(image_shape, dtype="uint8"))
        call = tf.function(lambda images: model(images, training=False), autograph=False)
        graph = call.get_concrete_function(tf.TensorSpec((None, *image_shape), tf.uint8)).graph
    except Exception as error:
        raise RequestError(
            f"model._target_ must return a model that takes images of shape {image_shape}; "
            f"calling it failed: {first_line(error)}"
        ) from error
    mistake = _mistake(getattr(model, "inputs", None) or [], graph, num_classes)
    if mistake:
        raise RequestError(f"model._target_ must return a model {mistake}")


def _mistake(inputs: Sequence[keras.KerasTensor], graph: tf.Graph, num_classes: int) -> str | None:
    logits = graph.structured_outputs
    if any(images.dtype != "uint8" for images in inputs):
        return f'of uint8 images: keras.Input(image_shape, dtype="uint8"), got images of {inputs[0].dtype}'
    if not isinstance(logits, tf.Tensor):
        return f"with one output, got a {type(logits).__name__}"
    if logits.shape.rank != 2 or logits.shape[1] != num_classes:
        return f"with one logit for each class, output shape (None, {num_classes}), got {logits.shape}"
    if logits.dtype != tf.float32:
        return f'of float32 logits, got {logits.dtype.name}: give its last layer dtype="float32"'
    last = graph.outputs[0].op
    while last.type in _SAME_VALUES:
        last = last.inputs[0].op
    if last.type in _ACTIVATIONS:
        return f"of logits, got one that ends in {last.type}: leave out its last activation"
    return None


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


def saved_weights(folder: Path) -> list[np.ndarray]:
    """The weights in a SavedModel that Keras exported, in the order in which Keras lists them; nothing of it is run."""
    reader = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
    keys = {key: re.fullmatch(r"variables/(\d+)/\.ATTRIBUTES/.*", key) for key in reader.get_variable_to_shape_map()}
    numbers = {int(match[1]): key for key, match in keys.items() if match is not None}
    arrays = [reader.get_tensor(numbers[number]) for number in sorted(numbers)]
    # Among the variables, not among the weights, Keras has the states of random generators: two integers each.
    return [array for array in arrays if array.dtype.kind not in "iu" or array.shape != (2,)]
