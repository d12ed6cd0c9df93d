"""Weights from a SavedModel."""

import re
from pathlib import Path

import numpy as np
import tensorflow as tf


def saved_weights(folder: Path) -> list[np.ndarray]:
    """Reads the weights of a SavedModel that Keras exported, in the order of `model.weights`. Runs no code of it."""
    reader = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
    keys = {key: re.fullmatch(r"variables/(\d+)/\.ATTRIBUTES/.*", key) for key in reader.get_variable_to_shape_map()}
    numbers = {int(match[1]): key for key, match in keys.items() if match is not None}
    arrays = [reader.get_tensor(numbers[number]) for number in sorted(numbers)]
    # Keras also saves the states of random generators, two integers each, which are variables but no weights.
    return [array for array in arrays if array.dtype.kind not in "iu" or array.shape != (2,)]
