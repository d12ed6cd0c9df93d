"""Models that cut an image into patches and treat each as a token."""

import math

import keras

from mnist_exp.errors import RequestError
from mnist_exp.models.layers import Dropout, Shape, classifier, scaled_input


def mixer(
    image_shape: Shape,
    num_classes: int,
    *,
    patch_size: int,
    width: int,
    blocks: int,
    token_units: int,
    channel_units: int,
    dropout: float,
) -> keras.Model:
    """MLP-Mixer (Tolstikhin et al. 2021, https://arxiv.org/abs/2105.01601).

    Each block mixes the tokens by a network of `token_units`, then the channels by one of `channel_units`.
    Mixer-S/16 is patch_size 16, width 512, blocks 8, token_units 256, channel_units 2048.

    Raises:
        RequestError: The patches do not tile the image.
    """
    images, patches = _patches(image_shape, patch_size)
    tokens = keras.layers.Dense(width)(patches)
    for _ in range(blocks):
        turned = keras.layers.Permute((2, 1))(keras.layers.LayerNormalization(epsilon=1e-6)(tokens))
        mixed = keras.layers.Permute((2, 1))(_feed_forward(turned, token_units, dropout))
        tokens = keras.layers.Add()([tokens, mixed])
        normed = keras.layers.LayerNormalization(epsilon=1e-6)(tokens)
        tokens = keras.layers.Add()([tokens, _feed_forward(normed, channel_units, dropout)])
    return _pooled_classifier(images, tokens, num_classes)


def vit(
    image_shape: Shape,
    num_classes: int,
    *,
    patch_size: int,
    width: int,
    blocks: int,
    heads: int,
    mlp_units: int,
    dropout: float,
) -> keras.Model:
    """Vision transformer (Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929).

    Blocks of self-attention, then a network of `mlp_units`. The classifier takes the mean of the tokens instead of a
    class token, as in https://arxiv.org/abs/2205.01580. ViT-B/16 is patch_size 16, width 768, blocks 12, heads 12,
    mlp_units 3072.

    Raises:
        RequestError: The patches do not tile the image, or the heads do not divide the width.
    """
    if width % heads != 0:
        raise RequestError(f"model.heads must divide model.width={width}, got {heads}")
    images, patches = _patches(image_shape, patch_size)
    # One bias for each position and channel is the learned position embedding.
    tokens = keras.layers.EinsumDense(
        "npc,cd->npd",
        (patches.shape[1], width),
        bias_axes="pd",
        bias_initializer=keras.initializers.RandomNormal(stddev=0.02),
    )(patches)
    for _ in range(blocks):
        normed = keras.layers.LayerNormalization(epsilon=1e-6)(tokens)
        attended = keras.layers.MultiHeadAttention(heads, width // heads)(normed, normed)
        tokens = keras.layers.Add()([tokens, Dropout(dropout)(attended)])
        normed = keras.layers.LayerNormalization(epsilon=1e-6)(tokens)
        tokens = keras.layers.Add()([tokens, _feed_forward(normed, mlp_units, dropout)])
    return _pooled_classifier(images, tokens, num_classes)


def _patches(image_shape: Shape, size: int) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """The input layer, and its patches row by row: (batch, patches, size * size * channels) scaled to 0..1."""
    height, width, channels = image_shape
    if height % size or width % size:
        sizes = [n for n in range(1, math.gcd(height, width) + 1) if height % n == width % n == 0]
        raise RequestError(
            f"model.patch_size must divide height and width of the {height} x {width} images "
            f"({', '.join(map(str, sizes))}), got {size}"
        )
    images, pixels = scaled_input(image_shape)
    rows, columns = height // size, width // size
    cut = keras.layers.Reshape((rows, size, columns, size, channels))(pixels)
    cut = keras.layers.Permute((1, 3, 2, 4, 5))(cut)
    return images, keras.layers.Reshape((rows * columns, size * size * channels))(cut)


def _feed_forward(features: keras.KerasTensor, units: int, dropout: float) -> keras.KerasTensor:
    """Two dense layers over the last axis with a GELU between them; the output is as wide as the input."""
    hidden = Dropout(dropout)(keras.layers.Dense(units, activation="gelu")(features))
    return Dropout(dropout)(keras.layers.Dense(features.shape[-1])(hidden))


def _pooled_classifier(images: keras.KerasTensor, tokens: keras.KerasTensor, num_classes: int) -> keras.Model:
    normed = keras.layers.LayerNormalization(epsilon=1e-6)(tokens)
    return classifier(images, keras.layers.GlobalAveragePooling1D()(normed), num_classes)
