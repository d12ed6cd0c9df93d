"""Image data sets as NumPy arrays: named ones, and the user's own files or arrays.

Every source returns a `Dataset`. A data set of your own is a function that calls `arrays_to_dataset`.
"""

from mnist_exp.data.dataset import (
    ARRAYS,
    DataError,
    Dataset,
    Split,
    arrays_to_dataset,
    check_dataset,
    check_validation,
)
from mnist_exp.data.files import IDX_FILES
from mnist_exp.data.formats import load_unlabelled
from mnist_exp.data.sources import (
    cifar10,
    cifar100,
    digits,
    emnist,
    fashion_mnist,
    file,
    kmnist,
    mnist,
    mnist5k,
    resolve_auto,
)
from mnist_exp.data.subsets import Subset, take

__all__ = [
    "ARRAYS",
    "IDX_FILES",
    "DataError",
    "Dataset",
    "Split",
    "Subset",
    "arrays_to_dataset",
    "check_dataset",
    "check_validation",
    "cifar10",
    "cifar100",
    "digits",
    "emnist",
    "fashion_mnist",
    "file",
    "kmnist",
    "load_unlabelled",
    "mnist",
    "mnist5k",
    "resolve_auto",
    "take",
]
