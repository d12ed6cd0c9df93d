"""The sweep's own run: opened before the first job, closed with the table of all jobs."""

import csv
import secrets
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from mnist_exp import console
from mnist_exp.config import run_name
from mnist_exp.errors import RequestError
from mnist_exp.figures.style import run_color
from mnist_exp.redact import redact
from mnist_exp.sweep.jobs import Job

# MLflow takes a second to import and Matplotlib half a second: the functions below import them when a sweep has begun.


class Sweep(NamedTuple):
    """A multirun that has begun."""

    id: str
    store: Any  # tracking.Store
    jobs: Sequence[Job]
    searched: frozenset[str] = frozenset()  # keys whose values a search chooses; `jobs` does not have them


ONE_SEED = "Compare the runs (add 'seed=range(5)' to tell differences from noise):"
_open: list[Sweep] = []  # those of this process: Hydra does not call a callback after Ctrl-C


def open_sweep(jobs: Sequence[Job], store: Any, searched: frozenset[str] = frozenset()) -> Sweep:
    """Opens the sweep's own run."""
    from mnist_exp import tracking

    sweep = Sweep(f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}", store, jobs, searched)
    with tracking.delayed_signals():
        tracking.open_sweep(store, sweep.id, shlex.join(sys.argv[1:]), len(jobs))
        _open.append(sweep)
    return sweep


def close_open_sweep(status: str, extra: Path) -> bool:
    """Closes the open sweep, if there is one, as `close_sweep` does; returns whether every job has a result."""
    return all(close_sweep(sweep, status, extra) for sweep in _open[:])


def abandon_sweep(status: str) -> bool:
    """Closes the open sweep when the command ends early, and prints errors; returns whether there was one."""
    abandoned = _open[:]
    for sweep in abandoned:
        try:
            close_sweep(sweep, status)
        except Exception as error:  # noqa: BLE001 - the exit code tells the reason why the command ends
            print_error(error)
    return bool(abandoned)


def print_error(error: Exception) -> None:
    """Prints one line for an invalid request, a traceback for a bug."""
    if isinstance(error, RequestError):
        console.complain(str(error))
    else:
        console.print_traceback(error)


def job_tags(sweep: str, number: int) -> dict[str, str]:
    """Tags of the n-th run of a sweep, with its colour in MLflow's charts."""
    from mnist_exp import tracking

    return tracking.sweep_tags(sweep, number, run_color(number))


def close_sweep(sweep: Sweep, status: str, extra: Path | None = None) -> bool:
    """Prints the sweep's table, records it in the sweep's own run, and ends that run, also if the rest fails.

    All results come from the store, because other processes and machines may have run the jobs.

    Args:
        sweep: as `open_sweep` returned it.
        status: FINISHED, FAILED or KILLED.
        extra: folder whose files, if it exists, become artifacts of the sweep's own run.

    Returns:
        Whether every job has a result.
    """
    from mnist_exp import tracking

    with tracking.delayed_signals():
        _open.remove(sweep)
        try:
            return _summarize(sweep, status, extra)
        except BaseException:
            with suppress(tracking.StoreError):  # the first error matters more
                tracking.end_sweep(sweep.store, sweep.id, "FAILED" if status == "FINISHED" else status)
            raise


def _summarize(sweep: Sweep, status: str, extra: Path | None) -> bool:
    from mnist_exp import tracking

    tracking.end_dead_runs(sweep.store)  # of workers that were killed
    if status == "FINISHED":  # then all jobs have ended: a run that looks alive was killed on another machine
        tracking.end_left_runs(sweep.store, sweep.id)
    runs = sorted(tracking.sweep_runs(sweep.store, sweep.id), key=lambda run: run.status == "FINISHED")
    last = {number: run for run in runs for number in tracking.job_numbers(run, sweep.id)}  # finished, or last tried
    rows = sorted((_row(sweep, number, last.get(number)) for number in range(len(sweep.jobs))), key=_rank)
    counts = _counts(rows)
    outcomes = Counter(map(console.outcome, rows))
    title = f"sweep {sweep.id}: {', '.join(f'{count} {outcome}' for outcome, count in outcomes.items())}"
    console.sweep_table(title, rows)
    table = _markdown(rows, sweep.store.experiment_id)
    note = redact(f"`{shlex.join(sys.argv[1:])}`\n\n{title}, best by validation accuracy first\n\n{table}")
    best = last[rows[0].job] if rows and rows[0].status in console.DONE else None
    if status == "FINISHED":
        if counts["failed"] or counts["not_run"]:
            console.say(f"\nTrain what is missing, by the same command:\n  {console.this_command()}")
        if best is not None:
            one_seed = len({(job.config.seed, job.config.data.get("fold")) for job in sweep.jobs}) == 1
            print_next_steps(sweep.store, best.run_id, sweep.id, one_seed=one_seed)
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), rows, note)
        if extra is not None and extra.is_dir():
            shutil.copytree(extra, folder, dirs_exist_ok=True)
        tracking.close_sweep(sweep.store, sweep.id, status, best, counts, Path(folder))
    return all(row.status in console.DONE for row in rows)


