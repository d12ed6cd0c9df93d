"""Published data sets: their files, the places where these may be, and the names of their classes."""

import contextlib
import gzip
import os
import string
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mnist_exp.data import files
from mnist_exp.data.dataset import ARRAYS, CheckedArrays, DataError, check_arrays, check_headers
from mnist_exp.data.download import Address, answers, cache_folder, fetch
from mnist_exp.data.files import IDX_FILES, Absent, Loaded, Reader, expand, read_data, read_strict

DEBIAN = Path("/usr/share/datasets")  # where Debian's package dataset-fashion-mnist puts its folder
DIGITS = tuple(string.digits)
KERAS_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
KMNIST_URL = "http://codh.rois.ac.jp/kmnist/dataset/kmnist/"
KMNIST_FILES = tuple(f"kmnist-{part}-{what}.npz" for part in ("train", "test") for what in ("imgs", "labels"))
CIFAR_URL = "https://www.cs.toronto.edu/~kriz/"

# The lower-case letters that EMNIST's splits balanced and bymerge keep apart from the capitals.
_UNMERGED = tuple("abdefghnqrt")
EMNIST_CLASSES = {
    "balanced": (*string.digits, *string.ascii_uppercase, *_UNMERGED),
    "byclass": (*string.digits, *string.ascii_uppercase, *string.ascii_lowercase),
    "bymerge": (*string.digits, *string.ascii_uppercase, *_UNMERGED),
    "digits": DIGITS,
    "letters": tuple(string.ascii_lowercase),  # of both cases
    "mnist": DIGITS,
}
FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
KMNIST_CLASSES = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
CIFAR100_CLASSES = tuple(_CIFAR100.split())


class Published(NamedTuple):
    """A data set as its authors publish it.

    Attributes:
        title: Its name in messages.
        find: Gets a file or folder, and whether files of names that several data sets share count; returns the
            files of this data set there, or raises `Absent`.
        read: Reads these files.
        below: Where it may lie in a folder of several data sets, besides in that folder itself.
        cached: Its file or folder in the cache of Keras.
        addresses: The files to download.
        digests: SHA-256 (hex) of the decoded uint8 arrays in the order of ARRAYS, so that the container (npz, IDX,
            gzip) does not matter; None where they are not known.
    """

    title: str
    find: Callable[[Path, bool], list[Path]]
    read: Reader
    below: tuple[str, ...]
    cached: str
    addresses: tuple[Address, ...]
    digests: tuple[str, ...] | None = None


def load(published: Published, path: str | None, option: str = "") -> CheckedArrays:
    """Loads a data set from `path`, else from the folder that MNIST_EXP_DATA names, the cache of Keras or a download.

    Raises:
        DataError: If the place that the user named does not hold it, or the download fails.
    """
    named = from_named(published, path, option)
    return named if named is not None else _from_cache(published, option)


def from_named(published: Published, path: str | None, option: str = "") -> CheckedArrays | None:
    """The data set from the place that the user named, or None if no place was named.

    MNIST_EXP_DATA may name a folder of several data sets: only MNIST must be there.
    """
    if path is not None:
        with _naming("data.path"):
            return _in(published, expand(path), option)
    folder = expand(os.environ.get("MNIST_EXP_DATA") or "")
    if folder == Path():
        return None
    with _naming("MNIST_EXP_DATA"):
        if published is MNIST:
            return _in(published, folder, option)
        if not folder.exists():
            raise DataError(f"{folder.absolute()}: no such file or folder")
        try:
            return _in(published, folder, option, shared=True) if folder.is_dir() else None
        except Absent:
            return None


@contextlib.contextmanager
def _naming(key: str) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise type(error)(f"{key}: {error}") from error


def _in(published: Published, folder: Path, option: str, *, shared: bool = False) -> CheckedArrays:
    """The data set from a folder or a folder below it."""
    below = next((folder / name for name in published.below if (folder / name).exists()), None)
    return _at(published, below or folder, option, shared=shared and below is None)


