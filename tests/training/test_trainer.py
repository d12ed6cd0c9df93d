"""The executions of the trainer compute the same thing, and the same thing each time."""

import contextlib
import math
import threading
import time
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from mnist_exp import augment, losses, models, schedules
from mnist_exp.models import layers
from mnist_exp.training import augmentation, batches, checkpoint, device_loop, devices, evaluation, trainer
from mnist_exp.training.augmentation import Augmentation
from mnist_exp.training.callbacks import Diverged, not_resumable, swa, weights_digest
from mnist_exp.training.trainer import Execution
from tests.helpers import replicas
from tests.helpers.digits import small

# Where XLA is not what a test is about, the device loop runs without it: XLA takes a second to compile.
DEVICE_LOOP, DEVICE_LOOP_GRAPH = Execution("device_loop", True, ""), Execution("device_loop", False, "")
KERAS = Execution("keras", False, "")
PLAIN = {"activation": "relu", "dropout": 0.0, "batch_norm": False}


class StepLosses(keras.callbacks.Callback):
    """The running mean loss after each call of the train function."""

    def __init__(self):
        super().__init__()
        self.losses = []

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(logs["loss"])


def train(
    execution,
    build,
    make_optimizer,
    *,
    epochs=2,
    batch_size=64,
    seed=0,
    callbacks=(),
    dataset=None,
    precision="float32",
    loss=None,
    augmentation=None,
):
    """Train from scratch; returns the fitted result, the losses after each call and the weights."""
    devices.fresh_session(seed, precision)
    dataset = dataset or small()
    model = build()
    steps = StepLosses()
    training = trainer.Training(
        losses.cross_entropy(10) if loss is None else loss,
        make_optimizer(),
        epochs,
        batch_size,
        seed,
        execution,
        augmentation,
        {str(number): callback for number, callback in enumerate([steps, *callbacks])},
    )
    fitted = trainer.fit(model, dataset, training)
    return fitted, steps.losses, model.get_weights()


def mlp(**changes):
    return models.mlp((28, 28, 1), 10, hidden=[32], **{**PLAIN, **changes})


def cnn():
    return models.cnn((28, 28, 1), 10, filters=[4], **PLAIN)


OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.05),
    "momentum_global_clipnorm": lambda: keras.optimizers.SGD(0.02, momentum=0.9, nesterov=True, global_clipnorm=0.5),
    "adam_cosine": lambda: keras.optimizers.Adam(schedules.cosine(0.001, 200, alpha=0.0)),
    "adamw_weight_decay": lambda: keras.optimizers.AdamW(0.001, weight_decay=0.01),
    "nadam_one_cycle": lambda: keras.optimizers.Nadam(
        schedules.one_cycle(0.001, 200, warmup=0.3, start=0.1, final=0.001)
    ),
    "rmsprop_step": lambda: keras.optimizers.RMSprop(schedules.step(0.001, 200, drops=[0.5], factor=0.1)),
    "adagrad_exponential": lambda: keras.optimizers.Adagrad(schedules.exponential(0.01, 200, final=0.1)),
    "lion_warmup": lambda: keras.optimizers.Lion(schedules.warmup_cosine(0.0003, 200, warmup=0.1, alpha=0.0)),
    "muon": lambda: keras.optimizers.Muon(0.001, exclude_layers=["logits"]),
    "sgd_ema": lambda: keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.9),
}


@pytest.mark.parametrize("name", ["sgd", "adam_cosine", pytest.param("all", marks=pytest.mark.slow)])
def test_device_loop_agrees_with_keras_at_each_of_200_steps(name, monkeypatch):
    monkeypatch.setattr(trainer, "CHUNK_XLA", 1)
    for chosen in OPTIMIZERS if name == "all" else [name]:
        runs = [train(execution, mlp, OPTIMIZERS[chosen], epochs=13) for execution in (DEVICE_LOOP, KERAS)]
        losses = [run[1] for run in runs]
        assert len(losses[0]) == len(losses[1]) == 13 * 16  # the batch of 40 included
        np.testing.assert_allclose(losses[0][:200], losses[1][:200], rtol=1e-5, err_msg=chosen)
        for ours, theirs in zip(runs[0][2], runs[1][2], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-2, atol=1e-4, err_msg=chosen)


