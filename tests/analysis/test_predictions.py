"""Predictions of several runs on single images."""

import io

import numpy as np
import pytest

from mnist_exp import scores
from mnist_exp.analysis import predictions
from mnist_exp.analysis.predictions import Predictions


def predicted(*answers, sure=1.0):
    """Predictions of three classes on images whose true class is 0."""
    return Predictions(sure * np.eye(3)[list(answers)], np.zeros(len(answers), int))


def test_hardest_images_are_wrong_in_most_runs():
    runs = [predicted(0, 1, 1, 0), predicted(0, 1, 2, 0), predicted(0, 0, 1, 1)]
    places, share = predictions.hardest(runs, 10)
    assert places.tolist() == [2, 1, 3]  # image 0 is right in every run
    assert share == pytest.approx([1, 2 / 3, 1 / 3])
    assert predictions.hardest(runs, 1)[0].tolist() == [2]


def test_disagreements_with_one_side_right_are_sorted_by_confidence():
    a, b = predicted(0, 1, 0, 1, 0), predicted(1, 0, 0, 2, 2)
    a.logits[1] *= 5
    b.logits[1] *= 3
    b.logits[4] *= 2
    # Image 1 has margins 5 and 3, images 0 and 4 have a margin of 1. Image 2 is equal, image 3 wrong on both sides.
    assert predictions.disagreements(a, b, 10).tolist() == [1, 0, 4]


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 broken", b"no archive"])
def test_invalid_predictions_are_ignored(monkeypatch, content):
    monkeypatch.setattr(predictions, "read_files", lambda *_: {} if content is None else {predictions.FILE: content})
    assert predictions.load("", "") is None


def test_the_calibration_error_is_the_mean_of_the_reliability_bins():
    random = np.random.default_rng(0)
    logits, labels = 2 * random.standard_normal((500, 4)), random.integers(0, 4, 500)
    confidence, accuracy, count = scores.reliability(logits, labels, 10)
    assert count.sum() == 500
    error = (np.abs(confidence - accuracy) * count).sum() / 500
    assert error == pytest.approx(scores.calibration_error(logits, labels, 10))
    with pytest.raises(ValueError, match="one label per image"):
        scores.reliability(logits, labels[:3])


def test_predictions_that_expand_too_far_are_ignored(monkeypatch):
    content = io.BytesIO()
    np.savez_compressed(content, logits=np.zeros((1000, 10), np.float32), labels=np.zeros(1000, int))
    monkeypatch.setattr(predictions, "read_files", lambda *_: {predictions.FILE: content.getvalue()})
    found = predictions.load("", "")
    assert found is not None
    assert found.logits.shape == (1000, 10)
    monkeypatch.setattr(predictions, "MAX_BYTES", 40_000)
    assert predictions.load("", "") is None