def _at(published: Published, place: Path, option: str, *, shared: bool = False) -> CheckedArrays:
    """The data set from this very file or folder, verified as far as digests are known."""
    place = place.absolute()
    with files.reading(place):
        if not place.exists():
            raise Absent(f"{place}: no such file or folder")
        if not (place.is_file() or place.is_dir()):
            raise DataError(f"{place}: neither a file nor a folder")
        paths = published.find(place, not shared)
    arrays = files.load(published.read, place, paths, option).arrays
    if published.digests is None:
        other = next((known.title for known in (MNIST, FASHION_MNIST) if arrays.digests == known.digests), None)
        if other is not None:
            raise DataError(f"{place}: holds {other}, not {published.title}")
        return arrays._replace(source=f"{arrays.source} (unverified)")
    if arrays.digests != published.digests or arrays.train.images.shape[1:] != (28, 28, 1):
        pairs = zip(ARRAYS, arrays.digests, published.digests, strict=True)
        wrong = [name for name, found, expected in pairs if found != expected] or ["the image shape"]
        raise DataError(
            f"{place}: not {published.title}, or damaged: {', '.join(wrong)} differs; use data=file for other data"
        )
    return arrays


def _from_cache(published: Published, option: str) -> CheckedArrays:
    """The data set from the cache of Keras, downloaded into it if it is missing or damaged there."""
    cache = cache_folder() / published.cached
    try:
        return _at(published, cache, option)
    except DataError as error:
        problem = error
    if published is FASHION_MNIST:
        with contextlib.suppress(DataError):
            return _at(published, DEBIAN / "fashion-mnist", option)
    folder = cache if len(published.addresses) > 1 else cache.parent
    try:
        fetch(published.addresses, folder, lambda downloaded: _at(published, downloaded, option))
    except DataError as error:
        raise DataError(
            f"{problem}, and {error}; name the place of {published.title} in data.path or MNIST_EXP_DATA, or use"
            " data=mnist5k or data=digits, which need no download"
        ) from error
    return _at(published, cache, option)


def mnist_is_available() -> bool:
    """Whether Keras' cache holds MNIST, or else the download address answers."""
    try:
        _at(MNIST, cache_folder() / MNIST.cached, "")
    except DataError:
        return answers(MNIST.addresses[0])
    return True


def _find_arrays(*names: str) -> Callable[[Path, bool], list[Path]]:
    """Finds one of these .npz files, or the four IDX files."""

    def find(place: Path, generic: bool) -> list[Path]:
        if place.is_file():
            return [place]
        for name in names:
            if (place / name).is_file():
                return [place / name]
        return _find_idx(place, f", and no {names[0]}", "" if generic else None)

    return find


def _find_idx(place: Path, also: str, prefix: str | None) -> list[Path]:
    found = files.idx_in(place, prefix) if prefix is not None else {}
    if len(found) == len(IDX_FILES):
        return [found[name] for name in IDX_FILES]
    missing = ", ".join(f"{prefix or ''}{name}" for name in IDX_FILES if name not in found)
    raise Absent(f"{place}: this folder has no {missing} (plain or .gz){also}")


def _find_kmnist(place: Path, generic: bool) -> list[Path]:
    if place.is_file():
        return [place]
    paths = [place / name for name in KMNIST_FILES]
    if all(path.is_file() for path in paths):
        return paths
    return _find_idx(place, f", and no {KMNIST_FILES[0]}", "" if generic else None)


def _find_emnist(place: Path, generic: bool) -> list[Path]:
    """The archive, or all files of a folder whose names begin as those of EMNIST."""
    for path in (place, place / "gzip.zip"):
        if path.is_file():
            return [path]
    for folder in (place, place / "gzip"):
        found = sorted(path for path in folder.glob("emnist-*-ubyte*") if path.is_file())
        if found:
            return found
    raise Absent(f"{place}: this folder has neither gzip.zip nor files such as emnist-letters-{_emnist_names()[0]}.gz")


