"""Image data in .npz, .npy and IDX files, read within bounds.

Whatever is wrong with a file is reported as a `DataError` of one line.
"""

import contextlib
import functools
import gzip
import math
import stat
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from mnist_exp import provenance
from mnist_exp.data.dataset import ARRAYS, CheckedArrays, DataError, Header, Split, check_arrays, check_headers

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
NPZ_OR_IDX = "an .npz or IDX file"
_CHUNK = 2**20  # bytes that are decompressed at a time


class Absent(DataError):
    """A place does not contain the expected files."""


class Loaded(NamedTuple):
    """The contents of a place.

    Attributes:
        arrays: Training and test set.
        validation: The validation set that the files themselves have.
        class_names: One text for each label; None if the files name no classes.
    """

    arrays: CheckedArrays
    validation: Split | None = None
    class_names: tuple[str, ...] | None = None


# Its arguments: the name of the place in messages, the files to read, and an option, which is "" without one.
Reader = Callable[[str, Sequence[Path], str], Loaded]


def expand(text: str) -> Path:
    """The path, with `~` replaced by the home folder where there is one."""
    path = Path(str(text))  # Hydra reads data.path=2024 as a number
    try:
        return path.expanduser()
    except RuntimeError:  # no such user, or no home directory: the path as it stands
        return path


@contextlib.contextmanager
def reading(path: Path, kind: str = NPZ_OR_IDX) -> Iterator[None]:
    """Turns any error of reading a file into a DataError that begins with its path and says that it is not `kind`."""
    try:
        yield
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except MemoryError as error:
        raise DataError(f"{path}: this machine has too little memory to read it") from error
    except Exception as error:  # the parsers of these formats raise a dozen types on damaged bytes
        reason = " ".join(str(error).split())[:200] or type(error).__name__  # some show the damaged bytes
        raise DataError(f"{path}: damaged, truncated, or not {kind}: {reason}") from error


def check_memory(source: str, needed: int) -> None:
    """Refuses data of more bytes than this machine's memory."""
    present = provenance.memory()
    if needed > present:
        raise DataError(f"{source}: holds {needed / 1e9:,.1f} GB of data, this machine has {present / 1e9:,.1f}")


def load(reader: Reader, place: Path, paths: Sequence[Path], option: str = "") -> Loaded:
    """Reads the files of a place, or returns the earlier result if they are unchanged."""
    with reading(place):
        # Time and size identify the content, so that a file that changed on disk is read again.
        stamps = []
        for path in paths:
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):  # to open a pipe would wait for another program
                raise DataError(f"{path}: is not a regular file")
            stamps.append((str(path), found.st_mtime_ns, found.st_size))
    return _read(reader, str(place), option, *stamps)


# The runs of a sweep share the arrays. Two entries serve a sweep over two files and bound the memory.
@functools.lru_cache(maxsize=2)
def _read(reader: Reader, source: str, option: str, *stamps: tuple[str, int, int]) -> Loaded:
    return reader(source, [Path(name) for name, _, _ in stamps], option)


def idx_in(folder: Path, prefix: str = "") -> dict[str, Path]:
    """The IDX files of MNIST's names that a folder has itself, by their names without `prefix`."""
    found = {}
    for name in IDX_FILES:
        spellings = (f"{prefix}{name}", f"{prefix}{name.replace('-idx', '.idx')}")
        candidates = [folder / f"{spelling}{gz}" for spelling in spellings for gz in ("", ".gz")]
        if path := next((path for path in candidates if path.is_file()), None):
            found[name] = path
    return found


