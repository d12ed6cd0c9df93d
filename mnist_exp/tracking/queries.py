"""Finds runs and reads what they recorded."""

import gc
import re
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mnist_exp.provenance import is_here
from mnist_exp.tracking import database, tables, tags
from mnist_exp.tracking.charts import in_section, plain
from mnist_exp.tracking.database import StoreError
from mnist_exp.tracking.store import Store, existing, experiments, reading, resolve_uri, store_errors
from mnist_exp.tracking.tables import RunInfo, unclipped

if TYPE_CHECKING:
    from mlflow.entities import Run


def run_info(run: "Run") -> RunInfo:
    """Convert MLflow's type."""
    info, data = run.info, run.data
    found: dict[str, str] = {}
    for name, text in data.tags.items():
        tags.read_into(found, name, text)
    return RunInfo(
        info.run_id,
        info.run_name or "",
        info.status,
        info.lifecycle_stage == "deleted",
        (info.start_time or 0) / 1000,
        None if info.end_time is None else info.end_time / 1000,
        dict(data.params),
        {plain(key): unclipped(value) for key, value in data.metrics.items()},
        found,
        info.experiment_id,
        info.artifact_uri or "",
    )


def find_run(uri: str | None, wanted: str) -> RunInfo:
    """Find a run by the beginning of its id, or else by name, in any experiment.

    Raises:
        StoreError: the store cannot be used, has no such run or several, or the run was deleted.
    """
    uri = existing(uri)
    found = _named(uri, wanted)
    runs = [run for run in found if not run.deleted] or found
    if len(runs) != 1:
        named = "; ".join(f"{run.run_id} {run.name} {run.status}" for run in runs[:10])
        several = f"{len(runs)} runs match {wanted!r}, name one by its id: {named}"
        raise StoreError(several if runs else f"there is no run {wanted!r} in {uri}")
    run = runs[0]
    if run.deleted:
        what, key, id_ = "runs", "run", run.run_id
        if experiments(uri)[run.experiment_id][1] != "active":
            what, key, id_ = "experiments", "experiment", run.experiment_id
        restore = f"`mlflow {what} restore --{key}-id {id_}` restores it"
        raise StoreError(f"run {run.run_id} ({run.name}) was deleted; {restore}")
    return run


def _named(uri: str, wanted: str) -> list[RunInfo]:
    """Runs whose ids begin with the text, or else the trained runs of this name, or else those that had it before."""
    is_id = re.fullmatch("[0-9a-f]{1,32}", wanted) is not None
    if database.file_of(uri) is not None:
        with store_errors(uri):
            found = tables.runs(uri, "run_uuid LIKE ?", f"{wanted}%") if is_id else []
            earlier = "run_uuid IN (SELECT run_uuid FROM tags WHERE key = 'earlier_name' AND value = ?)"
            for where in ("name = ?", earlier):
                found = found or [run for run in tables.runs(uri, where, wanted) if run.tags.get("kind") == "run"]
            return found
    from mlflow.entities import ViewType

    every = list(experiments(uri))
    queries = [f"attributes.run_id LIKE '{wanted}%'"] if is_id else []
    quote_with = "'" if "'" not in wanted else '"'
    if quote_with not in wanted:
        for key in ("attributes.run_name", "tags.earlier_name"):
            queries.append(f"{key} = {quote_with}{wanted}{quote_with} and tags.kind = 'run'")
    with reading(uri) as client:
        for query in queries:
            matching = client.search_runs(every, query, ViewType.ALL)
            if matching:
                return [run_info(run) for run in matching]
    return []


def is_own(uri: str | None, run_tags: Mapping[str, str]) -> bool:
    """Whether this machine recorded the run with these tags in a store that is a file, so that its code is trusted."""
    return database.file_of(resolve_uri(uri)) is not None and is_here(run_tags.get("process", ""))


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
    return tagged_runs(store, "identity.config", config_digest, finished=True)


