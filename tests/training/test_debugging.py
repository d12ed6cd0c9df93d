"""Debug runs: what they find."""

import re

import keras
import pytest

from mnist_exp import losses, models
from mnist_exp.config import check
from mnist_exp.errors import RequestError
from mnist_exp.training import devices, trainer
from mnist_exp.training.callbacks import Diverged
from mnist_exp.training.debugging import FirstNonFinite
from mnist_exp.training.trainer import Execution
from tests.helpers.configs import composed
from tests.helpers.digits import small

KERAS = Execution("keras", False, "")


class NoNumber(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return keras.ops.sum(y_pred, axis=-1) * float("nan")


def train(optimizer, *, execution=KERAS, loss=None):
    """Two steps; returns the trained model."""
    devices.fresh_session(0, "float32")
    model = models.mlp((28, 28, 1), 10, hidden=[8], activation="relu", dropout=0.0, batch_norm=False)
    callbacks = {"find_nan": FirstNonFinite()}
    loss = losses.cross_entropy(10) if loss is None else loss
    trainer.fit(model, small(64, 20), trainer.Training(loss, optimizer, 1, 32, 0, execution, callbacks=callbacks))
    return model


def test_a_healthy_run_ends_with_its_model_as_it_was():
    model = train(keras.optimizers.SGD(0.01))
    assert not [layer for layer in model._flatten_layers() if "call" in vars(layer)]
    assert not model.run_eagerly


@pytest.mark.parametrize(
    ("rate", "loss", "message"),
    [
        # weights of about 1e25 after the first step: the logits of the second are above the largest float32, 3e38
        (1e26, None, "in the output of layer 'logits' in epoch 1, step 2; the layers before it and its weights were f"),
        (0.1, NoNumber(), "in weight 'kernel' of layer 'dense' after epoch 1, step 1; all outputs of layers were fin"),
    ],
    ids=["output", "weights"],
)
def test_the_first_layer_that_is_not_finite_is_named(rate, loss, message):
    with pytest.raises(Diverged, match=rf"^-?(inf|nan) {re.escape(message)}"):
        train(keras.optimizers.SGD(rate), loss=loss)


def test_an_execution_of_many_steps_at_once_is_refused():
    with pytest.raises(RequestError, match=r"^debug=find_nan needs trainer\.execution=keras and one device"):
        train(keras.optimizers.SGD(0.01), execution=Execution("device_loop", False, ""))


@pytest.mark.parametrize("debug", ["fast", "overfit", "find_nan", "profile"])
def test_debug_runs_are_in_an_experiment_of_their_own_and_win_over_a_preset(debug):
    config = check(composed("experiment=wide_mlp", "data=digits", f"debug={debug}"))
    assert config.tracking.experiment == "debug"
    assert not config.trainer.checkpoint
    assert config.model["hidden"] == [512, 256]
    assert config.data["train_size"] == {"fast": 256, "overfit": 64}.get(debug)
    assert config.trainer.epochs == {"fast": 1, "overfit": 200, "find_nan": 5, "profile": 2}[debug]
    assert config.trainer.execution == ("keras" if debug == "find_nan" else "auto")
    assert config.trainer.profile is (debug == "profile")
