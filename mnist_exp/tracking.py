"""MLflow: the only module that imports it. Opens a store, records a run from first to last, lists the runs of a sweep.

A run is recorded locally first (`metrics.jsonl` and the artifacts in the run's output folder) and sent to the store as
it goes, so that a store which is slow or gone costs neither the training nor its results.
"""

import json
import logging
import os
import shutil
import signal
import sqlite3
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import quote

# MLflow's own defaults block for four minutes when a server is gone, and report usage over the network.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")

import mlflow
import numpy as np
from filelock import FileLock
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec
from sqlalchemy.exc import SQLAlchemyError

from mnist_exp import RequestError, RunError

logging.getLogger("alembic").setLevel(logging.ERROR)
RETRY_SECONDS = 30.0
LOCK_SECONDS = 60.0
# What a store raises that is gone, full or not one; ImportError: the driver of a database is not installed.
STORE_ERRORS = (MlflowException, SQLAlchemyError, sqlite3.Error, OSError, ImportError)


class StoreError(RequestError):
    """The tracking store cannot be used."""


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
            return f"open {self.uri}"
        default = f"sqlite:///{Path.cwd() / 'mlflow.db'}"
        return "mlflow ui" + ("" if self.uri == default else f" --backend-store-uri {self.uri}")

    def ui_link(self, sweep: str) -> str:
        """The charts of a sweep's runs in the UI; without `workflowType` it opens in a mode that hides them."""
        host = self.uri if self.is_server else "http://127.0.0.1:5000"
        runs = quote(f"tags.sweep='{sweep}' and tags.kind='run'", safe="'")
        query = f"workflowType=machine_learning&compareRunsMode=CHART&searchFilter={runs}"
        return f"{host}/#/experiments/{self.experiment_id}/runs?{query}"


