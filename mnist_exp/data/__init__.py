"""Image data sets as NumPy arrays: MNIST, the digits bundled with scikit-learn, and the user's own files.

Every source ends as a `Dataset`: uint8 pixels, int64 labels, a fixed split, and a fingerprint of both.
Whatever is wrong with a file is reported as a `DataError` of one line. Nothing here imports TensorFlow, so
data can be checked before the seconds that its import takes.
"""

import contextlib
import functools
import gzip
import hashlib
import http.client
import math
import os
import re
import shutil
import struct
import tempfile
import threading
import urllib.request
import uuid
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from mnist_exp import provenance
from mnist_exp.errors import RequestError

# The file that keras.datasets.mnist downloads.
MNIST_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
# Of the decoded uint8 arrays in the order of ARRAYS: the container (npz, IDX, gzip level) does not matter.
MNIST_SHA256 = (
    "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
    "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
    "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
    "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
)
ARRAYS = ("x_train", "y_train", "x_test", "y_test")
IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
FORMATS = (
    f"data.path takes an .npz file with the arrays {', '.join(ARRAYS)}, as numpy.savez writes it, or a folder with the"
    " four IDX files of MNIST's names"
)
# How other files begin that users name by mistake.
_MAGIC = {
    b"\0\0\x08": "one IDX file",
    b"\x1f\x8b": "a gzip file",
    b"\x93NUMPY": "one array (.npy)",
    b"\x89HDF": "an HDF5 file",
}
_CHUNK = 2**20  # bytes that are expanded at a time
MAX_CLASSES = 1000  # a larger label is more likely a regression target or an id than a class
DOWNLOAD_SECONDS = 30  # longest silence of the server during a download
PROBE_SECONDS = 8  # resolve_auto's patience with the network, name resolution included


class DataError(RequestError):
    """The data cannot be used; the message is one line for the user."""


class Split(NamedTuple):
    """Images, uint8 (n, height, width, channels) in 0..255, and their labels, int64 (n,); read-only."""

    images: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    """A data set, split for one experiment.

    Attributes:
        name: "mnist", "digits", or the stem of the user's file or folder.
        source: Absolute path it was read from, or "scikit-learn".
        train: Images to train on, in their original order.
        validation: Images to select on; the test set itself when `validation="test"` was asked for.
        test: Images to score once, at the end.
        num_classes: Labels are in 0..num_classes - 1.
        fingerprint: SHA-256 (hex) over the arrays and the split: equal fingerprints mean equal train,
            validation and test sets.
        warnings: Lines for the user on what is allowed and unlikely to be meant.
    """

    name: str
    source: str
    train: Split
    validation: Split
    test: Split
    num_classes: int
    fingerprint: str
    warnings: tuple[str, ...] = ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels


class _Arrays(NamedTuple):
    """Checked arrays before the split; `digests` are SHA-256 (hex) in the order of ARRAYS."""

    source: str
    train: Split
    test: Split
    num_classes: int
    digests: tuple[str, ...]
    warnings: tuple[str, ...]


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
    arrays = _named_mnist(path)
    return _dataset("mnist", arrays if arrays is not None else _cached_mnist(), validation, split_seed)


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
    check_validation(validation)
    return _dataset("digits", _digits_arrays(), validation, split_seed)


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
    place = _expand(path).absolute()
    arrays = _load(place)
    return _dataset(place.stem if place.is_file() else place.name, arrays, validation, split_seed)


def resolve_auto(path: str | None = None) -> str:
    """What `data=auto` means here and now.

    Returns:
        "mnist" when it is at hand (see `mnist`) or its download address answers, else "digits".

    Raises:
        DataError: If the place the user named does not hold MNIST.
    """
    if _named_mnist(path) is not None:
        return "mnist"
    try:
        _mnist_at(_cache_file())
    except DataError:
        return "mnist" if _download_answers() else "digits"
    return "mnist"


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
    """Refuse a result of `data._target_` that breaks the rules of `Dataset`; a user's own source may return anything.

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


def _dataset(name: str, arrays: _Arrays, validation: int | float | str, split_seed: int) -> Dataset:
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
        kept, taken = _divide(total, count, split_seed)
        held_out, train = _subset(train, taken), _subset(train, kept)
        chosen = hashlib.sha256(taken.astype("<i8").tobytes()).hexdigest()
        absent = np.flatnonzero(np.bincount(train.labels, minlength=arrays.num_classes) == 0)
        if absent.size:
            some = f"{absent.size} classes, the first is class {absent[0]}" if absent.size > 1 else f"class {absent[0]}"
            warnings += (f"{arrays.source}: data.validation={validation} leaves no training image of {some}",)
    whole = (*arrays.train, *arrays.test)
    described = [(a.dtype.str, a.shape, digest) for a, digest in zip(whole, arrays.digests, strict=True)]
    fingerprint = hashlib.sha256(repr((described, chosen)).encode()).hexdigest()
    return Dataset(name, arrays.source, train, held_out, arrays.test, arrays.num_classes, fingerprint, warnings)


def _divide(total: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ascending indices of the images kept and of the `count` taken: a function of its arguments alone."""
    order = np.random.default_rng(seed).permutation(total)
    return np.sort(order[count:]), np.sort(order[:count])


