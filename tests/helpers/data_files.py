"""Small data sets, and the files that hold them."""

import gzip
import io
import struct
import urllib.error
from pathlib import Path

import numpy as np

from mnist_exp import data

Arrays = dict[str, np.ndarray]


def arrays(train: int = 40, test: int = 10) -> Arrays:
    rng = np.random.default_rng(7)
    return {
        "x_train": rng.integers(0, 256, (train, 28, 28), dtype=np.uint8),
        "y_train": (np.arange(train) % 10).astype(np.uint8),
        "x_test": rng.integers(0, 256, (test, 28, 28), dtype=np.uint8),
        "y_test": (np.arange(test) % 10).astype(np.uint8),
    }


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder: Path, content: Arrays, *, dot: bool = False, gz: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    for name, array in zip(data.IDX_FILES, content.values(), strict=True):
        spelt = name.replace("-idx", ".idx") if dot else name
        raw = idx(array)
        (folder / f"{spelt}{'.gz' if gz else ''}").write_bytes(gzip.compress(raw) if gz else raw)
    return folder


def write_npz(path: Path, content: Arrays) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **content)
    return path


def npz_bytes(content: Arrays) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **content)
    return stream.getvalue()


def offline(*_: object, **__: object) -> None:
    """In place of urllib.request.urlopen."""
    raise urllib.error.URLError("no network in tests")
