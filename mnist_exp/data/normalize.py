"""Converts the arrays of a user's files to those of a `Dataset`, if their meaning is certain.

Accepted are integers, bool and floats in 0..1 or 0..255 as pixels; integers from any number on, with gaps, and texts as
labels. Everything else is refused in one line that says what to do.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from mnist_exp.data.dataset import MAX_CLASSES, DataError, Header, Split, check_arrays, check_headers, divide, frozen
from mnist_exp.data.files import Loaded

TEST_SHARE = 0.2  # of each class, if the files have no test set
LONGEST_NAME = 100  # letters of a class name


class Part(NamedTuple):
    """One part of a user's data set. `where_...` are names of the arrays in messages."""

    where_images: str
    images: np.ndarray
    where_labels: str
    labels: np.ndarray


Parts = Mapping[str, Part]  # by "train", "test" and "validation"; "train" is always there


def check_part_headers(images: Header, labels: Header) -> None:
    """Refuses images and labels of a type or shape that `normalize` does not take, before their data are read."""
    if images.dtype.kind in "fb":
        images = images._replace(dtype=np.dtype(np.uint8))
    if labels.dtype.kind in "bUS":
        labels = labels._replace(dtype=np.dtype(np.uint8))
    if len(labels.shape) == 2 and labels.shape[1] == 1:  # as Keras and MedMNIST have them
        labels = labels._replace(shape=labels.shape[:1])
    check_headers(images, labels)


def normalize(source: str, parts: Parts) -> Loaded:
    """Makes uint8 images and labels 0..k - 1 of arrays whose headers were checked; makes a test set if there is none.

    Raises:
        DataError: If the meaning of the arrays is not certain, or they break a rule of `arrays_to_dataset`.
    """
    images = dict(zip(parts, integer_pixels(source, parts), strict=True))
    labels, names, numbered = _numbers(source, parts)
    warnings = [*numbered, *_rounded(source, parts, images)]
    where = {part: (given.where_images, given.where_labels) for part, given in parts.items()}
    if "test" not in parts:
        kept, taken = _held_out(source, labels["train"])
        of = f"{len(taken):,} of its {len(kept) + len(taken):,} images"
        warnings.append(f"{source}: has no test set; {of}, a fixed fifth of each class, are the test set")
        where["test"] = tuple(f"{name} (test)" for name in where["train"])  # type: ignore[assignment]
        images |= {"test": images["train"][taken], "train": images["train"][kept]}
        labels |= {"test": labels["train"][taken], "train": labels["train"][kept]}
    arrays = {
        name: array
        for part in ("train", "test")
        for name, array in zip(where[part], (images[part], labels[part]), strict=True)
    }
    checked = check_arrays(source, arrays)
    validation = None
    if "validation" in parts:
        validation = _validation(source, images["validation"], labels["validation"], checked.train)
    return Loaded(checked._replace(warnings=(*checked.warnings, *warnings)), validation, names)


def _validation(source: str, images: np.ndarray, labels: np.ndarray, train: Split) -> Split:
    shaped = images.reshape(*images.shape[:3], -1)
    if shaped.shape[1:] != train.images.shape[1:]:
        raise DataError(
            f"{source}: images must have one size and depth, got {train.images.shape[1:]} in the training set"
            f" and {shaped.shape[1:]} in the validation set"
        )
    return Split(frozen(np.ascontiguousarray(shaped, np.uint8)), frozen(labels.astype(np.int64)))


def integer_pixels(source: str, parts: Parts) -> list[np.ndarray]:
    """The images of each part as integers in 0..255."""
    images = [given.images for given in parts.values()]
    kinds = {"integers" if array.dtype.kind in "iu" else array.dtype.name for array in images}
    if len(kinds) > 1:
        raise DataError(f"{source}: the pixels of all sets must be of one type, got {' and '.join(sorted(kinds))}")
    if kinds == {"bool"}:
        return [255 * array.astype(np.uint8) for array in images]
    ranges = {given.where_images: (given.images.min(), given.images.max()) for given in parts.values()}
    if kinds != {"integers"}:
        return _float_pixels(source, images, ranges)
    for where, (low, high) in ranges.items():
        if low < 0 or high > 255:
            raise DataError(f"{where}: pixels must be integers in 0..255, got {low}..{high}")
    return images


