"""Records one run: its local record first, then the same in the store."""

import json
import os
import shutil
import sqlite3
import sys
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelInput, Metric, Param, RunTag
from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.types import Schema, TensorSpec
from sqlalchemy.exc import SQLAlchemyError

from mnist_exp.console import command, say
from mnist_exp.errors import RunError, first_line, interruption
from mnist_exp.provenance import process
from mnist_exp.redact import redact
from mnist_exp.tracking import database, metrics_file
from mnist_exp.tracking.charts import in_section
from mnist_exp.tracking.queries import run_info
from mnist_exp.tracking.resume import ARTIFACTS, reopen, resumable, run_folder
from mnist_exp.tracking.sender import Sender
from mnist_exp.tracking.store import (
    Store,
    delayed_signals,
    store_error_types,
    store_errors,
    store_message,
    uninterrupted,
)
from mnist_exp.tracking.tags import in_store

STORE_ERRORS = store_error_types()
WRITE_ERRORS: tuple[type[Exception], ...] = (*STORE_ERRORS, RunError)


class RunGone(RunError):
    """The store no longer has the run."""


class RunLog:
    """Records one run in its folder `home` and in the store.

    `record` is the file of metrics, `tags.json` has the tags set on the way, `folder` holds the files that become
    artifacts, `checkpoints` those from which a run is resumed. A step is recorded once: its first row stays when a
    resumed run computes the step again. Only `model`, `flush` and `close` wait for the store.
    """

    def __init__(self, store: Store, run_id: str, home: Path) -> None:
        self.run_id = run_id
        self.store = store
        self.folder, self.checkpoints = home / ARTIFACTS, home / "checkpoints"
        self._client = mlflow.MlflowClient(store.uri)
        self.record = home / metrics_file.NAME
        self._rows = metrics_file.read(self.record)
        self._unwritten = b""  # rows for which the disk had no room
        self._unsent: deque[tuple[int, str | None]] = deque()  # step, id of the model that has the metrics too
        self._tags_file, self._own_tags = home / "tags.json", dict[str, str]()
        self._tags: deque[Mapping[str, str]] = deque()
        self._files: set[Path] = set()
        self._data_names: dict[str, str] = {}  # of the data set that the metrics of a model belong to
        self._sender = Sender()

    @property
    def epochs(self) -> int:
        """Number of epochs in the record; 0 for a new run."""
        return max(self._rows, default=0)

    def metrics(self, step: int, metrics: Mapping[str, float], *, weights: str | None = None) -> None:
        """Append metrics to the local record and queue them for sending.

        Args:
            step: the epoch, from 1; 0 for metrics of the whole run.
            metrics: values by name.
            weights: digest of the weights after the epoch, kept in the record only because MLflow stores numbers.
        """
        with delayed_signals():  # so that a row is both recorded and queued, or neither
            if step not in self._rows:
                row = {"step": step, "time": time.time()} | ({"weights": weights} if weights is not None else {})
                self._rows[step] = row | {name: float(value) for name, value in metrics.items()}
                self._append(self._rows[step])
            self._queue(step)

    def _queue(self, step: int, model_id: str | None = None) -> None:
        """Queue a recorded row for sending. With `model_id` its metrics are those of that logged model, too."""
        self._unsent.append((step, model_id))
        self._sender.submit(self._send_rows)

    def _append(self, row: Mapping[str, Any]) -> None:
        self._unwritten += json.dumps(row).encode() + b"\n"
        try:
            metrics_file.append(self.record, self._unwritten)
            self._unwritten = b""
        except OSError as error:  # a full disk does not stop the training
            say(f"tracking: {self.record} not written: {store_message(error)}", sys.stderr)

    def _send_rows(self) -> None:
        """Send the oldest unsent rows, at most 1,000 metrics. The store ignores a metric that it already has."""
        metrics: list[Metric] = []
        steps: set[int] = set()  # a step that is sent again with its model's id needs a second call
        while len(steps) < len(self._unsent):
            step, model_id = self._unsent[len(steps)]
            row = self._rows[step]
            names = row.keys() - {"step", "time", "weights"}
            if step in steps or len(metrics) + len(names) > 1000:
                break
            milliseconds = int(row["time"] * 1000)  # with step and value it identifies a metric in the store
            link = {} if model_id is None else {"model_id": model_id, **self._data_names}
            metrics += [Metric(in_section(name), row[name], milliseconds, step, **link) for name in sorted(names)]
            steps.add(step)
        if steps:
            self._client.log_batch(self.run_id, metrics=metrics)
        for _ in steps:
            self._unsent.popleft()

    def dataset(
        self, name: str, source: str, fingerprint: str, shapes: Mapping[str, tuple[int, ...]], use: str = "training"
    ) -> None:
        """Log the data set as the run's input; MLflow keeps 36 characters of the fingerprint, the run's tag keeps all.

        Args:
            name: of the data set.
            source: path or address.
            fingerprint: SHA-256 of images, labels and splits, hexadecimal.
            shapes: of the images, by split.
            use: what the run does with it, for MLflow: `training` or `testing`.
        """
        shape = json.dumps({part: list(shape) for part, shape in shapes.items()})
        data = Dataset(name, fingerprint[:36], "local", json.dumps({"uri": source}), profile=shape)
        self._data_names = {"dataset_name": data.name, "dataset_digest": data.digest}
        context = InputTag("mlflow.data.context", use)

        def log() -> None:
            try:
                self._client.log_inputs(self.run_id, [DatasetInput(data, [context])])
            except MlflowException:  # another run added the same data set between MLflow's query and its insert
                self._client.log_inputs(self.run_id, [DatasetInput(data, [context])])

        self._sender.submit(log)

    def uses_models_of(self, run_ids: Sequence[str]) -> None:
        """Log the models of other runs as inputs of this one.

        If it is one run, its model also gets the metrics of step 0, which must have been recorded before.
        """

        def log() -> None:
            experiment = self._client.get_run(self.run_id).info.experiment_id
            for run_id in run_ids:
                found = self._client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'")
                self._client.log_inputs(self.run_id, models=[LoggedModelInput(model.model_id) for model in found])
                if len(run_ids) == 1:
                    self._unsent.extend((0, model.model_id) for model in found)
                    self._send_rows()

        self._sender.submit(log)

    def tags(self, tags: Mapping[str, str]) -> None:
        """Set tags on the run."""
        with delayed_signals():
            self._own_tags.update(tags)
            with suppress(OSError):  # a full disk does not stop the training
                self._tags_file.write_text(json.dumps(self._own_tags), encoding="utf-8")
            self._tags.append(dict(tags))
            self._sender.submit(self._send_tags)

    def _send_tags(self) -> None:
        while self._tags:
            self._client.log_batch(self.run_id, tags=[RunTag(*tag) for tag in in_store(self._tags[0]).items()])
            self._tags.popleft()

    def upload(self) -> None:
        """Queue the new files in `folder` for sending. `close` deletes them after the store has all of them."""
        for path in sorted(set(self.folder.rglob("*")) - self._files):
            if path.is_file():
                self._files.add(path)
                self._sender.submit(partial(self._send_file, path))

    def _send_file(self, path: Path) -> None:
        parent = path.parent.relative_to(self.folder).as_posix()
        with tempfile.TemporaryDirectory() as alone:  # a kill during `log_artifact` leaves a stray file in the store
            shutil.copy2(path, alone)
            self._client.log_artifacts(self.run_id, alone, parent if parent != "." else None)

    def _send_missing(self) -> None:
        """Send again each file that the store lacks, because its artifact folder may have been deleted meanwhile."""
        missing = self._missing()
        for path in missing:
            self._send_file(path)
        if missing and (missing := self._missing()):
            names = ", ".join(path.relative_to(self.folder).as_posix() for path in missing)
            raise RunError(f"{len(missing)} of {len(self._files)} files did not arrive: {names[:300]}")

    def _missing(self) -> list[Path]:
        """The files that the store lacks, or has with another size."""
        sizes: dict[str, int | None] = {}  # bytes; None if the store does not report them
        folders: list[str | None] = [None]
        while folders:
            for entry in self._client.list_artifacts(self.run_id, folders.pop()):
                if entry.is_dir:
                    folders.append(entry.path)
                else:
                    sizes[entry.path] = entry.file_size
        found = ((path, sizes.get(path.relative_to(self.folder).as_posix(), -1)) for path in sorted(self._files))
        return [path for path, size in found if size not in (None, path.stat().st_size)]

    def model(
        self, model: Any, portable: Any | None, example: np.ndarray, classes: int, requirements: list[str]
    ) -> None:
        """Log a Keras model as an MLflow model that can be served, with the metrics of step 0.

        The artifacts `model.keras` and `saved_model/` hold the same weights. MLflow's model is the first of them if it
        loads everywhere, else the second, so that it can be served without the user's code.

        Args:
            model: uint8 images to float32 logits.
            portable: its copy from `models.portable`; None if it needs the user's code.
            example: uint8 images (n, height, width, channels), stored as the input example.
            classes: width of the logits.
            requirements: pip requirements for serving; if MLflow inferred them, it would start a process for 10 s.

        Raises:
            RunError: the store rejects the model.
        """
        signature = ModelSignature(
            Schema([TensorSpec(np.dtype("uint8"), (-1, *example.shape[1:]))]),  # with a name it would be a dict
            Schema([TensorSpec(np.dtype("float32"), (-1, classes))]),
        )

        def save_model(path: str, validate_serving_input: bool, **settings: Any) -> None:
            Path(path).mkdir()  # mlflow.keras writes the example before it creates the folder
            saved = portable or model
            mlflow.keras.save_model(saved, path, save_exported_model=portable is None, **settings)
            if portable is None:
                shutil.copytree(Path(path, "data", "model"), self.folder / "saved_model")
                with suppress(NotImplementedError):  # a layer of the user's without get_config
                    model.save(self.folder / "model.keras")
            else:
                shutil.copy2(Path(path, "data", "model.keras"), self.folder)
                portable.export(self.folder / "saved_model", verbose=False)

        try:
            with uninterrupted(self.store):
                mlflow.set_experiment(experiment_id=self._client.get_run(self.run_id).info.experiment_id)
                logged = Model.log(
                    artifact_path=None,
                    name="model",
                    flavor=SimpleNamespace(save_model=save_model, __name__="mlflow.keras"),
                    run_id=self.run_id,
                    step=None,  # with 0 it would copy the metrics without their data set
                    signature=signature,
                    input_example=example,
                    pip_requirements=requirements,
                    validate_serving_input=False,  # it would load the model again; a test serves a model instead
                )
        except STORE_ERRORS as error:
            raise RunError(f"the model could not be stored: {store_message(error)}{self.resume_hint()}") from error
        self._queue(0, logged.model_id)

    def resume_hint(self) -> str:
        """How to finish a run that was evaluated but not stored, for an error message; empty for other runs."""
        if 0 not in self._rows or not self.checkpoints.is_dir():
            return ""
        return "; the same command, or resume=" + self.run_id + ", finishes it without training again"

    def flush(self) -> None:
        """Wait until the store has all metrics and tags, and all files for which `upload` was called."""
        self._sender.flush()

    def send_again(self) -> None:
        """Queue the recorded metrics and tags for sending. The store ignores metrics that it has."""
        if self._tags_file.is_file():
            self.tags(json.loads(self._tags_file.read_text(encoding="utf-8")))
        for step in self._rows:
            self._queue(step)

    def close(self, status: str | None, signals: Sequence[int]) -> None:
        """Send the rest and end the run as FINISHED, FAILED or KILLED. With None it keeps its status.

        Raises:
            Exception: the store rejects a call, as in `Sender.flush`. The run is ended even then.
        """
        try:
            self._close(status, signals)
        except BaseException:
            self._sender.stop()
            if status is not None:
                left = "KILLED" if signals else "FAILED" if status == "FINISHED" else status
                with suppress(*STORE_ERRORS):
                    self._client.set_terminated(self.run_id, left)
            raise

    def _close(self, status: str | None, signals: Sequence[int]) -> None:
        if self.record.exists():
            shutil.copy2(self.record, self.folder)
        self.upload()
        self._sender.submit(self._send_missing)
        if status is not None:
            self._sender.submit(partial(self._end, status))
        self._sender.flush(signals)
        self._sender.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
        if status == "FINISHED":
            shutil.rmtree(self.checkpoints, ignore_errors=True)

    def _end(self, status: str) -> None:
        self._client.set_terminated(self.run_id, status)
        path = database.file_of(self.store.uri)
        if path is None:
            self._client.get_run(self.run_id)
            return
        try:  # a second connection, because MLflow's may be to a file that was deleted
            with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
                found = connection.execute("SELECT 1 FROM runs WHERE run_uuid = ?", [self.run_id]).fetchone()
        except sqlite3.Error as error:
            raise RunGone(f"{path} was deleted or replaced: {store_message(error)}") from error
        if found is None:
            raise RunGone(f"{path} was deleted or replaced: it has no such run")


