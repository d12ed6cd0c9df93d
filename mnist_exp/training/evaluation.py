"""Scores a trained model on the validation and the test set."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import keras
import numpy as np

from mnist_exp import scores
from mnist_exp.data import Dataset, Split
from mnist_exp.training.device_loop import EVALUATION_BATCH

# By key: from logits, float32 (n, classes), and labels, int64 (n,), to numbers by their names.
Scores = Mapping[str, Callable[[np.ndarray, np.ndarray], Mapping[str, float]]]
MILESTONES = (97, 98, 99)  # percent of validation accuracy


class Evaluation(NamedTuple):
    """Metrics and logits of the final weights. The test set is evaluated once."""

    metrics: dict[str, float]
    test_logits: np.ndarray  # float32 (n, classes)
    val_logits: np.ndarray


def predict(model: keras.Model, split: Split) -> np.ndarray:
    """float32 (n, classes): the logits of a split's images."""
    return np.asarray(model.predict(split.images, batch_size=EVALUATION_BATCH, verbose=0), np.float32)


def evaluate(model: keras.Model, dataset: Dataset, *, selection: str) -> Evaluation:
    """Scores the final weights, and the test images only once if they are also the validation images."""
    test_logits = predict(model, dataset.test)
    val_logits = test_logits if selection == "test" else predict(model, dataset.validation)
    metrics = {}
    labels = dataset.validation.labels
    metrics["final_val_loss"] = scores.cross_entropy(val_logits, labels)
    metrics["final_val_accuracy"] = float((val_logits.argmax(axis=1) == labels).mean())
    metrics |= test_metrics(test_logits, dataset.test.labels)
    return Evaluation(metrics, test_logits, val_logits)


def test_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The scores that every run has of its test images, from logits (n, classes) and labels (n,)."""
    return {
        "test_loss": scores.cross_entropy(logits, labels),
        "test_accuracy": float((logits.argmax(axis=1) == labels).mean()),
        "test_calibration_error": scores.calibration_error(logits, labels),
    }


def further_scores(found: Scores, dataset: Dataset, evaluation: Evaluation) -> dict[str, float]:
    """The metrics of a run's own scores: `final_val_KEY` and `test_KEY`."""
    return {
        f"{part}_{name}": value
        for part, logits, labels in _parts(dataset, evaluation.val_logits, evaluation.test_logits)
        for score in found.values()
        for name, value in score(logits, labels).items()
    }


def _parts(
    dataset: Dataset, val_logits: np.ndarray, test_logits: np.ndarray
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    return [
        ("final_val", val_logits, dataset.validation.labels),
        ("test", test_logits, dataset.test.labels),
    ]


def milestones(history: Mapping[str, list[float]]) -> dict[str, float]:
    """`seconds_to_97` and so on: training seconds until the validation accuracy was first reached, if it was."""
    reached = {
        percent: scores.seconds_to(history["val_accuracy"], history["epoch_seconds"], percent / 100)
        for percent in MILESTONES
    }
    return {f"seconds_to_{percent}": seconds for percent, seconds in reached.items() if seconds is not None}


def best_scores(history: Mapping[str, list[float]]) -> dict[str, float]:
    """The best validation accuracy and loss of all epochs, and the first epoch, from 1, that had them."""
    found: dict[str, float] = {}
    for metric, best in (("val_accuracy", np.nanargmax), ("val_loss", np.nanargmin)):
        values = history[metric]
        if not np.isnan(values).all():
            place = int(best(values))
            found |= {f"best_{metric}": values[place], f"best_{metric}_epoch": float(place + 1)}
    return found