def open_store(uri: str | None, experiment: str) -> Store:
    """Open, and at first use create, the store and the experiment.

    Args:
        uri: an MLflow tracking URI; None means MLFLOW_TRACKING_URI, else `sqlite:///mlflow.db` in this directory.
        experiment: name of the experiment.

    Raises:
        StoreError: the store cannot be reached, read or written, or the experiment was deleted.
    """
    uri = _absolute(uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db")
    mlflow.set_tracking_uri(uri)
    with _using(uri), _creation_lock(uri):
        found = mlflow.get_experiment_by_name(experiment)
        if found is None:
            return Store(uri, experiment, mlflow.create_experiment(experiment))
    if found.lifecycle_stage != "active":
        raise StoreError(
            f"tracking.experiment={experiment} was deleted in MLflow; restore it with "
            f"`mlflow experiments restore --experiment-id {found.experiment_id}` or choose another name"
        )
    return Store(uri, experiment, found.experiment_id)


def _absolute(uri: str) -> str:
    path = uri.removeprefix("sqlite:///")
    return uri if path == uri else f"sqlite:///{Path(path).absolute()}"


@contextmanager
def _using(uri: str) -> Iterator[None]:
    try:
        yield
    except STORE_ERRORS as error:
        raise StoreError(f"tracking.uri={uri} cannot be used: {_first_line(error)}") from error


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM while a run is closed: an impatient second one would leave it looking alive."""
    held: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.signal(s, lambda number, _: held.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if held:
        signal.raise_signal(held[0])


@contextmanager
def _creation_lock(uri: str) -> Iterator[None]:
    """Of processes that create the same SQLite database at once MLflow lets all but one fail: let one do it.

    What SQLite refuses it refuses here at once; MLflow would try for minutes.
    """
    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///"):
        yield
        return
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist")
    lock = path.with_name(f"{path.name}.lock")
    lock.touch()  # where it cannot be made, FileLock would wait for it
    with FileLock(lock, timeout=LOCK_SECONDS):
        with closing(sqlite3.connect(path, timeout=LOCK_SECONDS)) as database:
            database.execute("PRAGMA journal_mode=WAL")  # persists; many then write without waiting for readers
            database.execute("BEGIN IMMEDIATE")
            database.rollback()
        yield


class RunLog:
    """Records one run. Artifacts are files that the caller writes into `folder`."""

    def __init__(self, store: Store, run_id: str, output: Path) -> None:
        self.run_id = run_id
        self.folder = output / f"artifacts-{run_id[:8]}"  # emptied when sent: nobody else's, whatever hydra.run.dir is
        self._client = mlflow.MlflowClient(store.uri)
        self._record = output / "metrics.jsonl"
        self._unsent: list[Metric] = []
        self._retry_at = 0.0

    def metrics(self, step: int, metrics: Mapping[str, float], model_id: str | None = None) -> None:
        """Append metrics to the local record and send what is unsent.

        Args:
            step: the epoch, from 1; 0 for what belongs to no epoch.
            metrics: names and values.
            model_id: the logged model that they are also metrics of.
        """
        now = time.time()
        try:
            with self._record.open("a", encoding="utf-8") as record:
                values = {name: float(value) for name, value in metrics.items()}
                record.write(json.dumps({"step": step, "time": now, **values}) + "\n")
        except OSError as error:  # a full disk is no reason to lose the training
            print(f"tracking: {self._record} not written: {_first_line(error)}", file=sys.stderr)
        self._unsent += [
            Metric(name, float(value), int(now * 1000), step, model_id=model_id) for name, value in metrics.items()
        ]
        if now >= self._retry_at:
            self._send()

    def _send(self) -> None:
        try:
            for first in range(0, len(self._unsent), 1000):  # what one call may carry
                self._client.log_batch(self.run_id, metrics=self._unsent[first : first + 1000])
            self._unsent = []
        except STORE_ERRORS as error:
            self._retry_at = time.time() + RETRY_SECONDS
            print(
                f"tracking: not sent, will be tried again; kept in {self._record}: {_first_line(error)}",
                file=sys.stderr,
            )

    def dataset(self, name: str, source: str, fingerprint: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Name the data under the run's Datasets; MLflow keeps 36 characters of the fingerprint, the tag keeps all."""
        shape = json.dumps({part: list(shape) for part, shape in shapes.items()})
        data = Dataset(name, fingerprint[:36], "local", json.dumps({"uri": source}), profile=shape)
        context = InputTag("mlflow.data.context", "training")
        self._client.log_inputs(self.run_id, [DatasetInput(data, [context])])

    def tags(self, tags: Mapping[str, str]) -> None:
        """Set tags on the run."""
        for key, value in tags.items():
            self._client.set_tag(self.run_id, key, value)

    def upload(self) -> None:
        """Send the files written into `folder` so far, and remove the local copies."""
        self._client.log_artifacts(self.run_id, str(self.folder))
        shutil.rmtree(self.folder)
        self.folder.mkdir()

    def model(
        self, model: Any, example: np.ndarray, classes: int, requirements: list[str], scores: Mapping[str, float]
    ) -> None:
        """Log a Keras model with its scores as a servable MLflow model, and its SavedModel as artifact `saved_model`.

        Args:
            model: uint8 images in, float32 logits out.
            example: uint8 (n, height, width, channels), stored as the input example.
            classes: width of the logits.
            requirements: pip requirements of whoever serves it; inferring them would start a process for 10 s.
            scores: metrics of the run and of its model.
        """
        signature = ModelSignature(
            Schema([TensorSpec(np.dtype("uint8"), (-1, *example.shape[1:]))]),  # a name would make a dict of it
            Schema([TensorSpec(np.dtype("float32"), (-1, classes))]),
        )

        def save_model(path: str, validate_serving_input: bool, **settings: Any) -> None:
            Path(path).mkdir()  # mlflow.keras writes the example before it makes the folder
            mlflow.keras.save_model(model, path, save_exported_model=True, **settings)
            shutil.copytree(Path(path, "data", "model"), self.folder / "saved_model")

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
        self.metrics(0, scores, logged.model_id)

    def close(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED with all that is unsent; raises when the store does not take it."""
        self.upload()
        self._send()
        if self._unsent:
            raise RunError("metrics could not be sent")
        self._client.set_terminated(self.run_id, status)

    def give_up(self, status: str) -> None:
        """End the run without what the store did not take."""
        with suppress(*STORE_ERRORS):
            self._client.set_terminated(self.run_id, status)


@contextmanager
def tracked_run(
    store: Store, name: str, params: Mapping[str, Any], tags: Mapping[str, str], output: Path
) -> Iterator[RunLog]:
    """A run from start to end: FINISHED, FAILED with its traceback as an artifact, or KILLED by Ctrl-C or a signal.

    Raises:
        StoreError: the store does not take the run.
        RunError: it took the start of the run but not the rest; the message says where the record is.
    """
    mlflow.set_tracking_uri(store.uri)
    with _using(store.uri):
        context = mlflow.tracking.context.registry.resolve_tags(dict(tags))
        client = mlflow.MlflowClient(store.uri)
        run = client.create_run(store.experiment_id, tags=context, run_name=name)
    log = RunLog(store, run.info.run_id, output)
    status = "FINISHED"
    try:
        log.folder.mkdir(parents=True)
        client.log_batch(run.info.run_id, params=[Param(key, _text(value)) for key, value in params.items()])
        yield log
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        status = "KILLED"
        raise
    except BaseException as error:
        status = "FAILED"
        with suppress(OSError):  # what went wrong matters more
            (log.folder / "traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
        if isinstance(error, (MlflowException, SQLAlchemyError)):
            raise RunError(f"tracking.uri={store.uri} stopped working: {_first_line(error)}") from error
        raise
    finally:
        _close(log, status, output)


def _close(log: RunLog, status: str, output: Path) -> None:
    try:
        with undisturbed():
            try:
                log.close(status)
            except BaseException:
                log.give_up("FAILED" if status == "FINISHED" else status)
                raise
    except (*STORE_ERRORS, RunError) as error:
        message = f"the tracking store did not take the end of run {log.run_id}: its record is in {output}"
        if status == "FINISHED":
            raise RunError(f"{message}: {_first_line(error)}") from error
        print(message, file=sys.stderr)  # what ended the run matters more


def open_sweep(store: Store, sweep: str, command: str, jobs: int) -> None:
    """Start the sweep's own run."""
    tags = {"kind": "sweep", "sweep": sweep, "command": command, "jobs": str(jobs)}
    context = mlflow.tracking.context.registry.resolve_tags(tags)
    with _using(store.uri):
        mlflow.MlflowClient(store.uri).create_run(store.experiment_id, tags=context, run_name=f"sweep-{sweep}")


def sweep_runs(store: Store, sweep: str, kind: str = "run") -> list[Run]:
    """The runs of a sweep, oldest first; with kind="sweep" the sweep's own."""
    query = f"tags.sweep = '{sweep}' and tags.kind = '{kind}'"
    client = mlflow.MlflowClient(store.uri)
    runs: list[Run] = []
    page: str | None = None
    while page != "":
        found = client.search_runs(
            [store.experiment_id], query, max_results=1000, order_by=["attributes.start_time ASC"], page_token=page
        )
        runs, page = runs + list(found), found.token or ""
    return runs


def close_sweep(store: Store, sweep: str, status: str, best: Run | None, files: Mapping[str, str], note: str) -> None:
    """End the sweep's own run with its files, its note (Markdown) and the metrics of the best of its runs."""
    client = mlflow.MlflowClient(store.uri)
    (own,) = sweep_runs(store, sweep, "sweep")
    client.set_terminated(own.info.run_id, status)  # first: whatever goes wrong below, it no longer looks alive
    for name, text in files.items():
        client.log_text(own.info.run_id, text, name)
    client.set_tag(own.info.run_id, "mlflow.note.content", note)
    if best is not None:
        now = int(time.time() * 1000)
        scores = [Metric(name, best.data.metrics[name], now, 0) for name in ("final_val_accuracy", "test_accuracy")]
        client.log_batch(own.info.run_id, metrics=scores)
        client.set_tag(own.info.run_id, "best_run", best.info.run_id)


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, list) else str(value)


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
