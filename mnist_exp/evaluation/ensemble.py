"""Ensembles: the mean of the members' class probabilities (https://arxiv.org/abs/1612.01474)."""

import math
import textwrap
from collections.abc import Sequence

import numpy as np

from mnist_exp import scores
from mnist_exp.analysis import statistics

WIDTH = 80


def combine(logits: Sequence[np.ndarray]) -> np.ndarray:
    """Logarithm of the mean probabilities, float32 (n, k), of logits (n, k) of each member. It is logits, too."""
    mean = np.mean([scores.softmax(each) for each in logits], axis=0)
    return np.log(np.maximum(mean, np.finfo(np.float32).tiny)).astype(np.float32)


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """The share of images (n, k) whose class has the largest logit."""
    return float((logits.argmax(axis=1) == labels).mean())


def paired_interval(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Difference of two accuracies on the same images, a - b, and its 95 % interval by the normal approximation.

    Args:
        a: bool (n,), the images that the first classifier gets right.
        b: bool (n,), likewise for the second.
    """
    gaps = a.astype(np.float64) - b
    half = 1.959964 * gaps.std() / math.sqrt(len(gaps))
    return float(gaps.mean()), float(gaps.mean() - half), float(gaps.mean() + half)


def report(names: Sequence[str], logits: Sequence[np.ndarray], labels: np.ndarray) -> list[str]:
    """What an ensemble gains, as lines of at most 80 columns.

    Args:
        names: of the members, best on validation images first; the test images choose nothing.
        logits: of each member on the test images, (n, k).
        labels: of the test images, (n,).
    """
    whole, best = combine(logits), logits[0]
    lines = ["members  accuracy     loss  calibration error  last member added"]
    for size in range(1, len(logits) + 1):
        found = combine(logits[:size]) if size > 1 else best
        figures = f"{scores.cross_entropy(found, labels):7.4f}  {scores.calibration_error(found, labels):17.2%}"
        lines.append(f"{size:7}  {accuracy(found, labels):8.2%}  {figures}  {names[size - 1]}"[:WIDTH])
    right, single = whole.argmax(axis=1) == labels, best.argmax(axis=1) == labels
    gain, low, high = paired_interval(right, single)
    p = statistics.mcnemar(right, single)[2]
    shown = "shown" if p < statistics.ALPHA else "not shown"
    verdict = (
        f"The ensemble of {len(logits)} gets {accuracy(whole, labels):.2%} of the test images right, "
        f"{100 * gain:+.2f} points against {names[0]}, the best member on the validation images (95 % interval "
        f"{100 * low:+.2f} to {100 * high:+.2f}, paired by image; McNemar's exact test p={p:.2g}): a difference is "
        f"{shown}. This holds for these members; other seeds would give others."
    )
    helped = []
    for number, name in enumerate(names):
        rest = [each for other, each in enumerate(logits) if other != number]
        change = scores.cross_entropy(combine(rest) if len(rest) > 1 else rest[0], labels)
        helped.append((change - scores.cross_entropy(whole, labels), name))
    lines += ["", *textwrap.wrap(verdict, WIDTH), "", "change of the loss without"]
    return lines + [
        f"{change:+.4f}  {name}{'' if change > 0 else ': does not help'}"[:WIDTH] for change, name in helped
    ]
