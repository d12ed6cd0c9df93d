"""The local record of a run's metrics: a file of JSON objects, one a line and step."""

import errno
import json
import os
from pathlib import Path
from typing import Any

NAME = "metrics.jsonl"


def read(path: Path) -> dict[int, dict[str, Any]]:
    """The rows of a local record by step. Partial lines, left by a kill or a full disk, are removed from the file."""
    content = path.read_bytes() if path.exists() else b""
    rows = {line: _row(line) for line in content.splitlines(keepends=True)}
    whole = b"".join(line for line, row in rows.items() if row is not None)
    if whole != content:
        with path.open("r+b") as record:  # in place, because a full disk has no room for a copy
            record.write(whole)
            record.truncate()
    return {row["step"]: row for row in rows.values() if row is not None}


def append(path: Path, lines: bytes) -> None:
    """Append whole lines, or raise `OSError` and leave the file as it was."""
    with path.open("ab", buffering=0) as record:
        whole = record.tell()
        try:
            if record.write(lines) < len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(record.fileno())  # else after a power failure the store could have rows that this lacks
        except OSError:
            record.truncate(whole)  # else the next row would continue half a row
            raise


def _row(line: bytes) -> dict[str, Any] | None:
    """Parse a line of a local record; None for a partial line."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if line.endswith(b"\n") and isinstance(row, dict) and {"step", "time"} <= row.keys() else None
