"""Losses of the config group `loss`, on labels of both kinds."""

import keras
import numpy as np
import pytest

from mnist_exp import losses
from mnist_exp.errors import RequestError

LOGITS = np.random.default_rng(0).normal(0, 2, (5, 4)).astype(np.float32)
LABELS = np.array([0, 3, 1, 1, 2])


def test_cross_entropy_is_the_mean_of_minus_log_softmax():
    log_p = LOGITS - np.log(np.exp(LOGITS).sum(axis=1, keepdims=True))
    shares = np.array([[0.5, 0.5, 0, 0], [0, 0, 0.3, 0.7], [1, 0, 0, 0], [0, 1, 0, 0], [0.25, 0.25, 0.25, 0.25]])
    loss = losses.cross_entropy(4)
    assert float(loss(LABELS, LOGITS)) == pytest.approx(-log_p[np.arange(5), LABELS].mean(), rel=1e-6)
    assert float(loss(shares.astype(np.float32), LOGITS)) == pytest.approx(-(shares * log_p).sum() / 5, rel=1e-6)


def test_soft_labels_of_both_kinds():
    one_hot = np.eye(4, dtype=np.float32)[LABELS]
    for labels in (LABELS.astype(np.float32), LABELS[:, None].astype(np.float32), one_hot):
        assert np.array_equal(losses.soft_labels(labels, 4), one_hot)


SOFT = np.array([[0.5, 0.5, 0, 0], [0, 0, 0.3, 0.7], [1, 0, 0, 0], [0, 1, 0, 0], [0.25] * 4], np.float32)
P = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)


def both(labels):
    """The labels as distributions, for either kind."""
    return labels if labels.ndim == 2 else np.eye(4)[labels]


@pytest.mark.parametrize("labels", [LABELS, SOFT], ids=["sparse", "soft"])
def test_smoothed_and_weighted_cross_entropy_is_the_formula(labels):
    weights = np.array([0.5, 2.0, 1.0, 0.0])
    loss = losses.cross_entropy(4, label_smoothing=0.2, class_weight=list(weights))
    expected = -((0.8 * both(labels) + 0.2 / 4) * weights * np.log(P)).sum(axis=1).mean()
    assert float(loss(labels, LOGITS)) == pytest.approx(expected, rel=1e-6)
    smoothed = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2)
    ours = losses.cross_entropy(4, label_smoothing=0.2)
    assert float(ours(labels, LOGITS)) == pytest.approx(float(smoothed(both(labels), LOGITS)), rel=1e-6)


def test_balanced_weights_are_those_of_scikit_learn():
    counts = np.array([1, 2, 1, 4])
    loss = losses.cross_entropy(4, class_weight="balanced", class_counts=counts)
    assert loss.class_weights == [2.0, 1.0, 2.0, 0.5]  # 8 / (4 * count)
    with pytest.raises(RequestError, match=r"^loss\.class_weight=balanced needs .* there are none of class 1, 3$"):
        losses.cross_entropy(4, class_weight="balanced", class_counts=np.array([1, 0, 1, 0]))
    with pytest.raises(RequestError, match=r"^loss\.class_weight must have a weight for each of 4 classes, got 3$"):
        losses.cross_entropy(4, class_weight=[1, 2, 3])


@pytest.mark.parametrize("labels", [LABELS, SOFT], ids=["sparse", "soft"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_is_that_of_keras(labels, gamma):
    theirs = keras.losses.CategoricalFocalCrossentropy(alpha=1.0, gamma=gamma, from_logits=True)
    found = float(losses.focal(4, gamma=gamma)(labels, LOGITS))
    assert found == pytest.approx(-(both(labels) * (1 - P) ** gamma * np.log(P)).sum(axis=1).mean(), rel=1e-5)
    assert found == pytest.approx(float(theirs(both(labels), LOGITS)), rel=1e-5)


def test_focal_loss_of_a_certain_model_has_a_finite_gradient():
    import tensorflow as tf

    logits = tf.Variable([[100.0, 0.0], [0.0, 100.0]])
    with tf.GradientTape() as tape:
        loss = losses.focal(2, gamma=0.5)(np.array([0, 0]), logits)
    assert float(loss) == pytest.approx(50.0)
    assert np.isfinite(tape.gradient(loss, logits)).all()


@pytest.mark.parametrize("labels", [LABELS, SOFT], ids=["sparse", "soft"])
def test_mean_squared_error_is_of_probabilities(labels):
    expected = ((P - both(labels)) ** 2).mean()
    assert float(losses.mean_squared_error(4)(labels, LOGITS)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "loss",
    [losses.cross_entropy(4, label_smoothing=0.1, class_weight=[1, 2, 3, 4]), losses.focal(4, gamma=1.5)],
    ids=["cross_entropy", "focal"],
)
def test_a_loss_is_made_again_from_its_config(loss):
    """The device loop's cached programs rely on it."""
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert float(again(LABELS, LOGITS)) == float(loss(LABELS, LOGITS))
