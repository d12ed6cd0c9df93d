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
) -> keras.Model:
    """3x3 convolutions, each followed by 2x2 max pooling and the activation; for images of 2 ** len(filters) pixels up.

    Raises:
        RequestError: The image is too small for one halving per filter.
    """
    if min(image_shape[:2]) < 2 ** len(filters):
        raise RequestError(f"model.filters: {len(filters)} poolings need images of {2 ** len(filters)} pixels or more")
    images, features = scaled_input(image_shape)
    for channels in filters:
        features = keras.layers.Conv2D(channels, 3, padding="same", use_bias=not batch_norm)(features)
        # Pooling before the activation (https://arxiv.org/abs/2404.00498): equal for relu, at a quarter of the work.
        features = activated(keras.layers.MaxPooling2D()(features), activation, batch_norm)
    features = Dropout(dropout)(keras.layers.Flatten()(features))
    return classifier(images, features, num_classes)
