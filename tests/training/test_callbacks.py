"""The options of the group `callbacks`: what they do to a training, and what they write."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mnist_exp import losses, models, schedules
from mnist_exp.errors import RequestError
from mnist_exp.training import callbacks, devices, trainer
from mnist_exp.training.trainer import Execution
from tests.helpers.digits import small

DEVICE_LOOP, KERAS = Execution("device_loop", True, ""), Execution("keras", False, "")


class Weights(keras.callbacks.Callback):
    """The weights after each epoch."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(self.model.get_weights())


def fit(optimizer, made, *, epochs=1, execution=DEVICE_LOOP, images=200, batch_size=8):
    devices.fresh_session(0, "float32")
    model = models.mlp((28, 28, 1), 10, hidden=[16], activation="relu", dropout=0.0, batch_norm=True)
    training = trainer.Training(losses.cross_entropy(10), optimizer, epochs, batch_size, 0, execution, callbacks=made)
    return model, trainer.fit(model, small(images, 100), training)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The model after four epochs with three callbacks, its history, the weights after each epoch, the folder."""
    folder, weights = tmp_path_factory.mktemp("run"), Weights()
    made = {"swa": callbacks.swa(start=0.5), "seen": weights}
    made["board"] = callbacks.tensorboard(folder=folder, histograms=True)
    assert callbacks.not_resumable(made) == ["seen"]
    model, fitted = fit(keras.optimizers.SGD(0.05), made, epochs=4)
    return model, fitted.history, weights.seen, folder


def test_swa_ends_with_the_mean_of_the_last_epochs(recorded):
    model, _, seen, _ = recorded
    for last, third, fourth in zip(model.get_weights(), seen[2], seen[3], strict=True):
        np.testing.assert_allclose(last, (third.astype(np.float64) + fourth) / 2, rtol=1e-6)
    assert not np.array_equal(model.get_weights()[0], seen[3][0])


def events(folder):
    """The values of each tag of a folder with TensorBoard's files, in the order of the epochs."""
    found = {}
    for path in sorted(folder.glob("events*")):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, tf.make_ndarray(value.tensor)))
    return found


def test_tensorboard_gets_metrics_and_histograms(recorded):
    _, history, seen, folder = recorded
    train, validation = (events(folder / "tensorboard" / part) for part in ("train", "validation"))
    for found, tag, name in (
        (train, "epoch_loss", "train_loss"),
        (train, "epoch_accuracy", "train_accuracy"),
        (train, "epoch_learning_rate", "learning_rate"),
        (validation, "epoch_loss", "val_loss"),
    ):
        assert [step for step, _ in found[tag]] == [0, 1, 2, 3]
        assert [float(value) for _, value in found[tag]] == pytest.approx(history[name], rel=1e-6)
    (kernel,) = (tag for tag in train if tag.endswith("logits/kernel/histogram"))
    step, bins = train[kernel][3]  # left and right edge and count of each bin
    assert (step, bins[:, 2].sum()) == (3, 160)
    assert (bins[0, 0], bins[-1, 1]) == pytest.approx((seen[3][-2].min(), seen[3][-2].max()), rel=1e-5)


def test_tensorboard_has_to_be_installed(monkeypatch, tmp_path):
    monkeypatch.setattr(callbacks, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"^callbacks=tensorboard needs .*: pip install 'mnist_exp\[tensorboard\]'"):
        callbacks.tensorboard(folder=tmp_path, histograms=False)


@pytest.mark.parametrize("execution", [DEVICE_LOOP, KERAS], ids=lambda execution: execution.name)
def test_the_range_test_measures_the_loss_while_the_rate_rises(execution):
    test, before = callbacks.lr_range(points=25), Weights()
    before.on_train_begin = lambda logs=None: before.seen.append(before.model.get_weights())
    optimizer = keras.optimizers.SGD(schedules.lr_range(1e4, 125, lowest=1e-8))
    model, fitted = fit(optimizer, {"x": before, "test": test}, execution=execution, images=1000)
    assert 10 < len(test.rates) < 25  # it ends early
    # The rate of step n is 1e-4 * 1e8 ** (n / 124). A point is five steps.
    expected = [1e-4 * 1e8 ** ((5 * point + 2.5) / 124) for point in range(len(test.rates))]
    assert test.rates == pytest.approx(expected, rel=1e-3)
    assert test.losses[-1] > 4 * min(test.losses) or not np.isfinite(test.losses[-1])
    assert max(test.losses[:-1]) <= 4 * min(test.losses)
    finite = np.isfinite(test.losses)
    assert fitted.history["train_loss"] == [pytest.approx(np.mean(np.asarray(test.losses)[finite]), rel=1e-6)]
    assert 1e-3 < test.suggestion() < 1
    for now, initial in zip(model.get_weights(), before.seen[0], strict=True):
        assert np.array_equal(now, initial)


def test_the_first_point_of_the_range_test_is_the_loss_of_its_own_images():
    test = callbacks.lr_range(points=25)
    rate = schedules.lr_range(1e-9, 125, lowest=0.5)  # changes nothing
    fit(keras.optimizers.SGD(rate), {"test": test}, images=1000)
    assert len(test.losses) == 25
    assert np.ptp(test.losses) > 0.01  # of 40 images each, not of all until then
    whole = fit(keras.optimizers.SGD(rate), {}, images=1000)[1].history["train_loss"][0]
    assert np.mean(test.losses) == pytest.approx(whole, rel=1e-4)


def test_stop_on_nan_ends_a_diverged_run_within_the_epoch(monkeypatch):
    monkeypatch.setattr(trainer, "CHUNK_XLA", 5)
    optimizer = keras.optimizers.SGD(1e30)
    with pytest.raises(callbacks.Diverged):
        fit(optimizer, {"nan": keras.callbacks.TerminateOnNaN()})
    assert int(optimizer.iterations) == 5  # of 25