@contextmanager
def tracked_run(
    store: Store,
    name: str,
    params: Mapping[str, str],
    tags: Mapping[str, str],
    output: Path,
    resume: str | bool = False,
) -> Iterator[RunLog]:
    """Record a run: it ends FINISHED, FAILED with its traceback as an artifact, or KILLED by Ctrl-C or a signal.

    Args:
        store: where the run is recorded.
        name: of a new run. MLFLOW_RUN_ID, which `mlflow run` sets, names a run to use instead of a new one.
        params: of a new run. A resumed run keeps its own; those that differ cannot change its result.
        tags: of the run; they include `identity`.
        output: folder for the local record of a new run.
        resume: id of the run to resume, or whether to resume an interrupted run of the same identity.

    Raises:
        StoreError: the store rejects the run, or the run cannot be resumed.
        RunError: the store accepted the start of the run but not the rest; the message names the local record.
    """
    mlflow.set_tracking_uri(store.uri)
    tags = {**tags, "process": process()}
    with ExitStack() as held:
        held.enter_context(uninterrupted(store))
        with store_errors(store.uri):
            client = mlflow.MlflowClient(store.uri)
            run, lock = resumable(store, tags["identity"], resume) if resume else (None, None)
            if run is None and (given := os.environ.pop("MLFLOW_RUN_ID", None)):  # by `mlflow run`, for this run only
                client.update_run(given, name=name)
                reopen(client, run_info(client.get_run(given)), {**tags, "output": str(output.absolute())})
                run = run_info(client.get_run(given))
            elif run is None:
                context = context_tags({**tags, "output": str(output.absolute())})
                run = run_info(client.create_run(store.experiment_id, tags=context, run_name=name))
            else:
                reopen(client, run, tags)
        log = RunLog(store, run.run_id, run_folder(store.uri, run))
        status = "FINISHED"
        try:
            shutil.rmtree(log.folder, ignore_errors=True)  # a run that died may have left some of its files
            log.folder.mkdir(parents=True)
            missing = [Param(key, value) for key, value in params.items() if key not in run.params]
            client.log_batch(run.run_id, params=missing)
            held.close()
            with _system_metrics(run.run_id):
                yield log
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            status = "KILLED"
            raise
        except BaseException as error:
            if (stop := interruption(error)) is not None:
                status = "KILLED"
                raise stop from None
            status = "FAILED"
            log.tags({"error": redact(f"{type(error).__name__}: {first_line(error)}")[:500]})
            with suppress(OSError):  # the user must see the first error
                (log.folder / "traceback.txt").write_text(redact(traceback.format_exc()), encoding="utf-8")
            if isinstance(error, (MlflowException, SQLAlchemyError)):
                raise RunError(f"tracking.uri={store.uri} stopped working: {store_message(error)}") from error
            raise
        finally:
            _close(log, status)
            if lock is not None:
                lock.release()


def _system_metrics(run_id: str) -> AbstractContextManager[object]:
    """MLflow's own monitor of the machine if MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING asks for it."""
    if not MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get():
        return nullcontext()
    monitor, stack = SystemMetricsMonitor(run_id), ExitStack()
    monitor.start()
    stack.callback(monitor.finish)
    return stack


def context_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Add MLflow's own tags, such as the repository's address, and redact all of them."""
    found: dict[str, str] = mlflow.tracking.context.registry.resolve_tags(in_store(tags))
    return {key: redact(text) for key, text in found.items()}


def _close(log: RunLog, status: str) -> None:
    """End a run; Ctrl-C is delayed meanwhile. Raises RunError if a finished run could not be stored."""
    try:
        with delayed_signals() as signals:
            log.close(status, signals)
    except WRITE_ERRORS as error:
        message = f"the tracking store did not accept the end of run {log.run_id}: its record is in {log.record.parent}"
        message += f": {store_message(error)}"
        if status == "FINISHED":
            raise RunError(message + ("" if isinstance(error, RunGone) else log.resume_hint())) from error
        say(
            f"{message}; {command('mnist_exp.sync', *log.store.arguments)} sends it", sys.stderr
        )  # the error that ended the run is raised instead
