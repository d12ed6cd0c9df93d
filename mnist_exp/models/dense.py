"""Models of dense layers."""

from collections.abc import Sequence

import keras

from mnist_exp.models.layers import Dropout, Shape, classifier, dense, scaled_input


def linear(image_shape: Shape, num_classes: int) -> keras.Model:
    """Softmax regression; (784 + 1) x 10 parameters on MNIST."""
    images, pixels = scaled_input(image_shape)
    return classifier(images, keras.layers.Flatten()(pixels), num_classes)


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
    images, pixels = scaled_input(image_shape)
    features = keras.layers.Flatten()(pixels)
    for units in hidden:
        features = Dropout(dropout)(dense(features, units, activation, batch_norm))
    return classifier(images, features, num_classes)


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
    """Blocks of three dense layers: a takes the input, b and c take a, and concat(b + c, b + c, c) is the output."""
    images, pixels = scaled_input(image_shape)
    features = keras.layers.Flatten()(pixels)
    for _ in range(blocks):
        a = dense(features, width, activation, batch_norm)
        b = dense(a, width, activation, batch_norm)
        c = dense(a, width, activation, batch_norm)
        both = keras.layers.Add()([b, c])
        features = Dropout(dropout)(keras.layers.Concatenate()([both, both, c]))
    return classifier(images, features, num_classes)
