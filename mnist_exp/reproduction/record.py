"""A run's record as plain files: in the tracking store, beside a downloaded config.yaml, or in an archive (one zip).

A stranger may have changed the files. So each is read up to a size, as text or numbers and never as a pickle.
"""

import io
import json
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from omegaconf import OmegaConf

from mnist_exp.config import Config
from mnist_exp.config.untrusted import read_config
from mnist_exp.errors import RequestError, first_line
from mnist_exp.provenance.modules import FOLDER, MAX_ALL, MAX_FILE, module_name

# Name and largest size in bytes. Besides these an archive holds only the user's modules, in `code/`.
FILES = {
    "run.json": 2**20,
    "config.yaml": 2**16,
    "environment.json": 2**20,
    "metrics.jsonl": 2**26,
    "code.diff": 2**21,
    "model_summary.txt": 2**20,
    "curves.png": 2**24,
    "weights.npz": 2**31,
}
_MAX_LIST = 2**16  # bytes of an archive's list of files; a zip with a longer one is none of ours
EpochRecord = dict[str, float | str]  # metrics by name, and as `weights` the digest of the weights


class RecordError(RequestError):
    """A run's record is missing or damaged."""


class Record(NamedTuple):
    """A run's files by name, and its id, name and tags in the store; any file but config.yaml may be missing."""

    source: str  # where it was read, for messages
    run_id: str | None
    name: str | None
    files: Mapping[str, bytes]
    tags: Mapping[str, str]

    def environment(self) -> dict[str, Any]:
        """environment.json as a dictionary; empty if the file is missing or was cut off while it was written."""
        content = self.files.get("environment.json", b"")
        return _object(content, f"{self.source}: environment.json") if _is_json(content) else {}

    def modules(self) -> dict[str, bytes]:
        """Sources of the user's own modules by name, such as code/package/module.py."""
        return {name: content for name, content in self.files.items() if name.startswith(f"{FOLDER}/")}

    def rows(self) -> dict[int, EpochRecord]:
        """metrics.jsonl by epoch, counted from 1; 0 is the end of the run.

        Raises:
            RecordError: a line has not this form. A last line that was cut off is left out.
        """
        rows: dict[int, EpochRecord] = {}
        lines = self.files.get("metrics.jsonl", b"").splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n") and not _is_json(lines[-1]):
            lines.pop()
        for number, line in enumerate(lines, start=1):
            where = f"{self.source}: metrics.jsonl line {number}"
            row = _object(line, where)
            row.pop("time", None)
            step, weights = row.pop("step", None), row.get("weights")
            numbers = [value for name, value in row.items() if name != "weights"]
            good = all(type(value) is float or (type(value) is int and abs(value) < 2**63) for value in numbers)
            if type(step) is not int or step < 0 or not good or not isinstance(weights, str | None):
                raise RecordError(f"{where} must hold a step, numbers, and a digest as weights")
            rows.setdefault(step, {}).update({name: value for name, value in row.items() if value is not None})
        return dict(sorted(rows.items()))


def from_folder(config: Path) -> Record:
    """The record of a downloaded config.yaml, of any name, and of the files of `FILES` beside it.

    Raises:
        RecordError: a file cannot be read or is too large.
    """
    files: dict[str, bytes] = {}

    def read(name: str, path: Path) -> None:
        try:
            with path.open("rb") as stream:
                _add(files, name, stream, str(path))
        except OSError as error:
            raise _unreadable(path, error) from error

    read("config.yaml", config)
    for name in FILES:
        if name not in ("config.yaml", "weights.npz") and config.with_name(name).is_file():
            read(name, config.with_name(name))
    named = _record(str(config.parent), files).environment().get("source")
    # Only the modules that the record names, because a folder called code/ may hold anything.
    for name in named if isinstance(named, dict) else ():
        if module_name(name) and (config.parent / name).is_file():
            read(name, config.parent / name)
    return _record(str(config.parent), files)


def from_archive(path: Path) -> Record:
    """The record in an archive, without its weights.

    Raises:
        RecordError: the file is not an archive of a run, or it is damaged.
    """
    try:
        _check_list_of_files(path)
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            strange = [name for name in names if name not in FILES and module_name(name) is None]
            if strange or len(set(names)) < len(names) or "config.yaml" not in names:
                listed = ", ".join(map(repr, sorted(names)))[:200]
                allowed = ", ".join((*FILES, f"{FOLDER}/*.py"))
                raise RecordError(f"{path}: is not an archive of a run: it may hold {allowed}, it holds {listed}")
            files: dict[str, bytes] = {}
            for name in set(names) - {"weights.npz"}:
                with archive.open(name) as stream:
                    _add(files, name, stream, f"{path}: {name}")
    except RecordError:
        raise
    except OSError as error:
        raise _unreadable(path, error) from error
    except Exception as error:  # zipfile raises half a dozen types on damaged bytes
        raise RecordError(f"{path}: is not an archive of a run, or a damaged one: {first_line(error)}") from error
    return _record(str(path), files)


