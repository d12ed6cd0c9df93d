"""Ensembles by their members' logits, with values worked out by hand."""

import numpy as np
import pytest

from mnist_exp.evaluation import ensemble

SURE, UNSURE = np.log([[0.9, 0.1], [0.6, 0.4]]), np.log([[0.2, 0.8], [0.1, 0.9]])


def test_the_ensemble_has_the_mean_probabilities():
    np.testing.assert_allclose(np.exp(ensemble.combine([SURE, UNSURE])), [[0.55, 0.45], [0.35, 0.65]], rtol=1e-6)


def test_the_interval_of_the_paired_difference():
    a, b = np.array([1, 1, 1, 0], bool), np.array([1, 0, 1, 0], bool)
    # gaps 0 1 0 0: mean 1/4, standard deviation sqrt(3)/4, of the mean sqrt(3)/8
    half = 1.959964 * np.sqrt(3) / 8
    assert ensemble.paired_interval(a, b) == pytest.approx((0.25, 0.25 - half, 0.25 + half))


def test_the_report_names_the_gain_and_who_helps():
    lines = ensemble.report(["a", "b"], [SURE, UNSURE], np.array([0, 1]))
    assert max(map(len, lines)) <= 80
    # a alone: (0.9, 0.4) right 1 of 2, loss -(ln 0.9 + ln 0.4) / 2; both: (0.55, 0.65)
    assert lines[1].split()[:3] == ["1", "50.00%", "0.5108"]
    assert lines[2].split()[:3] == ["2", "100.00%", "0.5143"]
    assert "+50.00 points against a" in " ".join(lines)
    assert lines[-2:] == ["+0.3431  a", "-0.0035  b: does not help"]
