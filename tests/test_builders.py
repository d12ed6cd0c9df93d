"""Doors: what a user's own loss, augmentation, callback and score must keep to."""

import keras
import numpy as np
import pytest

from mnist_exp import builders, losses
from mnist_exp.config import CONF_DIR, RULES, check
from mnist_exp.data import Split
from mnist_exp.errors import RequestError
from mnist_exp.training.callbacks import not_resumable
from tests.helpers.configs import composed
from tests.helpers.digits import small

COUNTS = np.ones(10, np.int64)  # of the training images of each class


class Shift(keras.layers.Layer):
    """Rolls the images by a random number of pixels."""

    def __init__(self, most):
        super().__init__()
        self.most, self.generator = most, keras.random.SeedGenerator(0)

    def call(self, images, training=False):
        number = keras.random.randint((), 0, self.most + 1, seed=self.generator)
        return keras.ops.roll(images, number, axis=2)


class Unseeded(keras.layers.Layer):
    def call(self, images, training=False):
        return images + np.random.default_rng().uniform()


class Crop(keras.layers.Layer):
    def call(self, images, training=False):
        return images[:, 1:]


class Doubled(keras.layers.MixUp):
    """Labels that sum to 2."""

    def transform_labels(self, labels, transformation, training=True):
        return 2 * labels


def recall(logits, labels, *, of):
    chosen = labels == of
    return {"recall": float((logits.argmax(axis=1)[chosen] == of).mean()), "images": int(chosen.sum())}


def broken(logits, labels):
    raise KeyError("no such thing")


def single(logits, labels):
    return 0.5


def loss(logits, labels):
    return {"loss": 0.5}


def absolute(num_classes):
    return keras.losses.MeanAbsoluteError()


def infinite(num_classes):
    class Infinite(keras.losses.Loss):
        def call(self, y_true, y_pred):
            return keras.ops.log(0.0 * y_pred[:, 0])

    return Infinite()


def name(function):
    return f"{__name__}.{function.__name__}"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([f"+augment.a._target_={name(Unseeded)}"], r"augment\.a must draw from a keras\.random\.SeedGenerator"),
        ([f"+augment.a._target_={name(Crop)}"], r"augment\.a must keep the images' shape, got \(27, 28, 1\)"),
        ([f"+augment.a._target_={name(Doubled)}"], r"augment\.a must return labels of shape \(64, 10\) whose shares"),
        (
            [f"+augment.a._target_={name(single)}", "+augment.a.logits=1", "+augment.a.labels=1"],
            "must return a keras.L",
        ),
    ],
)
def test_an_augmentation_that_breaks_the_contract_is_refused(given, message):
    with pytest.raises(RequestError, match=message):
        builders.build_augmentation(check(composed("data=digits", *given)), small())


def test_augmented_images_are_a_function_of_seed_and_epoch():
    given = ["data=digits", f"+augment.move={{_target_:{name(Shift)},most:3}}"]
    few = small(100).train
    images = few.images
    made = builders.build_augmentation(check(composed(*given)), small())
    again = builders.build_augmentation(check(composed(*given)), small())
    other = builders.build_augmentation(check(composed(*given, "seed=1")), small())
    epochs = [made.split(few, epoch).images for epoch in range(8)]
    assert all(np.array_equal(again.split(few, epoch).images, epochs[epoch]) for epoch in (5, 0, 5))
    moves = [next(m for m in range(4) if np.array_equal(np.roll(images, m, axis=2), done)) for done in epochs]
    assert len(set(moves)) > 1
    assert any(not np.array_equal(other.split(few, epoch).images, done) for epoch, done in enumerate(epochs))


def test_augmented_images_are_whole_numbers_within_the_range_of_a_pixel():
    layers = {"brighter": keras.layers.RandomBrightness(1.0, value_range=(0, 255))}
    grey = Split(np.full((50, 4, 4, 1), 200, np.uint8), np.arange(50) % 3)
    done = builders.Augmentation(layers, 0, grey.images, 3).split(grey, 0)
    assert (done.images.dtype, done.images.min() >= 0, done.images.max()) == (np.uint8, True, 255)
    assert np.array_equal(done.labels, grey.labels)


def options(group):
    return sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))