def _subset(split: Split, indices: np.ndarray) -> Split:
    return Split(*(_frozen(array[indices]) for array in split))


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False  # the runs of a sweep share arrays: none may change another's data
    return array


def _named_mnist(path: str | None) -> _Arrays | None:
    """MNIST from the place the user named, or None when no place was named."""
    named = {"data.path": path, "MNIST_EXP_DATA": os.environ.get("MNIST_EXP_DATA") or None}
    for key, place in named.items():
        if place is not None:
            try:
                return _mnist_at(_expand(place))
            except DataError as error:
                raise DataError(f"{key}: {error}") from error
    return None


def _cached_mnist() -> _Arrays:
    cache = _cache_file()
    try:
        return _mnist_at(cache)
    except DataError as error:
        _download(cache, str(error))
    return _mnist_at(cache)


def _mnist_at(place: Path) -> _Arrays:
    arrays = _load(place, "mnist.npz")
    if arrays.digests != MNIST_SHA256 or arrays.train.images.shape[1:] != (28, 28, 1):
        pairs = zip(ARRAYS, arrays.digests, MNIST_SHA256, strict=True)
        wrong = [name for name, found, expected in pairs if found != expected] or ["the image shape"]
        raise DataError(f"{place}: not MNIST, or damaged: {', '.join(wrong)} differs; use data=file for other data")
    return arrays


def _cache_file() -> Path:
    """Where keras.utils.get_file keeps MNIST: in $KERAS_HOME, else ~/.keras, else the temporary folder."""
    home = _expand(os.environ.get("KERAS_HOME") or "~/.keras").absolute()
    cache = home / "datasets" / "mnist.npz"
    existing = next(folder for folder in (home, *home.parents) if os.access(folder, os.F_OK))
    if os.access(cache, os.R_OK) or os.access(existing, os.W_OK):
        return cache
    return Path(tempfile.gettempdir(), ".keras", "datasets", "mnist.npz")


