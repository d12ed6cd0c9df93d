"""Finds an interrupted run that can be resumed on this machine."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import mlflow
from filelock import BaseFileLock, FileLock, Timeout
from mlflow.entities import RunTag

from mnist_exp.errors import RequestError
from mnist_exp.tracking import database, metrics_file
from mnist_exp.tracking.database import StoreError
from mnist_exp.tracking.queries import RunInfo, run_info, tagged_runs
from mnist_exp.tracking.store import Store
from mnist_exp.tracking.tags import in_store

ARTIFACTS = "artifacts"  # of a record: its files, until the store has them


def resumable(store: Store, identity: str, wanted: str | bool) -> tuple[RunInfo | None, BaseFileLock | None]:
    """The wanted run, else the newest of this identity that was killed, or that failed after its evaluation.

    A lock is returned with it, so that no other process resumes the same run.
    """
    client = mlflow.MlflowClient(store.uri)
    if isinstance(wanted, str):
        run = run_info(client.get_run(wanted))
        try:
            return run, _claim(client, run, identity)
        except RequestError as error:
            raise StoreError(f"resume={wanted}: the run cannot be continued: {error}") from error
    for run in tagged_runs(store, "identity", identity, finished=False):
        if run.status == "KILLED" or (run.status == "FAILED" and is_evaluated(store, run)):
            with suppress(RequestError):
                return run, _claim(client, run, identity)
    return None, None


def is_evaluated(store: Store, run: RunInfo) -> bool:
    """Whether the record of a run on this machine has its scores."""
    return 0 in metrics_file.read(run_folder(store.uri, run) / metrics_file.NAME)


def run_folder(uri: str, run: RunInfo) -> Path:
    """Folder of the run's local record, also after it was moved together with the store."""
    path, output = database.file_of(uri), run.tags["output"]
    if path is not None:
        output = database.moved_with(output, run.artifact_uri, path)
    return Path(output) / f"run-{run.run_id[:8]}"


def _claim(client: mlflow.MlflowClient, run: RunInfo, identity: str) -> BaseFileLock:
    """Lock a run that can be resumed here; raises RequestError with the reason if it cannot."""
    if run.tags.get("identity") != identity:
        raise RequestError("it was made by other code, versions, data, threads or device than these")
    folder = run_folder(client.tracking_uri, run)
    if not folder.is_dir():
        raise RequestError(f"its record {folder} is not on this machine")
    lock = FileLock(folder / "lock", timeout=0)
    with suppress(Timeout):
        lock.acquire()
    status = client.get_run(run.run_id).info.status  # no other process changes it after we have the lock
    if lock.is_locked and status in ("KILLED", "FAILED"):
        return lock
    lock.release()
    raise RequestError(f"it is {status}")


def reopen(client: mlflow.MlflowClient, run: RunInfo, tags: Mapping[str, str]) -> None:
    """Set a run to RUNNING; delete its error, and the model that it may have logged before it died."""
    if "error" in run.tags:
        client.delete_tag(run.run_id, "error")
    client.log_batch(run.run_id, tags=[RunTag(*tag) for tag in in_store(tags).items()])
    client.update_run(run.run_id, status="RUNNING")
    mine = f"source_run_id = '{run.run_id}'"
    for model in client.search_logged_models([run.experiment_id], filter_string=mine):
        client.delete_logged_model(model.model_id)
