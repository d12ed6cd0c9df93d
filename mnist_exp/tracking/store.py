"""Opens a tracking store, guards reads and writes, and maps the errors of MLflow to one line."""

import atexit
import functools
import logging
import os
import re
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
from mlflow.tracking import fluent
from mlflow.tracking._tracking_service import utils
from sqlalchemy.exc import SQLAlchemyError

from mnist_exp.console import command, say
from mnist_exp.errors import first_line
from mnist_exp.redact import redact
from mnist_exp.tracking import database
from mnist_exp.tracking.database import StoreError

logging.getLogger("alembic").setLevel(logging.ERROR)
logging.getLogger("mlflow.store.db").setLevel(logging.CRITICAL)  # it also raises the errors whose traceback it logs
# Raised by a store that is unreachable, full or invalid; ImportError if the driver of a database is not installed.
STORE_ERRORS = (MlflowException, SQLAlchemyError, sqlite3.Error, OSError, ImportError)


DEFAULT_URI = "sqlite:///mlflow.db"
GIVEN_URI = os.environ.get("MLFLOW_TRACKING_URI")  # the user's: MLflow sets the variable when it opens a store


class _Artifacts(LocalArtifactRepository):
    """Finds an artifact folder also after it was moved together with the database."""

    def __init__(self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> None:
        path = database.file_of(tracking_uri or "")
        here = artifact_uri if path is None else database.lies_at(artifact_uri, path)
        super().__init__(here, tracking_uri, registry_uri)


for _scheme in ("", "file"):
    artifact_repository_registry._artifact_repository_registry.register(_scheme, _Artifacts)


class Store(NamedTuple):
    """An open tracking store, and the experiment that receives the runs."""

    uri: str
    experiment: str
    experiment_id: str

    @property
    def is_server(self) -> bool:
        """Whether the store is an MLflow server, which has its own UI."""
        return self.uri.startswith(("http://", "https://"))

    @property
    def ui_command(self) -> str | None:
        """The command that starts MLflow's UI on this store; None for a server, which has its own."""
        if self.is_server:
            return None
        default = database.uri_of(Path.cwd() / "mlflow.db")
        return command("mlflow", "ui", *([] if self.uri == default else ["--backend-store-uri", self.uri]))

    def ui_link(self, sweep: str) -> str:
        """Address of the charts of a sweep's runs; without `workflowType` the UI opens in a mode that hides them."""
        runs = quote(sweep_filter(sweep), safe="'")
        query = f"workflowType=machine_learning&compareRunsMode=CHART&searchFilter={runs}"
        return f"{self._ui}/#/experiments/{self.experiment_id}/runs?{query}"

    @property
    def arguments(self) -> list[str]:
        """The option by which another command finds this store; none for the store that it takes by default."""
        default = database.resolved(GIVEN_URI or DEFAULT_URI)
        return [] if self.uri == default else ["--tracking-uri", self.uri]

    def run_link(self, run_id: str) -> str:
        """Address of a run's page."""
        return f"{self._ui}/#/experiments/{self.experiment_id}/runs/{run_id}"

    @property
    def _ui(self) -> str:
        return redact(self.uri) if self.is_server else "http://127.0.0.1:5000"


def import_database() -> None:
    """Import the modules that MLflow imports when it first opens a database, which takes half a second."""
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


def open_store(uri: str | None, experiment: str) -> Store:
    """Open the store and the experiment; the first use creates them.

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
        if path is not None and not (path.exists() and database.is_complete(uri, _schema())):
            _create_database(path)
        found = mlflow.get_experiment_by_name(experiment) or _create_experiment(uri, experiment)
        if found.lifecycle_stage != "active":
            raise StoreError(
                f"tracking.experiment={experiment} was deleted in MLflow; restore it with "
                f"`mlflow experiments restore --experiment-id {found.experiment_id}` or choose another name"
            )
        if path is not None:
            _check_location(found, path)
            _close_at_exit(uri)
    return Store(uri, experiment, found.experiment_id)


@contextmanager
def defaults_kept() -> Iterator[None]:
    """Restores MLflow's own defaults, which a run sets, for other code of the process that uses MLflow.

    They are the tracking URI and the experiment, each also as an environment variable.
    """
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID")
    variables = {name: os.environ.get(name) for name in names}
    uri, experiment = utils._tracking_uri, fluent._active_experiment_id
    try:
        yield
    finally:
        mlflow.set_tracking_uri(uri)
        fluent._active_experiment_id = experiment
        for name, value in variables.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def resolve_uri(uri: str | None) -> str:
    """The given URI, else MLFLOW_TRACKING_URI, else `sqlite:///mlflow.db`, with an absolute path."""
    return database.resolved(uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI)


@functools.cache
def _schema() -> str:
    """The schema version that the installed MLflow requires."""
    from mlflow.store.db.utils import _get_latest_schema_revision

    return str(_get_latest_schema_revision())


def _create_database(path: Path) -> None:
    """Create MLflow's database completely or not at all."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with delayed_signals(), database.replacing(path) as new:
        SqlAlchemyStore(database.uri_of(new), str(path.parent / database.ARTIFACTS)).engine.dispose()


def _create_experiment(uri: str, name: str) -> Experiment:
    """Create an experiment with its artifacts beside its database, not in this process's working directory."""
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


def _check_location(experiment: Experiment, path: Path) -> None:
    """Move the artifact location of new runs beside a database that was moved; warn if it is elsewhere."""
    location = experiment.artifact_location
    here = database.lies_at(location, path)
    if here != location:
        database.set_location(path, experiment.experiment_id, here)
        _say(
            f"{path} was moved here: artifacts go to {here} from now on, not to {location}; "
            "after `python -m mnist_exp.relocate` MLflow's UI also finds those of earlier runs"
        )
    elif database.is_outside(location, path):
        _say(f"artifacts go to {location}, which is not beside {path}")


@functools.cache
def _close_at_exit(uri: str) -> None:
    """At exit close MLflow's connections, so that SQLite merges its write-ahead log into the database file."""
    atexit.register(utils._get_store(uri).engine.dispose)


@functools.cache
def _say(text: str) -> None:
    """Print a message once per process."""
    say(f"tracking: {text}", sys.stderr)


def relocate(uri: str | None) -> tuple[Path, int]:
    """Correct the artifact locations in a store that was moved; returns its file and the number of corrected runs.

    Raises:
        StoreError: the store is not a SQLite file, or cannot be written.
    """
    uri = existing(uri)
    path = database.file_of(uri)
    if path is None:
        raise StoreError(f"tracking.uri={uri} is not a SQLite file: only a store in a file can be moved")
    with store_errors(uri), delayed_signals():
        return path, database.relocate(path)


def find_store(uri: str | None, experiment: str) -> Store:
    """Open a store to read it; unlike `open_store` this creates neither a database nor an experiment.

    Raises:
        StoreError: the store or experiment does not exist, or cannot be read.
    """
    uri = existing(uri)
    with reading(uri) as client:
        found = client.get_experiment_by_name(experiment)
        if found is None or found.lifecycle_stage != "active":
            names = ", ".join(sorted(e.name for e in client.search_experiments()))
            raise StoreError(f"{uri} has no experiment {experiment!r}; it has: {names or 'none'}")
    return Store(uri, experiment, found.experiment_id)


def existing(uri: str | None) -> str:
    """The resolved URI of a store to be read.

    Raises:
        StoreError: the database is missing or incomplete, where MLflow would create one.
    """
    uri = resolve_uri(uri)
    path = database.file_of(uri)
    if path is not None:
        with store_errors(uri):
            if not path.is_file():
                raise FileNotFoundError(f"there is no file {path}")
            if not database.is_complete(uri, _schema()):
                raise StoreError(f"tracking.uri={uri} cannot be used: {path} is empty")
    return uri


@contextmanager
def store_errors(uri: str, query: str = "") -> Iterator[None]:
    """Map the errors of a store to a `StoreError` of one line.

    Args:
        uri: of the store.
        query: the user's filter string; the error says if MLflow rejects it.
    """
    try:
        yield
    except STORE_ERRORS as error:
        if query and getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE":
            raise StoreError(f"{query!r} is not a filter string of MLflow: {store_message(error)}") from error
        raise StoreError(f"tracking.uri={uri} cannot be used: {store_message(error)}") from error


@contextmanager
def delayed_signals() -> Iterator[list[int]]:
    """Delay Ctrl-C and SIGTERM, for example so that a second one cannot leave a run RUNNING while it is closed.

    Yields the list of the signals that arrived meanwhile; the first of them is raised at the end.
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
    """Delay signals during writes: an aborted SQLite transaction would keep the database locked when the run is closed.

    Not for a server, which completes its own transactions: the wait for an unreachable server must be interruptible.
    """
    return nullcontext() if store.is_server else delayed_signals()


@contextmanager
def reading(uri: str | None, query: str = "") -> Iterator[mlflow.MlflowClient]:
    """A client that never writes to the store; its errors become a `StoreError`, as in `store_errors`."""
    uri = resolve_uri(uri)
    with store_errors(uri, query):
        yield mlflow.MlflowClient(database.reading(uri))


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
    """The first line of an error, redacted, without the driver's error class that SQLAlchemy puts before it."""
    line = first_line(error).rstrip("\r")
    return redact(re.sub(r"^\([\w.]+\) ", "", line))[:300] or type(error).__name__
