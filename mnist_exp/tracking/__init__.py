"""MLflow: the only module that imports it. Opens a store, records a run from first to last, lists the runs of a sweep.

A run is recorded locally first (`metrics.jsonl` and the artifacts in the run's output folder). A thread of its own
sends the record to the store, so that a store which is slow or gone costs neither the training nor its results.
"""

import atexit
import errno
import functools
import gc
import json
import logging
import math
import os
import re
import shlex
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import quote

# MLflow's own defaults block for four minutes when a server is gone, and report usage over the network.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines a run
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
import numpy as np
from filelock import BaseFileLock, FileLock, Timeout
from mlflow.entities import Dataset, DatasetInput, Experiment, InputTag, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.store.artifact import artifact_repository_registry
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.tracking._tracking_service.utils import _get_store
from mlflow.types import Schema, TensorSpec
from sqlalchemy.exc import SQLAlchemyError

from mnist_exp.errors import RequestError, RunError
from mnist_exp.provenance import is_gone, is_here, process
from mnist_exp.redact import redact
from mnist_exp.tracking import database
from mnist_exp.tracking.database import StoreError

logging.getLogger("alembic").setLevel(logging.ERROR)
logging.getLogger("mlflow.store.db").setLevel(logging.CRITICAL)  # it prints the traceback of what it also raises
RETRY_SECONDS = 30.0  # after a failed call, while the run trains
TRIES, PAUSE_SECONDS = 3, 1.0  # of a call that fails while the end of the run waits for it
PROGRESS_SECONDS = 10.0
STALLED_SECONDS = 300.0  # the end of a run waits as long as calls succeed; one large file may take minutes
STOP_SECONDS = 10.0
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
        runs = quote(_in_sweep(sweep), safe="'")
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
    uri = _resolved(uri)
    path = database.file_of(uri)
    mlflow.set_tracking_uri(uri)
    with _using(uri), nullcontext() if path is None else database.locked(path):
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


