"""`python -m benchmarks.overhead`: what tracking and sweeping cost, start-up, and memory.

- tracking: the seconds spent in everything that records (MLflow calls, plots, provenance) within one real run of
  `workshop_mlp`, timed around those calls; an epoch's share apart.
- start-up: from process start until the first training step, against `import tensorflow` alone; compiling apart.
- memory: peak resident memory of the tracked run against the plain script, and the growth over a sweep of 100 runs.
- a job: what a sweep of 500 jobs adds to each, seen on those whose result an earlier one has.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from benchmarks.speed import environment, execute, run_peer

TIMED = "from benchmarks.overhead import time_tracking; time_tracking()"


def timed(totals: dict[str, list[float]], name: str, function: Callable) -> Callable:
    """The function, with its seconds added to the totals."""

    def wrapper(*arguments: Any, **settings: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*arguments, **settings)
        finally:
            totals[name].append(time.perf_counter() - began)

    return wrapper


def time_tracking() -> None:
    """Run the command in this process with the recording calls timed; print the figures."""
    import mlflow

    from mnist_exp import experiment, provenance, tracking
    from mnist_exp.figures import run as plots
    from mnist_exp.train import main

    totals: dict[str, list[float]] = defaultdict(list)
    for owner, names in (
        (tracking.RunLog, ("metrics", "dataset", "tags", "upload", "model", "close")),
        (mlflow.MlflowClient, ("create_run",)),
        (provenance.git, ("code_state",)),
        (provenance, ("environment_record", "requirements", "source_files")),
        (plots, ("curves", "confusion_matrix", "mistakes", "samples")),
        (plots.Figure, ("savefig",)),
        (experiment, ("_describe",)),
    ):
        for name in names:
            setattr(owner, name, timed(totals, name, getattr(owner, name)))
    sys.argv = ["train", "experiment=workshop_mlp", "trainer.epochs=20"]
    main()
    epochs = totals.pop("metrics")
    totals["upload"].pop()  # the last one is part of close
    for name, seconds in sorted(totals.items(), key=lambda item: -sum(item[1])):
        print(f"  {name:18} {sum(seconds):6.3f} s in {len(seconds)} calls")
    print(
        f"tracking a run: {sum(map(sum, totals.values())):.2f} s; an epoch: {1000 * statistics.median(epochs):.1f} ms"
    )


def main() -> None:
    """Print all figures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        execute(folder, "mnist_exp.train", "experiment=smoke")  # creates the database: once a project
        settings: dict[str, Any] = {"cwd": folder, "env": environment(folder), "text": True}
        print(subprocess.run([sys.executable, "-c", TIMED], capture_output=True, check=True, **settings).stdout)
        start_up(settings)
        memory(folder, settings)
        a_job(settings)


def start_up(settings: dict[str, Any]) -> None:
    """Medians of five: `import tensorflow`, and the command until it compiles, until it trains."""
    alone, ours, compiling = [], [], []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import tensorflow"], capture_output=True, check=True, **settings)
        alone.append(time.perf_counter() - began)
        began = time.perf_counter()
        command = [sys.executable, "-m", "mnist_exp.train", "experiment=workshop_mlp", "trainer.epochs=1"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, **settings) as process:
            assert process.stderr is not None
            process.stderr.readline()  # the first epoch
            ended = time.perf_counter() - began
        records = Path(settings["cwd"]).glob("outputs/*/*/run-*/metrics.jsonl")
        rows = map(json.loads, max(records, key=lambda path: path.stat().st_mtime).read_text().splitlines())
        figures = {name: value for row in rows for name, value in row.items()}
        compiling.append(figures["compile_seconds"])
        ours.append(ended - figures["epoch_seconds"] - figures["compile_seconds"])
    a, b, c = map(statistics.median, (alone, ours, compiling))
    print(f"import tensorflow: {a:.2f} s; ready to train: {b:.2f} s, {b - a:.2f} s above; then {c:.2f} s of compiling")


def memory(folder: Path, settings: dict[str, Any]) -> None:
    """Peaks of one run on each side, and resident memory after each of 100 runs in one process."""
    peer = run_peer(folder, "workshop_mlp", "--epochs=3")["peak_memory"]
    command = [sys.executable, "-m", "mnist_exp.train", "experiment=workshop_mlp", "trainer.epochs=3"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, **settings) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    print(f"peak memory: plain {peer / 2**20:.0f} MiB, tracked {usage.ru_maxrss / 2**10:.0f} MiB")
    command = [sys.executable, "-m", "mnist_exp.train", "-m", "experiment=smoke", "seed=range(1,101)"]
    resident, ends = [], []
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.PIPE, **settings) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.endswith(" s\n"):  # a run that ended
                resident.append(psutil.Process(process.pid).memory_info().rss / 2**20)
                ends.append(time.perf_counter())
    tail = resident[10:]
    growth = statistics.linear_regression(range(len(tail)), tail).slope
    print(f"100 runs in one process: {resident[9]:.0f} MiB after the 10th, {resident[-1]:.0f} after the last")
    print(f"growth after the tenth: {growth:.2f} MiB a run; {(ends[-1] - ends[9]) / 90:.2f} s a run")


def a_job(settings: dict[str, Any]) -> None:
    """Seconds from one job of 500 to the next where nothing is trained, and from the start until all are checked."""
    names = ",".join(f"n{i}" for i in range(100))
    command = [sys.executable, "-m", "mnist_exp.train", "-m", "experiment=smoke", "seed=range(5)", f"name={names}"]
    jobs: list[float] = []
    before = began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **settings) as process:
        assert process.stdout is not None
        for line in process.stdout:
            now = time.perf_counter()
            if line.endswith(": 500 runs\n"):
                print(f"500 jobs are checked {now - began:.1f} s after the start, TensorFlow's import included")
            elif line.endswith("  reused\n"):
                jobs.append(1000 * (now - before))
            before = now
    first, last = (statistics.median(part) for part in (jobs[:50], jobs[-50:]))
    print(f"a job that is not trained: {first:.0f} ms, of the last fifty {last:.0f} ms")


if __name__ == "__main__":
    main()