def _emnist_names() -> list[str]:
    return [name.replace("t10k", "test") for name in IDX_FILES]


def _read_emnist(source: str, paths: Sequence[Path], split: str) -> Loaded:
    """EMNIST's files hold the images transposed, and the labels of `letters` begin at 1 (Cohen et al., 2017)."""
    with contextlib.ExitStack() as stack:
        stored = []
        for name in _emnist_names():
            wanted = f"emnist-{split}-{name}"
            spellings = [f"{stem}{gz}" for stem in (wanted, wanted.replace("-idx", ".idx")) for gz in ("", ".gz")]
            if len(paths) == 1 and zipfile.is_zipfile(paths[0]):
                archive = stack.enter_context(zipfile.ZipFile(paths[0]))
                entry = next((e for e in archive.infolist() if Path(e.filename).name in spellings), None)
                opened = (paths[0] / entry.filename, archive.open(entry), entry.file_size) if entry else None
            else:
                path = next((path for path in paths if path.name in spellings), None)
                opened = (path, path.open("rb"), path.stat().st_size) if path else None
            if opened is None:
                raise Absent(f"{source}: lacks {wanted}.gz, which data.split={split} needs")
            where, stream, size = opened
            with files.reading(where):
                stored.append(files.open_idx(where, stream, stack, size))
        check_headers(stored[0].header, stored[1].header)
        check_headers(stored[2].header, stored[3].header)
        arrays = list(read_data(source, stored).items())
    first = split == "letters"
    turned = {where: array.swapaxes(1, 2) if array.ndim > 1 else array - first for where, array in arrays}
    return Loaded(check_arrays(source, turned))


