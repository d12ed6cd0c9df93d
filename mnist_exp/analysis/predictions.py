"""What the chosen runs said of each test image, from the `predictions.npz` that every run leaves."""

import io
import zipfile
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from mnist_exp.tracking import StoreError, read_files

FILE = "predictions.npz"
MAX_BYTES = 2**29  # unpacked: 100,000 images of 1,000 classes; a shared store may hold a file that expands without end


class Predictions(NamedTuple):
    """Logits (n, k) of a run on the test images, and their true classes (n,)."""

    logits: np.ndarray
    labels: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """Which images the run got right, bool (n,)."""
        return np.asarray(self.logits.argmax(axis=1) == self.labels)


def load(uri: str, run_id: str) -> Predictions | None:
    """A run's predictions; None when they cannot be had or are none."""
    try:
        content = read_files(uri, run_id, [FILE])[FILE]
    except (StoreError, KeyError):
        return None
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            if sum(member.file_size for member in arrays.zip.infolist()) > MAX_BYTES:
                return None
            found = Predictions(arrays["logits"], arrays["labels"])
    except (ValueError, KeyError, OSError, EOFError, MemoryError, zipfile.BadZipFile):
        return None
    fits = found.logits.ndim == 2 and found.labels.shape == found.logits.shape[:1] and len(found.labels)
    return found if fits else None


def hardest(runs: Iterable[Predictions], count: int) -> tuple[np.ndarray, np.ndarray]:
    """The images that most of the runs get wrong.

    Args:
        runs: at least one, all on the same images.
        count: how many images to return at most.

    Returns:
        Indices (m,), most often wrong first, and the share of runs (m,) that got each wrong, above 0.
    """
    wrong = 1 - np.mean([run.right for run in runs], axis=0)
    order = np.argsort(-wrong, kind="stable")[:count]
    order = order[wrong[order] > 0]
    return order, wrong[order]


def disagreements(a: Predictions, b: Predictions, count: int) -> np.ndarray:
    """Images (m,) of which two runs say different things and one is right, the surest clashes first.

    A clash is as sure as the less sure of the two: the product would let one run's certainty hide the other's doubt.
    """
    said = a.logits.argmax(axis=1), b.logits.argmax(axis=1)
    clashes = np.flatnonzero((said[0] != said[1]) & (a.right | b.right))
    sure = np.minimum(*(_margin(run.logits[clashes]) for run in (a, b)))
    return clashes[np.argsort(-sure, kind="stable")[:count]]


def _margin(logits: np.ndarray) -> np.ndarray:
    """How far the best logit lies above the second best, (n,)."""
    best = np.sort(np.asarray(logits, np.float64), axis=1)
    return np.asarray(best[:, -1] - best[:, -2])
