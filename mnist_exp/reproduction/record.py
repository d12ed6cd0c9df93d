"""What a run left behind, as plain files: beside a downloaded config.yaml, or in a capsule, which is one zip of them.

Whoever hands it on may have changed it, so every file is read within bounds, as text or numbers and never as a pickle.
"""

import io
import json
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import OmegaConf

from mnist_exp.config import Config
from mnist_exp.config.untrusted import read_config
from mnist_exp.errors import RequestError
from mnist_exp.provenance.modules import FOLDER, MAX_ALL, MAX_FILE, module_name

# Name and largest size in bytes; besides these a capsule holds only the user's modules, below `code/`.
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
_DIRECTORY = 2**16  # bytes of a capsule's list of files: above, it is somebody else's zip
Row = dict[str, float | str]


class RecordError(RequestError):
    """A run's record is missing or damaged."""


class Record(NamedTuple):
    """A run's files by name, and what the store says of it; both may lack anything but config.yaml."""

    source: str  # where it was read
    run_id: str | None
    name: str | None
    files: Mapping[str, bytes]
    tags: Mapping[str, str]

    def environment(self) -> dict[str, Any]:
        """environment.json; empty when there is none, or one that was cut off while it was written."""
        content = self.files.get("environment.json", b"")
        return _object(content, f"{self.source}: environment.json") if _is_json(content) else {}

    def modules(self) -> dict[str, bytes]:
        """The user's own modules, by place: code/package/module.py."""
        return {name: content for name, content in self.files.items() if name.startswith(f"{FOLDER}/")}

    def rows(self) -> dict[int, Row]:
        """metrics.jsonl: what was recorded after each epoch, from 1, by its number; 0 for the end of the run."""
        rows: dict[int, Row] = {}
        lines = self.files.get("metrics.jsonl", b"").splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n") and not _is_json(lines[-1]):
            lines.pop()  # cut off while it was written
        for number, line in enumerate(lines, start=1):
            where = f"{self.source}: metrics.jsonl line {number}"
            row = _object(line, where)
            step, weights = row.pop("step", None), row.pop("weights", None)
            row.pop("time", None)
            numbers = all(type(value) is float or (type(value) is int and abs(value) < 2**63) for value in row.values())
            if type(step) is not int or step < 0 or not numbers or not isinstance(weights, str | None):
                raise RecordError(f"{where} must hold a step, numbers, and a digest as weights")
            rows.setdefault(step, {}).update(row if weights is None else {**row, "weights": weights})
        return dict(sorted(rows.items()))


def from_folder(config: Path) -> Record:
    """The record of a run of which config.yaml was downloaded, with what lies beside it under the names of `FILES`.

    Raises:
        RecordError: a file cannot be read or is too large.
    """
    beside = {name: config.with_name(name) for name in FILES if config.with_name(name).is_file()}
    paths = {**beside, "config.yaml": config}
    paths.pop("weights.npz", None)
    files: dict[str, bytes] = {}
    _read(paths, files)
    named = _record(str(config.parent), files).environment().get("source")
    # Only the modules that the record names: a folder of that name may hold anything.
    modules = [name for name in (named if isinstance(named, dict) else ()) if module_name(name)]
    _read({name: config.parent / name for name in modules if (config.parent / name).is_file()}, files)
    return _record(str(config.parent), files)


def _read(paths: Mapping[str, Path], files: dict[str, bytes]) -> None:
    for name, path in paths.items():
        try:
            with path.open("rb") as stream:
                files[name] = _bounded(stream, _limit(name, files), str(path))
        except OSError as error:
            raise RecordError(f"{path}: cannot be read: {error.strerror or error}") from error


def _limit(name: str, files: Mapping[str, bytes]) -> int:
    """How many bytes a file may have, when these have been read already."""
    if name in FILES:
        return FILES[name]
    return min(MAX_FILE, MAX_ALL - sum(len(content) for name, content in files.items() if name not in FILES))


def from_archive(path: Path) -> Record:
    """The record in a capsule; its weights stay where they are.

    Raises:
        RecordError: it is not an archive of a run, or a damaged one.
    """
    try:
        _check_directory(path)
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
                    files[name] = _bounded(stream, _limit(name, files), f"{path}: {name}")
    except RecordError:
        raise
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # zipfile raises half a dozen types on damaged bytes
        raise RecordError(
            f"{path}: is not an archive of a run, or a damaged one: {' '.join(str(error).split())}"
        ) from error
    return _record(str(path), files)