def resumed(given: Config, overrides: Sequence[str]) -> tuple[Config, list[str]]:
    """The config and the overrides that the run named by `resume` recorded.

    Raises:
        RequestError: there is no such run, its config is not trusted, or other overrides were given.
    """
    more = [text for text in overrides if not text.startswith(("resume=", "tracking.uri="))]
    if more or given.sweep.id is not None:
        raise RequestError(f"resume={given.resume} takes the run's own config; leave out {' '.join(more) or '-m'}")
    from mnist_exp import tracking

    run = tracking.find_run(given.tracking.uri, str(given.resume))
    names = ("config.yaml", "overrides.yaml")
    files = tracking.read_files(given.tracking.uri, run.run_id, names)
    files = tracking.unsent_files(given.tracking.uri, run, names) | files
    if len(files) < 2:
        raise RequestError(f"resume={given.resume}: the run died before it logged its config; give its command again")
    try:
        config = read_config(files["config.yaml"], trusted=tracking.is_own(given.tracking.uri, run.tags))
    except RequestError as error:
        raise RequestError(f"resume={given.resume}: give the run's own command again instead: {error}") from error
    config.resume, config.tracking.uri = run.run_id, given.tracking.uri
    return config, list(OmegaConf.create(files["overrides.yaml"].decode()))


def from_store(run: str, uri: str | None) -> Record:
    """The record of a run in a tracking store, without its weights.

    Raises:
        RecordError: the run has no config.yaml.
        RequestError: there is no such run or store.
    """
    from mnist_exp import tracking  # takes a second, so not for a mistyped option

    found = tracking.find_run(uri, run)
    files = tracking.read_files(uri, found.run_id, [*(FILES.keys() - {"weights.npz"}), FOLDER])
    if "config.yaml" not in files:
        place = tracking.place_of_artifacts(uri, found.run_id)
        raise RecordError(
            f"run {found.run_id} has no config.yaml: it trained nothing, or its artifacts are not in {place}"
        )
    return Record(f"run {found.run_id}", found.run_id, found.name, files, found.tags)


def write_archive(record: Record, weights: Sequence[np.ndarray], path: Path) -> None:
    """Write a record as one zip; the same record gives the same bytes.

    Args:
        record: from the store.
        weights: the run's final weights, in the order in which Keras lists them.
        path: of the new file.

    Raises:
        RecordError: the file exists, or it cannot be written.
    """
    entry = {"run_id": record.run_id, "name": record.name, "tags": dict(record.tags)}
    arrays = {}
    for number, array in enumerate(weights):
        stream = io.BytesIO()
        np.lib.format.write_array(stream, array, allow_pickle=False)
        arrays[f"{number}.npy"] = stream.getvalue()
    files = {**record.files, "run.json": json.dumps(entry, indent=1, sort_keys=True).encode()}
    content = _zip({**files, "weights.npz": _zip(arrays)})
    try:
        with path.open("xb") as file:
            file.write(content)
    except OSError as error:
        raise RecordError(f"{path}: cannot be written: {error.strerror or error}") from error


def _record(source: str, files: Mapping[str, bytes]) -> Record:
    entry = _object(files.get("run.json", b"{}"), f"{source}: run.json")
    run_id, name, tags = entry.get("run_id"), entry.get("name"), entry.get("tags", {})
    if not isinstance(tags, dict) or not all(_is_text(text) for text in (run_id, name, *tags, *tags.values())):
        raise RecordError(f"{source}: run.json must hold the texts run_id and name, and texts as tags")
    return Record(source, run_id, name, files, tags)


def _is_text(value: Any) -> bool:
    return value is None or (isinstance(value, str) and len(value) < 5000 and value.isprintable())


def _zip(files: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)  # ZipInfo: else the time gets in
    return stream.getvalue()


def _check_list_of_files(path: Path) -> None:
    """Check the size of a zip's list of files, for which zipfile would build as many objects as it claims to have."""
    end = 22  # bytes of the record that ends a zip; 20 more for the pointer of a zip that is larger than 4 GiB
    with path.open("rb") as stream:
        stream.seek(-min(path.stat().st_size, end + 20), 2)
        tail = stream.read()
    if len(tail) < end or not tail[-end:].startswith(b"PK\5\6") or tail.startswith(b"PK\6\7"):
        raise RecordError(f"{path}: is not an archive of a run, or a truncated one")
    if struct.unpack_from("<I", tail[-end:], 12)[0] > _MAX_LIST:
        raise RecordError(f"{path}: is not an archive of a run: it lists too many files")


def _add(files: dict[str, bytes], name: str, stream: IO[bytes], where: str) -> None:
    """Read a file into `files`, up to its largest size; the user's modules also have one together."""
    limit = FILES.get(name)
    if limit is None:
        limit = min(MAX_FILE, MAX_ALL - sum(len(content) for other, content in files.items() if other not in FILES))
    content = stream.read(limit + 1)
    if len(content) > limit:
        raise RecordError(f"{where}: must have at most {limit:,} bytes")
    files[name] = content


def _unreadable(path: Path, error: OSError) -> RecordError:
    return RecordError(f"{path}: cannot be read: {error.strerror or error}")


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True


def _object(content: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{where}: is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise RecordError(f"{where}: must be a JSON object, got a {type(found).__name__}")
    return found
