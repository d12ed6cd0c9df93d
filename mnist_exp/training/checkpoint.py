"""Checkpoints: all that the rest of a training depends on, a file an epoch. NumPy only.

A file is written beside its place and moved there, and its name holds the digest of its content, so that what a kill or
a loss of power left unfinished is never taken for a checkpoint.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

KEPT = 2  # the second is for the case that the first turns out to be damaged


class Checkpoint(NamedTuple):
    """The state after an epoch."""

    epoch: int  # from 1
    state: dict[str, Any]  # what JSON can hold, floats to the last bit
    arrays: list[np.ndarray]  # of any shape and any plain dtype


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint and remove all but the newest `KEPT`.

    Raises:
        OSError: it cannot be written; the one before is still there.
    """
    buffer = io.BytesIO()
    np.savez(buffer, np.frombuffer(json.dumps(checkpoint.state).encode(), np.uint8), *checkpoint.arrays)
    content = buffer.getbuffer()
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / "unfinished"
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # else a loss of power could leave the name without the content
    unfinished.rename(folder / f"{checkpoint.epoch:06}-{hashlib.sha256(content).hexdigest()}.npz")
    for old in _paths(folder)[KEPT:]:
        old.unlink()


def load(folder: Path) -> Checkpoint | None:
    """The newest checkpoint whose content is what its name says; None where there is none."""
    for path in _paths(folder):
        content = path.read_bytes()
        epoch, _, named = path.stem.partition("-")
        if hashlib.sha256(content).hexdigest() == named:
            with np.load(io.BytesIO(content), allow_pickle=False) as entries:
                state, *arrays = (entries[name] for name in entries.files)
            return Checkpoint(int(epoch), json.loads(state.tobytes()), arrays)
    return None


def digest(weights: Iterable[np.ndarray]) -> str:
    """SHA-256 (hex) over the bytes of arrays, in their order."""
    found = hashlib.sha256()
    for array in weights:
        found.update(array.tobytes())
    return found.hexdigest()


def _paths(folder: Path) -> Sequence[Path]:
    """Newest first."""
    return sorted(folder.glob("*-*.npz"), reverse=True)