def resumed(given: Config, overrides: Sequence[str]) -> tuple[Config, list[str]]:
    """The config and the overrides of the run that `resume` names, as it logged them.

    Raises:
        RequestError: there is no such run, its config may not be called, or more was given than where the run is.
    """
    more = [text for text in overrides if not text.startswith(("resume=", "tracking.uri="))]
    if more or given.sweep.id is not None:
        raise RequestError(f"resume={given.resume} takes the run's own config; leave out {' '.join(more) or '-m'}")
    from mnist_exp import tracking

    run = tracking.find_run(given.tracking.uri, str(given.resume))
    files = tracking.read_files(given.tracking.uri, run.run_id, ["config.yaml", "overrides.yaml"])
    if len(files) < 2:
        raise RequestError(f"resume={given.resume}: the run died before it logged its config; give its command again")
    try:
        config = read_config(files["config.yaml"], trusted=tracking.is_own(given.tracking.uri, run.tags))
    except RequestError as error:
        raise RequestError(f"resume={given.resume}: give the run's own command again instead: {error}") from error
    config.resume, config.tracking.uri = run.run_id, given.tracking.uri
    return config, list(OmegaConf.create(files["overrides.yaml"].decode()))


def write_archive(record: Record, weights: Sequence[np.ndarray], path: Path) -> None:
    """Write one zip, the same bytes for the same record.

    Args:
        record: from the store.
        weights: the run's final weights, in the order in which Keras lists them.
        path: where; nothing may be there.

    Raises:
        RecordError: something is there, or it cannot be written.
    """
    told = {"run_id": record.run_id, "name": record.name, "tags": dict(record.tags)}
    arrays = {}
    for number, array in enumerate(weights):
        stream = io.BytesIO()
        np.lib.format.write_array(stream, array, allow_pickle=False)
        arrays[f"{number}.npy"] = stream.getvalue()
    files = {**record.files, "run.json": json.dumps(told, indent=1, sort_keys=True).encode()}
    content = _zip({**files, "weights.npz": _zip(arrays)})
    try:
        with path.open("xb") as stream_out:
            stream_out.write(content)
    except OSError as error:
        raise RecordError(f"{path}: cannot be written: {error.strerror or error}") from error


def from_store(run: str, uri: str | None) -> Record:
    """The record of a run in a tracking store, without its weights.

    Raises:
        RecordError: the run has no config.yaml.
        RequestError: there is no such run or store.
    """
    from mnist_exp import tracking  # a second, not for a mistyped option

    found = tracking.find_run(uri, run)
    files = tracking.read_files(uri, found.run_id, [*(FILES.keys() - {"weights.npz"}), FOLDER])
    if "config.yaml" not in files:
        place = tracking.place_of_artifacts(uri, found.run_id)
        raise RecordError(
            f"run {found.run_id} has no config.yaml: it trained nothing, or its artifacts are not in {place}"
        )
    return Record(f"run {found.run_id}", found.run_id, found.name, files, found.tags)


def _record(source: str, files: Mapping[str, bytes]) -> Record:
    told = _object(files.get("run.json", b"{}"), f"{source}: run.json")
    run_id, name, tags = (told.get(key, default) for key, default in (("run_id", None), ("name", None), ("tags", {})))
    if not isinstance(tags, dict) or not all(_is_text(text) for text in (run_id, name, *tags, *tags.values())):
        raise RecordError(f"{source}: run.json must hold the texts run_id and name, and texts as tags")
    return Record(source, run_id, name, files, tags)


def _is_text(value: Any) -> bool:
    return value is None or (isinstance(value, str) and len(value) < 5000 and value.isprintable())


def _zip(files: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)  # a ZipInfo of its own has no time
    return stream.getvalue()


def _check_directory(path: Path) -> None:
    """The list of files at the end of a zip, before zipfile builds objects for as many as it claims to have."""
    end = 22
    with path.open("rb") as stream:
        stream.seek(-min(path.stat().st_size, end + 20), 2)
        tail = stream.read()
    if len(tail) < end or not tail[-end:].startswith(b"PK\5\6") or tail.startswith(b"PK\6\7"):
        raise RecordError(f"{path}: is not an archive of a run, or a truncated one")
    if struct.unpack_from("<I", tail[-end:], 12)[0] > _DIRECTORY:
        raise RecordError(f"{path}: is not an archive of a run: it lists too many files")


def _bounded(stream: Any, limit: int, where: str) -> bytes:
    content: bytes = stream.read(limit + 1)
    if len(content) > limit:
        raise RecordError(f"{where}: must have at most {limit:,} bytes")
    return content


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
