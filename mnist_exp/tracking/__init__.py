"""MLflow: the only folder that imports it. Opens a store, records runs and sweeps, and finds what was recorded.

A run is recorded locally first (`metrics.jsonl` and the artifacts in the run's output folder). A separate thread
sends the record to the store, so that a slow or unreachable store costs neither the training nor its results.
"""
# ruff: noqa: F401 - the imports below are the public names

import importlib.util
import os
from typing import TYPE_CHECKING, Any

# Set before MLflow is imported, which reads some of them only then. Its own defaults block for four minutes when a
# server is gone, and report usage over the network.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines a run
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

from mnist_exp.tracking.database import StoreError
from mnist_exp.tracking.queries import (
    RunInfo,
    artifact_names,
    curve,
    download,
    find_finished,
    find_run,
    finished_runs,
    is_own,
    place_of_artifacts,
    read_files,
    search_runs,
    similar_runs,
)
from mnist_exp.tracking.store import (
    Store,
    default_experiment,
    defaults_kept,
    delayed_signals,
    existing,
    experiments,
    find_store,
    import_database,
    open_store,
    relocate,
)

if TYPE_CHECKING:
    from mnist_exp.tracking.left_runs import end_dead_runs, send_record, unsent_files, unsent_runs
    from mnist_exp.tracking.resume import is_evaluated
    from mnist_exp.tracking.run_log import RunGone, RunLog, tracked_run
    from mnist_exp.tracking.sweep_log import (
        close_sweep,
        end_left_runs,
        end_sweep,
        job_numbers,
        join_sweep,
        open_sweep,
        stop_sweep,
        sweep_of,
        sweep_runs,
        sweep_stopped,
        sweep_tags,
    )


def __getattr__(name: str) -> Any:
    """Imports the modules that record runs when they are first used, because MLflow takes 2 s to import."""
    if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}") is None:
        for part in ("run_log", "sweep_log", "left_runs", "resume"):
            names = vars(importlib.import_module(f"{__name__}.{part}"))
            if name in names:
                return names[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
