"""Checkpoints: one file per epoch with all state that the rest of a training depends on. NumPy only.

A file is written under another name and then renamed. Its name contains the digest of its content, so that a file which
a kill or a loss of power left incomplete is never read as a checkpoint.
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
    """The newest checkpoint whose content has the digest in its name; None without one."""
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
