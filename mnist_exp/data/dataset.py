"""A data set: uint8 images, int64 labels, a fixed split, and a fingerprint of both.

Nothing in this folder imports TensorFlow, so data can be checked before the seconds that its import takes.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mnist_exp.errors import RequestError

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
MAX_CLASSES = 1000  # a larger label is more likely a regression target or an id than a class


class DataError(RequestError):
    """The data cannot be used. The message is one line for the user."""


class Split(NamedTuple):
    """Images, uint8 (n, height, width, channels) in 0..255, and their labels, int64 (n,); read-only."""

    images: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    """A data set, split for one experiment.

    Attributes:
        name: "mnist", "digits", the stem of the user's file or folder, or the name that a user's source gives.
        source: Absolute path it was read from, "scikit-learn", or the text of a user's function.
        train: Images to train on, in their original order.
        validation: Images to select on; the test set itself when `validation="test"` was asked for.
        test: Images to score once, at the end.
        num_classes: Labels are in 0..num_classes - 1.
        fingerprint: SHA-256 (hex) over the arrays and the split: equal fingerprints mean equal train,
            validation and test sets.
        warnings: Lines for the user about data that are allowed but probably a mistake.
        class_names: One text for each label, in order; the labels' numbers unless a source names its classes.
        base: Fingerprint of the data set that `subsets.take` took this one from; empty if it is whole.
    """

    name: str
    source: str
    train: Split
    validation: Split
    test: Split
    num_classes: int
    fingerprint: str
    warnings: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    base: str = ""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels

    @property
    def class_counts(self) -> np.ndarray:
        """int64 (num_classes,): the training images of each class."""
        return np.bincount(self.train.labels, minlength=self.num_classes)


class Header(NamedTuple):
    """An array before its data are read; `where` is its name in a message."""

    where: str
    dtype: np.dtype
    shape: tuple[int, ...]


class CheckedArrays(NamedTuple):
    """Checked arrays before the split; `digests` are SHA-256 (hex) in the order of ARRAYS."""

    source: str
    train: Split
    test: Split
    num_classes: int
    digests: tuple[str, ...]
    warnings: tuple[str, ...]


def check_validation(validation: object) -> None:
    """Refuses a `data.validation` that no data set could satisfy.

    Raises:
        DataError: Unless it is a count of at least 1, a share strictly between 0 and 1, or "test".
    """
    count = isinstance(validation, int) and not isinstance(validation, bool) and validation >= 1
    share = isinstance(validation, float) and 0 < validation < 1
    if not (count or share or validation == "test"):
        raise DataError(
            f"data.validation must be a count of at least 1, a share between 0 and 1, or 'test', got {validation!r}"
        )


def check_dataset(dataset: object) -> Dataset:
    """Refuses a result of `data._target_` that breaks the rules of `Dataset`: a user's source may return anything.

    Returns:
        The data set; without class names it gets the labels' numbers as such.

    Raises:
        DataError: names the part and the rule.
    """
    if not isinstance(dataset, Dataset):
        raise DataError(f"data._target_ must return a mnist_exp.data.Dataset, got {type(dataset).__name__}")
    for field in ("name", "source", "fingerprint"):
        value = getattr(dataset, field)
        if not (isinstance(value, str) and value):
            raise DataError(f"data._target_ must return a Dataset whose {field} is a text, got {value!r}")
    classes = dataset.num_classes
    if type(classes) is not int or classes < 2:
        raise DataError(f"data._target_ must return a Dataset whose num_classes is at least 2, got {classes!r}")
    for part in ("train", "validation", "test"):
        _check_split(f"data._target_ must return a Dataset whose {part}", getattr(dataset, part), classes)
    shapes = [split.images.shape[1:] for split in (dataset.train, dataset.validation, dataset.test)]
    if len(set(shapes)) > 1:
        raise DataError(f"data._target_ must return a Dataset whose images have one shape, got {shapes}")
    if not dataset.class_names:
        return dataset._replace(class_names=tuple(map(str, range(classes))))
    _check_class_names("data._target_ must return a Dataset whose class_names are", dataset.class_names, classes)
    return dataset


def _check_split(must: str, split: object, classes: int) -> None:
    if not isinstance(split, Split):
        raise DataError(f"{must} is a mnist_exp.data.Split, got {type(split).__name__}")
    images, labels = (f"{getattr(array, 'dtype', type(array).__name__)} {np.shape(array)}" for array in split)
    if not re.fullmatch(r"uint8 \(\d+, \d+, \d+, \d+\)", images) or split.images.size == 0:
        raise DataError(f"{must}.images are uint8 (n, height, width, channels), n at least 1, got {images}")
    if labels != f"int64 ({len(split.images)},)":
        raise DataError(f"{must}.labels are int64 ({len(split.images)},), one for each image, got {labels}")
    if split.labels.min() < 0 or split.labels.max() >= classes:
        found = f"{split.labels.min()}..{split.labels.max()}"
        raise DataError(f"{must}.labels are in 0..{classes - 1}, got {found}")


def arrays_to_dataset(  # four arrays, their name and the split: more than six parameters
    name: str,
    x_train: np.ndarray,
    y_train: np.ndarray,
    x_test: np.ndarray,
    y_test: np.ndarray,
    *,
    validation: int | float | str,
    split_seed: int,
    class_names: Sequence[str] | None = None,
    source: str = "arrays",
) -> Dataset:
    """Makes a data set from plain arrays: checks, splits and fingerprints them.

    Args:
        name: Of the data set, in tables and messages.
        x_train: Integers in 0..255 of shape (n, height, width) or (n, height, width, 1 or 3).
        y_train: Integers (n,) in 0..k - 1 for k classes; each class occurs.
        x_test: As `x_train`, with images of the same size and depth.
        y_test: As `y_train`; classes without a test image are allowed.
        validation: Number (int) or share (float) of training images to validate on, or "test".
        split_seed: Which training images those are.
        class_names: One text for each label, in order; without them the labels' numbers.
        source: Where the arrays come from; it begins each message about them.

    Raises:
        DataError: If an argument breaks these rules.
    """
    check_validation(validation)
    given = (x_train, y_train, x_test, y_test)
    arrays = {f"{source}: {key}": np.asarray(array) for key, array in zip(ARRAYS, given, strict=True)}
    headers = [Header(where, array.dtype, array.shape) for where, array in arrays.items()]
    check_headers(*headers[:2])
    check_headers(*headers[2:])
    return split_arrays(name, check_arrays(source, arrays), validation, split_seed, class_names)


def split_arrays(
    name: str,
    arrays: CheckedArrays,
    validation: int | float | str,
    split_seed: int,
    class_names: Sequence[str] | None = None,
) -> Dataset:
    """Divides checked arrays into training, validation and test set, and fingerprints them.

    Raises:
        DataError: If `split_seed` or the count of `validation` is out of range, or the class names do not fit.
    """
    names = tuple(map(str, range(arrays.num_classes))) if class_names is None else tuple(class_names)
    _check_class_names(f"{arrays.source}: class_names must be", names, arrays.num_classes)
    if type(split_seed) is not int or split_seed < 0:
        raise DataError(f"data.split_seed must be an integer of at least 0, got {split_seed!r}")
    train, held_out, chosen, warnings = arrays.train, arrays.test, "test", arrays.warnings
    if not isinstance(validation, str):
        total = len(train.labels)
        count = validation if isinstance(validation, int) else round(validation * total)
        if not 1 <= count < total:
            raise DataError(
                f"data.validation={validation} takes {count:,} of the {total:,} training images of {name};"
                " at least 1 must be taken and 1 must remain"
            )
        kept, taken = divide(total, count, split_seed)
        held_out, train = _subset(train, taken), _subset(train, kept)
        chosen = hashlib.sha256(taken.astype("<i8").tobytes()).hexdigest()
        warnings += absent_classes(train.labels, arrays.num_classes, f"{arrays.source}: data.validation={validation}")
    whole = (*arrays.train, *arrays.test)
    described = [(a.dtype.str, a.shape, digest) for a, digest in zip(whole, arrays.digests, strict=True)]
    fingerprint = hashlib.sha256(repr((described, chosen)).encode()).hexdigest()
    return Dataset(name, arrays.source, train, held_out, arrays.test, arrays.num_classes, fingerprint, warnings, names)


def _check_class_names(must: str, names: object, classes: int) -> None:
    given = names if isinstance(names, tuple) else ()
    if not len(given) == classes == len(set(given)) or not all(isinstance(name, str) and name for name in given):
        raise DataError(f"{must} {classes} different texts, one for each label, got {names!r:.200}")


def absent_classes(labels: np.ndarray, classes: int, cause: str) -> tuple[str, ...]:
    """A warning that begins with `cause` if there are classes without a training image."""
    absent = np.flatnonzero(np.bincount(labels, minlength=classes) == 0)
    if not absent.size:
        return ()
    some = f"{absent.size} classes, the first is class {absent[0]}" if absent.size > 1 else f"class {absent[0]}"
    return (f"{cause} leaves no training image of {some}",)


def divide(total: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ascending indices of the images kept and of the `count` taken; they depend on the arguments alone."""
    order = np.random.default_rng(seed).permutation(total)
    return np.sort(order[count:]), np.sort(order[:count])