def _resolved(uri: str | None) -> str:
    return database.resolved(uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db")


@functools.cache
def _schema() -> str:
    """The version of its tables that the installed MLflow wants."""
    from mlflow.store.db.utils import _get_latest_schema_revision

    return str(_get_latest_schema_revision())


def _make(path: Path) -> None:
    """Have MLflow make its database, whole or not at all."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with undisturbed(), database.replacing(path) as new:
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
    with _using(uri), undisturbed():
        return path, database.relocate(path)


def existing(uri: str | None) -> str:
    """The URI of a store to be read.

    Raises:
        StoreError: its database does not exist, or is not whole; MLflow would make one.
    """
    uri = _resolved(uri)
    path = database.file_of(uri)
    if path is not None:
        with _using(uri):
            if not path.is_file():
                raise FileNotFoundError(f"there is no file {path}")
            if not database.is_made(uri, _schema()):
                raise StoreError(f"tracking.uri={uri} cannot be used: {path} is empty")
    return uri


def _reader(uri: str) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(database.reading(uri))


@contextmanager
def _using(uri: str, query: str = "") -> Iterator[None]:
    try:
        yield
    except STORE_ERRORS as error:
        if query and getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE":
            raise StoreError(f"{query!r} is no filter string of MLflow: {_first_line(error)}") from error
        raise StoreError(f"tracking.uri={uri} cannot be used: {_first_line(error)}") from error


@contextmanager
def undisturbed() -> Iterator[list[int]]:
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


def _whole(store: Store) -> AbstractContextManager[object]:
    """Around what is written for a run or sweep: an interrupted transaction would lock a database against our own end.

    A server's transactions are its own, and waiting for one that is gone must be interruptible.
    """
    return nullcontext() if store.is_server else undisturbed()


class RunGone(RunError):
    """The store has no such run any more."""


class _Sender:
    """Makes the store calls of one run, in a thread of its own, so that training never waits for a store.

    Python raises signals in the main thread only, so that none cuts a transaction. The threads share `SimpleQueue`s,
    because Ctrl-C could leave a `threading` lock locked. A call that fails is repeated; while the run trains, the other
    calls go first. The thread ends with the run, so that no later fork meets it.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._answers: SimpleQueue[Exception | None] = SimpleQueue()
        self._failed: deque[Callable[[], object]] = deque()
        self._flushing = self._stopped = False
        self._succeeded = 0
        self._complaint = ""
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)
        self._thread.start()

    def submit(self, call: Callable[[], object]) -> None:
        """Have the call made; it may be made twice."""
        self._calls.put(call)

    def flush(self, signals: Sequence[int] = ()) -> None:
        """Wait until all calls have succeeded, and tell how many are left.

        Args:
            signals: the waiting ends when a signal is added to it, at the first report of progress or later.

        Raises:
            RunError: no call succeeded for a long time, or a signal came.
            Exception: of a call that failed `TRIES` times.
        """
        answers = self._answers = SimpleQueue()
        self._flushing = True
        self._wake.put(None)
        self.submit(partial(answers.put, None))
        began = reported = moved = time.monotonic()
        succeeded = self._succeeded
        while True:
            with suppress(Empty):
                error = answers.get(timeout=1.0)
                if error is not None:
                    raise error
                return
            now = time.monotonic()
            if self._succeeded > succeeded:
                succeeded, moved = self._succeeded, now
            if now - moved > STALLED_SECONDS:
                raise RunError(f"nothing arrived for {STALLED_SECONDS:.0f} s, calls left: {self._left()}")
            if now - reported > PROGRESS_SECONDS:
                reported = now
                print(f"tracking: the store is slow, calls left: {self._left()}; Ctrl-C ends this", file=sys.stderr)
            if signals and now - began > PROGRESS_SECONDS:
                raise RunError(f"interrupted, calls left: {self._left()}")

    def stop(self) -> None:
        """End the thread after the call that it makes at the moment."""
        self._stopped = True
        self._wake.put(None)
        self.submit(lambda: None)
        self._thread.join(STOP_SECONDS)

    def _left(self) -> int:
        return self._calls.qsize() + len(self._failed)

    def _run(self) -> None:
        while not self._stopped:
            again = self._failed and (self._flushing or self._calls.empty())
            call = self._failed.popleft() if again else self._calls.get()
            error = None if self._stopped else self._attempt(call)
            if error is None:
                self._succeeded += 1
                continue
            if self._flushing:
                self._failed.appendleft(call)
                self._answers.put(error)
            else:
                self._failed.append(call)
            with suppress(Empty):
                self._wake.get(timeout=RETRY_SECONDS)

    def _attempt(self, call: Callable[[], object]) -> Exception | None:
        """Make a call, several times if `flush` waits for it; returns why it failed."""
        for left in reversed(range(TRIES)):
            try:
                call()
            except Exception as error:  # noqa: BLE001 - whatever it is, a thread that died of it would lose the rest
                if not self._flushing and _first_line(error) != self._complaint:
                    self._complaint = _first_line(error)
                    print(f"tracking: not sent yet, the local record has it: {self._complaint}", file=sys.stderr)
                if not (left and self._flushing) or isinstance(error, RunError):
                    return error
                time.sleep(PAUSE_SECONDS)
            else:
                return None
        raise AssertionError


