"""Models that leave a run and come back: a copy that loads without this package, and the weights of a SavedModel."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mnist_exp.models.layers import CHEAP_RANDOM_LAYERS


def portable(model: keras.Model) -> keras.Model | None:
    """A copy of the model that Keras loads where this package is not installed.

    `Dropout` and `GaussianNoise` of this package become Keras' layers of the same names, which predict the same. The
    copy is not compiled.

    Returns:
        The copy; None if the model has layers or functions that are neither Keras' nor this package's.
    """
    try:
        config = _as_keras(keras.saving.serialize_keras_object(model))
    except Exception:  # noqa: BLE001 - a user's layer may raise anything
        return None
    config.pop("compile_config", None)  # the optimizer and the loss may be the user's, and prediction needs neither
    copy = keras.saving.deserialize_keras_object(config)
    copy.set_weights(model.get_weights())
    return copy


def average(members: Sequence[keras.Model]) -> keras.Model:
    """An ensemble as one model: its logits are the logarithm of the members' mean probabilities.

    Args:
        members: copies from `portable`, which are renamed. They have equal inputs, uint8 images, and return logits.
    """
    images = keras.Input(members[0].input_shape[1:], dtype="uint8", name="images")
    probabilities = []
    for number, member in enumerate(members):
        member.name = f"member_{number}"  # two layers of a model must not have the same name
        probabilities.append(keras.ops.softmax(keras.ops.cast(member(images), "float32")))
    mean = keras.layers.Average(dtype="float32")(probabilities)
    return keras.Model(images, keras.ops.log(keras.ops.maximum(mean, np.finfo(np.float32).tiny)), name="ensemble")


def _as_keras(node: Any) -> Any:
    """A serialized object with Keras' layers in place of this package's; raises ValueError for foreign code."""
    if isinstance(node, list | tuple):
        return [_as_keras(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    name = node.get("registered_name")
    if name in _OWN:
        node = {**node, "module": "keras.layers", "registered_name": None}
    elif node.get("class_name") == "__lambda__" or (name and not str(node["module"]).startswith("keras.")):
        raise ValueError(f"{name or 'a lambda'} is not Keras'")
    return {key: value if key == "compile_config" else _as_keras(value) for key, value in node.items()}


_OWN = {keras.saving.get_registered_name(layer) for layer in CHEAP_RANDOM_LAYERS}


def saved_weights(folder: Path) -> list[np.ndarray]:
    """Reads the weights of a SavedModel that Keras exported, in the order of `model.weights`. Runs no code of it."""
    reader = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
    keys = {key: re.fullmatch(r"variables/(\d+)/\.ATTRIBUTES/.*", key) for key in reader.get_variable_to_shape_map()}
    numbers = {int(match[1]): key for key, match in keys.items() if match is not None}
    arrays = [reader.get_tensor(numbers[number]) for number in sorted(numbers)]
    # Keras also saves the states of random generators, two integers each, which are variables but no weights.
    return [array for array in arrays if array.dtype.kind not in "iu" or array.shape != (2,)]