@pytest.mark.parametrize(
    ("build", "execution"),
    [
        pytest.param(lambda: mlp(batch_norm=True), DEVICE_LOOP, id="batch_norm"),
        pytest.param(lambda: mlp(dropout=0.3), DEVICE_LOOP, id="dropout"),
        pytest.param(cnn, DEVICE_LOOP_GRAPH, id="cnn"),
    ],
)
def test_device_loop_agrees_with_keras_for_other_layers(build, execution, monkeypatch):
    monkeypatch.setattr(trainer, "CHUNK_XLA", 1)
    monkeypatch.setattr(trainer, "CHUNK_GRAPH", 1)
    ours, theirs = (train(e, build, OPTIMIZERS["sgd"], epochs=3) for e in (execution, KERAS))
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-5)
    for metric in ("val_loss", "val_accuracy", "train_accuracy"):
        np.testing.assert_allclose(ours[0].history[metric], theirs[0].history[metric], rtol=1e-4)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_device_loop_agrees_with_keras_in_mixed_precision(precision):
    few = small(200, 50)
    ours, theirs = (
        train(execution, mlp, OPTIMIZERS["adam_cosine"], dataset=few, precision=precision)[0].history
        for execution in (DEVICE_LOOP_GRAPH, KERAS)
    )
    for metric in ("train_loss", "val_loss"):
        np.testing.assert_allclose(ours[metric], theirs[metric], rtol=0.02)
    assert ours["learning_rate"] == theirs["learning_rate"]


def test_same_seed_same_bits_also_after_another_run_in_between():
    first = train(DEVICE_LOOP, lambda: mlp(dropout=0.2), OPTIMIZERS["adam_cosine"])
    train(DEVICE_LOOP_GRAPH, cnn, OPTIMIZERS["sgd"], seed=3, epochs=1)
    again = train(DEVICE_LOOP, lambda: mlp(dropout=0.2), OPTIMIZERS["adam_cosine"])
    other = train(DEVICE_LOOP, lambda: mlp(dropout=0.2), OPTIMIZERS["adam_cosine"], seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(first[2], again[2], strict=True))
    assert first[1] == again[1]
    assert first[1] != other[1]


def programs():
    return device_loop._cached_programs.cache_info()