def _download(target: Path, problem: str) -> None:
    """Puts MNIST at `target`, which never holds an unverified file; `problem` says why it is needed."""
    part = target.with_name(f"{target.name}.{uuid.uuid4().hex}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            urllib.request.urlopen(MNIST_URL, timeout=DOWNLOAD_SECONDS) as response,
            part.open("wb") as stream,
        ):
            shutil.copyfileobj(response, stream)
        _mnist_at(part)
        part.replace(target)
    except (OSError, http.client.HTTPException, DataError) as error:
        raise DataError(
            f"{problem}, and downloading {MNIST_URL} failed: {error};"
            " name the place of MNIST in data.path or MNIST_EXP_DATA, or use data=digits"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # moved away, or never made
            part.unlink()


def _download_answers() -> bool:
    answered = threading.Event()

    def knock() -> None:
        request = urllib.request.Request(MNIST_URL, method="HEAD")
        with (
            contextlib.suppress(OSError, http.client.HTTPException, ValueError),
            urllib.request.urlopen(request, timeout=PROBE_SECONDS),
        ):
            answered.set()

    # A thread, because looking up the host's name has no timeout; a daemon, so that it cannot delay the exit.
    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return answered.is_set()


def _expand(text: str) -> Path:
    path = Path(str(text))  # Hydra reads data.path=2024 as a number
    try:
        return path.expanduser()
    except RuntimeError:  # no such user, or no home directory: the path as it stands
        return path


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns whatever goes wrong with a file into a DataError that begins with its path."""
    try:
        yield
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except MemoryError as error:
        raise DataError(f"{path}: this machine has too little memory to read it") from error
    except Exception as error:  # the parsers of zip, gzip and npy raise a dozen types on damaged bytes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: damaged, truncated, or not an .npz or IDX file: {reason}") from error


def _load(place: Path, npz: str | None = None) -> _Arrays:
    """Arrays of an .npz file or of a folder, where the file named `npz` goes before the IDX files."""
    place = place.absolute()
    with _reading(place):
        # What identifies the content, so that a file changed on disk is read again.
        stamps = [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in _locate(place, npz)]
    return _read(str(place), *stamps)


def _locate(place: Path, npz: str | None) -> list[Path]:
    """The .npz file, or the four IDX files in the order of ARRAYS."""
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise DataError(f"{place}: {'neither a file nor a folder' if place.exists() else 'no such file or folder'}")
    if npz is not None and (place / npz).is_file():
        return [place / npz]
    spellings = [(name, name.replace("-idx", ".idx")) for name in IDX_FILES]
    candidates = [[place / f"{name}{gz}" for name in names for gz in ("", ".gz")] for names in spellings]
    found = [next((path for path in paths if path.is_file()), None) for paths in candidates]
    missing = [name for name, path in zip(IDX_FILES, found, strict=True) if path is None]
    if missing:
        also = f", and no {npz}" if npz is not None else ""
        deeper = [path for folder in ("*", "*/*") for name in spellings[0] for path in place.glob(f"{folder}/{name}")]
        deeper = [path for path in deeper if path.is_file()]
        advice = f"{deeper[0]} lies deeper: name the folder that holds all four files" if deeper else FORMATS
        raise DataError(f"{place}: this folder has no {', '.join(missing)} (plain or .gz){also}; {advice}")
    return [path for path in found if path is not None]


class _Stored(NamedTuple):
    """An array whose header was read, at whose data `stream` stands; `where` is its name in a message."""

    where: str
    path: Path
    stream: IO[bytes]
    dtype: np.dtype
    shape: tuple[int, ...]
    fortran: bool

    @property
    def size(self) -> int:
        """Bytes that the header promises."""
        return math.prod(self.shape) * self.dtype.itemsize


# The runs of a sweep share one reading and hashing. Two entries: a sweep over two files, at bounded memory.
@functools.lru_cache(maxsize=2)
def _read(source: str, *stamps: tuple[str, int, int]) -> _Arrays:
    """Headers are read and checked first, so that a small file that expands to many gigabytes is refused unexpanded."""
    stored: list[_Stored] = []
    with contextlib.ExitStack() as stack:
        for name, _, _ in stamps:
            path = Path(name)
            with _reading(path):
                stored += _open_npz(path, stack) if len(stamps) == 1 else [_open_idx(path, stack)]
        for x, y in (stored[:2], stored[2:]):
            _check_header(x, y)
        needed, present = sum(array.size for array in stored), provenance.memory()
        if needed > present:
            raise DataError(f"{source}: holds {needed / 1e9:,.1f} GB of data, this machine has {present / 1e9:,.1f}")
        arrays = {}
        for array in stored:
            with _reading(array.path):
                arrays[array.where] = _data(array)
    return _checked(source, arrays)


def _open_npz(path: Path, stack: contextlib.ExitStack) -> list[_Stored]:
    """The four arrays."""
    with path.open("rb") as stream:
        start = stream.read(512)
    if not zipfile.is_zipfile(path):
        text = "text, such as CSV" if start and min(start) >= 9 else ""
        kind = next((said for magic, said in _MAGIC.items() if start.startswith(magic)), text)
        raise ValueError(f"File is not a zip file{f', it is {kind}' if kind else ''}; {FORMATS}")
    archive = stack.enter_context(zipfile.ZipFile(path))
    found = sorted(name.removesuffix(".npy") for name in archive.namelist())
    missing = [name for name in ARRAYS if name not in found]
    if missing:
        more = f" and {len(found) - 10:,} more" if len(found) > 10 else ""
        raise DataError(
            f"{path}: lacks {', '.join(missing)}; expected {', '.join(ARRAYS)},"
            f" found {', '.join(found[:10]) or 'nothing'}{more}"
        )
    return [_open_npy(path, name, archive, stack) for name in ARRAYS]


def _open_npy(path: Path, name: str, archive: zipfile.ZipFile, stack: contextlib.ExitStack) -> _Stored:
    where, stream = f"{path}: {name}", stack.enter_context(archive.open(f"{name}.npy"))
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read_header = np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(stream)
    if dtype.hasobject:
        raise DataError(f"{where} holds Python objects (a pickle), which could run code when read; save plain numbers")
    stored = _Stored(where, path, stream, dtype, shape, fortran)
    _check_length(where, stored.size, archive.getinfo(f"{name}.npy").file_size - stream.tell())
    return stored


def _open_idx(path: Path, stack: contextlib.ExitStack) -> _Stored:
    """An array of unsigned bytes in IDX format, by the description at yann.lecun.com/exdb/mnist."""
    stream: IO[bytes] = stack.enter_context(path.open("rb"))
    zipped = stream.read(2) == b"\x1f\x8b"  # by content, since browsers unpack .gz files and keep the name
    stream.seek(0)
    if zipped:
        stream = stack.enter_context(gzip.GzipFile(fileobj=stream))  # type: ignore[arg-type]
    start = stream.read(4)
    if start[:3] != b"\0\0\x08" or start[3:] not in (b"\1", b"\3", b"\4"):
        raise DataError(
            f"{path}: not an IDX file of unsigned bytes: must begin with 00 00 08 and the number of axes,"
            f" got {start.hex(' ') or 'an empty file'}"
        )
    shape = struct.unpack(f">{start[3]}I", stream.read(4 * start[3]))
    stored = _Stored(str(path), path, stream, np.dtype(np.uint8), shape, False)
    if not zipped:
        _check_length(str(path), stored.size, path.stat().st_size - stream.tell())
    return stored


def _data(stored: _Stored) -> np.ndarray:
    """The array. No more than the promised bytes are expanded, whatever the file holds."""
    content = np.empty(stored.size, np.uint8)
    view, done = content.data, 0
    while count := stored.stream.readinto(view[done : done + _CHUNK]):  # type: ignore[attr-defined]
        done += count
    if stored.stream.read(1):  # the end also holds the checksum, which is compared when it is read
        raise DataError(f"{stored.where}: its header promises {stored.size:,} bytes of data, it has more")
    _check_length(stored.where, stored.size, done)
    return content.view(stored.dtype).reshape(stored.shape, order="F" if stored.fortran else "C")


def _check_length(where: str, promised: int, present: int) -> None:
    if promised != present:
        raise DataError(f"{where}: its header promises {promised:,} bytes of data, it has {present:,}")


def _check_header(x: _Stored, y: _Stored) -> None:
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


def _checked(source: str, arrays: dict[str, np.ndarray]) -> _Arrays:
    """Arrays in the order of ARRAYS, by what to call them in a message, brought to the types of `Split`."""
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
    # Labels are hashed at the width that holds them, which for MNIST is that of its IDX files.
    narrow = "u1" if num_classes <= 256 else "<u2"
    hashed = (train.images, train.labels.astype(narrow), test.images, test.labels.astype(narrow))
    digests = tuple(hashlib.sha256(array.data).hexdigest() for array in hashed)
    return _Arrays(source, train, test, num_classes, digests, _dark(source, train.images, test.images))


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
    """A warning of images that leave more than half of 0..255 unused, such as images of 0 and 1."""
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
    return _frozen(np.ascontiguousarray(array, np.uint8).reshape(*array.shape[:3], channels))


def _labels(where: str, array: np.ndarray) -> np.ndarray:
    if array.min() < 0 or array.max() >= MAX_CLASSES:
        raise DataError(f"{where}: labels must be in 0..{MAX_CLASSES - 1}, got {array.min()}..{array.max()}")
    return _frozen(array.astype(np.int64))


@functools.lru_cache(maxsize=1)
def _digits_arrays() -> _Arrays:
    # The file that `sklearn.datasets.load_digits` reads: importing that takes 1 to 2 s, reading the file 0.1 s.
    path = metadata.distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    table = np.loadtxt(str(path), delimiter=",").astype(np.int64)  # 64 pixels and the label a row
    # Threefold linear interpolation with a margin of 2 pixels: looks like MNIST, while repeating pixels gives
    # stairs. Integers, so that every machine computes the same bytes; weights sum to 3 on each axis, pixels
    # are in 0..16, hence 144.
    weights = np.maximum(0, 3 - np.abs(np.arange(28)[:, None] - (3 * np.arange(8) + 3)))
    images = ((weights @ table[:, :64].reshape(-1, 8, 8) @ weights.T * 255 + 72) // 144).astype(np.uint8)
    train, test = _divide(len(images), 360, seed=0)
    labels = table[:, 64]
    parts = (images[train], labels[train], images[test], labels[test])
    return _checked("scikit-learn", dict(zip(ARRAYS, parts, strict=True)))