class RunLog:
    """Records one run, in its folder `home` and in the store.

    `record` has its metrics, `folder` takes the files that become artifacts, `checkpoints` what a run that died
    continues from. What the record has of a step stays, also when it is computed again: no row is ever doubled.
    No call but `model`, `flush` and `close` waits for the store.
    """

    def __init__(self, store: Store, run_id: str, home: Path) -> None:
        self.run_id = run_id
        self._store = store
        self.folder, self.checkpoints = home / "artifacts", home / "checkpoints"
        self._client = mlflow.MlflowClient(store.uri)
        self.record = home / "metrics.jsonl"
        self._rows = _read_record(self.record)
        self._unwritten = b""  # rows of the record for which the disk had no room
        self._unsent: deque[tuple[int, str | None]] = deque()  # steps; the model that a row's metrics also belong to
        self._tags: deque[Mapping[str, str]] = deque()
        self._files: set[Path] = set()
        self._sender = _Sender()

    @property
    def epochs(self) -> int:
        """How many the record has: none, when the run is new."""
        return max(self._rows, default=0)

    def metrics(self, step: int, metrics: Mapping[str, float], *, weights: str | None = None) -> None:
        """Append metrics to the local record and have them sent.

        Args:
            step: the epoch, from 1; 0 for what belongs to no epoch.
            metrics: names and values.
            weights: digest of the weights after the epoch, for the record alone: MLflow has numbers only.
        """
        with undisturbed():  # a row is in the record and handed over, or neither
            if step not in self._rows:
                row = {"step": step, "time": time.time()} | ({"weights": weights} if weights is not None else {})
                self._rows[step] = row | {name: float(value) for name, value in metrics.items()}
                self._append(self._rows[step])
            self._unsent.append((step, None))
            self._sender.submit(self._send_rows)

    def _append(self, row: Mapping[str, Any]) -> None:
        self._unwritten += json.dumps(row).encode() + b"\n"
        try:
            with self.record.open("ab", buffering=0) as record:
                whole = record.tell()
                try:
                    if record.write(self._unwritten) < len(self._unwritten):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    os.fsync(record.fileno())  # else a loss of power could leave a row in the store alone
                except OSError:
                    record.truncate(whole)  # the next row must not continue half a row
                    raise
            self._unwritten = b""
        except OSError as error:  # a full disk is no reason to lose the training
            print(f"tracking: {self.record} not written: {_first_line(error)}", file=sys.stderr)

    def _send_rows(self) -> None:
        """Send the oldest unsent rows, as many as one call may carry. The store never doubles a row that it has."""
        metrics: list[Metric] = []
        steps: set[int] = set()  # a row that is sent again, for its model, needs a call of its own
        while len(steps) < len(self._unsent):
            step, model_id = self._unsent[len(steps)]
            row = self._rows[step]
            names = row.keys() - {"step", "time", "weights"}
            if step in steps or len(metrics) + len(names) > 1000:
                break
            sent_as = int(row["time"] * 1000)  # the store knows a row that it already has by its time and value
            metrics += [Metric(name, row[name], sent_as, step, model_id=model_id) for name in sorted(names)]
            steps.add(step)
        if steps:
            self._client.log_batch(self.run_id, metrics=metrics)
        for _ in steps:
            self._unsent.popleft()

    def dataset(self, name: str, source: str, fingerprint: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Name the data under the run's Datasets; MLflow keeps 36 characters of the fingerprint, the tag keeps all."""
        shape = json.dumps({part: list(shape) for part, shape in shapes.items()})
        data = Dataset(name, fingerprint[:36], "local", json.dumps({"uri": source}), profile=shape)
        context = InputTag("mlflow.data.context", "training")

        def log() -> None:
            try:
                self._client.log_inputs(self.run_id, [DatasetInput(data, [context])])
            except MlflowException:  # another run may have added the same data set between MLflow's look and its write
                self._client.log_inputs(self.run_id, [DatasetInput(data, [context])])

        self._sender.submit(log)

    def tags(self, tags: Mapping[str, str]) -> None:
        """Set tags on the run."""
        with undisturbed():
            self._tags.append(dict(tags))
            self._sender.submit(self._send_tags)

    def _send_tags(self) -> None:
        while self._tags:
            self._client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in self._tags[0].items()])
            self._tags.popleft()

    def upload(self) -> None:
        """Queue the new files in `folder` for sending. They are deleted only after the store has all of them."""
        for path in sorted(set(self.folder.rglob("*")) - self._files):
            if path.is_file():
                self._files.add(path)
                self._sender.submit(partial(self._send_file, path))

    def _send_file(self, path: Path) -> None:
        parent = path.parent.relative_to(self.folder).as_posix()
        with tempfile.TemporaryDirectory() as alone:  # a kill within `log_artifact` leaves a stray file in the store
            shutil.copy2(path, alone)
            self._client.log_artifacts(self.run_id, alone, parent if parent != "." else None)

    def _send_missing(self) -> None:
        """Send the files again that the store lacks: its artifact folder may have been deleted in the meantime."""
        missing = self._missing()
        for path in missing:
            self._send_file(path)
        if missing and (missing := self._missing()):
            names = ", ".join(path.relative_to(self.folder).as_posix() for path in missing)
            raise RunError(f"{len(missing)} of {len(self._files)} files did not arrive: {names[:300]}")

    def _missing(self) -> list[Path]:
        """The files that the store does not have in full."""
        sizes: dict[str, int | None] = {}  # None: the store does not tell
        folders: list[str | None] = [None]
        while folders:
            for entry in self._client.list_artifacts(self.run_id, folders.pop()):
                if entry.is_dir:
                    folders.append(entry.path)
                else:
                    sizes[entry.path] = entry.file_size
        found = ((path, sizes.get(path.relative_to(self.folder).as_posix(), -1)) for path in sorted(self._files))
        return [path for path, size in found if size not in (None, path.stat().st_size)]

    def model(self, model: Any, example: np.ndarray, classes: int, requirements: list[str]) -> None:
        """Log a Keras model as a servable MLflow model with the metrics of step 0, its SavedModel as an artifact.

        Args:
            model: uint8 images in, float32 logits out.
            example: uint8 (n, height, width, channels), stored as the input example.
            classes: width of the logits.
            requirements: pip requirements of whoever serves it; inferring them would start a process for 10 s.

        Raises:
            RunError: the store does not take it.
        """
        signature = ModelSignature(
            Schema([TensorSpec(np.dtype("uint8"), (-1, *example.shape[1:]))]),  # a name would make a dict of it
            Schema([TensorSpec(np.dtype("float32"), (-1, classes))]),
        )

        def save_model(path: str, validate_serving_input: bool, **settings: Any) -> None:
            Path(path).mkdir()  # mlflow.keras writes the example before it makes the folder
            mlflow.keras.save_model(model, path, save_exported_model=True, **settings)
            shutil.copytree(Path(path, "data", "model"), self.folder / "saved_model")

        try:
            with _whole(self._store):
                mlflow.set_experiment(experiment_id=self._client.get_run(self.run_id).info.experiment_id)
                logged = Model.log(
                    artifact_path=None,
                    name="model",
                    flavor=SimpleNamespace(save_model=save_model, __name__="mlflow.keras"),
                    run_id=self.run_id,
                    signature=signature,
                    input_example=example,
                    pip_requirements=requirements,
                    validate_serving_input=False,  # it would load the model again; a test serves one
                )
        except STORE_ERRORS as error:
            raise RunError(f"the model could not be stored: {_first_line(error)}{self.way_on()}") from error
        self._unsent.append((0, logged.model_id))
        self._sender.submit(self._send_rows)

    def way_on(self) -> str:
        """For an error message: how to finish a run that has been trained and evaluated."""
        if 0 not in self._rows or not self.checkpoints.is_dir():
            return ""
        return "; the same command, or resume=" + self.run_id + ", finishes it without training again"

    def flush(self) -> None:
        """Wait until the store has all that was recorded, but the files that `upload` was not called for."""
        self._sender.flush()

    def close(self, status: str, signals: Sequence[int]) -> None:
        """End the run as FINISHED, FAILED or KILLED with all that is unsent; raises when the store does not take it."""
        if self.record.exists():
            shutil.copy2(self.record, self.folder)
        self.upload()
        self._sender.submit(self._send_missing)
        self._sender.submit(partial(self._end, status))
        self._sender.flush(signals)
        self._sender.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
        if status == "FINISHED":
            shutil.rmtree(self.checkpoints, ignore_errors=True)

    def _end(self, status: str) -> None:
        self._client.set_terminated(self.run_id, status)
        path = database.file_of(self._store.uri)
        if path is None:
            self._client.get_run(self.run_id)
            return
        try:  # MLflow's connections may be to a file that was deleted
            with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
                found = connection.execute("SELECT 1 FROM runs WHERE run_uuid = ?", [self.run_id]).fetchone()
        except sqlite3.Error as error:
            raise RunGone(f"{path} was deleted or replaced: {_first_line(error)}") from error
        if found is None:
            raise RunGone(f"{path} was deleted or replaced: it has no such run")

    def give_up(self, status: str) -> None:
        """End the run without what the store did not take."""
        self._sender.stop()
        with suppress(*STORE_ERRORS):
            self._client.set_terminated(self.run_id, status)


