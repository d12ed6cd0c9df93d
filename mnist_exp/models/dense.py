"""Models of dense layers."""

from collections.abc import Sequence

import keras

from mnist_exp.errors import RequestError
from mnist_exp.models.layers import Dropout, GaussianNoise, Shape, activated, classifier, scaled_input


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
    # Older configs lack these keys, so the defaults give the model of that time.
    layer_norm: bool = False,
    input_noise: float = 0.0,
    noise: float = 0.0,
    kernel_initializer: str = "glorot_uniform",
) -> keras.Model:
    """Dense layers of the given sizes: each is normalised, gets noise, is activated, and is followed by dropout.

    The baseline of the Ladder network (Rasmus et al. 2015, https://arxiv.org/abs/1507.02672) is hidden 1000-500-250-
    250-250 with batch_norm, input_noise 0.3 and noise 0.5. Noise is normal with the given standard deviation.

    Raises:
        RequestError: Both normalisations are asked for.
    """
    if batch_norm and layer_norm:
        raise RequestError("model.layer_norm and model.batch_norm exclude each other, got true for both")
    images, pixels = scaled_input(image_shape)
    features = keras.layers.Flatten()(pixels)
    if input_noise > 0:
        features = GaussianNoise(input_noise)(features)
    normalised = batch_norm or layer_norm

    def hidden_layer(units: int, features: keras.KerasTensor) -> keras.KerasTensor:
        layer = keras.layers.Dense(units, use_bias=not normalised, kernel_initializer=kernel_initializer)
        return activated(layer(features), activation, batch_norm, layer_norm=layer_norm, noise=noise)

    for units in hidden:
        # Dropout draws its seed before the dense layer draws its weights. Another order would change all old results.
        features = Dropout(dropout)(hidden_layer(units, features))
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

    def dense(features: keras.KerasTensor) -> keras.KerasTensor:
        return activated(keras.layers.Dense(width, use_bias=not batch_norm)(features), activation, batch_norm)

    images, pixels = scaled_input(image_shape)
    features = keras.layers.Flatten()(pixels)
    for _ in range(blocks):
        a = dense(features)
        b, c = dense(a), dense(a)
        both = keras.layers.Add()([b, c])
        features = Dropout(dropout)(keras.layers.Concatenate()([both, both, c]))
    return classifier(images, features, num_classes)