def print_next_steps(store: Any, run_id: str, sweep: str | None = None, *, one_seed: bool = False) -> None:
    """Prints the commands that a user may want next.

    Args:
        store: of the run.
        run_id: of a run, or of the best run of a sweep.
        sweep: its name; None after a single run.
        one_seed: whether all runs of the sweep have the same seed and fold, so that noise cannot be estimated.
    """
    from mnist_exp import tracking

    lines, which, where = [], "this run", store.arguments
    if sweep is not None:
        experiment = [] if store.experiment == tracking.default_experiment() else ["--experiment", store.experiment]
        compare = console.command("mnist_exp.compare", "--sweep", sweep, *experiment, *where)
        lines, which = (
            [ONE_SEED if one_seed else "See whether the differences are more than noise:", f"  {compare}"],
            "the run with the best val_accuracy",
        )
    short = run_id[: console.ID_LETTERS]
    lines += [
        f"Look at {which}, and train it again:",
        f"  {console.command('mnist_exp.compare', 'show', short, *where)}",
        f"  {console.command('mnist_exp.reproduce', short, *where)}",
        "See the curves in MLflow:",
        *([f"  {store.ui_command}"] if store.ui_command else []),
        f"  then open {store.run_link(run_id) if sweep is None else store.ui_link(sweep)}",
    ]
    console.say("\n" + "\n".join(lines))


def position(number: int) -> str:
    """The n-th job among those of this process's sweep, such as `2/4 `; empty in a process that began no sweep."""
    return f"{number + 1}/{len(_open[-1].jobs)} " if _open else ""


def _row(sweep: Sweep, number: int, run: Any) -> console.SummaryRow:
    from mnist_exp import tracking

    job = sweep.jobs[number]
    if run is None:
        return console.SummaryRow(number, run_name(job.config), "NOT RUN", job.swept, None, None, None, "")
    given = _overrides(run.tags.get("overrides", "")) if sweep.searched else []
    trained = run.tags.get("sweep") == sweep.id and tracking.job_numbers(run, sweep.id)[0] == number
    return console.SummaryRow(
        job=number,
        name=run.name if sweep.searched else run_name(job.config),  # a run taken over may have another
        status=run.status if trained else "SKIPPED",
        swept=" ".join(text for text in given if text.partition("=")[0] in sweep.searched) or job.swept,
        val_accuracy=run.metrics.get("final_val_accuracy"),
        test_accuracy=run.metrics.get("test_accuracy"),
        seconds=run.metrics.get("fit_seconds"),
        run_id=run.run_id,
        error=run.tags.get("error", "") if run.status == "FAILED" else "",
    )


def _overrides(tag: str) -> list[str]:
    """Splits a run's tag `overrides`; earlier versions joined them with spaces and did not quote."""
    try:
        return shlex.split(tag)
    except ValueError:  # an unbalanced quotation mark in a value
        return tag.split()


def _rank(row: console.SummaryRow) -> tuple[int, float]:
    return 0 if row.status in console.DONE else 2 if row.status == "NOT RUN" else 1, -(row.val_accuracy or 0)


def _counts(rows: Sequence[console.SummaryRow]) -> dict[str, int]:
    """The number of jobs of each outcome; an interrupted one counts as failed."""
    kinds = {"FINISHED": "finished", "SKIPPED": "skipped", "NOT RUN": "not_run"}
    found = Counter(kinds.get(row.status, "failed") for row in rows)
    return {kind: found[kind] for kind in ("finished", "skipped", "failed", "not_run")}


def _write(folder: Path, rows: Sequence[console.SummaryRow], note: str) -> None:
    """Writes the sweep's artifacts."""
    from mnist_exp.figures import run as plots

    (folder / "sweep.md").write_text(note, encoding="utf-8")
    with (folder / "sweep.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([console.SummaryRow._fields, *rows])
    scores: dict[str, list[float]] = {}
    for row in rows:
        if row.status in console.DONE and row.val_accuracy is not None:
            setting = " ".join(part for part in row.swept.split() if not part.startswith(("seed=", "data.fold=")))
            scores.setdefault(setting or "all", []).append(row.val_accuracy)
    if scores:
        plots.sweep(scores).savefig(folder / "sweep.png")


def _markdown(rows: Sequence[console.SummaryRow], experiment_id: str) -> str:
    lines = ["| run | status | swept | val_accuracy | test_accuracy | seconds |", "|---|---|---|--:|--:|--:|"]
    for row in rows:
        page = f"#/experiments/{experiment_id}/runs/{row.run_id}?workflowType=machine_learning"  # within MLflow's UI
        link = f"[{row.name}]({page})"
        cells = (link if row.run_id else row.name, row.status, row.swept, *console.figures(row))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