@contextmanager
def tracked_run(
    store: Store,
    name: str,
    params: Mapping[str, str],
    tags: Mapping[str, str],
    output: Path,
    resume: str | bool = False,
) -> Iterator[RunLog]:
    """A run from start to end: FINISHED, FAILED with its traceback as an artifact, or KILLED by Ctrl-C or a signal.

    Args:
        store: where it is recorded.
        name: of a new run.
        params: of a new run; one that is continued keeps those that it was begun with.
        tags: of the run; among them `identity`.
        output: folder for the local record of a new run.
        resume: id of the run to continue, or whether to continue one of the same identity that was killed.

    Raises:
        StoreError: the store does not take the run, or the run asked for cannot be continued.
        RunError: it took the start of the run but not the rest; the message says where the record is.
    """
    mlflow.set_tracking_uri(store.uri)
    tags = {**tags, "process": process()}
    with ExitStack() as held:
        held.enter_context(_whole(store))
        with _using(store.uri):
            client = mlflow.MlflowClient(store.uri)
            run, lock = _resumable(store, tags["identity"], resume) if resume else (None, None)
            if run is None:
                context = _context({**tags, "output": str(output.absolute())})
                run = client.create_run(store.experiment_id, tags=context, run_name=name)
            else:
                _reopen(client, run, tags)
        log = RunLog(store, run.info.run_id, _home(store.uri, run))
        status = "FINISHED"
        try:
            shutil.rmtree(log.folder, ignore_errors=True)  # of a run that died: not all, perhaps
            log.folder.mkdir(parents=True)
            # A continued run keeps the params that it has: those that differ cannot change its result.
            missing = [Param(key, value) for key, value in params.items() if key not in run.data.params]
            client.log_batch(run.info.run_id, params=missing)
            held.close()
            yield log
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            status = "KILLED"
            raise
        except BaseException as error:
            status = "FAILED"
            with suppress(OSError):  # what went wrong matters more
                (log.folder / "traceback.txt").write_text(redact(traceback.format_exc()), encoding="utf-8")
            if isinstance(error, (MlflowException, SQLAlchemyError)):
                raise RunError(f"tracking.uri={store.uri} stopped working: {_first_line(error)}") from error
            raise
        finally:
            _close(log, status)
            if lock is not None:
                lock.release()


