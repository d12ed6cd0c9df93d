"""Losses that the config group `loss` names: a function of the number of classes, to a Keras loss on logits.

A loss gets logits, float (n, num_classes), and either sparse labels, (n,) or (n, 1), or soft labels, (n, num_classes).
Labels are soft in runs whose augmentation mixes them, such as `mixup`. Keras hands over both kinds as floats.

In the formulas y are the labels as distributions over the classes c, and p = softmax(logits). Each loss is the mean
over the images of a batch.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from mnist_exp.errors import RequestError


def cross_entropy(
    num_classes: int,
    *,
    label_smoothing: float = 0.0,
    class_weight: str | Sequence[float] | None = None,
    class_counts: np.ndarray | None = None,
) -> keras.losses.Loss:
    """-sum_c w[c] y[c] log p[c].

    Args:
        num_classes: of the data set.
        label_smoothing: e in y = (1 - e) labels + e / num_classes (Szegedy et al., 2016,
            https://arxiv.org/abs/1512.00567).
        class_weight: w. None: 1 for each class. `balanced`: the number of training images, divided by num_classes times
            those of the class, as in scikit-learn. Or num_classes numbers. PyTorch divides by the sum of a batch's
            weights. This loss, like Keras, divides by the number of images.
        class_counts: integers (num_classes,), the training images of each class; `balanced` needs them.

    Raises:
        RequestError: not one weight for each class, or `balanced` and a class without a training image.
    """
    return CrossEntropy(label_smoothing, _class_weights(num_classes, class_weight, class_counts))


def focal(num_classes: int, *, gamma: float) -> keras.losses.Loss:
    """-sum_c y[c] (1 - p[c])^gamma log p[c]: images that are classified well count less.

    Lin et al., 2017, https://arxiv.org/abs/1708.02002, for several classes. Gamma 0 is the cross-entropy.
    """
    return Focal(gamma)


def mean_squared_error(num_classes: int) -> keras.losses.Loss:
    """sum_c (p[c] - y[c])^2 / num_classes, which is the Brier score divided by num_classes.

    On probabilities, not on logits (as in Hui and Belkin, 2020, https://arxiv.org/abs/2006.07322), because then p stays
    an estimate of the probabilities. Every score of a run reads the logits in this way.
    """
    return MeanSquaredError()


def _class_weights(
    num_classes: int, given: str | Sequence[float] | None, counts: np.ndarray | None
) -> list[float] | None:
    if given is None:
        return None
    if given == "balanced":
        if counts is None or not counts.all():
            without = ", ".join(map(str, np.flatnonzero(counts == 0)))
            raise RequestError(
                f"loss.class_weight=balanced needs training images of each class, there are none of class {without}"
            )
        return [float(weight) for weight in counts.sum() / (num_classes * counts)]
    if len(given) != num_classes:
        raise RequestError(f"loss.class_weight must have a weight for each of {num_classes} classes, got {len(given)}")
    return [float(weight) for weight in given]


@keras.saving.register_keras_serializable(package="mnist_exp")
class CrossEntropy(keras.losses.Loss):
    """See `cross_entropy`."""

    def __init__(self, label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.label_smoothing, self.class_weights = label_smoothing, class_weights

    def call(self, labels: keras.KerasTensor, logits: keras.KerasTensor) -> keras.KerasTensor:
        """Float (n,): the loss of each image. Plain sparse labels never become one-hot: an operation takes them."""
        if self.label_smoothing or self.class_weights is not None:
            y = soft_labels(labels, logits.shape[1])
            y = y * (1 - self.label_smoothing) + self.label_smoothing / logits.shape[1]
            if self.class_weights is not None:
                y = y * keras.ops.convert_to_tensor(self.class_weights, y.dtype)
            return -keras.ops.sum(y * keras.ops.log_softmax(logits), axis=1)
        if is_soft(labels):
            return keras.losses.categorical_crossentropy(labels, logits, from_logits=True)
        return keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {"label_smoothing": self.label_smoothing, "class_weights": self.class_weights}


@keras.saving.register_keras_serializable(package="mnist_exp")
class Focal(keras.losses.Loss):
    """See `focal`."""

    def __init__(self, gamma: float) -> None:
        super().__init__()
        self.gamma = gamma

    def call(self, labels: keras.KerasTensor, logits: keras.KerasTensor) -> keras.KerasTensor:
        """Float (n,): the loss of each image."""
        log_p = keras.ops.log_softmax(logits)
        # 1 - p. Never 0, because there the gradient of a power below 1 is infinite.
        rest = keras.ops.maximum(-keras.ops.expm1(log_p), keras.config.epsilon())
        return -keras.ops.sum(soft_labels(labels, logits.shape[1]) * rest**self.gamma * log_p, axis=1)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {"gamma": self.gamma}


@keras.saving.register_keras_serializable(package="mnist_exp")
class MeanSquaredError(keras.losses.Loss):
    """See `mean_squared_error`."""

    def call(self, labels: keras.KerasTensor, logits: keras.KerasTensor) -> keras.KerasTensor:
        """Float (n,): the loss of each image."""
        error = keras.ops.softmax(logits) - soft_labels(labels, logits.shape[1])
        return keras.ops.mean(error**2, axis=1)


def is_soft(labels: keras.KerasTensor) -> bool:
    """Whether labels are soft, (n, num_classes), not sparse, (n,) or (n, 1)."""
    return len(labels.shape) == 2 and labels.shape[1] != 1


def soft_labels(labels: keras.KerasTensor, num_classes: int) -> keras.KerasTensor:
    """Float32 (n, num_classes): soft labels as they are, sparse labels as one-hot vectors."""
    if is_soft(labels):
        return labels
    return keras.ops.one_hot(keras.ops.cast(keras.ops.reshape(labels, (-1,)), "int32"), num_classes)
