"""The rules for a model: uint8 images in, one float32 logit for each class out."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from mnist_exp.errors import RequestError, first_line
from mnist_exp.models.layers import Shape

# Names of TensorFlow's operations. LogSoftmax is allowed, because it changes neither the loss nor the class.
_ACTIVATIONS = ("Softmax", "Sigmoid", "Tanh", "Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Softplus", "Softsign")
_SAME_VALUES = ("Identity", "Cast", "Reshape", "Squeeze", "ExpandDims", "Transpose", "StopGradient")


def check(model: object, image_shape: Shape, num_classes: int) -> None:
    """Refuses a builder's result that is not a model from uint8 images to float32 logits. Builds an unbuilt model.

    The model is traced, not run: this finds an activation inside a nested model, too, and allocates nothing.

    Raises:
        RequestError: Names the rule and the result.
    """
    if not isinstance(model, keras.Model):
        raise RequestError(f"model._target_ must return a keras.Model, got {type(model).__name__}")
    try:
        if not model.built:
            model(keras.Input(image_shape, dtype="uint8"))
        call = tf.function(lambda images: model(images, training=False), autograph=False)
        graph = call.get_concrete_function(tf.TensorSpec((None, *image_shape), tf.uint8)).graph
    except Exception as error:
        raise RequestError(
            f"model._target_ must return a model that takes images of shape {image_shape}; "
            f"calling it failed: {first_line(error)}"
        ) from error
    mistake = _mistake(getattr(model, "inputs", None) or [], graph, num_classes)
    if mistake:
        raise RequestError(f"model._target_ must return a model {mistake}")


def _mistake(inputs: Sequence[keras.KerasTensor], graph: tf.Graph, num_classes: int) -> str | None:
    logits = graph.structured_outputs
    if any(images.dtype != "uint8" for images in inputs):
        return f'of uint8 images: keras.Input(image_shape, dtype="uint8"), got images of {inputs[0].dtype}'
    if not isinstance(logits, tf.Tensor):
        return f"with one output, got a {type(logits).__name__}"
    if logits.shape.rank != 2 or logits.shape[1] != num_classes:
        return f"with one logit for each class, output shape (None, {num_classes}), got {logits.shape}"
    if logits.dtype != tf.float32:
        return f'of float32 logits, got {logits.dtype.name}: give its last layer dtype="float32"'
    last = graph.outputs[0].op
    while last.type in _SAME_VALUES:
        last = last.inputs[0].op
    if last.type in _ACTIVATIONS:
        return f"of logits, got one that ends in {last.type}: leave out its last activation"
    return None