def _float_pixels(
    source: str, images: list[np.ndarray], ranges: Mapping[str, tuple[np.floating, np.floating]]
) -> list[np.ndarray]:
    for where, (low, high) in ranges.items():
        if not (low >= 0 and high <= 255):  # also NaN
            raise DataError(
                f"{where}: float pixels must be in 0..1 or 0..255, got {low:g}..{high:g}; save them as they were"
                " before they were standardised"
            )
    units = [bool(high <= 1) for _, high in ranges.values()]
    dark = 1 < max(high for _, high in ranges.values()) < 128
    if any(units) != all(units) or (dark and any((array != np.rint(array)).any() for array in images)):
        said = ", ".join(f"{low:g}..{high:g}" for low, high in ranges.values())
        raise DataError(f"{source}: float pixels must be in 0..1 or 0..255 in all sets, got {said}; save integers")
    return [_to_bytes(array, 255 if all(units) else 1) for array in images]


def _to_bytes(images: np.ndarray, scale: int) -> np.ndarray:
    return np.rint(images * np.float32(scale)).astype(np.uint8)


def _rounded(source: str, parts: Parts, images: Mapping[str, np.ndarray]) -> Iterator[str]:
    """A line if float pixels were not those of 8-bit images."""
    train = parts["train"].images
    if train.dtype.kind != "f":
        return
    scale = 255 if train.max() <= 1 else 1
    tolerance = 1e-3 + 255 * float(np.finfo(train.dtype).eps)
    if np.abs(train * np.float32(scale) - images["train"]).max() > tolerance:
        yield f"{source}: pixels are rounded to the 256 values that uint8 has"


def _numbers(source: str, parts: Parts) -> tuple[dict[str, np.ndarray], tuple[str, ...] | None, list[str]]:
    """Labels as integers by part, the classes' names if the files have any, and a line if labels were renumbered."""
    labels = {part: _plain(given) for part, given in parts.items()}
    train = labels["train"]
    if _is_out_of_range(train):
        return labels, None, []  # `check_arrays` says what is wrong
    classes = np.unique(train)
    for part, given in labels.items():
        unseen = np.setdiff1d(given, classes)
        if unseen.size:
            said = repr(str(unseen[0])) if train.dtype.kind == "U" else unseen[0]
            raise DataError(f"{source}: every {part} label must occur in training, got {said} only in the {part} set")
    if train.dtype.kind == "U":
        if all(name.isascii() and name.isdigit() for name in classes):
            classes = np.array(sorted(classes, key=lambda name: (int(name), name)))
    elif len(classes) < 2 or classes[-1] == len(classes) - 1:
        return labels, None, []
    names = tuple(map(str, classes))
    if len(names) > MAX_CLASSES or len(names) < 2:
        raise DataError(f"{source}: labels must name 2 to {MAX_CLASSES:,} classes, got {len(names):,}")
    order = np.argsort(classes)
    numbered = {part: order[np.searchsorted(classes, given, sorter=order)] for part, given in labels.items()}
    text = train.dtype.kind == "U"
    lines = [] if text else [f"{source}: labels {_listed(names)} are numbered 0..{len(names) - 1}; figures name them"]
    return numbered, names, lines


def _plain(given: Part) -> np.ndarray:
    labels = given.labels.reshape(-1)
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8")
    if labels.dtype.kind == "U":
        labels = np.char.strip(labels)
        if not all(labels) or np.char.str_len(labels).max() > LONGEST_NAME:
            raise DataError(f"{given.where_labels}: text labels must have 1 to {LONGEST_NAME} letters")
        return labels
    return labels.astype(np.uint8) if labels.dtype.kind == "b" else labels


def _is_out_of_range(labels: np.ndarray) -> bool:
    return labels.dtype.kind != "U" and bool(labels.min() < 0 or labels.max() >= MAX_CLASSES)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names if len(names) <= 10 else (*names[:5], "...", names[-1]))


def _held_out(source: str, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ascending indices of the images kept and of a fifth of each class, whatever `data.split_seed` is."""
    taken = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        taken.append(members[divide(len(members), round(TEST_SHARE * len(members)), seed=0)[1]])
    test = np.sort(np.concatenate(taken))
    if not test.size:
        raise DataError(f"{source}: has no test set, and classes of fewer than 3 images leave none to split off")
    return np.setdiff1d(np.arange(len(labels)), test), test