class Stored(NamedTuple):
    """An array whose header was read. `stream` is at the start of its data; `where` is its name in a message."""

    where: str
    path: Path
    stream: IO[bytes]
    dtype: np.dtype
    shape: tuple[int, ...]
    fortran: bool

    @property
    def header(self) -> Header:
        """The array's name in a message, its type and its shape."""
        return Header(self.where, self.dtype, self.shape)

    @property
    def size(self) -> int:
        """Bytes that the header promises."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_strict(source: str, paths: Sequence[Path], option: str = "") -> Loaded:
    """Four arrays of integers, in the order of ARRAYS: in one .npz file, or in four .npz or IDX files."""
    with contextlib.ExitStack() as stack:
        stored = open_files(paths, stack)
        check_headers(stored[0].header, stored[1].header)
        check_headers(stored[2].header, stored[3].header)
        return Loaded(check_arrays(source, read_data(source, stored)))


def open_files(paths: Sequence[Path], stack: contextlib.ExitStack) -> list[Stored]:
    """The four arrays of one .npz file, or one array of each file."""
    stored = []
    for path in paths:
        with reading(path):
            if len(paths) == 1:
                stored += open_npz(path, {name: name for name in ARRAYS}, stack)
            elif zipfile.is_zipfile(path):
                stored += open_npz(path, {str(path): "arr_0"}, stack)  # numpy.savez names a lone array so
            else:
                stored.append(open_idx(path, path.open("rb"), stack, path.stat().st_size))
    return stored


def read_data(source: str, stored: Sequence[Stored]) -> dict[str, np.ndarray]:
    """Reads arrays whose headers were checked, by their names in messages."""
    check_memory(source, sum(array.size for array in stored))
    arrays = {}
    for array in stored:
        with reading(array.path):
            arrays[array.where] = _data(array)
    return arrays


def npz_names(path: Path) -> list[str]:
    """The names of the arrays of an .npz file."""
    with zipfile.ZipFile(path) as archive:
        return sorted(name.removesuffix(".npy") for name in archive.namelist())


def open_npz(path: Path, names: Mapping[str, str], stack: contextlib.ExitStack) -> list[Stored]:
    """Arrays of an .npz file.

    Args:
        path: Of the file.
        names: the arrays' names in the file, by their names in messages.
        stack: Closes the streams.
    """
    found = npz_names(path)
    missing = [name for name in names.values() if name not in found]
    if missing:
        more = f" and {len(found) - 10:,} more" if len(found) > 10 else ""
        raise DataError(
            f"{path}: lacks {', '.join(missing)}; expected {', '.join(names.values())},"
            f" found {', '.join(found[:10]) or 'nothing'}{more}"
        )
    archive = stack.enter_context(zipfile.ZipFile(path))
    wheres = {where: where if where == str(path) else f"{path}: {where}" for where in names}
    return [_open_npy(path, wheres[where], name, archive, stack) for where, name in names.items()]


def _open_npy(path: Path, where: str, name: str, archive: zipfile.ZipFile, stack: contextlib.ExitStack) -> Stored:
    stream = stack.enter_context(archive.open(f"{name}.npy"))
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read_header = np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(stream)
    if dtype.hasobject:
        raise DataError(f"{where} holds Python objects (a pickle), which could run code when read; save plain numbers")
    stored = Stored(where, path, stream, dtype, shape, fortran)
    _check_length(where, stored.size, archive.getinfo(f"{name}.npy").file_size - stream.tell())
    return stored


def open_idx(path: Path, stream: IO[bytes], stack: contextlib.ExitStack, size: int) -> Stored:
    """An array of unsigned bytes in IDX format, by the description at yann.lecun.com/exdb/mnist.

    Args:
        path: What to call the array in messages.
        stream: Of the file, gzipped or not.
        stack: Closes the stream.
        size: Bytes of the stream.
    """
    stack.enter_context(stream)
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
    stored = Stored(str(path), path, stream, np.dtype(np.uint8), shape, False)
    if not zipped:
        _check_length(str(path), stored.size, size - stream.tell())
    return stored


def _data(stored: Stored) -> np.ndarray:
    """Reads the array. It decompresses no more bytes than the header promises."""
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