def _resumable(store: Store, identity: str, wanted: str | bool) -> tuple[Run | None, BaseFileLock | None]:
    """The run wanted, else the newest of this identity that was killed, or that failed after its evaluation.

    With a lock that keeps others off it.
    """
    client = mlflow.MlflowClient(store.uri)
    if isinstance(wanted, str):
        run = client.get_run(wanted)
        try:
            return run, _claim(client, run, identity)
        except RequestError as error:
            raise StoreError(f"resume={wanted}: the run cannot be continued: {error}") from error
    query = f"tags.identity = '{identity}' and tags.kind = 'run' and attributes.status != 'FINISHED'"
    for run in _search(store, query, newest_first=True):
        status = run.info.status
        if status == "KILLED" or (status == "FAILED" and 0 in _read_record(_home(store.uri, run) / "metrics.jsonl")):
            with suppress(RequestError):
                return run, _claim(client, run, identity)
    return None, None


def _home(uri: str, run: Run) -> Path:
    """Where the run's local record is, in a folder of its own; also when that was moved together with the store."""
    path, output = database.file_of(uri), run.data.tags["output"]
    if path is not None:
        output = database.moved_with(output, run.info.artifact_uri, path)
    return Path(output) / f"run-{run.info.run_id[:8]}"


def _claim(client: mlflow.MlflowClient, run: Run, identity: str) -> BaseFileLock:
    if run.data.tags.get("identity") != identity:
        raise RequestError("it was made by other code, versions, data, threads or device than these")
    home = _home(client.tracking_uri, run)
    if not home.is_dir():
        raise RequestError(f"its record {home} is not on this machine")
    lock = FileLock(home / "lock", timeout=0)
    with suppress(Timeout):
        lock.acquire()
    status = client.get_run(run.info.run_id).info.status  # once the lock is ours nobody else changes it
    if lock.is_locked and status in ("KILLED", "FAILED"):
        return lock
    lock.release()
    raise RequestError(f"it is {status}")


