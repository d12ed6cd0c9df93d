"""Keras models: raw uint8 images in, logits out; scaling to 0..1 is part of the model.

A builder takes the image shape (height, width, channels) and the number of classes, then its config by keyword.
"""

from mnist_exp.models.contract import check
from mnist_exp.models.convolutional import cnn, lenet5, resnet
from mnist_exp.models.dense import linear, mlp, residual
from mnist_exp.models.layers import CHEAP_RANDOM_LAYERS, Dropout, GaussianNoise, Shape
from mnist_exp.models.patches import mixer, vit
from mnist_exp.models.saved import average, portable, saved_weights

__all__ = [
    "CHEAP_RANDOM_LAYERS",
    "Dropout",
    "GaussianNoise",
    "Shape",
    "average",
    "check",
    "cnn",
    "lenet5",
    "linear",
    "mixer",
    "mlp",
    "portable",
    "residual",
    "resnet",
    "saved_weights",
    "vit",
]