def tagged_runs(store: Store, tag: str, text: str, *, finished: bool) -> list[RunInfo]:
    """The training runs with this tag, also as an earlier version named it, that finished or did not, newest first.

    Each job of a sweep asks this. In a file, SQL takes 2 to 4 ms and MLflow's two searches take 9 to 21 ms.
    """
    names, status = (tags.stored(tag), tag), f"status {'=' if finished else '!='} 'FINISHED'"
    if database.file_of(store.uri) is not None:
        condition = (
            f"experiment_id = ? AND lifecycle_stage = 'active' AND {status} "
            "AND run_uuid IN (SELECT run_uuid FROM tags WHERE key IN (?, ?) AND value = ?) "
            "AND run_uuid IN (SELECT run_uuid FROM tags WHERE key = 'kind' AND value = 'run')"
        )
        with store_errors(store.uri):
            return tables.runs(store.uri, condition, int(store.experiment_id), *names, text)
    found = [
        run
        for name in set(names)
        for run in search_runs(
            store, f"tags.`{name}` = '{text}' and tags.kind = 'run' and attributes.{status}", deleted=False
        )
    ]
    return sorted(found, key=lambda run: run.start_time, reverse=True)


def similar_runs(store: Store, model: str, optimizer: str, batch_size: int, data: str) -> list[RunInfo]:
    """Of the newest 50 finished runs of a model and an optimizer, named as in their params, those on the same data."""
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
    if not query and database.file_of(store.uri) is not None:
        with store_errors(store.uri):
            condition = "experiment_id = ?" + ("" if deleted else " AND lifecycle_stage = 'active'")
            return tables.runs(store.uri, condition, int(store.experiment_id))
    from mlflow.entities import ViewType

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
    folder = _artifact_folder(uri, run_id)
    with store_errors(resolve_uri(uri)), tempfile.TemporaryDirectory() as scratch:
        if folder is None:
            folder = Path(scratch)
            with reading(uri) as client:
                for entry in client.list_artifacts(run_id):
                    if entry.path in names:
                        client.download_artifacts(run_id, entry.path, scratch)
        paths = (path for name in names for path in (folder / name, *(folder / name).rglob("*")) if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def _artifact_folder(uri: str | None, run_id: str) -> Path | None:
    """The folder of a run's artifacts if store and artifacts are files of this machine, else None."""
    if database.file_of(resolve_uri(uri)) is None:
        return None
    place = place_of_artifacts(uri, run_id)
    location = urlsplit(place)
    if location.scheme == "file":
        return Path(url2pathname(location.path))
    return None if location.scheme else Path(place)


def place_of_artifacts(uri: str | None, run_id: str) -> str:
    """Location of a run's artifacts, for messages.

    Raises:
        StoreError: the store cannot be read.
    """
    uri = resolve_uri(uri)
    path = database.file_of(uri)
    if path is None:
        with reading(uri) as client:
            return str(client.get_run(run_id).info.artifact_uri)
    with store_errors(uri):
        found = tables.runs(uri, "run_uuid = ?", run_id)
    if not found:
        raise StoreError(f"there is no run {run_id} in {uri}")
    return database.lies_at(found[0].artifact_uri, path)


def download(uri: str | None, run_id: str, name: str, folder: Path) -> Path:
    """Copy an artifact of a run into a folder; returns the path of the copy.

    Raises:
        StoreError: the run has no such artifact, or it cannot be read.
    """
    with reading(uri) as client:
        return Path(client.download_artifacts(run_id, name, str(folder)))


def curve(uri: str, run_id: str, metric: str) -> dict[int, float]:
    """A metric of a run by epoch; the last value if an epoch has several."""
    if database.file_of(uri) is not None:
        with store_errors(uri):
            return tables.curve(uri, run_id, metric)
    with reading(uri) as client:
        history = [point for name in {metric, in_section(metric)} for point in client.get_metric_history(run_id, name)]
    return {point.step: point.value for point in sorted(history, key=lambda point: (point.step, point.timestamp))}


def artifact_names(uri: str, run_id: str) -> list[str]:
    """Names of a run's artifacts: files and folders of the top level."""
    folder = _artifact_folder(uri, run_id)
    if folder is not None:
        with store_errors(uri):
            return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    with reading(uri) as client:
        return [file.path for file in client.list_artifacts(run_id)]