def _reopen(client: mlflow.MlflowClient, run: Run, tags: Mapping[str, str]) -> None:
    """Have a run look alive again, without the model that it may have logged before it died."""
    client.log_batch(run.info.run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    client.update_run(run.info.run_id, status="RUNNING")
    mine = f"source_run_id = '{run.info.run_id}'"
    for model in client.search_logged_models([run.info.experiment_id], filter_string=mine):
        client.delete_logged_model(model.model_id)


def end_dead_runs(store: Store) -> None:
    """Mark as KILLED what looks alive in the experiment although its process, on this host, is gone."""
    client = mlflow.MlflowClient(store.uri)
    with _using(store.uri):
        for run in _search(store, "attributes.status = 'RUNNING' and tags.process != ''"):
            if is_gone(run.data.tags["process"]):
                with _whole(store):
                    client.set_terminated(run.info.run_id, "KILLED")


def _read_record(path: Path) -> dict[int, dict[str, Any]]:
    """The rows of a local record by step. Lines that a kill or a full disk left torn are removed from the file."""
    content = path.read_bytes() if path.exists() else b""
    rows = {line: _row(line) for line in content.splitlines(keepends=True)}
    whole = b"".join(line for line, row in rows.items() if row is not None)
    if whole != content:
        with path.open("r+b") as record:  # in place, because a full disk has no room for a second file
            record.write(whole)
            record.truncate()
    return {row["step"]: row for row in rows.values() if row is not None}


def _row(line: bytes) -> dict[str, Any] | None:
    """A line of a local record; None when it is not a whole row."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if line.endswith(b"\n") and isinstance(row, dict) and {"step", "time"} <= row.keys() else None


def _context(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags with those that MLflow adds, such as the repository's address; all without the secrets they may show."""
    found: dict[str, str] = mlflow.tracking.context.registry.resolve_tags(dict(tags))
    return {key: redact(text) for key, text in found.items()}


def _close(log: RunLog, status: str) -> None:
    try:
        with undisturbed() as signals:
            try:
                log.close(status, signals)
            except BaseException:
                log.give_up("KILLED" if signals else "FAILED" if status == "FINISHED" else status)
                raise
    except (*STORE_ERRORS, RunError) as error:
        message = f"the tracking store did not take the end of run {log.run_id}: its record is in {log.record.parent}"
        if status == "FINISHED":
            way_on = "" if isinstance(error, RunGone) else log.way_on()
            raise RunError(f"{message}: {_first_line(error)}{way_on}") from error
        print(f"{message}: {_first_line(error)}", file=sys.stderr)  # what ended the run matters more


def open_sweep(store: Store, sweep: str, command: str, jobs: int) -> None:
    """Start the sweep's own run."""
    tags = {"kind": "sweep", "sweep": sweep, "command": command, "jobs": str(jobs), "process": process()}
    context = _context(tags)
    with _using(store.uri):
        mlflow.MlflowClient(store.uri).create_run(store.experiment_id, tags=context, run_name=f"sweep-{sweep}")


def sweep_tags(sweep: str, number: int, color: str) -> dict[str, str]:
    """Tags of the n-th run of a sweep.

    `sweep` is the sweep that trained the run. A later one that uses its result adds a tag by its own name, which
    therefore all have: MLflow's filters know no `or`.
    """
    return {"sweep": sweep, _membership(sweep): str(number), "mlflow.runColor": color}


def _membership(sweep: str) -> str:
    return f"sweep.{sweep}"


def _in_sweep(sweep: str) -> str:
    return f"tags.`{_membership(sweep)}` != '' and tags.kind = 'run'"


def job_numbers(run: Run, sweep: str) -> list[int]:
    """The jobs of the sweep whose result the run is: one, or several of the same identity."""
    return [int(number) for number in run.data.tags[_membership(sweep)].split()]


def join_sweep(store: Store, run: Run, sweep: str, number: int) -> None:
    """Make a finished run the result of a sweep's n-th job."""
    numbers = run.data.tags.get(_membership(sweep), "")
    with _using(store.uri), _whole(store):
        mlflow.MlflowClient(store.uri).set_tag(run.info.run_id, _membership(sweep), f"{numbers} {number}".strip())


def finished_runs(store: Store, config_digest: str) -> list[Run]:
    """Finished runs whose configs are the same wherever it matters, newest first."""
    query = f"tags.`identity.config` = '{config_digest}' and tags.kind = 'run' and attributes.status = 'FINISHED'"
    with _using(store.uri):
        return _search(store, query, newest_first=True)


def similar_runs(store: Store, model: str, optimizer: str, batch_size: int, data: str) -> list[Run]:
    """Of the latest 50 finished runs of a model and an optimizer, by their short names, those on the same data."""
    parameters = {"model": model, "optimizer": optimizer, "trainer.batch_size": batch_size}
    query = " and ".join(f"params.`{key}` = '{value}'" for key, value in parameters.items())
    query += " and tags.kind = 'run' and attributes.status = 'FINISHED'"
    newest = ["attributes.start_time DESC"]
    with _using(store.uri):
        client = mlflow.MlflowClient(store.uri)
        found = client.search_runs([store.experiment_id], query, max_results=50, order_by=newest)
    return [run for run in found if run.data.tags.get("data.name") == data]


def sweep_runs(store: Store, sweep: str) -> list[Run]:
    """The runs of a sweep, those that it found finished included, oldest first."""
    with _using(store.uri):
        return _search(store, _in_sweep(sweep))


def _own_run(store: Store, sweep: str) -> Run:
    """The sweep's own run; also when it was deleted in MLflow's UI, whose runs go on."""
    found = _search(store, f"tags.sweep = '{sweep}' and tags.kind = 'sweep'", view=ViewType.ALL)
    if not found:
        raise StoreError(f"tracking.uri={store.uri} no longer has the sweep's own run sweep-{sweep}")
    return found[0]


def _search(store: Store, query: str, *, newest_first: bool = False, view: int = ViewType.ACTIVE_ONLY) -> list[Run]:
    client, order = mlflow.MlflowClient(store.uri), f"attributes.start_time {'DESC' if newest_first else 'ASC'}"
    runs: list[Run] = []
    page: str | None = None
    while page != "":
        found = client.search_runs([store.experiment_id], query, view, 1000, [order], page)
        runs, page = runs + list(found), found.token or ""
    return runs


def end_left_runs(store: Store, sweep: str) -> None:
    """Mark as KILLED what looks alive of a sweep although all of its jobs have ended, on whatever machine."""
    for run in sweep_runs(store, sweep):
        if run.info.status == "RUNNING":
            with _using(store.uri):
                mlflow.MlflowClient(store.uri).set_terminated(run.info.run_id, "KILLED")


def stop_sweep(store: Store, sweep: str) -> None:
    """Have the jobs of a sweep that have not begun yet not begin, in whatever process."""
    with _using(store.uri), _whole(store):
        mlflow.MlflowClient(store.uri).set_tag(_own_run(store, sweep).info.run_id, "stopped", "true")


def sweep_stopped(store: Store, sweep: str) -> bool:
    """Whether `stop_sweep` was called."""
    with _using(store.uri):
        return "stopped" in _own_run(store, sweep).data.tags


def end_sweep(store: Store, sweep: str, status: str) -> None:
    """End the sweep's own run as FINISHED, FAILED or KILLED."""
    with _using(store.uri):
        mlflow.MlflowClient(store.uri).set_terminated(_own_run(store, sweep).info.run_id, status)


def close_sweep(
    store: Store,
    sweep: str,
    status: str,
    best: Run | None,
    counts: Mapping[str, int],
    folder: Path,
    note: str,
) -> None:
    """End the sweep's own run and record its summary.

    Args:
        store: where it is.
        sweep: its name.
        status: FINISHED, FAILED or KILLED.
        best: of its runs; its scores, as far as it has them, become the sweep's metrics.
        counts: further metrics, such as how many jobs failed.
        folder: of its artifacts.
        note: Markdown that the UI shows as the run's description.
    """
    with _using(store.uri):
        client, own = mlflow.MlflowClient(store.uri), _own_run(store, sweep).info.run_id
        client.set_terminated(own, status)  # first: whatever goes wrong below, it no longer looks alive
        scores: dict[str, float] = dict(counts)
        if best is not None:
            names = ("final_val_accuracy", "test_accuracy")
            scores |= {name: best.data.metrics[name] for name in names if name in best.data.metrics}
            client.set_tag(own, "best_run", best.info.run_id)
        now = int(time.time() * 1000)
        client.log_batch(own, metrics=[Metric(name, value, now, 0) for name, value in scores.items()])
        client.set_tag(own, "mlflow.note.content", note)
        client.log_artifacts(own, str(folder))


def find_run(uri: str | None, wanted: str) -> Run:
    """The run, in any experiment of a store that exists, whose id begins so, or else the one that trained of that name.

    Raises:
        StoreError: the store cannot be used, holds no such run, or several, or it was deleted.
    """
    uri = existing(uri)
    found: list[Run] = []
    with _using(uri):
        client = _reader(uri)
        stages = {e.experiment_id: e.lifecycle_stage for e in client.search_experiments(ViewType.ALL)}
        if re.fullmatch("[0-9a-f]{1,32}", wanted):
            found = list(client.search_runs(list(stages), f"attributes.run_id LIKE '{wanted}%'", ViewType.ALL))
        quote_with = "'" if "'" not in wanted else '"'
        if not found and quote_with not in wanted:
            name = f"attributes.run_name = {quote_with}{wanted}{quote_with}"
            found = list(client.search_runs(list(stages), f"{name} and tags.kind = 'run'", ViewType.ALL))
    found = [run for run in found if run.info.lifecycle_stage == "active"] or found
    if len(found) != 1:
        named = "; ".join(f"{run.info.run_id} {run.info.run_name} {run.info.status}" for run in found[:10])
        several = f"{len(found)} runs match {wanted!r}, name one by its id: {named}"
        raise StoreError(several if found else f"there is no run {wanted!r} in {uri}")
    info = found[0].info
    if info.lifecycle_stage != "active":
        gone = stages[info.experiment_id] != "active"
        restore = (
            f"experiments restore --experiment-id {info.experiment_id}"
            if gone
            else f"runs restore --run-id {info.run_id}"
        )
        raise StoreError(f"run {info.run_id} ({info.run_name}) was deleted; `mlflow {restore}` restores it")
    return found[0]


def is_own(uri: str | None, tags: Mapping[str, str]) -> bool:
    """Whether this machine recorded a run, given by its tags, in a store that is a file: its code is the user's."""
    return database.file_of(_resolved(uri)) is not None and is_here(tags.get("process", ""))


def find_finished(uri: str | None, wanted: str) -> str:
    """The id of the run whose weights another one is to begin with.

    Raises:
        StoreError: there is no such run, or it did not finish.
    """
    run = find_run(uri, wanted)
    if run.info.status != "FINISHED":
        raise StoreError(f"init_from={wanted} must name a finished run, that one is {run.info.status}")
    return str(run.info.run_id)


def read_files(uri: str | None, run_id: str, names: Collection[str]) -> dict[str, bytes]:
    """Those of the named artifacts that a run has; of a folder the files, as `folder/file`.

    Raises:
        StoreError: they cannot be read.
    """
    uri = _resolved(uri)
    with _using(uri), tempfile.TemporaryDirectory() as scratch:
        client = _reader(uri)
        for entry in client.list_artifacts(run_id):
            if entry.path in names:
                client.download_artifacts(run_id, entry.path, scratch)
        paths = (path for path in Path(scratch).rglob("*") if path.is_file())
        return {path.relative_to(scratch).as_posix(): path.read_bytes() for path in paths}


def place_of_artifacts(uri: str | None, run_id: str) -> str:
    """Where the artifacts of a run are looked for.

    Raises:
        StoreError: the store cannot be read.
    """
    uri = _resolved(uri)
    with _using(uri):
        location = str(_reader(uri).get_run(run_id).info.artifact_uri)
    path = database.file_of(uri)
    return location if path is None else database.lies_at(location, path)


def download(uri: str | None, run_id: str, name: str, folder: Path) -> Path:
    """Copy an artifact of a run into a folder; returns where it is there.

    Raises:
        StoreError: the run has none of that name, or it cannot be read.
    """
    uri = _resolved(uri)
    with _using(uri):
        return Path(_reader(uri).download_artifacts(run_id, name, str(folder)))


class TrackedRun(NamedTuple):
    """What the store knows of a run but its curves and artifacts."""

    run_id: str
    name: str
    status: str
    deleted: bool
    started: int  # ms since 1970
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]