def _subset(split: Split, indices: np.ndarray) -> Split:
    return Split(*(frozen(array[indices]) for array in split))


def frozen(array: np.ndarray) -> np.ndarray:
    """The array, made read-only."""
    array.flags.writeable = False  # the runs of a sweep share arrays: none may change another's data
    return array


def check_headers(x: Header, y: Header) -> None:
    """Refuse images and labels of a wrong type or shape."""
    if x.dtype.kind not in "iu":
        raise DataError(f"{x.where}: pixels must be integers in 0..255, which models scale themselves, got {x.dtype}")
    if len(x.shape) not in (3, 4) or (len(x.shape) == 4 and x.shape[3] not in (1, 3)):
        rule = "images must be (n, height, width) or (n, height, width, 1 or 3)"
        raise DataError(f"{x.where}: {rule}, got {x.shape}")
    if 0 in x.shape:
        raise DataError(f"{x.where}: at least one image of at least one pixel is needed, got shape {x.shape}")
    if y.dtype.kind not in "iu":
        raise DataError(f"{y.where}: labels must be integers, got {y.dtype}")
    if len(y.shape) != 1:
        raise DataError(f"{y.where}: labels must have shape (n,), got {y.shape}")
    if y.shape == (0,):
        raise DataError(f"{y.where}: at least one label is needed, got none")
    if x.shape[0] != y.shape[0]:
        raise DataError(f"{y.where}: each image needs one label, got {y.shape[0]:,} for {x.shape[0]:,} images")


