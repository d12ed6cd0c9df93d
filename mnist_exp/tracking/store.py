"""Opens a tracking store, and maps the errors of MLflow to one-line errors."""

import atexit
import functools
import logging
import os
import re
import shlex
import signal
import sqlite3
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import mlflow
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.store.artifact import artifact_repository_registry
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.tracking._tracking_service.utils import _get_store
from sqlalchemy.exc import SQLAlchemyError

from mnist_exp.redact import redact
from mnist_exp.tracking import database
from mnist_exp.tracking.database import StoreError

logging.getLogger("alembic").setLevel(logging.ERROR)
logging.getLogger("mlflow.store.db").setLevel(logging.CRITICAL)  # it prints the traceback of what it also raises
# What a store raises that is gone, full or not one; ImportError: the driver of a database is not installed.
STORE_ERRORS = (MlflowException, SQLAlchemyError, sqlite3.Error, OSError, ImportError)


class _Artifacts(LocalArtifactRepository):
    """An artifact folder that is found even after it was moved together with the database."""

    def __init__(self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> None:
        path = database.file_of(tracking_uri or "")
        here = artifact_uri if path is None else database.lies_at(artifact_uri, path)
        super().__init__(here, tracking_uri, registry_uri)


for _scheme in ("", "file"):
    artifact_repository_registry._artifact_repository_registry.register(_scheme, _Artifacts)


class Store(NamedTuple):
    """An open tracking store and the experiment that runs go to."""

    uri: str
    experiment: str
    experiment_id: str

    @property
    def is_server(self) -> bool:
        """Whether the store is an MLflow server, which has its own UI."""
        return self.uri.startswith(("http://", "https://"))

    @property
    def ui_command(self) -> str:
        """What opens the MLflow UI on this store."""
        if self.is_server:
            return f"open {redact(self.uri)}"
        default = database.uri_of(Path.cwd() / "mlflow.db")
        return "mlflow ui" + ("" if self.uri == default else f" --backend-store-uri {shlex.quote(redact(self.uri))}")

    def ui_link(self, sweep: str) -> str:
        """The charts of a sweep's runs in the UI; without `workflowType` it opens in a mode that hides them."""
        host = redact(self.uri) if self.is_server else "http://127.0.0.1:5000"
        runs = quote(sweep_filter(sweep), safe="'")
        query = f"workflowType=machine_learning&compareRunsMode=CHART&searchFilter={runs}"
        return f"{host}/#/experiments/{self.experiment_id}/runs?{query}"


def import_database() -> None:
    """Import what MLflow, at the first store in a database that it opens, takes half a second for."""
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


def open_store(uri: str | None, experiment: str) -> Store:
    """Open, and at first use create, the store and the experiment.

    Args:
        uri: an MLflow tracking URI; None means MLFLOW_TRACKING_URI, else `sqlite:///mlflow.db` in this directory.
        experiment: name of the experiment.

    Raises:
        StoreError: the store cannot be reached, read or written, or the experiment was deleted.
    """
    uri = resolve_uri(uri)
    path = database.file_of(uri)
    mlflow.set_tracking_uri(uri)
    with store_errors(uri), nullcontext() if path is None else database.locked(path):
        if path is not None and not (path.exists() and database.is_made(uri, _schema())):
            _make(path)
        found = mlflow.get_experiment_by_name(experiment) or _create_experiment(uri, experiment)
        if found.lifecycle_stage != "active":
            raise StoreError(
                f"tracking.experiment={experiment} was deleted in MLflow; restore it with "
                f"`mlflow experiments restore --experiment-id {found.experiment_id}` or choose another name"
            )
        if path is not None:
            _settle(found, path)
            _close_at_exit(uri)
    return Store(uri, experiment, found.experiment_id)


def resolve_uri(uri: str | None) -> str:
    """The URI given, else MLFLOW_TRACKING_URI, else `sqlite:///mlflow.db`; with an absolute path."""
    return database.resolved(uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db")


@functools.cache
def _schema() -> str:
    """The version of its tables that the installed MLflow wants."""
    from mlflow.store.db.utils import _get_latest_schema_revision

    return str(_get_latest_schema_revision())


def _make(path: Path) -> None:
    """Have MLflow make its database, whole or not at all."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with delayed_signals(), database.replacing(path) as new:
        SqlAlchemyStore(database.uri_of(new), str(path.parent / database.ARTIFACTS)).engine.dispose()


def _create_experiment(uri: str, name: str) -> Experiment:
    """Create an experiment whose artifacts lie beside its database, not wherever this process started."""
    path, client = database.file_of(uri), mlflow.MlflowClient(uri)
    try:
        if path is None:
            client.create_experiment(name)
        else:
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

            SqlAlchemyStore(uri, str(path.parent / database.ARTIFACTS)).create_experiment(name)
    except MlflowException:
        if client.get_experiment_by_name(name) is None:  # else another process has just created it
            raise
    return client.get_experiment_by_name(name)


def _settle(experiment: Experiment, path: Path) -> None:
    """Have new runs keep their artifacts beside a database that was moved; say where they go if that is elsewhere."""
    location = experiment.artifact_location
    here = database.lies_at(location, path)
    if here != location:
        database.set_location(path, experiment.experiment_id, here)
        _say(
            f"{path} was moved here: artifacts go to {here} from now on, not to {location}; "
            "`python -m mnist_exp.relocate` has MLflow's UI find those of earlier runs too"
        )
    elif database.is_outside(location, path):
        _say(f"artifacts go to {location}, which is not beside {path}")


@functools.cache
def _close_at_exit(uri: str) -> None:
    """Have the last process that leaves a database put all that was written into its one file."""
    atexit.register(_get_store(uri).engine.dispose)


@functools.cache
def _say(text: str) -> None:
    """Say it once, however often a process opens the store."""
    print(f"tracking: {text}", file=sys.stderr, flush=True)


def relocate(uri: str | None) -> tuple[Path, int]:
    """Have a store that was moved say where its artifacts are now; returns its file and how many runs said otherwise.

    Raises:
        StoreError: it is not kept in a file, or that cannot be written.
    """
    uri = existing(uri)
    path = database.file_of(uri)
    if path is None:
        raise StoreError(f"tracking.uri={uri} is no SQLite file: only a store in a file can have been moved")
    with store_errors(uri), delayed_signals():
        return path, database.relocate(path)


def find_store(uri: str | None, experiment: str) -> Store:
    """Open a store to read it; unlike `open_store` this makes neither a database nor an experiment.

    Raises:
        StoreError: there is no such store or experiment, or it cannot be read.
    """
    uri = existing(uri)
    with store_errors(uri):
        client = reader(uri)
        found = client.get_experiment_by_name(experiment)
        if found is None or found.lifecycle_stage != "active":
            names = ", ".join(sorted(e.name for e in client.search_experiments()))
            raise StoreError(f"{uri} has no experiment {experiment!r}; it has: {names or 'none'}")
    return Store(uri, experiment, found.experiment_id)


def existing(uri: str | None) -> str:
    """The URI of a store to be read.

    Raises:
        StoreError: its database does not exist, or is not whole; MLflow would make one.
    """
    uri = resolve_uri(uri)
    path = database.file_of(uri)
    if path is not None:
        with store_errors(uri):
            if not path.is_file():
                raise FileNotFoundError(f"there is no file {path}")
            if not database.is_made(uri, _schema()):
                raise StoreError(f"tracking.uri={uri} cannot be used: {path} is empty")
    return uri


def reader(uri: str) -> mlflow.MlflowClient:
    """A client that reads a store without writing to it."""
    return mlflow.MlflowClient(database.reading(uri))


@contextmanager
def store_errors(uri: str, query: str = "") -> Iterator[None]:
    """Turn the errors of a store into a `StoreError` of one line."""
    try:
        yield
    except STORE_ERRORS as error:
        if query and getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE":
            raise StoreError(f"{query!r} is no filter string of MLflow: {store_message(error)}") from error
        raise StoreError(f"tracking.uri={uri} cannot be used: {store_message(error)}") from error


@contextmanager
def delayed_signals() -> Iterator[list[int]]:
    """Hold back Ctrl-C and SIGTERM while a run is closed: an impatient second one would leave it looking alive.

    Gives the list of the signals that came meanwhile.
    """
    held: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield held
        return
    before = {s: signal.signal(s, lambda number, _: held.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield held
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])


def uninterrupted(store: Store) -> AbstractContextManager[object]:
    """Around what is written for a run or sweep: an interrupted transaction would lock a database against our own end.

    A server's transactions are its own, and waiting for one that is gone must be interruptible.
    """
    return nullcontext() if store.is_server else delayed_signals()


@contextmanager
def writing(store: Store) -> Iterator[mlflow.MlflowClient]:
    """A client for writes: Ctrl-C does not interrupt them, and their errors become a `StoreError`."""
    with store_errors(store.uri), uninterrupted(store):
        yield mlflow.MlflowClient(store.uri)


def membership_tag(sweep: str) -> str:
    """Name of the tag that holds the numbers of a run's jobs in the sweep."""
    return f"sweep.{sweep}"


def sweep_filter(sweep: str) -> str:
    """MLflow's filter string for the runs of a sweep."""
    return f"tags.`{membership_tag(sweep)}` != '' and tags.kind = 'run'"


def store_message(error: BaseException) -> str:
    """First line of an error, without secrets and without the class that SQLAlchemy puts before it."""
    text = re.sub(r"^\([\w.]+\) ", "", str(error).strip())  # SQLAlchemy's prefix: the driver's class of the error
    lines = [line for line in text.splitlines() if line.strip()]
    return redact(lines[0])[:300] if lines else type(error).__name__