class Cifar(NamedTuple):
    """The binary version of CIFAR: records of one or two labels and 3,072 pixels, all red, then green, then blue.

    https://www.cs.toronto.edu/~kriz/cifar.html describes it. The version for Python holds pickles, which could run
    code when they are read.

    Attributes:
        archive: Name of the published file.
        folder: That it holds.
        sizes: Number of images in each training file, and then in the test file, by the files' names.
        labels: Bytes before the pixels. The last of them is the class.
    """

    archive: str
    folder: str
    sizes: tuple[tuple[str, int], ...]
    labels: int

    def find(self, place: Path, generic: bool) -> list[Path]:
        """The archive, or the unpacked files."""
        for path in (place, place / self.archive):
            if path.is_file():
                return [path]
        for folder in (place, place / self.folder):
            paths = [folder / name for name, _ in self.sizes]
            if all(path.is_file() for path in paths):
                return paths
        raise Absent(
            f"{place}: this folder has neither {self.archive} nor {', '.join(name for name, _ in self.sizes)}, which"
            " are the binary version; the version for Python holds pickles and is not read"
        )

    def read(self, source: str, paths: Sequence[Path], option: str) -> Loaded:
        """Reads the archive or the unpacked files."""
        contents = self._archived(paths[0]) if len(paths) == 1 else self._unpacked(paths)
        missing = [name for name, _ in self.sizes if name not in contents]
        if missing:
            raise DataError(f"{source}: lacks {', '.join(missing)}")
        parts = [np.frombuffer(contents[name], np.uint8).reshape(images, -1) for name, images in self.sizes]
        arrays: dict[str, np.ndarray] = {}
        for part, records in (("train", np.concatenate(parts[:-1])), ("test", parts[-1])):
            images = records[:, self.labels :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            arrays |= {f"{source}: x_{part}": images, f"{source}: y_{part}": records[:, self.labels - 1]}
        return Loaded(check_arrays(source, arrays))

    def _unpacked(self, paths: Sequence[Path]) -> dict[str, bytes]:
        contents = {}
        for path in paths:
            with files.reading(path, "a file of CIFAR's binary version"):
                self._check_size(path, path.name, path.stat().st_size)
                contents[path.name] = path.read_bytes()
        return contents

    def _archived(self, path: Path) -> dict[str, bytes]:
        """Reads members of known names and sizes as a stream. Nothing is unpacked to a file, and no link followed."""
        contents = {}
        with (
            files.reading(path, f"an archive such as {self.archive}"),
            _Limited(path) as stream,
            tarfile.open(fileobj=stream, mode="r|") as archive,
        ):
            for member in archive:
                name = Path(member.name).name
                content = archive.extractfile(member) if member.isreg() else None
                if content is not None and name in dict(self.sizes):
                    self._check_size(path / name, name, member.size)
                    contents[name] = content.read()
        return contents

    def _check_size(self, path: Path, name: str, found: int) -> None:
        size = dict(self.sizes)[name] * (self.labels + 3 * 32 * 32)
        if size != found:
            raise DataError(f"{path}: must have {size:,} bytes, has {found:,}")


class _Limited(gzip.GzipFile):
    """Refuses to expand to more than CIFAR has: an archive may expand without end."""

    left = 2**28  # bytes

    def read(self, size: int | None = -1) -> bytes:
        """Reads as any stream does."""
        content = super().read(size)
        self.left -= len(content)
        if self.left < 0:
            raise ValueError("it expands to more than CIFAR has")
        return content


def _cifar(title: str, layout: Cifar, md5: str) -> Published:
    address = Address(f"{CIFAR_URL}{layout.archive}", md5)
    return Published(title, layout.find, layout.read, (layout.folder,), layout.archive, (address,))


MNIST = Published(
    "MNIST",
    _find_arrays("mnist.npz"),
    read_strict,
    ("mnist", "MNIST/raw"),
    "mnist.npz",
    (Address(f"{KERAS_URL}mnist.npz"),),
    (
        "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
        "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
        "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
        "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
    ),
)
FASHION_MNIST = Published(
    "Fashion-MNIST",
    _find_arrays("fashion_mnist.npz", "fashion-mnist.npz"),
    read_strict,
    ("fashion-mnist", "fashion_mnist", "FashionMNIST/raw"),
    "fashion-mnist",
    tuple(Address(f"{KERAS_URL}{name}.gz") for name in IDX_FILES),
    (
        "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
        "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
        "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
        "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
    ),
)
KMNIST = Published(
    "KMNIST",
    _find_kmnist,
    read_strict,
    ("kmnist", "KMNIST/raw"),
    "kmnist",
    (
        Address(f"{KMNIST_URL}{IDX_FILES[0]}.gz", "bdb82020997e1d708af4cf47b453dcf7"),
        Address(f"{KMNIST_URL}{IDX_FILES[1]}.gz", "e144d726b3acfaa3e44228e80efcd344"),
        Address(f"{KMNIST_URL}{IDX_FILES[2]}.gz", "5c965bf0a639b31b8f53240b1b52f4d7"),
        Address(f"{KMNIST_URL}{IDX_FILES[3]}.gz", "7320c461ea6c1c855c0b718fb2a4b134"),
    ),
)
EMNIST = Published(
    "EMNIST",
    _find_emnist,
    _read_emnist,
    ("emnist", "EMNIST/raw"),
    "emnist/gzip.zip",
    (Address("https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip", "58c8d27c78d21e728a6bc7b3cc06412e"),),
)
CIFAR10 = _cifar(
    "CIFAR-10",
    Cifar(
        "cifar-10-binary.tar.gz",
        "cifar-10-batches-bin",
        (*((f"data_batch_{number}.bin", 10_000) for number in range(1, 6)), ("test_batch.bin", 10_000)),
        labels=1,
    ),
    "c32a1d4ab5d03f1284b67883e8d87530",
)
CIFAR100 = _cifar(
    "CIFAR-100",
    Cifar("cifar-100-binary.tar.gz", "cifar-100-binary", (("train.bin", 50_000), ("test.bin", 10_000)), labels=2),
    "03b5dce01913d631647c71ecec9e9cb8",
)
