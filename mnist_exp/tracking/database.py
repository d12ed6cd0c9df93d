"""The SQLite file of a store: created completely, read without a write, and found with its artifacts after a move."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from filelock import FileLock
from sqlalchemy import NullPool, create_engine
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from mnist_exp.errors import RequestError

LOCK_SECONDS = 60.0
ARTIFACTS = "mlruns"  # MLflow's own name of the folder beside the database
MOUNTS = Path("/proc/mounts")
# WAL needs memory that processes share through a file, which no network file system offers (sqlite.org/wal.html).
WAL_FILE_SYSTEMS = {
    *("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "jfs", "reiserfs", "tmpfs", "overlay"),
    *("aufs", "fuse.fuse-overlayfs", "fuseblk", "ntfs3", "vfat", "exfat"),
}
_PLAIN = make_url("sqlite://")


class StoreError(RequestError):
    """The tracking store cannot be used."""


def file_of(uri: str) -> Path | None:
    """The absolute path of a SQLite URI's file; None for other stores.

    Raises:
        StoreError: the URI is invalid, or names a database in memory.
    """
    if not uri.startswith(("sqlite:", "sqlite+")):
        return None
    try:
        name = make_url(uri).database or ":memory:"
    except ArgumentError as error:
        raise StoreError(f"tracking.uri must be like sqlite:///mlflow.db, got {uri}") from error
    if ":memory:" in name:
        raise StoreError(f"tracking.uri must name a file: the runs in a database in memory are lost, got {uri}")
    return Path(unquote(urlsplit(name).path) if name.startswith("file:") else name).absolute()


def resolved(uri: str) -> str:
    """A SQLite URI with an absolute path and its own driver and options; other URIs unchanged."""
    path = file_of(uri)
    return uri if path is None else uri_of(path, make_url(uri))


def uri_of(path: Path, like: URL = _PLAIN) -> str:
    """The URI of a SQLite file, with the driver and options of the URI `like`."""
    in_file_uri = (like.database or "").startswith("file:")
    url = like.set(database=f"file:{quote(str(path))}" if in_file_uri else str(path))
    # MLflow creates the folder of a sqlite:/// address and does not decode it, so it must see neither % nor file:.
    if in_file_uri or "%" in url.render_as_string(False):
        url = url.set(drivername="sqlite+pysqlite")
    return url.render_as_string(False)


def reading(uri: str) -> str:
    """The URI for reading a store. It tells SQLite not to write if the file or its folder is read-only."""
    path = file_of(uri)
    if path is None or (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
        return uri
    options = {"uri": "true", "mode": "ro"}
    log = _beside(path, "-wal")
    with path.open("rb") as file:
        in_wal_mode = file.read(19)[18:] == b"\2"  # sqlite.org/fileformat.html
    if in_wal_mode and not (log.exists() and log.stat().st_size):
        options["immutable"] = "1"  # else SQLite would create files beside it
    elif in_wal_mode and not _beside(path, "-shm").exists():
        raise StoreError(f"{path} must be opened once where it can be written: its latest runs are in {log.name} only")
    like = make_url(uri).set(database="file:").update_query_dict(options)
    return uri_of(path, like)


def is_complete(uri: str, schema: str) -> bool:
    """Whether a database is MLflow's with the schema version `schema`; False if it has no table.

    Raises:
        StoreError: anything else; the message says what to do.
    """
    path = file_of(uri)
    with create_engine(reading(uri), poolclass=NullPool).connect() as connection:
        tables = set(connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'").scalars())
        if not tables:
            return False
        if "experiments" not in tables:
            raise StoreError(f"tracking.uri={uri} cannot be used: {path} is no database of MLflow; name another file")
        versioned = "alembic_version" in tables
        version = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() if versioned else None
        if version == schema and not any(name.startswith("_alembic_tmp_") for name in tables):
            return True
        runs = "runs" in tables and connection.exec_driver_sql("SELECT 1 FROM runs LIMIT 1").scalar()
    if not runs:
        raise StoreError(
            f"tracking.uri={uri} cannot be used: the creation of {path} was interrupted; it has no runs: "
            "delete it and repeat the command"
        )
    raise StoreError(
        f"tracking.uri={uri} cannot be used: its schema is {version}, the installed MLflow needs {schema}; "
        f"back {path} up and run `mlflow db upgrade {uri}`"
    )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Serialise creation and changes of the file: when several processes create one store, MLflow fails in all but one.

    An error of SQLite is raised here at once; MLflow would retry for minutes.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist")
    lock = _beside(path, ".lock")
    lock.touch()  # raises in a read-only folder, where FileLock would wait
    with FileLock(lock, timeout=LOCK_SECONDS):
        if path.exists():
            with _connected(path) as connection:
                _choose_journal(connection, path)
                connection.execute("BEGIN IMMEDIATE")
        yield


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a new database; rename the file to `path` when it is complete."""
    new = _beside(path, ".new")
    for name in (new, *(_beside(file, end) for file in (new, path) for end in ("-journal", "-wal", "-shm"))):
        name.unlink(missing_ok=True)  # SQLite would apply the log of a deleted file to the new one
    yield new
    with _connected(new) as connection:
        _choose_journal(connection, path)
    new.replace(path)


