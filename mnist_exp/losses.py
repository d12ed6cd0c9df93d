"""Losses that the config group `loss` names: a function of the number of classes, to a Keras loss on logits."""

import keras


def cross_entropy(num_classes: int) -> keras.losses.Loss:
    """Mean over a batch of -log softmax(logits)[label]. Logits: float (n, num_classes). Labels: integers (n,)."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
