"""The predictions of runs on the test images, from the artifact `predictions.npz`."""

import io
import zipfile
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from mnist_exp.analysis.leaderboard import LeaderboardRow
from mnist_exp.analysis.verdicts import Right
from mnist_exp.tracking import StoreError, read_files

FILE = "predictions.npz"
MAX_BYTES = 2**29  # unpacked: 100,000 images of 1,000 classes; a file of a shared store may expand to any size


class Predictions(NamedTuple):
    """Logits (n, k) of a run on the test images, and their true classes (n,)."""

    logits: np.ndarray
    labels: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """Which images are classified rightly, bool (n,)."""
        return np.asarray(self.logits.argmax(axis=1) == self.labels)


def load(uri: str, run_id: str) -> Predictions | None:
    """The predictions of a run; None if the artifact is missing or not valid."""
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


def of_rows(uri: str) -> Right:
    """Tells which test images the first run of a row classifies rightly, bool (n,); None without predictions."""

    def right(row: LeaderboardRow) -> np.ndarray | None:
        found = load(uri, next(iter(row.runs.values())).run_id)
        return None if found is None else found.right

    return right


def hardest(runs: Iterable[Predictions], count: int) -> tuple[np.ndarray, np.ndarray]:
    """The images that most runs classify wrongly.

    Args:
        runs: at least one, all on the same images.
        count: the most images to return.

    Returns:
        Indices (m,), most often wrong first, and the share of runs (m,) that are wrong, above 0.
    """
    wrong = 1 - np.mean([run.right for run in runs], axis=0)
    order = np.argsort(-wrong, kind="stable")[:count]
    order = order[wrong[order] > 0]
    return order, wrong[order]


def disagreements(a: Predictions, b: Predictions, count: int) -> np.ndarray:
    """Indices (m,) of images for which two runs predict different classes, one of them the true one.

    The most confident disagreements come first. The confidence is the smaller margin of the two, because in a product
    one confident run would hide the doubt of the other.
    """
    differ = a.logits.argmax(axis=1) != b.logits.argmax(axis=1)
    found = np.flatnonzero(differ & (a.right | b.right))
    margin = np.minimum(*(_margin(run.logits[found]) for run in (a, b)))
    return found[np.argsort(-margin, kind="stable")[:count]]


def _margin(logits: np.ndarray) -> np.ndarray:
    """The largest logit minus the second largest, float64 (n,)."""
    best = np.sort(np.asarray(logits, np.float64), axis=1)
    return np.asarray(best[:, -1] - best[:, -2])
