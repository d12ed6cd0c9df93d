"""Opens a tracking store, guards reads and writes, and maps the errors of MLflow to one line."""

import atexit
import functools
import importlib.util
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
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy.exc import SQLAlchemyError

from mnist_exp.console import command, say
from mnist_exp.errors import first_line
from mnist_exp.redact import redact
from mnist_exp.tracking import database, tables
from mnist_exp.tracking.database import StoreError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

logging.getLogger("alembic").setLevel(logging.ERROR)
logging.getLogger("mlflow.store.db").setLevel(logging.CRITICAL)  # it also raises the errors whose traceback it logs

DEFAULT_URI = "sqlite:///mlflow.db"
GIVEN_URI = os.environ.get("MLFLOW_TRACKING_URI")  # the user's: MLflow sets the variable when it opens a store


def store_error_types() -> tuple[type[Exception], ...]:
    """Errors of a store that is unreachable, full or invalid; ImportError if a database's driver is not installed.

    MLflow's own error is among them once MLflow is imported.
    """
    imported = sys.modules.get("mlflow.exceptions")
    return (SQLAlchemyError, sqlite3.Error, OSError, ImportError, *([imported.MlflowException] if imported else []))


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
        query = f"workflowType=machine_learning&compareRunsMode=CHART&viewStateShareKey={sweep}"
        return f"{self._ui}/#/experiments/{self.experiment_id}/runs?{query}"

    @property
    def arguments(self) -> list[str]:
        """The option by which another command finds this store; none for the store that it takes by default."""
        default = database.resolved(GIVEN_URI or DEFAULT_URI)
        return [] if self.uri == default else ["--tracking-uri", self.uri]

    def run_link(self, run_id: str) -> str:
        """Address of the charts of a run."""
        page = f"experiments/{self.experiment_id}/runs/{run_id}/model-metrics"
        return f"{self._ui}/#/{page}?workflowType=machine_learning"

    @property
    def _ui(self) -> str:
        return redact(self.uri) if self.is_server else "http://127.0.0.1:5000"


def import_database() -> None:
    """Import the modules that MLflow imports when it first opens a database, which takes half a second."""
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    import mnist_exp.tracking.client  # noqa: F401


def default_experiment() -> str:
    """Name of the experiment that a command uses if none is named: MLFLOW_EXPERIMENT_NAME, else mnist_exp."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or "mnist_exp"


def open_store(uri: str | None, experiment: str) -> Store:
    """Open the store and the experiment; the first use creates them.

    Args:
        uri: an MLflow tracking URI; None means MLFLOW_TRACKING_URI, else `sqlite:///mlflow.db` in this directory.
        experiment: name of the experiment.

    Raises:
        StoreError: the store cannot be reached, read or written, or the experiment was deleted.
    """
    from mnist_exp.tracking.client import mlflow

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
    import mlflow
    from mlflow.tracking import fluent
    from mlflow.tracking._tracking_service import utils

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
    """The schema version that the installed MLflow requires: the migration after which no other one comes."""
    package = importlib.util.find_spec("mlflow")  # which does not import it
    assert package is not None
    files = Path(str(package.origin)).parent.joinpath("store", "db_migrations", "versions").glob("*.py")
    texts = [file.read_text(encoding="utf-8") for file in files]
    revisions, earlier = (
        {found for text in texts for found in re.findall(rf"""^{name} = ["'](\w+)["']""", text, re.MULTILINE)}
        for name in ("revision", "down_revision")
    )
    (latest,) = revisions - earlier
    return latest


def _create_database(path: Path) -> None:
    """Create MLflow's database completely or not at all."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with delayed_signals(), database.replacing(path) as new:
        SqlAlchemyStore(database.uri_of(new), str(path.parent / database.ARTIFACTS)).engine.dispose()


def _create_experiment(uri: str, name: str) -> "Experiment":
    """Create an experiment with its artifacts beside its database, not in this process's working directory."""
    from mlflow.exceptions import MlflowException

    from mnist_exp.tracking.client import client_of

    path, client = database.file_of(uri), client_of(uri)
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


def _check_location(experiment: "Experiment", path: Path) -> None:
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
    from mlflow.tracking._tracking_service.utils import _get_store

    atexit.register(_get_store(uri).engine.dispose)


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
    active = {name: number for number, (name, stage) in experiments(uri).items() if stage == "active"}
    if experiment not in active:
        raise StoreError(f"{uri} has no experiment {experiment!r}; it has: {', '.join(sorted(active)) or 'none'}")
    return Store(uri, experiment, active[experiment])


def experiments(uri: str) -> dict[str, tuple[str, str]]:
    """Name and stage (`active` or `deleted`) of each experiment of a resolved URI, by its id.

    Raises:
        StoreError: the store cannot be read.
    """
    if database.file_of(uri) is not None:
        with store_errors(uri):
            return tables.experiments(uri)
    from mlflow.entities import ViewType

    found: dict[str, tuple[str, str]] = {}
    page: str | None = None
    with reading(uri) as client:
        while page != "":
            part = client.search_experiments(ViewType.ALL, page_token=page)
            found |= {one.experiment_id: (one.name, one.lifecycle_stage) for one in part}
            page = part.token or ""
    return found


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
    except store_error_types() as error:
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
def reading(uri: str | None, query: str = "") -> Iterator["MlflowClient"]:
    """A client that never writes to the store; its errors become a `StoreError`, as in `store_errors`."""
    from mnist_exp.tracking.client import client_of

    uri = resolve_uri(uri)
    with store_errors(uri, query):
        yield client_of(database.reading(uri))


@contextmanager
def writing(store: Store) -> Iterator["MlflowClient"]:
    """A client for writes: Ctrl-C does not interrupt them, and their errors become a `StoreError`."""
    from mnist_exp.tracking.client import client_of

    with store_errors(store.uri), uninterrupted(store):
        yield client_of(store.uri)


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
