"""Records one run from start to end."""

import errno
import json
import os
import shutil
import sqlite3
import sys
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
from filelock import BaseFileLock, FileLock, Timeout
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec
from sqlalchemy.exc import SQLAlchemyError

from mnist_exp.errors import RequestError, RunError
from mnist_exp.provenance import is_gone, process
from mnist_exp.redact import redact
from mnist_exp.tracking import database
from mnist_exp.tracking.database import StoreError
from mnist_exp.tracking.queries import RunInfo, run_info, search_runs
from mnist_exp.tracking.store import STORE_ERRORS, Store, delayed_signals, first_line, store_errors, uninterrupted

RETRY_SECONDS = 30.0  # after a failed call, while the run trains
TRIES, PAUSE_SECONDS = 3, 1.0  # of a call that fails while the end of the run waits for it
PROGRESS_SECONDS = 10.0
STALLED_SECONDS = 300.0  # the end of a run waits as long as calls succeed; one large file may take minutes
STOP_SECONDS = 10.0


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
                if not self._flushing and first_line(error) != self._complaint:
                    self._complaint = first_line(error)
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
        with delayed_signals():  # a row is in the record and handed over, or neither
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
            print(f"tracking: {self.record} not written: {first_line(error)}", file=sys.stderr)

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
        with delayed_signals():
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
            with uninterrupted(self._store):
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
            raise RunError(f"the model could not be stored: {first_line(error)}{self.way_on()}") from error
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
            raise RunGone(f"{path} was deleted or replaced: {first_line(error)}") from error
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
        held.enter_context(uninterrupted(store))
        with store_errors(store.uri):
            client = mlflow.MlflowClient(store.uri)
            run, lock = _resumable(store, tags["identity"], resume) if resume else (None, None)
            if run is None:
                context = context_tags({**tags, "output": str(output.absolute())})
                run = run_info(client.create_run(store.experiment_id, tags=context, run_name=name))
            else:
                _reopen(client, run, tags)
        log = RunLog(store, run.run_id, _home(store.uri, run))
        status = "FINISHED"
        try:
            shutil.rmtree(log.folder, ignore_errors=True)  # of a run that died: not all, perhaps
            log.folder.mkdir(parents=True)
            # A continued run keeps the params that it has: those that differ cannot change its result.
            missing = [Param(key, value) for key, value in params.items() if key not in run.params]
            client.log_batch(run.run_id, params=missing)
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
                raise RunError(f"tracking.uri={store.uri} stopped working: {first_line(error)}") from error
            raise
        finally:
            _close(log, status)
            if lock is not None:
                lock.release()


def _resumable(store: Store, identity: str, wanted: str | bool) -> tuple[RunInfo | None, BaseFileLock | None]:
    """The run wanted, else the newest of this identity that was killed, or that failed after its evaluation.

    With a lock that keeps others off it.
    """
    client = mlflow.MlflowClient(store.uri)
    if isinstance(wanted, str):
        run = run_info(client.get_run(wanted))
        try:
            return run, _claim(client, run, identity)
        except RequestError as error:
            raise StoreError(f"resume={wanted}: the run cannot be continued: {error}") from error
    query = f"tags.identity = '{identity}' and tags.kind = 'run' and attributes.status != 'FINISHED'"
    for run in search_runs(store, query, deleted=False):
        status = run.status
        if status == "KILLED" or (status == "FAILED" and 0 in _read_record(_home(store.uri, run) / "metrics.jsonl")):
            with suppress(RequestError):
                return run, _claim(client, run, identity)
    return None, None


def _home(uri: str, run: RunInfo) -> Path:
    """Where the run's local record is, in a folder of its own; also when that was moved together with the store."""
    path, output = database.file_of(uri), run.tags["output"]
    if path is not None:
        output = database.moved_with(output, run.artifact_uri, path)
    return Path(output) / f"run-{run.run_id[:8]}"


def _claim(client: mlflow.MlflowClient, run: RunInfo, identity: str) -> BaseFileLock:
    if run.tags.get("identity") != identity:
        raise RequestError("it was made by other code, versions, data, threads or device than these")
    home = _home(client.tracking_uri, run)
    if not home.is_dir():
        raise RequestError(f"its record {home} is not on this machine")
    lock = FileLock(home / "lock", timeout=0)
    with suppress(Timeout):
        lock.acquire()
    status = client.get_run(run.run_id).info.status  # once the lock is ours nobody else changes it
    if lock.is_locked and status in ("KILLED", "FAILED"):
        return lock
    lock.release()
    raise RequestError(f"it is {status}")


def _reopen(client: mlflow.MlflowClient, run: RunInfo, tags: Mapping[str, str]) -> None:
    """Have a run look alive again, without the model that it may have logged before it died."""
    client.log_batch(run.run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    client.update_run(run.run_id, status="RUNNING")
    mine = f"source_run_id = '{run.run_id}'"
    for model in client.search_logged_models([run.experiment_id], filter_string=mine):
        client.delete_logged_model(model.model_id)


def end_dead_runs(store: Store) -> None:
    """Mark as KILLED what looks alive in the experiment although its process, on this host, is gone."""
    client = mlflow.MlflowClient(store.uri)
    with store_errors(store.uri):
        for run in search_runs(store, "attributes.status = 'RUNNING' and tags.process != ''", deleted=False):
            if is_gone(run.tags["process"]):
                with uninterrupted(store):
                    client.set_terminated(run.run_id, "KILLED")


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


def context_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags with those that MLflow adds, such as the repository's address; all without the secrets they may show."""
    found: dict[str, str] = mlflow.tracking.context.registry.resolve_tags(dict(tags))
    return {key: redact(text) for key, text in found.items()}


def _close(log: RunLog, status: str) -> None:
    try:
        with delayed_signals() as signals:
            try:
                log.close(status, signals)
            except BaseException:
                log.give_up("KILLED" if signals else "FAILED" if status == "FINISHED" else status)
                raise
    except (*STORE_ERRORS, RunError) as error:
        message = f"the tracking store did not take the end of run {log.run_id}: its record is in {log.record.parent}"
        if status == "FINISHED":
            way_on = "" if isinstance(error, RunGone) else log.way_on()
            raise RunError(f"{message}: {first_line(error)}{way_on}") from error
        print(f"{message}: {first_line(error)}", file=sys.stderr)  # what ended the run matters more
