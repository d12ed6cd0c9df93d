"""Scores of a classifier from its logits and the true labels."""

import math
from collections.abc import Sequence

import numpy as np


def higher_is_better(name: str) -> bool:
    """Whether a higher value of this metric is better: accuracies, F1, speed. Others are losses, errors or costs."""
    return "accuracy" in name or "f1" in name or name == "images_per_second"


def bounds(name: str) -> tuple[float, float]:
    """Smallest and largest possible value of a metric; losses, times and counts are unbounded."""
    return 0.0, 1.0 if any(part in name for part in ("accuracy", "f1", "calibration_error")) else math.inf


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts the predictions of each class for each true class.

    Args:
        labels: True classes, integers (n,) in 0..num_classes-1.
        predictions: Predicted classes, likewise.
        num_classes: Number of classes k.

    Returns:
        int64 (k, k); row i, column j counts the images of class i predicted as class j.

    Raises:
        ValueError: If the lengths differ or a class lies outside 0..num_classes-1.
    """
    # As int64 first: uint8 labels, as MNIST stores them, would overflow in the product below.
    labels, predictions = np.asarray(labels, np.int64), np.asarray(predictions, np.int64)
    if labels.shape != predictions.shape:
        raise ValueError(f"labels {labels.shape} and predictions {predictions.shape} must have the same shape")
    for name, classes in (("labels", labels), ("predictions", predictions)):
        if classes.size and not 0 <= classes.min() <= classes.max() < num_classes:
            raise ValueError(f"{name} must lie in 0..{num_classes - 1}, got {classes.min()}..{classes.max()}")
    counts = np.bincount(labels * num_classes + predictions, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(np.int64, copy=False)


def per_class(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Precision, recall and F1 of every class.

    Where a ratio is 0/0 (a class never predicted, or without images) it is 0.0, as in scikit-learn's
    `precision_recall_fscore_support(..., zero_division=0)`.

    Args:
        confusion: Integers (k, k), rows are true classes.

    Returns:
        `precision`, `recall` and `f1`, each float64 (k,) in 0..1.
    """
    hits = np.diag(confusion).astype(np.float64)
    predicted, present = confusion.sum(axis=0), confusion.sum(axis=1)
    return {
        "precision": _ratio(hits, predicted),
        "recall": _ratio(hits, present),
        "f1": _ratio(2 * hits, predicted + present),
    }


def softmax(logits: np.ndarray) -> np.ndarray:
    """Class probabilities, float64 (n, k), of logits (n, k); NaN for a row with NaN or +inf."""
    return np.exp(_log_softmax(logits))


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-probability of the true class.

    Args:
        logits: Floats (n, k).
        labels: True classes, integers (n,).

    Returns:
        Nats per image; NaN for non-finite logits.

    Raises:
        ValueError: If there are no images, or not one label for each.
    """
    _check(logits, labels)
    return float(-_log_softmax(logits)[np.arange(len(labels)), labels].mean())


def calibration_error(logits: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error: the mean gap between confidence and accuracy.

    Images are sorted into `bins` equally wide intervals ((m-1)/bins, m/bins] of the probability of the
    predicted class; the gaps between mean probability and accuracy are averaged, weighted by the number of
    images. Guo et al., On Calibration of Modern Neural Networks, 2017, equation 3.

    Args:
        logits: Floats (n, k).
        labels: True classes, integers (n,).
        bins: Number of intervals.

    Returns:
        Error in 0..1; NaN for non-finite logits.

    Raises:
        ValueError: If there are no images, or not one label for each.
    """
    _check(logits, labels)
    probabilities = softmax(logits)
    confidence = probabilities.max(axis=1)
    if np.isnan(confidence).any():
        return float("nan")
    correct = probabilities.argmax(axis=1) == labels
    interval = np.ceil(confidence * bins).astype(np.int64)
    gaps = np.bincount(interval, weights=confidence - correct)
    return float(np.abs(gaps).sum() / len(labels))


def calibration(logits: np.ndarray, labels: np.ndarray, *, bins: int) -> dict[str, float]:
    """`calibration_error` with another number of bins. Every run has `test_calibration_error` with 15 bins."""
    return {f"{bins}_bins": calibration_error(logits, labels, bins)}


