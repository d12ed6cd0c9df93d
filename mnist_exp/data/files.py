"""Image data in files: .npz archives and folders of IDX files, read within bounds.

Whatever is wrong with a file is reported as a `DataError` of one line.
"""

import contextlib
import functools
import gzip
import math
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from mnist_exp import provenance
from mnist_exp.data.dataset import ARRAYS, CheckedArrays, DataError, Header, check_arrays, check_headers

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
# First bytes of other kinds of files that users name by mistake.
_MAGIC = {
    b"\0\0\x08": "one IDX file",
    b"\x1f\x8b": "a gzip file",
    b"\x93NUMPY": "one array (.npy)",
    b"\x89HDF": "an HDF5 file",
}
_CHUNK = 2**20  # bytes that are decompressed at a time


def expand(text: str) -> Path:
    """The path, with `~` replaced by the home folder where there is one."""
    path = Path(str(text))  # Hydra reads data.path=2024 as a number
    try:
        return path.expanduser()
    except RuntimeError:  # no such user, or no home directory: the path as it stands
        return path


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns any error of reading a file into a DataError that begins with its path."""
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


def load_arrays(place: Path, npz: str | None = None) -> CheckedArrays:
    """Reads an .npz file, or a folder: the file named `npz` if the folder has it, else the four IDX files.

    Raises:
        DataError: If the files are missing or damaged, or break the rules of `arrays_to_dataset`.
    """
    place = place.absolute()
    with _reading(place):
        # Time and size identify the content, so that a file that changed on disk is read again.
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


# The runs of a sweep share what is read here. Two entries serve a sweep over two files and bound the memory.
@functools.lru_cache(maxsize=2)
def _read(source: str, *stamps: tuple[str, int, int]) -> CheckedArrays:
    """Checks the headers before it reads data, so that a small file that expands to many gigabytes is refused early."""
    stored: list[_Stored] = []
    with contextlib.ExitStack() as stack:
        for name, _, _ in stamps:
            path = Path(name)
            with _reading(path):
                stored += _open_npz(path, stack) if len(stamps) == 1 else [_open_idx(path, stack)]
        for x, y in (stored[:2], stored[2:]):
            check_headers(x.header, y.header)
        needed, present = sum(array.size for array in stored), provenance.memory()
        if needed > present:
            raise DataError(f"{source}: holds {needed / 1e9:,.1f} GB of data, this machine has {present / 1e9:,.1f}")
        arrays = {}
        for array in stored:
            with _reading(array.path):
                arrays[array.where] = _data(array)
    return check_arrays(source, arrays)


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
