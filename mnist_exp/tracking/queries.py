"""Finds runs and reads what they recorded."""

import gc
import math
import re
import sys
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from mlflow.entities import Run, ViewType

from mnist_exp.provenance import is_here
from mnist_exp.tracking import database
from mnist_exp.tracking.database import StoreError
from mnist_exp.tracking.store import Store, existing, reading, resolve_uri


class RunInfo(NamedTuple):
    """A run in the store, without its curves and artifacts."""

    run_id: str
    name: str
    status: str  # RUNNING, FINISHED, FAILED or KILLED
    deleted: bool
    start_time: float  # seconds since 1970
    end_time: float | None  # None while it runs
    params: dict[str, str]
    metrics: dict[str, float]  # last values
    tags: dict[str, str]  # without MLflow's own
    experiment_id: str = ""
    artifact_uri: str = ""


def run_info(run: Run) -> RunInfo:
    """Convert MLflow's type."""
    info, data = run.info, run.data
    largest = sys.float_info.max  # as which MLflow stores infinity in a database
    metrics = {key: math.copysign(math.inf, x) if abs(x) >= largest else x for key, x in data.metrics.items()}
    return RunInfo(
        info.run_id,
        info.run_name or "",
        info.status,
        info.lifecycle_stage == "deleted",
        (info.start_time or 0) / 1000,
        None if info.end_time is None else info.end_time / 1000,
        dict(data.params),
        metrics,
        {key: value for key, value in data.tags.items() if not key.startswith("mlflow.")},
        info.experiment_id,
        info.artifact_uri or "",
    )


def find_run(uri: str | None, wanted: str) -> RunInfo:
    """Find a run by the beginning of its id, or else by name, in any experiment.

    Raises:
        StoreError: the store cannot be used, has no such run or several, or the run was deleted.
    """
    uri = existing(uri)
    found: list[Run] = []
    with reading(uri) as client:
        stages = {e.experiment_id: e.lifecycle_stage for e in client.search_experiments(ViewType.ALL)}
        if re.fullmatch("[0-9a-f]{1,32}", wanted):
            found = list(client.search_runs(list(stages), f"attributes.run_id LIKE '{wanted}%'", ViewType.ALL))
        quote_with = "'" if "'" not in wanted else '"'
        if not found and quote_with not in wanted:
            name = f"attributes.run_name = {quote_with}{wanted}{quote_with}"
            found = list(client.search_runs(list(stages), f"{name} and tags.kind = 'run'", ViewType.ALL))
    runs = [run_info(run) for run in found]
    runs = [run for run in runs if not run.deleted] or runs
    if len(runs) != 1:
        named = "; ".join(f"{run.run_id} {run.name} {run.status}" for run in runs[:10])
        several = f"{len(runs)} runs match {wanted!r}, name one by its id: {named}"
        raise StoreError(several if runs else f"there is no run {wanted!r} in {uri}")
    run = runs[0]
    if run.deleted:
        what, key, id_ = "runs", "run", run.run_id
        if stages[run.experiment_id] != "active":
            what, key, id_ = "experiments", "experiment", run.experiment_id
        restore = f"`mlflow {what} restore --{key}-id {id_}` restores it"
        raise StoreError(f"run {run.run_id} ({run.name}) was deleted; {restore}")
    return run


def is_own(uri: str | None, tags: Mapping[str, str]) -> bool:
    """Whether this machine recorded the run with these tags in a store that is a file, so that its code is trusted."""
    return database.file_of(resolve_uri(uri)) is not None and is_here(tags.get("process", ""))


def find_finished(uri: str | None, wanted: str) -> str:
    """The id of the run that provides the initial weights of another one.

    Raises:
        StoreError: the run does not exist, or did not finish.
    """
    run = find_run(uri, wanted)
    if run.status != "FINISHED":
        raise StoreError(f"init_from={wanted} must name a finished run, that one is {run.status}")
    return run.run_id


def finished_runs(store: Store, config_digest: str) -> list[RunInfo]:
    """Finished runs whose configs agree in everything that can change a result, newest first."""
    query = f"tags.`identity.config` = '{config_digest}' and tags.kind = 'run' and attributes.status = 'FINISHED'"
    return search_runs(store, query, deleted=False)


def similar_runs(store: Store, model: str, optimizer: str, batch_size: int, data: str) -> list[RunInfo]:
    """Of the newest 50 finished runs of a model and an optimizer, by their short names, those on the same data."""
    parameters = {"model": model, "optimizer": optimizer, "trainer.batch_size": batch_size}
    query = " and ".join(f"params.`{key}` = '{value}'" for key, value in parameters.items())
    query += " and tags.kind = 'run' and attributes.status = 'FINISHED'"
    with reading(store.uri) as client:
        found = client.search_runs([store.experiment_id], query, max_results=50)
    return [run for run in map(run_info, found) if run.tags.get("data.name") == data]


def search_runs(store: Store, query: str = "", *, deleted: bool = True) -> list[RunInfo]:
    """The runs of the experiment that match MLflow's filter string, newest first.

    Args:
        store: with the experiment.
        query: MLflow's filter string; empty for all runs.
        deleted: whether to include deleted runs.

    Raises:
        StoreError: the store cannot be read, or MLflow rejects the query.
    """
    view = ViewType.ALL if deleted else ViewType.ACTIVE_ONLY
    runs: list[RunInfo] = []
    page: str | None = None
    collecting = gc.isenabled()
    gc.disable()  # 2,000 runs took 5 s, 3 s of them for garbage collection among SQLAlchemy's rows
    try:
        with reading(store.uri, query) as client:
            while page != "":
                found = client.search_runs([store.experiment_id], query, view, 500, page_token=page)
                runs += map(run_info, found)
                page = found.token or ""
    finally:
        if collecting:
            gc.enable()
    return runs


def read_files(uri: str | None, run_id: str, names: Collection[str]) -> dict[str, bytes]:
    """Contents of the named artifacts that the run has; a folder gives its files, as `folder/file`.

    Raises:
        StoreError: they cannot be read.
    """
    with reading(uri) as client, tempfile.TemporaryDirectory() as scratch:
        for entry in client.list_artifacts(run_id):
            if entry.path in names:
                client.download_artifacts(run_id, entry.path, scratch)
        paths = (path for path in Path(scratch).rglob("*") if path.is_file())
        return {path.relative_to(scratch).as_posix(): path.read_bytes() for path in paths}


def place_of_artifacts(uri: str | None, run_id: str) -> str:
    """Location of a run's artifacts, for messages.

    Raises:
        StoreError: the store cannot be read.
    """
    with reading(uri) as client:
        location = str(client.get_run(run_id).info.artifact_uri)
    path = database.file_of(resolve_uri(uri))
    return location if path is None else database.lies_at(location, path)


def download(uri: str | None, run_id: str, name: str, folder: Path) -> Path:
    """Copy an artifact of a run into a folder; returns the path of the copy.

    Raises:
        StoreError: the run has no such artifact, or it cannot be read.
    """
    with reading(uri) as client:
        return Path(client.download_artifacts(run_id, name, str(folder)))


def curve(uri: str, run_id: str, metric: str) -> dict[int, float]:
    """A metric of a run by epoch; the last value if an epoch has several."""
    with reading(uri) as client:
        history = client.get_metric_history(run_id, metric)
    return {point.step: point.value for point in sorted(history, key=lambda point: (point.step, point.timestamp))}


def artifact_names(uri: str, run_id: str) -> list[str]:
    """Names of a run's artifacts: files and folders of the top level."""
    with reading(uri) as client:
        return [file.path for file in client.list_artifacts(run_id)]