def check_arrays(source: str, arrays: dict[str, np.ndarray]) -> CheckedArrays:
    """Arrays in the order of ARRAYS, by their names in messages, converted to the types of `Split`."""
    (x_train, y_train, x_test, y_test) = arrays.items()
    train, test = Split(_images(*x_train), _labels(*y_train)), Split(_images(*x_test), _labels(*y_test))
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DataError(
            f"{source}: images must have one size and depth, got {train.images.shape[1:]} in the training set"
            f" and {test.images.shape[1:]} in the test set"
        )
    unseen = np.setdiff1d(test.labels, train.labels)
    if unseen.size:
        raise DataError(f"{source}: every test label must occur in training, got {unseen[0]} only in the test set")
    num_classes = _count_classes(source, train.labels)
    # Labels are hashed in the smallest type that holds them. For MNIST this is the type in its IDX files.
    narrow = "u1" if num_classes <= 256 else "<u2"
    hashed = (train.images, train.labels.astype(narrow), test.images, test.labels.astype(narrow))
    digests = tuple(hashlib.sha256(array.data).hexdigest() for array in hashed)
    return CheckedArrays(source, train, test, num_classes, digests, _dark(source, train.images, test.images))


def _count_classes(source: str, labels: np.ndarray) -> int:
    classes = np.unique(labels)
    if classes.size < 2:
        raise DataError(f"{source}: labels must name at least 2 classes, got only label {classes[0]}")
    if classes[-1] != classes.size - 1:
        raise DataError(
            f"{source}: labels must be 0 to n - 1 for n classes, without gaps, got {classes.size} classes in"
            f" {classes[0]}..{classes[-1]}; renumber them before saving: classes, y_train = numpy.unique(y_train,"
            " return_inverse=True); y_test = numpy.searchsorted(classes, y_test)"
        )
    return classes.size


def _dark(source: str, train: np.ndarray, test: np.ndarray) -> tuple[str, ...]:
    """A warning if the pixels leave more than half of 0..255 unused, such as pixels of 0 and 1."""
    peaks = train.max(), test.max()
    if min(peaks) >= 128:
        return ()
    return (
        f"{source}: the largest pixel is {peaks[0]} in the training set and {peaks[1]} in the test set, of 255; models"
        " divide by 255, so dark images train badly: scale the pixels of both sets to 0..255 before saving",
    )


def _images(where: str, array: np.ndarray) -> np.ndarray:
    if array.dtype != np.uint8 and (array.min() < 0 or array.max() > 255):
        raise DataError(f"{where}: pixels must be integers in 0..255, got {array.min()}..{array.max()}")
    channels = 1 if array.ndim == 3 else array.shape[3]
    return frozen(np.ascontiguousarray(array, np.uint8).reshape(*array.shape[:3], channels))


def _labels(where: str, array: np.ndarray) -> np.ndarray:
    if array.min() < 0 or array.max() >= MAX_CLASSES:
        raise DataError(f"{where}: labels must be in 0..{MAX_CLASSES - 1}, got {array.min()}..{array.max()}")
    return frozen(array.astype(np.int64))
