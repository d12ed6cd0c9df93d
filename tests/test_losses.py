"""Losses of the config group `loss`, on labels of both kinds."""

import numpy as np
import pytest

from mnist_exp import losses

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
