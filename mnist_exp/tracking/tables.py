"""Reads MLflow's tables in a SQLite file without MLflow, which takes 2 s to import and 20 s to read 10,000 runs."""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy import NullPool, create_engine

from mnist_exp.tracking import database, tags
from mnist_exp.tracking.charts import in_section, plain


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


def experiments(uri: str) -> dict[str, tuple[str, str]]:
    """Name and stage (`active` or `deleted`) of each experiment, by its id."""
    with _reading(uri) as cursor:
        rows = cursor.execute("SELECT experiment_id, name, lifecycle_stage FROM experiments")
        return {str(number): (name, stage) for number, name, stage in rows}


def runs(uri: str, where: str, *values: Any) -> list[RunInfo]:
    """The runs for which an SQL condition on the table `runs` holds, newest first.

    Args:
        uri: of a SQLite file.
        where: the condition, with a `?` for each value.
        values: for the condition.
    """
    columns = "run_uuid, name, status, lifecycle_stage, start_time, end_time, experiment_id, artifact_uri"
    chosen = f"run_uuid IN (SELECT run_uuid FROM runs WHERE {where})"
    texts: dict[str, str] = {}  # many runs have the same texts, which are kept once
    with _reading(uri) as cursor:
        query = f"SELECT {columns} FROM runs WHERE {where} ORDER BY start_time DESC, run_uuid"
        found = {row[0]: _run(*row) for row in cursor.execute(query, values)}
        for run, key, text in cursor.execute(f"SELECT run_uuid, key, value FROM params WHERE {chosen}", values):
            found[run].params[sys.intern(key)] = texts.setdefault(text, text)
        for run, key, text in cursor.execute(f"SELECT run_uuid, key, value FROM tags WHERE {chosen}", values):
            tags.read_into(found[run].tags, key, texts.setdefault(text, text))
        query = f"SELECT run_uuid, key, value, is_nan FROM latest_metrics WHERE {chosen}"
        for run, key, value, is_nan in cursor.execute(query, values):
            found[run].metrics[sys.intern(plain(key))] = math.nan if is_nan else unclipped(value)
    return list(found.values())


def _run(
    run_id: str, name: str, status: str, stage: str, start: int, end: int | None, experiment: int, place: str
) -> RunInfo:
    times = (start or 0) / 1000, None if end is None else end / 1000
    return RunInfo(run_id, name or "", status, stage == "deleted", *times, {}, {}, {}, str(experiment), place or "")


def curve(uri: str, run_id: str, metric: str) -> dict[int, float]:
    """A metric of a run by epoch; the last value if an epoch has several."""
    with _reading(uri) as cursor:
        query = "SELECT step, value, is_nan FROM metrics WHERE run_uuid = ? AND key IN (?, ?) ORDER BY step, timestamp"
        points = cursor.execute(query, (run_id, metric, in_section(metric)))
        return {step: math.nan if is_nan else unclipped(value) for step, value, is_nan in points}


def unclipped(value: float) -> float:
    """Infinity for the largest float, as which MLflow stores it in a database."""
    return math.copysign(math.inf, value) if abs(value) >= sys.float_info.max else value


@contextmanager
def _reading(uri: str) -> Iterator[Any]:
    """A cursor whose queries all see the same state of the database."""
    engine = create_engine(database.reading(uri), poolclass=NullPool)
    connection = engine.raw_connection()
    try:
        cursor = connection.cursor()
        cursor.execute("BEGIN")
        yield cursor
    finally:
        connection.close()
