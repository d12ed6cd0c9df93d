"""Models of convolutional layers."""

from collections.abc import Sequence

import keras

from mnist_exp.errors import RequestError
from mnist_exp.models.layers import Dropout, Shape, activated, classifier, scaled_input


def cnn(
    image_shape: Shape,
    num_classes: int,
    *,
    filters: Sequence[int],
    activation: str,
    dropout: float,
    batch_norm: bool,
    # Older configs lack these keys, so the defaults give the model of that time.
    kernel_size: int | Sequence[int] = 3,
    global_pooling: bool = False,
    dense: Sequence[int] = (),
) -> keras.Model:
    """Convolutions, each followed by 2x2 max pooling and the activation; for images of 2 ** len(filters) pixels up.

    The last features are flattened, or averaged over all positions (`global_pooling`, Lin et al. 2013,
    https://arxiv.org/abs/1312.4400). Dense layers of the given sizes follow.

    Raises:
        RequestError: The image is too small for one halving per filter, or the sizes of kernels are not one or one
            for each filter.
    """
    sizes = [kernel_size] * len(filters) if isinstance(kernel_size, int) else kernel_size
    if len(sizes) != len(filters):
        raise RequestError(
            f"model.kernel_size must be one number or one for each of the {len(filters)} model.filters, "
            f"got {list(sizes)}"
        )
    if min(image_shape[:2]) < 2 ** len(filters):
        raise RequestError(f"model.filters: {len(filters)} poolings need images of {2 ** len(filters)} pixels or more")
    images, features = scaled_input(image_shape)
    for channels, size in zip(filters, sizes, strict=True):
        features = keras.layers.Conv2D(channels, size, padding="same", use_bias=not batch_norm)(features)
        # Pooling before the activation (https://arxiv.org/abs/2404.00498): equal for relu, at a quarter of the work.
        features = activated(keras.layers.MaxPooling2D()(features), activation, batch_norm)
    features = (keras.layers.GlobalAveragePooling2D() if global_pooling else keras.layers.Flatten())(features)
    for units in dense:
        features = activated(keras.layers.Dense(units, use_bias=not batch_norm)(features), activation, batch_norm)
    return classifier(images, Dropout(dropout)(features), num_classes)


def lenet5(image_shape: Shape, num_classes: int) -> keras.Model:
    """LeNet-5 (LeCun et al. 1998, "Gradient-based learning applied to document recognition").

    Images below 32x32 are padded with zeros to 32x32, as its authors did with the 28x28 images of MNIST. It differs
    from the paper as most implementations do: each map of the second convolution sees all maps before it, the
    subsampling has no weights, and a dense layer takes the place of the radial basis functions. So it has
    156 + 2,416 + 48,120 + 10,164 + 850 = 61,706 parameters for one channel and ten classes.
    """
    images, features = scaled_input(image_shape)
    missing = [max(0, 32 - size) for size in image_shape[:2]]
    if any(missing):
        features = keras.layers.ZeroPadding2D([(some // 2, some - some // 2) for some in missing])(features)
    for maps in (6, 16):
        features = keras.layers.Conv2D(maps, 5, activation="tanh")(features)
        features = keras.layers.AveragePooling2D(2)(features)
    features = keras.layers.Flatten()(features)
    for units in (120, 84):
        features = keras.layers.Dense(units, activation="tanh")(features)
    return classifier(images, features, num_classes)


def resnet(image_shape: Shape, num_classes: int, *, depth: int, width: int) -> keras.Model:
    """Residual network with pre-activation for small images (He et al. 2016, https://arxiv.org/abs/1603.05027).

    A convolution, then three stages of (depth - 2) / 6 blocks of two 3x3 convolutions, with `width`, 2 `width` and
    4 `width` channels. Each later stage halves the image. Its first shortcut takes every second pixel and pads the
    channels with zeros (option A of https://arxiv.org/abs/1512.03385), so shortcuts have no weights: depth 20 and
    width 16 give the paper's 0.27 million parameters.
    """
    images, pixels = scaled_input(image_shape)
    features = _conv(pixels, width, 1)
    for stage in range(3):
        for block in range((depth - 2) // 6):
            channels, stride = width * 2**stage, 2 if stage > 0 and block == 0 else 1
            active = activated(features, "relu", batch_norm=True)
            # The first activation of a network comes before both of its first block's branches.
            shortcut = active if stage == block == 0 else features
            if stride > 1:
                shortcut = keras.layers.AveragePooling2D(1, stride)(shortcut)  # every second pixel
                shortcut = keras.ops.pad(shortcut, [(0, 0)] * 3 + [(0, channels // 2)])
            residual = activated(_conv(active, channels, stride), "relu", batch_norm=True)
            features = keras.layers.Add()([shortcut, _conv(residual, channels, 1)])
    features = keras.layers.GlobalAveragePooling2D()(activated(features, "relu", batch_norm=True))
    return classifier(images, features, num_classes)


def _conv(features: keras.KerasTensor, channels: int, stride: int) -> keras.KerasTensor:
    """A 3x3 convolution without bias, drawn as by He et al. 2015 (https://arxiv.org/abs/1502.01852)."""
    layer = keras.layers.Conv2D(channels, 3, stride, padding="same", use_bias=False, kernel_initializer="he_normal")
    return layer(features)
