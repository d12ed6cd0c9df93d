"""A sweep's own run: begun with the sweep, closed with the table of its jobs."""

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
from mnist_exp.errors import RequestError
from mnist_exp.figures.style import COLORS
from mnist_exp.redact import redact
from mnist_exp.sweep.jobs import Job

DONE = ("FINISHED", "SKIPPED")


class Sweep(NamedTuple):
    """A multirun under way."""

    id: str
    store: Any  # tracking.Store, whose import takes a second
    jobs: Sequence[Job]
    searched: frozenset[str] = frozenset()  # keys whose values a search chooses as it goes, not told by `jobs`


_open: list[Sweep] = []  # begun and not closed by this process: Hydra does not tell a callback of Ctrl-C


def open_sweep(jobs: Sequence[Job], store: Any, searched: frozenset[str] = frozenset()) -> Sweep:
    """Begin the sweep's own run."""
    from mnist_exp import tracking

    sweep = Sweep(f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}", store, jobs, searched)
    with tracking.delayed_signals():
        tracking.open_sweep(store, sweep.id, shlex.join(sys.argv[1:]), len(jobs))
        _open.append(sweep)
    return sweep


def abandon_sweep(status: str) -> bool:
    """Close the sweep that is open when something ends the command before its time; whether there was one."""
    abandoned = _open[:]
    for sweep in abandoned:
        try:
            close_sweep(sweep, status)
        except Exception as error:  # noqa: BLE001 - the command is ending for another reason, which its exit code tells
            _say(error)
    return bool(abandoned)


def job_tags(sweep: str, number: int) -> dict[str, str]:
    """Tags of the n-th run of a sweep, with a colour unlike its neighbours' in MLflow's charts."""
    from mnist_exp import tracking

    return tracking.sweep_tags(sweep, number, COLORS[number % len(COLORS)])


def close_sweep(sweep: Sweep, status: str, extra: Path | None = None) -> bool:
    """Print the sweep's table, record it in the sweep's own run and end that; returns whether every job has a result.

    All of it comes from the store, for the jobs may have run in other processes and on other machines; besides what
    the folder `extra` has, if there is one. If that fails, the sweep's own run is ended all the same.
    """
    from mnist_exp import tracking

    with tracking.delayed_signals():
        _open.remove(sweep)
        try:
            return _summarize(sweep, status, extra)
        except BaseException:
            with suppress(tracking.StoreError):  # what went wrong before matters more
                tracking.end_sweep(sweep.store, sweep.id, "FAILED" if status == "FINISHED" else status)
            raise


def _summarize(sweep: Sweep, status: str, extra: Path | None) -> bool:
    from mnist_exp import tracking

    tracking.end_dead_runs(sweep.store)  # of workers that were killed
    if status == "FINISHED":  # so have all jobs: what looks alive on another machine was killed there
        tracking.end_left_runs(sweep.store, sweep.id)
    runs = sorted(tracking.sweep_runs(sweep.store, sweep.id), key=lambda run: run.status == "FINISHED")
    last = {number: run for run in runs for number in tracking.job_numbers(run, sweep.id)}  # finished, or last tried
    rows = sorted((_row(sweep, number, last.get(number)) for number in range(len(sweep.jobs))), key=_rank)
    counts = _counts(rows)
    said = ", ".join(
        f"{count} {what.replace('_', ' ')}" for what, count in counts.items() if count or what == "finished"
    )
    title = f"sweep {sweep.id}: {said}"
    console.sweep_table(title, rows)
    print(f"\ncompare them:  {sweep.store.ui_command}\nthen open      {sweep.store.ui_link(sweep.id)}", flush=True)
    note = f"{title}, best by validation accuracy first\n\n{_markdown(rows, sweep.store.experiment_id)}"
    best = last[rows[0].job] if rows and rows[0].status in DONE else None
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), rows, redact(f"`{shlex.join(sys.argv[1:])}`\n\n{note}"))
        if extra is not None and extra.is_dir():
            shutil.copytree(extra, folder, dirs_exist_ok=True)
        tracking.close_sweep(sweep.store, sweep.id, status, best, counts, Path(folder), note)
    return all(row.status in DONE for row in rows)


def _row(sweep: Sweep, number: int, run: Any) -> console.SummaryRow:
    from mnist_exp import tracking

    job = sweep.jobs[number]
    if run is None:
        return console.SummaryRow(number, job.name, "NOT RUN", job.swept, None, None, None, "")
    given = _overrides(run.tags.get("overrides", "")) if sweep.searched else []
    trained = run.tags.get("sweep") == sweep.id and tracking.job_numbers(run, sweep.id)[0] == number
    return console.SummaryRow(
        job=number,
        name=run.name,
        status=run.status if trained else "SKIPPED",
        swept=" ".join(text for text in given if text.partition("=")[0] in sweep.searched) or job.swept,
        val_accuracy=run.metrics.get("final_val_accuracy"),
        test_accuracy=run.metrics.get("test_accuracy"),
        seconds=run.metrics.get("fit_seconds"),
        run_id=run.run_id,
    )


def _overrides(tag: str) -> list[str]:
    """The overrides that a run's tag tells; earlier versions wrote them with bare spaces between them."""
    try:
        return shlex.split(tag)
    except ValueError:  # a quotation mark of a value
        return tag.split()


def _rank(row: console.SummaryRow) -> tuple[int, float]:
    return 0 if row.status in DONE else 2 if row.status == "NOT RUN" else 1, -(row.val_accuracy or 0)


def _counts(rows: Sequence[console.SummaryRow]) -> dict[str, int]:
    """How many jobs came to what; one that was interrupted counts as failed."""
    kinds = {"FINISHED": "finished", "SKIPPED": "skipped", "NOT RUN": "not_run"}
    found = Counter(kinds.get(row.status, "failed") for row in rows)
    return {kind: found[kind] for kind in ("finished", "skipped", "failed", "not_run")}


def _write(folder: Path, rows: Sequence[console.SummaryRow], note: str) -> None:
    """Write the sweep's artifacts."""
    from mnist_exp.figures import run as plots  # not while mistakes are looked for: Matplotlib takes half a second

    (folder / "sweep.md").write_text(note, encoding="utf-8")
    with (folder / "sweep.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(console.SummaryRow._fields)
        writer.writerows(rows)
    scores: dict[str, list[float]] = {}
    for row in rows:
        if row.status in DONE and row.val_accuracy is not None:
            apart = " ".join(part for part in row.swept.split() if not part.startswith("seed="))
            scores.setdefault(apart or "all", []).append(row.val_accuracy)
    if scores:
        plots.sweep(scores).savefig(folder / "sweep.png")


def _markdown(rows: Sequence[console.SummaryRow], experiment_id: str) -> str:
    lines = ["| run | status | swept | val_accuracy | test_accuracy | seconds |", "|---|---|---|--:|--:|--:|"]
    for row in rows:
        link = f"[{row.name}](#/experiments/{experiment_id}/runs/{row.run_id})"  # within MLflow's UI
        lines.append(
            "| " + " | ".join((link if row.run_id else row.name, row.status, row.swept, *console.figures(row))) + " |"
        )
    return "\n".join(lines) + "\n"


def _say(error: Exception) -> None:
    """Print one line for a problem that the user can mend, a traceback for a bug."""
    if isinstance(error, RequestError):
        console.complain(str(error))
    else:
        console.print_traceback(error)
