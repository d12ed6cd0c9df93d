"""Metrics against closed forms and scikit-learn."""

import math

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from mnist_exp import scores


@pytest.fixture
def scored() -> tuple[np.ndarray, np.ndarray]:
    """Logits (500, 10) of which about half are right, and labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 500)
    logits = rng.normal(size=(500, 10)) + 2 * np.eye(10)[labels]
    return logits, labels


def test_confusion_rows_are_true_labels_and_columns_predictions():
    matrix = scores.confusion_matrix(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert matrix.dtype == np.int64


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_confusion_equals_scikit_learn_whatever_the_integer_type(dtype):
    rng = np.random.default_rng(1)
    labels, predictions = rng.integers(0, 40, (2, 2000)).astype(dtype)
    expected = sklearn_metrics.confusion_matrix(labels, predictions, labels=range(40))
    np.testing.assert_array_equal(scores.confusion_matrix(labels, predictions, 40), expected)


def test_confusion_of_nothing_and_of_one_class():
    assert scores.confusion_matrix(np.array([]), np.array([]), 2).tolist() == [[0, 0], [0, 0]]
    assert scores.confusion_matrix(np.zeros(3, int), np.zeros(3, int), 1).tolist() == [[3]]


@pytest.mark.parametrize(("labels", "predictions"), [([0, 3], [0, 0]), ([0, 0], [0, -1])])
def test_confusion_refuses_a_class_outside_the_range(labels, predictions):
    with pytest.raises(ValueError, match=r"must lie in 0\.\.2"):
        scores.confusion_matrix(np.array(labels), np.array(predictions), 3)


def test_confusion_refuses_different_lengths():
    with pytest.raises(ValueError, match="same shape"):
        scores.confusion_matrix(np.array([0, 1]), np.array([0]), 3)


def test_per_class_equals_scikit_learn_also_for_absent_classes():
    rng = np.random.default_rng(2)
    labels, predictions = rng.integers(0, 4, 200), rng.integers(1, 5, 200)  # 0 never predicted, 4 never there
    found = scores.per_class(scores.confusion_matrix(labels, predictions, 6))  # 5 neither
    expected = sklearn_metrics.precision_recall_fscore_support(labels, predictions, labels=range(6), zero_division=0)
    for name, values in zip(("precision", "recall", "f1"), expected[:3], strict=True):
        np.testing.assert_allclose(found[name], values, rtol=1e-12)


def test_per_class_by_hand():
    found = scores.per_class(np.array([[3, 1], [0, 0]]))
    assert found["precision"].tolist() == [1, 0]
    assert found["recall"].tolist() == [0.75, 0]
    assert found["f1"].tolist() == pytest.approx([6 / 7, 0])


def test_softmax_of_extreme_logits_is_exact_and_silent():
    found = scores.softmax(np.array([[1e4, -1e4, 0], [-1e4, -1e4, -1e4], [0, math.log(2), math.log(5)]]))
    np.testing.assert_allclose(found, [[1, 0, 0], [1 / 3] * 3, [1 / 8, 2 / 8, 5 / 8]], rtol=1e-12)


def test_softmax_keeps_half_precision_logits_from_overflowing():
    assert scores.softmax(np.full((1, 4), 60000, np.float16)).tolist() == [[0.25] * 4]


def test_cross_entropy_equals_closed_form_and_scikit_learn(scored):
    logits, labels = scored
    assert scores.cross_entropy(np.zeros((7, 10)), np.arange(7)) == pytest.approx(math.log(10))
    assert scores.cross_entropy(np.array([[1e4, -1e4]]), np.array([1])) == 2e4
    expected = sklearn_metrics.log_loss(labels, scores.softmax(logits))
    assert scores.cross_entropy(logits, labels) == pytest.approx(expected, rel=1e-12)


def test_calibration_error_by_hand():
    # Two bins: confidence 0.6 twice (one right) and 0.9 twice (both right): (|1.2 - 1| + |1.8 - 2|) / 4.
    logits = np.log([[0.6, 0.4], [0.6, 0.4], [0.1, 0.9], [0.1, 0.9]])
    assert scores.calibration_error(logits, np.array([0, 1, 1, 1]), bins=4) == pytest.approx(0.1)


def test_a_confidence_on_the_edge_belongs_to_the_lower_bin():
    logits = np.array([[0, 0], [0, math.log(9)]])  # 0.5, right, and 0.9, wrong
    assert scores.calibration_error(logits, np.array([0, 0]), bins=2) == pytest.approx((0.5 + 0.9) / 2)


def test_calibration_error_is_the_mean_over_bins_of_the_definition(scored):
    logits, labels = scored
    probabilities = scores.softmax(logits)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    expected = 0.0
    for m in range(1, 16):
        inside = (confidence > (m - 1) / 15) & (confidence <= m / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert scores.calibration_error(logits, labels) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("label", "error"), [(0, 0.0), (1, 1.0)], ids=["all right", "all wrong"])
def test_calibration_error_of_a_certain_model(label, error):
    logits = np.tile([1e4, -1e4], (5, 1))
    assert scores.calibration_error(logits, np.full(5, label)) == error


def test_one_class_is_always_right():
    assert scores.calibration_error(np.array([[3.0], [-1.0]]), np.array([0, 0])) == 0
    assert scores.cross_entropy(np.array([[3.0], [-1.0]]), np.array([0, 0])) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_diverged_model_scores_nan_silently(value):
    logits, labels = np.full((3, 2), value), np.array([0, 1, 1])
    assert math.isnan(scores.cross_entropy(logits, labels))
    assert math.isnan(scores.calibration_error(logits, labels))
    assert scores.most_confident_mistakes(logits, labels, 5).tolist() == [1, 2]


@pytest.mark.parametrize("score", [scores.cross_entropy, scores.calibration_error])
@pytest.mark.parametrize("labels", [[], [0]], ids=["empty", "too few"])
def test_scores_need_a_label_per_image(score, labels):
    with pytest.raises(ValueError, match="one label per image"):
        score(np.zeros((2 * len(labels), 3)), np.array(labels, int))


def test_seconds_to_sums_up_to_the_first_epoch_that_reaches_the_threshold():
    accuracies, seconds = [0.9, 0.98, 0.97, 0.99], [3.0, 2.0, 2.0, 2.0]
    assert scores.seconds_to(accuracies, seconds, 0.97) == 5
    assert scores.seconds_to(accuracies, seconds, 0.98) == 5
    assert scores.seconds_to(accuracies, seconds, 0.99) == 9
    assert scores.seconds_to(accuracies, seconds, 0.995) is None
    assert scores.seconds_to([math.nan], [1.0], 0.5) is None
    assert scores.seconds_to([], [], 0.5) is None


def test_seconds_to_refuses_different_lengths():
    with pytest.raises(ValueError, match="shorter"):
        scores.seconds_to([0.1, 0.2], [1.0], 0.5)


def test_most_confident_mistakes_are_sorted_wrong_predictions(scored):
    logits, labels = scored
    found = scores.most_confident_mistakes(logits, labels, 25)
    confidence = scores.softmax(logits).max(axis=1)
    wrong = logits.argmax(axis=1) != labels
    assert len(found) == 25
    assert wrong[found].all()
    assert (np.diff(confidence[found]) <= 0).all()
    assert confidence[found].min() >= np.sort(confidence[wrong])[-25]


def test_most_confident_mistakes_may_be_fewer_than_asked_or_none():
    logits = np.array([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    assert scores.most_confident_mistakes(logits, np.array([1, 0, 1]), 25).tolist() == [0, 1]
    assert scores.most_confident_mistakes(logits, np.array([0, 1, 1]), 25).tolist() == []


def test_optional_scores_are_those_of_scikit_learn(scored):
    logits, labels = scored
    labels, logits = labels.clip(0, 8), logits.copy()  # no image of class 9
    predictions, probabilities = logits.argmax(axis=1), scores.softmax(logits)
    for k in (1, 3, 10):
        theirs = sklearn_metrics.top_k_accuracy_score(labels, logits, k=k, labels=range(10)) if k < 10 else 1.0
        assert scores.top_k(logits, labels, k=k) == {"accuracy": pytest.approx(theirs, rel=1e-12)}
    f1 = sklearn_metrics.f1_score(labels, predictions, labels=range(10), average="macro", zero_division=0)
    assert scores.macro_f1(logits, labels) == {"macro_f1": pytest.approx(f1, rel=1e-12)}
    recall = sklearn_metrics.recall_score(labels, predictions, labels=range(9), average="macro")
    assert scores.balanced_accuracy(logits, labels) == {"balanced_accuracy": pytest.approx(recall, rel=1e-12)}
    brier = sum(sklearn_metrics.brier_score_loss(labels == c, probabilities[:, c]) for c in range(10))
    assert scores.brier(logits, labels) == {"brier": pytest.approx(brier, rel=1e-9)}


def test_calibration_error_of_other_bins(scored):
    assert scores.calibration(*scored, bins=15) == {"15_bins": scores.calibration_error(*scored)}
    (value,) = scores.calibration(*scored, bins=1).values()  # mean confidence minus accuracy
    confidence, right = scores.softmax(scored[0]).max(axis=1), scored[0].argmax(axis=1) == scored[1]
    assert value == pytest.approx(abs(confidence.mean() - right.mean()), rel=1e-9)


def test_top_k_of_equal_logits_prefers_the_smaller_class():
    assert scores.top_k(np.zeros((4, 4)), np.arange(4), k=3) == {"accuracy": 0.75}
    with pytest.raises(ValueError, match="k must be at most the 4 classes, got 5"):
        scores.top_k(np.zeros((4, 4)), np.arange(4), k=5)


@pytest.mark.parametrize(("name", "better"), [("test_macro_f1", True), ("test_top_k_accuracy", True), ("brier", False)])
def test_direction_of_optional_scores(name, better):
    assert scores.higher_is_better(name) is better