def top_k(logits: np.ndarray, labels: np.ndarray, *, k: int) -> dict[str, float]:
    """The share of images whose class is among the k largest logits.

    Of equal logits that of the smaller class counts as larger, as in `argmax`.

    Raises:
        ValueError: if k is larger than the number of classes.
    """
    if k > logits.shape[1]:
        raise ValueError(f"k must be at most the {logits.shape[1]} classes, got {k}")
    best = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    return {"accuracy": float((best == labels[:, None]).any(axis=1).mean())}


def macro_f1(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Mean of the classes' F1. It is 0 for a class that is never predicted or has no images."""
    confusion = confusion_matrix(labels, logits.argmax(axis=1), logits.shape[1])
    return {"macro_f1": float(per_class(confusion)["f1"].mean())}


def balanced_accuracy(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Mean recall of the classes that have images (https://doi.org/10.1109/ICPR.2010.764)."""
    confusion = confusion_matrix(labels, logits.argmax(axis=1), logits.shape[1])
    return {"balanced_accuracy": float(per_class(confusion)["recall"][confusion.sum(axis=1) > 0].mean())}


def brier(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Mean over the images of sum_c (softmax(logits)[c] - [c is the label])^2, from 0 to 2.

    Brier, Verification of forecasts expressed in terms of probability, 1950.
    """
    error = softmax(logits)
    error[np.arange(len(labels)), labels] -= 1
    return {"brier": float((error**2).sum(axis=1).mean())}


def reliability(logits: np.ndarray, labels: np.ndarray, bins: int = 15) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reliability diagram: mean confidence and accuracy per confidence bin, whose gaps `calibration_error` averages.

    Args:
        logits: Finite floats (n, k).
        labels: True classes, integers (n,).
        bins: Number of intervals.

    Returns:
        Mean confidence and accuracy, floats in 0..1, and number of images of each bin that holds any; each (m,).

    Raises:
        ValueError: If there are no images, or not one label for each.
    """
    _check(logits, labels)
    probabilities = softmax(logits)
    confidence = probabilities.max(axis=1)
    interval = np.ceil(confidence * bins).astype(np.int64)
    count = np.bincount(interval)
    held = count > 0
    sums = (np.bincount(interval, weights=values) for values in (confidence, probabilities.argmax(axis=1) == labels))
    mean_confidence, accuracy = (values[held] / count[held] for values in sums)
    return mean_confidence, accuracy, count[held]


def seconds_to(accuracies: Sequence[float], seconds: Sequence[float], threshold: float) -> float | None:
    """Training time until an accuracy was first reached.

    Args:
        accuracies: Accuracy after each epoch.
        seconds: Duration of each epoch.
        threshold: Accuracy to reach, in the unit of `accuracies`.

    Returns:
        Seconds from the start to the end of the first epoch that reached it; None if none did.

    Raises:
        ValueError: If the two sequences differ in length.
    """
    elapsed = 0.0
    for accuracy, duration in zip(accuracies, seconds, strict=True):
        elapsed += duration
        if accuracy >= threshold:
            return elapsed
    return None


def most_confident_mistakes(logits: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Finds the most confident wrong predictions.

    Args:
        logits: Floats (n, k).
        labels: True classes, integers (n,).
        count: How many to return at most.

    Returns:
        int64 indices (m,), m <= count, by falling probability of the predicted class; ties keep their order.
    """
    logits = np.asarray(logits)
    wrong = np.flatnonzero(logits.argmax(axis=1) != labels)
    confidence = softmax(logits[wrong]).max(axis=1)
    return wrong[np.argsort(-confidence, kind="stable")[:count]]


def _check(logits: np.ndarray, labels: np.ndarray) -> None:
    if len(labels) == 0 or len(logits) != len(labels):
        raise ValueError(f"need one label per image and at least one, got {len(logits)} and {len(labels)}")


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    with np.errstate(invalid="ignore"):  # inf - inf of a diverged model
        shifted = logits - logits.max(axis=1, keepdims=True)  # so that no exponential overflows
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
