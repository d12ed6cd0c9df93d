"""Records a sweep."""

import time
from collections.abc import Mapping
from pathlib import Path

import mlflow
from mlflow.entities import Metric

from mnist_exp.provenance import process
from mnist_exp.tracking.database import StoreError
from mnist_exp.tracking.queries import RunInfo, search_runs
from mnist_exp.tracking.run_log import context_tags
from mnist_exp.tracking.store import Store, membership_tag, store_errors, sweep_filter, uninterrupted


def open_sweep(store: Store, sweep: str, command: str, jobs: int) -> None:
    """Start the sweep's own run."""
    tags = {"kind": "sweep", "sweep": sweep, "command": command, "jobs": str(jobs), "process": process()}
    context = context_tags(tags)
    with store_errors(store.uri):
        mlflow.MlflowClient(store.uri).create_run(store.experiment_id, tags=context, run_name=f"sweep-{sweep}")


def sweep_tags(sweep: str, number: int, color: str) -> dict[str, str]:
    """Tags of the n-th run of a sweep.

    `sweep` is the sweep that trained the run. A later one that uses its result adds a tag by its own name, which
    therefore all have: MLflow's filters know no `or`.
    """
    return {"sweep": sweep, membership_tag(sweep): str(number), "mlflow.runColor": color}


def job_numbers(run: RunInfo, sweep: str) -> list[int]:
    """The jobs of the sweep whose result the run is: one, or several of the same identity."""
    return [int(number) for number in run.tags[membership_tag(sweep)].split()]


def join_sweep(store: Store, run: RunInfo, sweep: str, number: int) -> None:
    """Make a finished run the result of a sweep's n-th job."""
    numbers = run.tags.get(membership_tag(sweep), "")
    with store_errors(store.uri), uninterrupted(store):
        mlflow.MlflowClient(store.uri).set_tag(run.run_id, membership_tag(sweep), f"{numbers} {number}".strip())


def sweep_runs(store: Store, sweep: str) -> list[RunInfo]:
    """The runs of a sweep, oldest first, including those that it found finished."""
    return search_runs(store, sweep_filter(sweep), deleted=False)[::-1]


def _own_run(store: Store, sweep: str) -> RunInfo:
    """The sweep's own run; also when it was deleted in MLflow's UI, because its jobs go on."""
    found = search_runs(store, f"tags.sweep = '{sweep}' and tags.kind = 'sweep'")
    if not found:
        raise StoreError(f"tracking.uri={store.uri} no longer has the sweep's own run sweep-{sweep}")
    return found[-1]


def end_left_runs(store: Store, sweep: str) -> None:
    """Mark as KILLED the runs of a sweep that are still RUNNING, on any machine, after all of its jobs have ended."""
    for run in sweep_runs(store, sweep):
        if run.status == "RUNNING":
            with store_errors(store.uri):
                mlflow.MlflowClient(store.uri).set_terminated(run.run_id, "KILLED")


def stop_sweep(store: Store, sweep: str) -> None:
    """Have the jobs of a sweep that have not begun yet not begin, in whatever process."""
    with store_errors(store.uri), uninterrupted(store):
        mlflow.MlflowClient(store.uri).set_tag(_own_run(store, sweep).run_id, "stopped", "true")


def sweep_stopped(store: Store, sweep: str) -> bool:
    """Whether `stop_sweep` was called."""
    with store_errors(store.uri):
        return "stopped" in _own_run(store, sweep).tags


def end_sweep(store: Store, sweep: str, status: str) -> None:
    """End the sweep's own run as FINISHED, FAILED or KILLED."""
    with store_errors(store.uri):
        mlflow.MlflowClient(store.uri).set_terminated(_own_run(store, sweep).run_id, status)


def close_sweep(
    store: Store,
    sweep: str,
    status: str,
    best: RunInfo | None,
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
    with store_errors(store.uri):
        client, own = mlflow.MlflowClient(store.uri), _own_run(store, sweep).run_id
        client.set_terminated(own, status)  # first: whatever goes wrong below, it no longer looks alive
        scores: dict[str, float] = dict(counts)
        if best is not None:
            names = ("final_val_accuracy", "test_accuracy")
            scores |= {name: best.metrics[name] for name in names if name in best.metrics}
            client.set_tag(own, "best_run", best.run_id)
        now = int(time.time() * 1000)
        client.log_batch(own, metrics=[Metric(name, value, now, 0) for name, value in scores.items()])
        client.set_tag(own, "mlflow.note.content", note)
        client.log_artifacts(own, str(folder))
