"""Weights from a SavedModel."""

import re
from pathlib import Path

import numpy as np
import tensorflow as tf


def saved_weights(folder: Path) -> list[np.ndarray]:
    """The weights in a SavedModel that Keras exported, in the order in which Keras lists them; nothing of it is run."""
    reader = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
    keys = {key: re.fullmatch(r"variables/(\d+)/\.ATTRIBUTES/.*", key) for key in reader.get_variable_to_shape_map()}
    numbers = {int(match[1]): key for key, match in keys.items() if match is not None}
    arrays = [reader.get_tensor(numbers[number]) for number in sorted(numbers)]
    # Among the variables, not among the weights, Keras has the states of random generators: two integers each.
    return [array for array in arrays if array.dtype.kind not in "iu" or array.shape != (2,)]