@pytest.mark.parametrize("name", ["adam", pytest.param("sgd_ema", marks=pytest.mark.slow)])
def test_an_equal_model_finds_its_programs_compiled_and_gets_the_same_bits(name):
    make = OPTIMIZERS.get(name, lambda: keras.optimizers.Adam(0.002))
    device_loop._cached_programs.cache_clear()
    alone = train(DEVICE_LOOP, lambda: mlp(dropout=0.1), make, seed=5)
    device_loop._cached_programs.cache_clear()
    train(DEVICE_LOOP, lambda: mlp(dropout=0.1), OPTIMIZERS.get(name, lambda: keras.optimizers.Adam(0.001)), seed=2)
    second = train(DEVICE_LOOP, lambda: mlp(dropout=0.1), make, seed=5)
    assert (programs().misses, programs().hits) == (1, 1)
    assert second[1] == alone[1]
    assert all(np.array_equal(a, b) for a, b in zip(alone[2], second[2], strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_other_settings_of_an_optimizer_get_programs_of_their_own(name):
    model = mlp()
    optimizer = OPTIMIZERS[name]()
    model.compile(optimizer, loss="mse")
    own = device_loop._description(model)
    optimizer.weight_decay = 0.3
    assert own is not None
    assert device_loop._description(model) != own


class Own(keras.layers.Layer):
    """Knows a factor that its config does not tell."""

    factor = 2.0

    def call(self, inputs):
        return inputs * self.factor


def relu(x):
    return keras.ops.maximum(x, -1.0)


@pytest.mark.parametrize("layer", [lambda: Own(), lambda: keras.layers.Activation(relu)], ids=["layer", "function"])
def test_parts_of_a_users_own_are_compiled_anew(layer):
    def build():
        images, pixels = layers.scaled_input((28, 28, 1))
        return layers.classifier(images, layer()(keras.layers.Flatten()(pixels)), 10)

    before = programs()
    first, second = (train(DEVICE_LOOP_GRAPH, build, OPTIMIZERS["sgd"], epochs=1) for _ in range(2))
    assert programs() == before
    assert first[1] == second[1]


def test_an_interrupted_model_has_the_state_it_came_to():
    model = mlp()

    def interrupt(epoch, metrics, weights):
        seen.append(weights)
        raise KeyboardInterrupt

    seen = []
    optimizer = keras.optimizers.Adam()
    training = trainer.Training(losses.cross_entropy(10), optimizer, 3, 64, 0, DEVICE_LOOP_GRAPH)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(model, small(), training, on_epoch=interrupt)
    assert seen == [weights_digest(model)]
    assert int(optimizer.iterations) == 16


def interrupted(folder, execution, build, make_optimizer, make_callbacks, after, precision):
    """Train for five epochs, in one sitting without a folder, else in one that ends `after` an epoch and another.

    A fraction interrupts within an epoch.
    """
    seen = []

    def watch(epoch, metrics, weights):
        seen.append((epoch, metrics["train_loss"], metrics["val_loss"], metrics["learning_rate"], weights))
        if epoch == after:
            raise KeyboardInterrupt

    def watch_within(epochs, metrics):
        if after is not None and after % 1 and epochs >= after:
            raise KeyboardInterrupt

    def sit():
        seen.clear()
        devices.fresh_session(4, precision)
        model = build()
        callbacks = {str(number): callback for number, callback in enumerate(make_callbacks())}
        settings = {"epochs": 5, "batch_size": 64, "seed": 4, "execution": execution, "callbacks": callbacks}
        training = trainer.Training(losses.cross_entropy(10), make_optimizer(), checkpoints=folder, **settings)
        fitted = trainer.fit(model, small(400), training, on_epoch=watch, within_epoch=watch_within)
        return fitted.best_epoch, list(seen), weights_digest(model)

    if after is None:
        return sit()
    with pytest.raises(KeyboardInterrupt):
        sit()
    after = None
    return sit()


def scaled_adamw():
    """The loss scale begins so high that float16 overflows, falls, and then rises every third step."""
    inner = keras.optimizers.AdamW(
        schedules.cosine(0.01, 35, alpha=0.0), weight_decay=0.01, use_ema=True, global_clipnorm=1.0
    )
    return keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0**20, dynamic_growth_steps=3)


def early_stopping(monitor, patience):
    return keras.callbacks.EarlyStopping(monitor, patience=patience, restore_best_weights=True)


def stop_at_once():
    return [early_stopping("val_loss", 1)]


CONTINUED = [
    pytest.param(
        DEVICE_LOOP,
        lambda: mlp(dropout=0.2, batch_norm=True),
        lambda: keras.optimizers.Adam(schedules.cosine(0.01, 35, alpha=0.0), use_ema=True),
        lambda: [early_stopping("val_loss", 9), keras.callbacks.TerminateOnNaN()],
        "float32",
        id="device_loop",
    ),
    pytest.param(DEVICE_LOOP_GRAPH, mlp, scaled_adamw, lambda: [swa(start=0.3)], "mixed_float16", id="float16"),
]


@pytest.mark.parametrize(
    ("execution", "build", "make_optimizer", "make_callbacks", "precision"),
    [
        *CONTINUED,
        pytest.param(
            DEVICE_LOOP,
            mlp,
            scaled_adamw,
            lambda: [swa(start=0.3)],
            "mixed_float16",
            id="float16_xla",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            DEVICE_LOOP,
            mlp,
            lambda: keras.optimizers.SGD(2.0),
            stop_at_once,
            "float32",
            id="stopped",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            KERAS,
            lambda: mlp(dropout=0.2),
            OPTIMIZERS["sgd"],
            lambda: [keras.callbacks.ReduceLROnPlateau(factor=0.5, patience=1, min_delta=10.0)],
            "float32",
            id="keras",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_continued_training_ends_with_the_bits_of_an_uninterrupted_one(
    tmp_path, execution, build, make_optimizer, make_callbacks, precision
):
    whole = interrupted(None, execution, build, make_optimizer, make_callbacks, None, precision)
    for after in (2,) if execution == KERAS else (1, 3):
        again = interrupted(tmp_path / str(after), execution, build, make_optimizer, make_callbacks, after, precision)
        assert again == whole


def save_after_each_chunk(monkeypatch):
    """Makes a run write a checkpoint after each chunk. 400 images in batches of 64 are 7 steps, in four chunks."""
    for name, value in {"PAUSE_SECONDS": 0.0, "WRITING": math.inf, "TICK_SECONDS": 0.0}.items():
        monkeypatch.setattr(f"mnist_exp.training.callbacks.{name}", value)
    for name in ("CHUNK_XLA", "CHUNK_GRAPH"):
        monkeypatch.setattr(trainer, name, 2)


@pytest.mark.parametrize(("execution", "build", "make_optimizer", "make_callbacks", "precision"), CONTINUED)
def test_a_training_continues_within_an_epoch(
    tmp_path, monkeypatch, execution, build, make_optimizer, make_callbacks, precision
):
    save_after_each_chunk(monkeypatch)
    loaded, load = [], checkpoint.load
    monkeypatch.setattr(checkpoint, "load", lambda folder: loaded.append(load(folder)) or loaded[-1])
    whole = interrupted(None, execution, build, make_optimizer, make_callbacks, None, precision)
    for after in (0.5, 2.75):
        folder = tmp_path / str(after)
        again = interrupted(folder, execution, build, make_optimizer, make_callbacks, after, precision)
        assert (loaded[-1].epoch, loaded[-1].chunk) == (int(after), int(after % 1 * 4) - 1)
        assert again == whole


def test_callbacks_that_act_on_batches_have_checkpoints_after_epochs_alone(tmp_path, monkeypatch):
    class Own(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            pass

    save_after_each_chunk(monkeypatch)
    saved = []
    monkeypatch.setattr(checkpoint, "save", lambda folder, state: saved.append(state.chunk))
    for own, chunks in (([Own()], {0}), ([], {0, 1, 2, 3})):
        interrupted(tmp_path, DEVICE_LOOP_GRAPH, mlp, OPTIMIZERS["sgd"], lambda own=own: own, 1, "float32")
        assert set(saved) == chunks


def test_stretches_do_not_change_the_bits(monkeypatch):
    whole = train(DEVICE_LOOP, mlp, OPTIMIZERS["adam_cosine"])
    monkeypatch.setattr(trainer, "CHUNK_XLA", 5)
    cut = train(DEVICE_LOOP, mlp, OPTIMIZERS["adam_cosine"])
    assert (len(whole[1]), len(cut[1])) == (2, 8)
    assert all(np.array_equal(a, b) for a, b in zip(whole[2], cut[2], strict=True))


def test_every_image_is_seen_once_an_epoch():
    for epoch in range(2):
        assert sorted(batches.batch_order(7, epoch, 100)) == list(range(100))
    assert list(batches.batch_order(7, 0, 100)) != list(batches.batch_order(7, 1, 100))
    assert batches.batch_order(7, 0, 100).dtype == np.int32


def test_early_stopping_restores_the_best_epoch():
    dataset = small(200, 100)
    stop = early_stopping("val_loss", 2)
    fitted, _, weights = train(
        DEVICE_LOOP_GRAPH, mlp, lambda: keras.optimizers.SGD(0.9), epochs=60, callbacks=[stop], dataset=dataset
    )
    losses = fitted.history["val_loss"]
    assert len(losses) < 60
    assert fitted.best_epoch == int(np.argmin(losses)) + 1 == len(losses) - 2
    model = mlp()
    model.set_weights(weights)
    logits = evaluation.predict(model, dataset.validation)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(dataset.validation.labels, logits)
    assert float(loss) == pytest.approx(min(losses), rel=1e-5)


def test_keras_callbacks_work_behind_the_compiled_loop(tmp_path):
    best = tmp_path / "best.weights.h5"
    callbacks = [
        keras.callbacks.ReduceLROnPlateau(monitor="val_loss", factor=0.5, patience=1, min_delta=10.0),
        keras.callbacks.ModelCheckpoint(str(best), monitor="val_accuracy", save_best_only=True, save_weights_only=True),
        keras.callbacks.CSVLogger(str(tmp_path / "log.csv")),
    ]
    fitted, _, _ = train(DEVICE_LOOP_GRAPH, mlp, lambda: keras.optimizers.SGD(0.1), epochs=4, callbacks=callbacks)
    assert fitted.history["learning_rate"] == pytest.approx([0.1, 0.05, 0.025, 0.0125])
    assert best.exists()
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 5


def rotation():
    keras.config.set_dtype_policy("float32")  # as `build_augmentation` does
    layers = {"turn": keras.layers.RandomRotation(0.1), "move": augment.shift(pixels=2.0)}  # of Keras, and by OpenCV
    return Augmentation(layers, 3, small().train.images, 10)


def mixed():
    keras.config.set_dtype_policy("float32")
    return Augmentation({"mix": keras.layers.MixUp(0.4)}, 3, small().train.images, 10)


@pytest.mark.parametrize("augmentation", [rotation, mixed])
def test_every_execution_trains_on_the_same_augmented_images(augmentation):
    found = [
        train(execution, mlp, lambda: keras.optimizers.SGD(0.1), augmentation=made)
        for execution, made in ((DEVICE_LOOP, augmentation()), (KERAS, augmentation()), (DEVICE_LOOP_GRAPH, None))
    ]
    looped, plain, without = ([fitted.history, weights] for fitted, _, weights in found)
    for metric in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
        np.testing.assert_allclose(looped[0][metric], plain[0][metric], rtol=1e-5, err_msg=metric)
    for ours, keras_own, other in zip(looped[1], plain[1], without[1], strict=True):
        np.testing.assert_allclose(ours, keras_own, atol=1e-5)
        assert np.abs(ours - other).max() > 1e-3  # it changes the training


def augmenting():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("augmentation")]


@pytest.mark.parametrize("execution", [DEVICE_LOOP_GRAPH, KERAS], ids=["device_loop", "keras"])
def test_the_next_epoch_is_augmented_while_one_trains_and_no_thread_stays(execution, monkeypatch):
    begun, seen = [], []

    def noting(self, split, epoch, cancelled):
        begun.append(epoch)
        return one_epoch(self, split, epoch, cancelled)

    def stop(epoch, metrics, weights):
        seen.append((epoch, augmenting(), max(begun)))
        if epoch == 2:
            raise KeyboardInterrupt

    one_epoch = Augmentation.split
    monkeypatch.setattr(Augmentation, "split", noting)
    training = trainer.Training(
        losses.cross_entropy(10), keras.optimizers.SGD(0.1), 6, 64, 0, execution, rotation(), {}, None
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(mlp(), small(200), training, on_epoch=stop)
    assert [(epoch, len(threads)) for epoch, threads, _ in seen] == [(1, 1), (2, 1)]
    assert all(epoch in (last, last - 1) for epoch, _, last in seen)  # Keras fetches two batches of the next epoch
    assert augmenting() == []


def test_an_augmentation_that_is_no_longer_needed_stops_at_its_block(monkeypatch):
    monkeypatch.setattr(augmentation, "BLOCK", 0)  # 64 images
    blocks, train, stopped = [], small(1000).train, threading.Event()
    made = rotation()

    def applied(*block):
        blocks.append(block)
        stopped.wait(10)
        return block

    monkeypatch.setattr(made, "_apply", SimpleNamespace(get_concrete_function=lambda *block: applied))
    with batches.epochs_of(train, 0, made, range(3)):
        while not blocks:
            time.sleep(0.01)
        threading.Timer(0.2, stopped.set).start()
    assert len(blocks) == 1
    assert augmenting() == []


class SmoothedLoss(keras.losses.Loss):
    """Cross-entropy with smoothed labels, of a user's own."""

    def call(self, y_true, y_pred):
        labels = keras.ops.one_hot(keras.ops.cast(keras.ops.reshape(y_true, (-1,)), "int32"), 10) * 0.9 + 0.01
        return keras.losses.categorical_crossentropy(labels, y_pred, from_logits=True)


def test_a_loss_of_a_users_own_is_what_is_minimised_in_every_execution():
    found = [
        train(execution, mlp, lambda: keras.optimizers.SGD(0.1), loss=loss)
        for execution, loss in ((DEVICE_LOOP, SmoothedLoss()), (KERAS, SmoothedLoss()), (DEVICE_LOOP_GRAPH, None))
    ]
    looped, plain, without = (fitted.history["train_loss"] for fitted, _, _ in found)
    np.testing.assert_allclose(looped, plain, rtol=1e-5)
    assert np.abs(np.subtract(looped, without)).max() > 0.05


class Counting(keras.callbacks.Callback):
    """Stops the training after four epochs in all."""

    def __init__(self):
        super().__init__()
        self.epochs = 0

    def on_epoch_end(self, epoch, logs=None):
        self.epochs += 1
        self.model.stop_training = self.epochs == 4

    def get_state(self):
        return {"epochs": self.epochs}

    def set_state(self, state):
        self.epochs = state["epochs"]


def test_a_continued_training_has_the_state_of_callbacks_and_augments_alike(tmp_path):
    def sit(folder, end):
        def stop(epoch, metrics, weights):
            seen[epoch] = weights
            if epoch == end:
                raise KeyboardInterrupt

        seen = {}
        devices.fresh_session(0, "float32")
        training = trainer.Training(
            losses.cross_entropy(10),
            keras.optimizers.Adam(),
            9,
            64,
            0,
            DEVICE_LOOP_GRAPH,
            rotation(),
            {"own": Counting()},
            folder,
        )
        with contextlib.suppress(KeyboardInterrupt):
            trainer.fit(mlp(), small(200), training, on_epoch=stop)
        return seen

    whole = sit(None, None)
    assert list(whole) == [1, 2, 3, 4]
    assert list(sit(tmp_path, 2)) == [1, 2]
    assert sit(tmp_path, None) == whole


def test_callbacks_whose_state_no_checkpoint_holds_are_named():
    given = {"own": Counting(), "nan": keras.callbacks.TerminateOnNaN(), "plain": keras.callbacks.History()}
    assert not_resumable(given) == ["plain"]


class Patient(keras.callbacks.EarlyStopping):
    """May keep more than its base."""


def test_keras_own_callbacks_are_resumable_and_subclasses_must_say_how():
    given = {"stop": keras.callbacks.EarlyStopping(), "own": Patient(), "rate": keras.callbacks.ReduceLROnPlateau()}
    assert not_resumable(given) == ["own"]


def test_divergence_is_an_error_after_its_epoch_was_reported():
    seen = []
    devices.fresh_session(0, "float32")
    with pytest.raises(Diverged, match=r"train_loss is (nan|inf) after epoch 1"):
        trainer.fit(
            mlp(),
            small(),
            trainer.Training(losses.cross_entropy(10), keras.optimizers.SGD(1e30), 3, 64, 0, DEVICE_LOOP_GRAPH),
            on_epoch=lambda epoch, metrics, weights: seen.append((epoch, metrics["train_loss"])),
        )
    assert [epoch for epoch, _ in seen] == [1]


@pytest.mark.parametrize(
    ("wanted", "build", "replicas", "gpu", "expected"),
    [
        pytest.param("auto", mlp, 1, False, ("device_loop", True, "one device"), id="mlp_cpu"),
        pytest.param("auto", cnn, 1, True, ("device_loop", True, "one device"), id="cnn_gpu"),
        pytest.param(
            "auto", lambda: mlp(dropout=0.2, noise=0.1), 1, False, ("device_loop", True, "one device"), id="own_random"
        ),
        pytest.param("keras", mlp, 1, False, ("keras", True, "asked for"), id="keras"),
        pytest.param("auto", mlp, 2, False, ("mirrored", False, "2 devices"), id="two_devices"),
        pytest.param("keras", mlp, 2, False, ("mirrored_keras", False, "2 devices"), id="two_devices_keras"),
    ],
)
def test_execution_follows_from_layers_and_devices(wanted, build, replicas, gpu, expected):
    assert trainer.choose_execution(wanted, build(), replicas, gpu=gpu) == expected


def test_execution_names_the_layers_that_rule_out_xla_on_a_cpu():
    drops = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5, name="drop"), keras.layers.Dense(2)])
    for model, name in ((cnn(), "conv2d"), (drops, "drop")):
        execution = trainer.choose_execution("auto", model, 1, gpu=False)
        assert (execution.name, execution.xla) == ("device_loop", False)
        assert name in execution.why


class Blur(keras.layers.Conv2D):
    """A convolution layer of a user. Its name does not contain `Conv`."""


class Holder(keras.layers.Layer):
    """A layer that holds layers in a list."""

    def __init__(self):
        super().__init__()
        self.parts = [Blur(2, 3, name="held"), keras.layers.RandomRotation(0.1, name="turn")]

    def call(self, images):
        for part in self.parts:
            images = part(images)
        return images


def test_a_convolution_in_a_model_within_the_model_rules_out_xla_on_a_cpu():
    inner = keras.Sequential([keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(2, 3, name="deep")], name="inner")
    wrapped = keras.layers.TimeDistributed(keras.layers.Conv1D(2, 3, name="wrapped"))
    images = keras.Input((28, 28, 1), dtype="uint8")
    held = Holder()(keras.Sequential([inner], name="outer")(images))
    logits = keras.layers.Dense(10)(keras.layers.Flatten()(wrapped(held)))
    chosen = trainer.choose_execution("auto", keras.Model(images, logits), 1, gpu=False)
    assert not chosen.xla
    for name in ("deep", "wrapped", "held", "turn"):
        assert name in chosen.why


def test_device_loop_on_several_devices_is_refused():
    with pytest.raises(ValueError, match=r"trainer\.execution=device_loop runs on one device"):
        trainer.choose_execution("device_loop", mlp(), 2, gpu=False)


@pytest.fixture(scope="module")
def two_devices(tmp_path_factory):
    """A folder with the models that two logical CPUs trained, how they did, and their trainings of `SOME`."""
    folder = tmp_path_factory.mktemp("two")
    return folder, *replicas.on_several(2, SOME, folder)


ANY = [(1, 1, 1, "float32"), (2, 3, 2, "float32"), (65, 287, 32, "float32"), (101, 2, 50, "float32")]
ANY.append((65, 2, 32, "mixed_float16"))
SOME = [ANY[0], ANY[2]]


@pytest.mark.parametrize(
    ("number", "sizes"),
    [
        pytest.param(2, SOME, id="2-some"),
        pytest.param(2, ANY, marks=pytest.mark.slow, id="2-all"),
        pytest.param(3, ANY, marks=pytest.mark.slow, id="3-all"),
        pytest.param(4, ANY, marks=pytest.mark.slow, id="4-all"),
    ],
)
def test_any_number_of_images_on_any_number_of_devices_is_as_on_one(number, sizes, request):
    """Numbers of training and validation images and batch sizes that 2 or 3 devices cannot divide."""
    several = request.getfixturevalue("two_devices")[2] if sizes == SOME else replicas.on_several(number, sizes)[1]
    for ours, theirs, size in zip(several, replicas.train_sizes(sizes), sizes, strict=True):
        said, exact = f"{number} devices, {size}", size[3] == "float32"
        for metric, rtol in (
            ("val_loss", 1e-6),
            ("val_accuracy", 1e-6),
            ("train_loss", 1e-5),
            ("train_accuracy", 1e-6),
        ):
            rtol = rtol if exact else 0.02
            np.testing.assert_allclose(ours[0][metric], theirs[0][metric], rtol=rtol, err_msg=said)
        for a, b in zip(ours[1], theirs[1], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6 if exact else 1e-3, err_msg=said)
        np.testing.assert_allclose(ours[2], theirs[2], atol=1e-5 if exact else 0.05, err_msg=said)


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    return folder, replicas.train_mlps(folder)


@pytest.mark.parametrize(("run", "layers"), list(enumerate(replicas.MLPS)))
def test_two_devices_end_with_the_weights_of_one(two_devices, one_device, run, layers):
    (one, said_one), (two, said_two, *_) = one_device, two_devices
    by_keras = layers == "keras"
    assert said_one[run][:2] == ["keras" if by_keras else "device_loop", "cpu"]
    assert said_two[run][:2] == ["mirrored_keras" if by_keras else "mirrored", "2 x cpu"]
    np.testing.assert_allclose(said_one[run][2], said_two[run][2], rtol=1e-5)
    with np.load(one / f"{layers}.npz") as a, np.load(two / f"{layers}.npz") as b:
        for name in a.files:
            assert np.abs(a[name] - b[name]).max() <= 1e-6 * np.abs(a[name]).max(), name
    images = small().test.images[:8]
    saved = [tf.saved_model.load(folder / layers) for folder in (one, two)]
    expected, found = (model.serve(images) for model in saved)
    np.testing.assert_allclose(expected, found, rtol=1e-4, atol=1e-5)


def test_an_overflow_on_one_of_two_devices_changes_no_weight(two_devices):
    assert two_devices[3] == [[1.0], 4.0]
