"""Keys that a run applies to any data set: fewer training images, rare classes, wrong labels, k folds.

All draws depend on `data.split_seed` alone. Validation and test images keep their labels.
"""

import hashlib
from typing import NamedTuple

import numpy as np

from mnist_exp.data.dataset import DataError, Dataset, Split, absent_classes, frozen

FOLDS, ORDER, NOISE = 1, 2, 3  # each has a random generator of its own, so that no key changes the draws of another


class Subset(NamedTuple):
    """The part of a data set to use; None changes nothing.

    Attributes:
        train_size: Number (int) or share (float below 1) of training images. Classes keep their shares, and the images
            of a smaller size are among those of a larger one.
        label_noise: Share of the training labels that are replaced, each by one of the other classes with equal
            probability. The labels that a smaller share replaces are among those that a larger one replaces.
        imbalance: Number of images of the most frequent class, 0, divided by that of the rarest, the last. The numbers
            between fall exponentially: "long-tailed" in Cui et al., 2019, https://arxiv.org/abs/1901.05555.
        fold: Which of the `folds` validates, from 0; the others are trained on.
        folds: Number of disjoint parts into which training and validation images are divided together; each part has
            its share of each class.
    """

    train_size: int | float | None = None
    label_noise: float | None = None
    imbalance: float | None = None
    fold: int | None = None
    folds: int | None = None


def take(dataset: Dataset, subset: Subset, split_seed: int) -> Dataset:
    """Divides a data set into folds, makes its classes rare, reduces it, and replaces labels, in this order.

    Args:
        dataset: as its source returned it. With `folds` its validation set must not be its test set.
        subset: the part to use.
        split_seed: decides all draws.

    Returns:
        The new data set; the same one if the subset keeps all of it.

    Raises:
        DataError: it has too few images for the subset.
    """
    if subset == Subset():
        return dataset
    if type(split_seed) is not int or split_seed < 0:
        raise DataError(f"data.split_seed must be an integer of at least 0, got {split_seed!r}")
    pool, kept, held_out = dataset.train, np.arange(len(dataset.train.labels)), np.array([], np.int64)
    if subset.folds is not None and subset.fold is not None:
        pool = Split(*(np.concatenate(parts) for parts in zip(dataset.train, dataset.validation, strict=True)))
        kept, held_out = _fold(dataset.name, pool.labels, subset.fold, subset.folds, split_seed)
    shuffled = np.random.default_rng((split_seed, ORDER)).permutation(len(pool.labels))
    if subset.imbalance is not None:
        kept = kept[_long_tail(dataset, pool.labels[kept], subset.imbalance, shuffled[kept])]
    if subset.train_size is not None:
        count = _count(dataset.name, subset.train_size, len(kept))
        kept = np.sort(kept[stratified_order(pool.labels[kept], shuffled[kept])[:count]])
    labels = pool.labels
    if subset.label_noise is not None:
        labels = _with_noise(labels, kept, subset.label_noise, dataset.num_classes, split_seed)
    if not held_out.size and np.array_equal(labels[kept], dataset.train.labels):  # of equal length: all are kept
        return dataset
    train = Split(frozen(pool.images[kept]), frozen(labels[kept]))
    described = [dataset.fingerprint, *(array.astype("<i8").tobytes() for array in (kept, train.labels, held_out))]
    validation = Split(*(frozen(array[held_out]) for array in pool)) if held_out.size else dataset.validation
    return dataset._replace(
        train=train,
        validation=validation,
        fingerprint=hashlib.sha256(repr(described).encode()).hexdigest(),
        base=dataset.fingerprint,
        warnings=dataset.warnings
        + absent_classes(train.labels, dataset.num_classes, f"{dataset.source}: {_given(subset)}"),
    )


def stratified_order(labels: np.ndarray, shuffled: np.ndarray) -> np.ndarray:
    """An order of images in which every prefix has the class shares of the whole, within one image per class.

    Args:
        labels: int64 (n,).
        shuffled: (n,), different random numbers. They decide which images of a class come first.

    Returns:
        Indices, int64 (n,).
    """
    by_class, place = _places(labels, shuffled)
    share = (place + 0.5) / np.bincount(labels)[labels[by_class]]  # of its class that precedes it
    return by_class[np.lexsort((shuffled[by_class], share))]


def _places(labels: np.ndarray, shuffled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices class by class, each class in the order of `shuffled`; and the place of each within its class."""
    by_class = np.lexsort((shuffled, labels))
    counts = np.bincount(labels)
    return by_class, np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)


def _fold(name: str, labels: np.ndarray, fold: int, folds: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ascending indices of the images outside and inside of one fold."""
    if folds > len(labels):
        raise DataError(
            f"data.folds={folds} is more than the {len(labels):,} images of {name} that are not for testing"
        )
    by_class, _ = _places(labels, np.random.default_rng((seed, FOLDS)).permutation(len(labels)))
    inside = np.zeros(len(labels), bool)
    inside[by_class[fold::folds]] = True  # of each class every k-th image
    return np.flatnonzero(~inside), np.flatnonzero(inside)


def _long_tail(dataset: Dataset, labels: np.ndarray, ratio: float, shuffled: np.ndarray) -> np.ndarray:
    """Ascending indices of the images kept: as many as possible in the proportions of the classes."""
    classes = dataset.num_classes
    proportions = ratio ** (-np.arange(classes) / (classes - 1))
    wanted = np.rint((np.bincount(labels, minlength=classes) / proportions).min() * proportions)
    if wanted.min() < 1:
        raise DataError(f"data.imbalance={ratio} leaves no training image of class {wanted.argmin()} of {dataset.name}")
    by_class, place = _places(labels, shuffled)
    return np.sort(by_class[place < wanted[labels[by_class]]])


def _count(name: str, size: int | float, images: int) -> int:
    count = size if isinstance(size, int) else round(size * images)
    if not 1 <= count <= images:
        raise DataError(
            f"data.train_size={size} takes {count:,} of the {images:,} training images of {name};"
            f" 1 to {images:,} can be taken"
        )
    return count


def _with_noise(labels: np.ndarray, kept: np.ndarray, noise: float, classes: int, seed: int) -> np.ndarray:
    """The labels, with those of a share of the kept images replaced."""
    random = np.random.default_rng((seed, NOISE))
    shuffled, steps = random.permutation(len(labels)), random.integers(1, classes, len(labels))
    replaced = kept[np.argsort(shuffled[kept])[: round(noise * len(kept))]]
    noisy = labels.copy()
    noisy[replaced] = (labels[replaced] + steps[replaced]) % classes
    return noisy


def _given(subset: Subset) -> str:
    return " ".join(f"data.{key}={value}" for key, value in subset._asdict().items() if value is not None)
