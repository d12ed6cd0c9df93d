"""The named data sets: MNIST, the digits that scikit-learn ships, and the user's own files."""

import functools
from importlib import metadata

import numpy as np

from mnist_exp.data.dataset import DataError, Dataset, arrays_to_dataset, check_validation, divide, split_arrays
from mnist_exp.data.download import cached_mnist, mnist_is_available, named_mnist
from mnist_exp.data.files import expand, load_arrays


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
    check_validation(validation)
    arrays = named_mnist(path)
    return split_arrays("mnist", arrays if arrays is not None else cached_mnist(), validation, split_seed)


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


def file(*, path: str, validation: int | float | str = 0.1, split_seed: int = 0) -> Dataset:
    """The user's own images.

    Args:
        path: An .npz file with the arrays x_train, y_train, x_test, y_test, or a folder with the four IDX
            files under MNIST's names, gzipped or not. Images are integers in 0..255 of shape (n, height,
            width) or (n, height, width, 1 or 3); labels are 0 to n - 1 for n classes, of shape (n,).
        validation: Number (int) or share (float) of training images to validate on, or "test".
        split_seed: Which training images those are.

    Raises:
        DataError: If the files are missing, damaged or break these rules, or an argument is out of range.
    """
    check_validation(validation)
    if not path:
        raise DataError(f"data.path must name an .npz file or a folder with the four IDX files, got {path!r}")
    place = expand(path).absolute()
    arrays = load_arrays(place)
    return split_arrays(place.stem if place.is_file() else place.name, arrays, validation, split_seed)


def resolve_auto(path: str | None = None) -> str:
    """Decides which data set `data=auto` means on this machine.

    Returns:
        "mnist" when it is at hand (see `mnist`) or its download address answers, else "digits".

    Raises:
        DataError: If the place the user named does not hold MNIST.
    """
    return "mnist" if named_mnist(path) is not None or mnist_is_available() else "digits"


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
