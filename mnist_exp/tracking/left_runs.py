"""Finds runs whose process has died, and records on this machine that the store did not accept."""

from collections.abc import Collection

from filelock import FileLock, Timeout

from mnist_exp.errors import RunError
from mnist_exp.provenance import is_gone
from mnist_exp.tracking.queries import RunInfo, search_runs
from mnist_exp.tracking.resume import ARTIFACTS, run_folder
from mnist_exp.tracking.run_log import RunLog
from mnist_exp.tracking.store import Store, delayed_signals, resolve_uri, store_errors, writing


def end_dead_runs(store: Store) -> None:
    """Mark as KILLED the runs of the experiment whose process, on this host, has died."""
    for run in search_runs(store, "attributes.status = 'RUNNING'", deleted=False):
        if "process" in run.tags and is_gone(run.tags["process"]):
            with writing(store) as client:
                client.set_terminated(run.run_id, "KILLED")


def unsent_runs(store: Store) -> list[RunInfo]:
    """Ended runs with files on this machine that were not sent, oldest first."""
    ended = [run for run in search_runs(store, deleted=False) if run.status in ("FAILED", "KILLED")]
    return [
        run for run in reversed(ended) if "output" in run.tags and (run_folder(store.uri, run) / ARTIFACTS).is_dir()
    ]


def unsent_files(uri: str | None, run: RunInfo, names: Collection[str]) -> dict[str, bytes]:
    """Contents of the named files of a run that wait on this machine to be sent."""
    if "output" not in run.tags:  # another program's run
        return {}
    folder = run_folder(resolve_uri(uri), run) / ARTIFACTS
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def send_record(store: Store, run: RunInfo) -> None:
    """Send what the store may lack of a run that ended: metrics, tags and files of its record on this machine.

    Raises:
        RunError: another process continues the run, or the store lost files.
        StoreError: the store rejects a call.
    """
    home = run_folder(store.uri, run)
    try:
        with FileLock(home / "lock", timeout=0), store_errors(store.uri), delayed_signals() as signals:
            log = RunLog(store, run.run_id, home)
            log.send_again()
            log.close(None, signals)
    except Timeout as error:
        raise RunError(f"another process continues run {run.run_id}") from error
