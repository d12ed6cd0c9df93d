"""Keras models: raw uint8 images in, logits out; scaling to 0..1 is part of the model.

A builder takes the image shape (height, width, channels) and the number of classes, then its config by keyword.
"""

from mnist_exp.models.contract import check
from mnist_exp.models.convolutional import cnn
from mnist_exp.models.dense import linear, mlp, residual
from mnist_exp.models.layers import Dropout, Shape
from mnist_exp.models.saved import saved_weights

__all__ = ["Dropout", "Shape", "check", "cnn", "linear", "mlp", "residual", "saved_weights"]