def find_store(uri: str | None, experiment: str) -> Store:
    """Open a store to read it; unlike `open_store` this makes neither a database nor an experiment.

    Raises:
        StoreError: there is no such store or experiment, or it cannot be read.
    """
    uri = existing(uri)
    with _using(uri):
        client = _reader(uri)
        found = client.get_experiment_by_name(experiment)
        if found is None or found.lifecycle_stage != "active":
            names = ", ".join(sorted(e.name for e in client.search_experiments()))
            raise StoreError(f"{uri} has no experiment {experiment!r}; it has: {names or 'none'}")
    return Store(uri, experiment, found.experiment_id)


def tracked_runs(store: Store, query: str = "") -> list[TrackedRun]:
    """The runs of the experiment that match MLflow's filter string, deleted ones too, newest first.

    Raises:
        StoreError: the store cannot be read, or the query is not in MLflow's language.
    """
    runs: list[TrackedRun] = []
    page: str | None = None
    collecting = gc.isenabled()
    gc.disable()  # of the 5 s that 2,000 runs took it looked 3 s for garbage among SQLAlchemy's rows
    try:
        while page != "":
            with _using(store.uri, query):
                found = _reader(store.uri).search_runs([store.experiment_id], query, ViewType.ALL, 500, page_token=page)
            runs += [tracked(run) for run in found]
            page = found.token or ""
    finally:
        if collecting:
            gc.enable()
    return runs


