"""Finds runs and reads what they recorded."""

import gc
import math
import re
import sys
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import mlflow
from mlflow.entities import Run, ViewType

from mnist_exp.provenance import is_here
from mnist_exp.tracking import database
from mnist_exp.tracking.database import StoreError
from mnist_exp.tracking.store import Store, existing, reader, resolve_uri, store_errors


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


def find_run(uri: str | None, wanted: str) -> Run:
    """The run, in any experiment of a store that exists, whose id begins so, or else the one that trained of that name.

    Raises:
        StoreError: the store cannot be used, holds no such run, or several, or it was deleted.
    """
    uri = existing(uri)
    found: list[Run] = []
    with store_errors(uri):
        client = reader(uri)
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
    return database.file_of(resolve_uri(uri)) is not None and is_here(tags.get("process", ""))


def find_finished(uri: str | None, wanted: str) -> str:
    """The id of the run whose weights another one is to begin with.

    Raises:
        StoreError: there is no such run, or it did not finish.
    """
    run = find_run(uri, wanted)
    if run.info.status != "FINISHED":
        raise StoreError(f"init_from={wanted} must name a finished run, that one is {run.info.status}")
    return str(run.info.run_id)


def finished_runs(store: Store, config_digest: str) -> list[Run]:
    """Finished runs whose configs are the same wherever it matters, newest first."""
    query = f"tags.`identity.config` = '{config_digest}' and tags.kind = 'run' and attributes.status = 'FINISHED'"
    with store_errors(store.uri):
        return search(store, query, newest_first=True)


def similar_runs(store: Store, model: str, optimizer: str, batch_size: int, data: str) -> list[Run]:
    """Of the latest 50 finished runs of a model and an optimizer, by their short names, those on the same data."""
    parameters = {"model": model, "optimizer": optimizer, "trainer.batch_size": batch_size}
    query = " and ".join(f"params.`{key}` = '{value}'" for key, value in parameters.items())
    query += " and tags.kind = 'run' and attributes.status = 'FINISHED'"
    newest = ["attributes.start_time DESC"]
    with store_errors(store.uri):
        client = mlflow.MlflowClient(store.uri)
        found = client.search_runs([store.experiment_id], query, max_results=50, order_by=newest)
    return [run for run in found if run.data.tags.get("data.name") == data]


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
            with store_errors(store.uri, query):
                found = reader(store.uri).search_runs([store.experiment_id], query, ViewType.ALL, 500, page_token=page)
            runs += [tracked(run) for run in found]
            page = found.token or ""
    finally:
        if collecting:
            gc.enable()
    return runs


def search(store: Store, query: str, *, newest_first: bool = False, view: int = ViewType.ACTIVE_ONLY) -> list[Run]:
    """All runs of the experiment that match MLflow's filter string, page by page."""
    client, order = mlflow.MlflowClient(store.uri), f"attributes.start_time {'DESC' if newest_first else 'ASC'}"
    runs: list[Run] = []
    page: str | None = None
    while page != "":
        found = client.search_runs([store.experiment_id], query, view, 1000, [order], page)
        runs, page = runs + list(found), found.token or ""
    return runs


def read_files(uri: str | None, run_id: str, names: Collection[str]) -> dict[str, bytes]:
    """Those of the named artifacts that a run has; of a folder the files, as `folder/file`.

    Raises:
        StoreError: they cannot be read.
    """
    uri = resolve_uri(uri)
    with store_errors(uri), tempfile.TemporaryDirectory() as scratch:
        client = reader(uri)
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
    uri = resolve_uri(uri)
    with store_errors(uri):
        location = str(reader(uri).get_run(run_id).info.artifact_uri)
    path = database.file_of(uri)
    return location if path is None else database.lies_at(location, path)


def download(uri: str | None, run_id: str, name: str, folder: Path) -> Path:
    """Copy an artifact of a run into a folder; returns where it is there.

    Raises:
        StoreError: the run has none of that name, or it cannot be read.
    """
    uri = resolve_uri(uri)
    with store_errors(uri):
        return Path(reader(uri).download_artifacts(run_id, name, str(folder)))


def curve(uri: str, run_id: str, metric: str) -> dict[int, float]:
    """A metric of a run by epoch; the last value where an epoch has several."""
    with store_errors(uri):
        history = reader(uri).get_metric_history(run_id, metric)
    return {point.step: point.value for point in sorted(history, key=lambda point: (point.step, point.timestamp))}


def artifact_names(uri: str, run_id: str) -> list[str]:
    """What lies at the top of a run's artifacts."""
    with store_errors(uri):
        return [file.path for file in reader(uri).list_artifacts(run_id)]
