"""Records a sweep: a run of its own for the summary, and tags that say which runs belong to it."""

import time
from collections.abc import Mapping
from pathlib import Path

from mlflow.entities import Metric, RunTag

from mnist_exp.provenance import process
from mnist_exp.tracking.charts import VIEW, sweep_view
from mnist_exp.tracking.database import StoreError
from mnist_exp.tracking.queries import RunInfo, search_runs
from mnist_exp.tracking.run_log import context_tags
from mnist_exp.tracking.store import Store, membership_tag, sweep_filter, writing
from mnist_exp.tracking.tags import stored


def open_sweep(store: Store, sweep: str, command: str, jobs: int) -> None:
    """Start the sweep's own run, and store the view of the UI that `Store.ui_link` opens."""
    tags = {"kind": "sweep", "sweep": sweep, "command": command, "jobs": str(jobs), "process": process()}
    with writing(store) as client:
        client.create_run(store.experiment_id, tags=context_tags(tags), run_name=f"sweep-{sweep}")
        client.set_experiment_tag(store.experiment_id, f"{VIEW}{sweep}", sweep_view(sweep_filter(sweep)))


def sweep_tags(sweep: str, number: int, color: str) -> dict[str, str]:
    """Tags of the n-th run of a sweep.

    The tag `sweep` names the sweep that trained the run. Each sweep that uses its result, the first one included, adds
    a tag with its own name, because MLflow's filters have no `or`.
    """
    return {"sweep": sweep, membership_tag(sweep): str(number), "mlflow.runColor": color}


def job_numbers(run: RunInfo, sweep: str) -> list[int]:
    """Numbers of the sweep's jobs that have this run as result: one, or several of the same identity."""
    return [int(number) for number in run.tags[membership_tag(sweep)].split()]


def join_sweep(store: Store, run: RunInfo, sweep: str, number: int, name: str, color: str) -> None:
    """Make a finished run the result of a sweep's n-th job.

    The run gets the job's colour. It gets the job's name, too, if that is longer, because it says more about the run;
    `find_run` still knows the earlier one.
    """
    key = membership_tag(sweep)
    tags = {key: f"{run.tags.get(key, '')} {number}".strip(), "mlflow.runColor": color}
    if len(name) > len(run.name):
        tags["earlier_name"] = run.name
    with writing(store) as client:
        client.log_batch(run.run_id, tags=[RunTag(tag, text) for tag, text in tags.items()])
        if len(name) > len(run.name):
            client.update_run(run.run_id, name=name)


def sweep_of(store: Store, process: str) -> str | None:
    """The sweep that a process began; None if it began none."""
    found = search_runs(store, f"tags.kind = 'sweep' and tags.`{stored('process')}` = '{process}'")
    return found[0].tags["sweep"] if found else None


def sweep_runs(store: Store, sweep: str) -> list[RunInfo]:
    """The runs of a sweep, oldest first, including finished runs of earlier commands that it uses."""
    return search_runs(store, sweep_filter(sweep), deleted=False)[::-1]


def end_left_runs(store: Store, sweep: str) -> None:
    """Mark as KILLED the runs of a sweep that are still RUNNING, on any machine, after all of its jobs have ended."""
    for run in sweep_runs(store, sweep):
        if run.status == "RUNNING":
            with writing(store) as client:
                client.set_terminated(run.run_id, "KILLED")


def stop_sweep(store: Store, sweep: str) -> None:
    """Prevent the start of further jobs of a sweep, in every process."""
    with writing(store) as client:
        client.set_tag(_own_run(store, sweep).run_id, "stopped", "true")


def sweep_stopped(store: Store, sweep: str) -> bool:
    """Whether `stop_sweep` was called."""
    return "stopped" in _own_run(store, sweep).tags


def end_sweep(store: Store, sweep: str, status: str) -> None:
    """End the sweep's own run as FINISHED, FAILED or KILLED."""
    with writing(store) as client:
        client.set_terminated(_own_run(store, sweep).run_id, status)


def close_sweep(
    store: Store, sweep: str, status: str, best: RunInfo | None, counts: Mapping[str, int], folder: Path
) -> None:
    """End the sweep's own run and record its summary.

    Args:
        store: where it is recorded.
        sweep: its name.
        status: FINISHED, FAILED or KILLED.
        best: the run whose scores, if it has them, become the sweep's metrics.
        counts: further metrics, such as the number of failed jobs.
        folder: of its artifacts. The UI shows the content of `sweep.md` as the run's description.
    """
    end_sweep(store, sweep, status)  # first, so that no error below leaves the sweep RUNNING
    own = _own_run(store, sweep).run_id
    scores: dict[str, float] = dict(counts)
    with writing(store) as client:
        if best is not None:
            scores |= {key: best.metrics[key] for key in best.metrics.keys() & {"final_val_accuracy", "test_accuracy"}}
            client.set_tag(own, "best_run", best.run_id)
        now = int(time.time() * 1000)
        client.log_batch(own, metrics=[Metric(name, value, now, 0) for name, value in scores.items()])
        client.set_tag(own, "mlflow.note.content", (folder / "sweep.md").read_text(encoding="utf-8"))
        client.log_artifacts(own, str(folder))


def _own_run(store: Store, sweep: str) -> RunInfo:
    """The sweep's own run; also if it was deleted in MLflow's UI, because its jobs continue."""
    found = search_runs(store, f"tags.sweep = '{sweep}' and tags.kind = 'sweep'")
    if not found:
        raise StoreError(f"tracking.uri={store.uri} no longer has the sweep's own run sweep-{sweep}")
    return found[-1]