def tracked(run: Run) -> TrackedRun:
    """A run of MLflow's as we know it."""
    info, data = run.info, run.data
    facts = (info.run_id, info.run_name or "", info.status, info.lifecycle_stage == "deleted", info.start_time or 0)
    tags = {key: value for key, value in data.tags.items() if not key.startswith("mlflow.")}
    # A database keeps infinity as the largest float.
    metrics = {
        key: math.copysign(math.inf, x) if abs(x) >= sys.float_info.max else x for key, x in data.metrics.items()
    }
    return TrackedRun(*facts, data.params, metrics, tags)


def curve(uri: str, run_id: str, metric: str) -> dict[int, float]:
    """A metric of a run by epoch; the last value where an epoch has several."""
    with _using(uri):
        history = _reader(uri).get_metric_history(run_id, metric)
    return {point.step: point.value for point in sorted(history, key=lambda point: (point.step, point.timestamp))}


def artifact_names(uri: str, run_id: str) -> list[str]:
    """What lies at the top of a run's artifacts."""
    with _using(uri):
        return [file.path for file in _reader(uri).list_artifacts(run_id)]


def _first_line(error: BaseException) -> str:
    text = re.sub(r"^\([\w.]+\) ", "", str(error).strip())  # SQLAlchemy's prefix: the driver's class of the error
    lines = [line for line in text.splitlines() if line.strip()]
    return redact(lines[0])[:300] if lines else type(error).__name__