@contextmanager
def _connected(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, timeout=LOCK_SECONDS)) as connection, connection:
        yield connection


def _choose_journal(connection: sqlite3.Connection, path: Path) -> None:
    """Choose WAL, in which writers do not wait for readers, if the file system supports it. The file keeps it."""
    wanted = "wal" if file_system(path) in WAL_FILE_SYSTEMS else "delete"
    if connection.execute("PRAGMA journal_mode").fetchone()[0] != wanted:
        connection.execute(f"PRAGMA journal_mode={wanted}")


def file_system(path: Path) -> str:
    """Linux's name of the file system on which a file is or will be; empty if unknown."""
    try:
        mounts = [line.split() for line in MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        return ""
    place = path.resolve()
    kinds = {point.replace("\\040", " "): kind for _, point, kind, *_ in mounts}  # a later mount covers an earlier
    return next((kinds[str(folder)] for folder in place.parents if str(folder) in kinds), "")


def _beside(path: Path, end: str) -> Path:
    return path.with_name(path.name + end)


def lies_at(location: str, path: Path) -> str:
    """The present location of artifacts that a database places at `location`: beside it, if it was moved with them.

    Args:
        location: folder or `file:` URI; any other address is returned unchanged.
        path: of the database.
    """
    root, below = _split_location(location)
    if root is None:
        return location
    here = path.parent / below
    return str(here) if root != path.parent and (here.exists() or not (root / below).exists()) else location


def is_outside(location: str, path: Path) -> bool:
    """Whether a location on this machine is outside the folder of the database."""
    return (
        urlsplit(location).scheme in ("", "file") and path.parent not in Path(unquote(urlsplit(location).path)).parents
    )


def moved_with(other: str, location: str, path: Path) -> str:
    """The present path of a file that was in the database's folder when artifacts were at `location`."""
    root, _ = _split_location(location)
    if root is None or lies_at(location, path) == location or not Path(other).is_relative_to(root):
        return other
    return str(path.parent / Path(other).relative_to(root))


def _split_location(location: str) -> tuple[Path | None, Path]:
    """Split a path into the folder that contains `mlruns`, None if there is none, and the rest."""
    url = urlsplit(location)
    parts = Path(unquote(url.path) if url.scheme == "file" else location).parts
    if url.scheme not in ("", "file") or ARTIFACTS not in parts:
        return None, Path(location)
    place = len(parts) - 1 - parts[::-1].index(ARTIFACTS)
    return Path(*parts[:place]), Path(*parts[place:])


def set_location(path: Path, experiment_id: str, location: str) -> None:
    """Set the artifact location for new runs of an experiment."""
    with _connected(path) as connection:
        connection.execute(
            "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (location, experiment_id)
        )


def relocate(path: Path) -> int:
    """Correct the artifact locations in a database that was moved; returns the number of corrected runs."""
    with locked(path), _connected(path) as connection:
        connection.create_function("lies_at", 1, lambda location: location and lies_at(location, path))
        connection.create_function("moved_with", 2, lambda other, location: moved_with(other, location, path))
        connection.execute(
            "UPDATE tags SET value = moved_with(value, (SELECT artifact_uri FROM runs WHERE run_uuid = tags.run_uuid)) "
            "WHERE key = 'output'"
        )
        runs = connection.execute(
            "UPDATE runs SET artifact_uri = lies_at(artifact_uri) WHERE artifact_uri != lies_at(artifact_uri)"
        )
        for table, column in (
            ("experiments", "artifact_location"),
            ("logged_models", "artifact_location"),
            ("model_versions", "source"),
            ("model_versions", "storage_location"),
        ):
            connection.execute(f"UPDATE {table} SET {column} = lies_at({column})")
        return runs.rowcount
