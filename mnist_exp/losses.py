"""Losses that the config group `loss` names: a function of the number of classes, to a Keras loss on logits.

A loss gets logits, float (n, num_classes), and either sparse labels, (n,) or (n, 1), or soft labels, (n, num_classes).
Labels are soft in runs whose augmentation mixes them, such as `mixup`. Keras hands over both kinds as floats.
"""

import keras


def cross_entropy(num_classes: int) -> keras.losses.Loss:
    """Mean over a batch of -sum_c labels[c] log softmax(logits)[c]; the labels are sparse or soft."""
    return CrossEntropy()


@keras.saving.register_keras_serializable(package="mnist_exp")
class CrossEntropy(keras.losses.Loss):
    """See `cross_entropy`. Sparse labels never become one-hot: TensorFlow has an operation for them."""

    def call(self, labels: keras.KerasTensor, logits: keras.KerasTensor) -> keras.KerasTensor:
        """Float (n,): the loss of each image."""
        if is_soft(labels):
            return keras.losses.categorical_crossentropy(labels, logits, from_logits=True)
        return keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)


def is_soft(labels: keras.KerasTensor) -> bool:
    """Whether labels are soft, (n, num_classes), not sparse, (n,) or (n, 1)."""
    return len(labels.shape) == 2 and labels.shape[1] != 1


def soft_labels(labels: keras.KerasTensor, num_classes: int) -> keras.KerasTensor:
    """Float32 (n, num_classes): soft labels as they are, sparse labels as one-hot vectors."""
    if is_soft(labels):
        return labels
    return keras.ops.one_hot(keras.ops.cast(keras.ops.reshape(labels, (-1,)), "int32"), num_classes)
