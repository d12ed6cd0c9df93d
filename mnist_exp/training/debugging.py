"""A callback that finds where a training goes wrong. Too slow for a run that is no debug run."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from mnist_exp.errors import RequestError
from mnist_exp.training.callbacks import Diverged


class FirstNonFinite(keras.callbacks.Callback):
    """Ends a run at the first NaN or infinity, and names the layer whose output or weights have it.

    It lets TensorFlow run each operation by itself, looks at every output of every layer, and after each step at the
    weights. So it needs plain Keras on one device.

    Raises:
        RequestError: The execution is another one. Raised when the training begins.
        Diverged: Something is not finite.
    """

    def set_model(self, model: keras.Model) -> None:
        """Watch the layers of a model."""
        super().set_model(model)
        device_loop = "make_train_function" in vars(model)
        if device_loop or model.distribute_strategy.num_replicas_in_sync > 1:
            raise RequestError("debug=find_nan needs trainer.execution=keras and one device")
        model.run_eagerly = True
        self.found = ""
        for layer in self._layers():
            layer.call = self._checked(layer.name, layer.call)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Keep the number of the epoch for the message."""
        self.epoch = epoch + 1

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Report what was found in a layer's output, or look at the weights."""
        place = f"epoch {self.epoch}, step {batch + 1}"
        if self.found:
            raise Diverged(f"{self.found} in {place}; the layers before it and its weights were finite")
        for layer in self._layers():
            for weight in layer.weights:
                if value := _non_finite(weight):
                    raise Diverged(
                        f"{value} in weight {weight.name!r} of layer {layer.name!r} after {place}; "
                        "all outputs of layers were finite, so the loss, a gradient or the optimizer's step was not"
                    )

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Leave the model as it was."""
        for layer in self._layers():
            del layer.call
        self.model.run_eagerly = False

    def _layers(self) -> list[keras.Layer]:
        return list(self.model._flatten_layers(include_self=False))

    def _checked(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def checked(*args: Any, **kwargs: Any) -> Any:
            outputs = call(*args, **kwargs)
            for output in keras.tree.flatten(outputs):
                # Raised after the step: Keras would add several lines to an exception from within a layer.
                if not self.found and (value := _non_finite(output)):
                    self.found = f"{value} in the output of layer {name!r}"
            return outputs

        return checked


def _non_finite(values: Any) -> str:
    """The first value that is NaN or infinite, as a text, or an empty one if there is none."""
    array = keras.ops.convert_to_numpy(keras.ops.cast(values, "float32"))
    wrong = array[~np.isfinite(array)]
    return str(wrong[0]) if wrong.size else ""
