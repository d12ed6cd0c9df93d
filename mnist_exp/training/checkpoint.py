"""Checkpoints: files with all state that the rest of a training depends on. NumPy only.

A file is written under another name and then renamed. Its name contains the digest of its content, so that a file which
a kill or a loss of power left incomplete is never read as a checkpoint.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_PLACE = "__array__"  # the key that stands in the JSON for an array, with its place among the file's arrays
KEPT = 2  # the second is for the case that the first turns out to be damaged


class Checkpoint(NamedTuple):
    """The state after an epoch, or between two chunks of the next one."""

    epoch: int  # epochs done
    state: dict[str, Any]  # what JSON can hold, floats to the last bit, and NumPy arrays
    arrays: list[np.ndarray]  # of any shape and any plain dtype; when loaded, followed by those of the state
    chunk: int = 0  # chunks of the next epoch that are done


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint and remove all but the newest `KEPT`.

    Raises:
        OSError: it cannot be written; the one before is still there.
    """
    arrays = list(checkpoint.arrays)

    def placed(value: object) -> dict[str, int]:
        if not isinstance(value, np.ndarray):
            raise TypeError(f"a checkpoint holds what JSON can hold, and NumPy arrays, got {type(value).__name__}")
        arrays.append(value)
        return {_PLACE: len(arrays) - 1}

    text = json.dumps(checkpoint.state, default=placed)
    buffer = io.BytesIO()
    np.savez(buffer, np.frombuffer(text.encode(), np.uint8), *arrays)
    content = buffer.getbuffer()
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / "unfinished"
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # else a loss of power could leave the name without the content
    place = f"{checkpoint.epoch:06}" + (f".{checkpoint.chunk:06}" if checkpoint.chunk else "")  # "-" sorts before "."
    unfinished.rename(folder / f"{place}-{hashlib.sha256(content).hexdigest()}.npz")
    for old in _paths(folder)[KEPT:]:
        old.unlink()


def load(folder: Path) -> Checkpoint | None:
    """The newest checkpoint whose content has the digest in its name; None without one."""
    for path in _paths(folder):
        content = path.read_bytes()
        place, _, named = path.stem.partition("-")
        if hashlib.sha256(content).hexdigest() == named:
            with np.load(io.BytesIO(content), allow_pickle=False) as entries:
                text, *arrays = (entries[name] for name in entries.files)
            state = json.loads(text.tobytes(), object_hook=partial(_array_or_node, arrays))
            epoch, _, chunk = place.partition(".")
            return Checkpoint(int(epoch), state, arrays, int(chunk or 0))
    return None


def _array_or_node(arrays: Sequence[np.ndarray], node: dict[str, Any]) -> Any:
    return arrays[node[_PLACE]] if _PLACE in node else node


def digest(weights: Iterable[np.ndarray]) -> str:
    """SHA-256 (hex) over the bytes of arrays, in their order."""
    found = hashlib.sha256()
    for array in weights:
        found.update(array.tobytes())
    return found.hexdigest()


def _paths(folder: Path) -> Sequence[Path]:
    """Newest first."""
    return sorted(folder.glob("*-*.npz"), reverse=True)