@pytest.mark.parametrize("option", options("callbacks"))
def test_every_callback_is_built_and_resumable_and_its_keys_have_rules(option, tmp_path):
    config = check(composed(f"callbacks={option}", *["schedule=lr_range"] * (option == "lr_range")))
    made = builders.build_callbacks(config, tmp_path)
    assert list(made) == [option] * (option != "none")
    assert not_resumable(made) == []
    rules = {f"{node['_target_']}.{key}" for node in config.callbacks.values() for key in node if key != "_target_"}
    assert rules <= RULES.keys()


def test_every_score_is_built_and_named():
    names = {}
    for option in options("scores"):
        for score in builders.build_scores(check(composed(f"scores={option}")), 4).values():
            names[option] = list(score(np.eye(4, dtype=np.float32), np.arange(4)))
    assert names == {
        "balanced_accuracy": ["balanced_accuracy"],
        "brier": ["brier"],
        "calibration_error": ["calibration_error_10_bins"],
        "macro_f1": ["macro_f1"],
        "top_k": ["top_k_accuracy"],
    }


def test_scores_are_named_after_their_key():
    labels = np.array([0, 1, 1])
    logits = np.eye(2, dtype=np.float32)[[0, 1, 0]]
    given = [f"+scores.{key}={{_target_:{name(recall)},of:1}}" for key in ("one", "recall")]
    found = builders.build_scores(check(composed(*given)), 2)
    assert found["one"](logits, labels) == {"one_recall": 0.5, "one_images": 2.0}
    assert found["recall"](logits, labels) == {"recall": 0.5, "recall_images": 2.0}


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (broken, r"^scores\.x fails: KeyError: 'no such thing'"),
        (single, r"^scores\.x\._target_ must return names and n"),
    ],
)
def test_a_score_that_breaks_the_contract_is_refused(score, message):
    with pytest.raises(RequestError, match=message):
        builders.build_scores(check(composed(f"+scores.x._target_={name(score)}")), 10)


def test_a_score_cannot_replace_one_that_every_run_has():
    given = f"+scores.loss={{_target_:{name(loss)}}}"
    with pytest.raises(RequestError, match=r"^scores\.loss must have another key: every run has loss already"):
        builders.build_scores(check(composed(given)), 10)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (single, r"^loss\._target_ must return a keras\.losses\.Loss, got float"),
        (infinite, r"^loss\._target_ must give one finite number for two images of equal logits, got -inf"),
    ],
)
def test_a_loss_that_breaks_the_contract_is_refused(loss, message):
    with pytest.raises(RequestError, match=message):
        builders.build_loss({"_target_": name(loss), **({"labels": 0} if loss is single else {})}, COUNTS)


def sparse_only(num_classes):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def test_a_loss_has_to_take_soft_labels_only_if_they_are_mixed():
    node = {"_target_": name(sparse_only)}
    builders.build_loss(node, COUNTS)
    with pytest.raises(
        RequestError, match=r"^loss\._target_ must take soft labels, .* because augment\.both mixes lab"
    ):
        builders.build_loss(node, COUNTS, ["both"])


def counted(num_classes, class_counts, *, power):
    return losses.cross_entropy(num_classes, class_weight=list(class_counts**power))


def test_a_loss_that_takes_the_class_counts_gets_them():
    counts = np.arange(1, 11)
    loss = builders.build_loss({"_target_": name(counted), "power": 2}, counts)
    assert loss.class_weights == [float(n * n) for n in counts]
    with pytest.raises(RequestError, match=r"^loss\.class_counts is not a key of mnist_exp\.losses\.cross_entropy"):
        check(composed("+loss.class_counts=[1]"))


def test_callbacks_come_in_the_order_given_and_must_be_of_keras(tmp_path):
    given = ["+callbacks.b._target_=keras.callbacks.TerminateOnNaN", "+callbacks.a._target_=keras.callbacks.History"]
    assert list(builders.build_callbacks(check(composed(*given)), tmp_path)) == ["b", "a"]
    with pytest.raises(
        RequestError, match=r"^callbacks\.a\._target_ must return a keras\.callbacks\.Callback, got Dataset"
    ):
        builders.build_callbacks(
            check(composed("+callbacks.a={_target_:mnist_exp.data.digits,validation:0.2}")), tmp_path
        )
