"""`python -m benchmarks.load`: measures the cost of long sweeps and large stores, in half an hour.

- sweeps: memory, open files, threads and seconds a run of 500 runs in one process and of 200 runs in two processes,
  the runs after the 50th against the last ones.
- stores: one run, and the check of a sweep of 200 jobs, in a store of one run and in one of 10,000.

Written as benchmarks/results/load.md.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from benchmarks import store
from benchmarks.speed import RESULTS, environment, execute, machine_line

SWEEPS = {
    "500 runs in one process": ["seed=range(1,501)"],
    "200 runs in two processes": ["seed=range(1,201)", "hydra/launcher=processes", "hydra.launcher.n_jobs=2"],
}
SPAN, BEFORE = 50, 50  # runs of each of the two parts, and runs before the first part
CHECK = ["-m", "experiment=smoke", "optimizer.learning_rate=0.001,0.002", "seed=range(100)", "sweep.preflight=only"]
REPEATS, RUNS = 5, 10_000


class Sample(NamedTuple):
    """What a sweep uses when a run ends, summed over its processes. Memory is in MiB."""

    memory: float
    files: int
    threads: int
    time: float


def sample(process: psutil.Process) -> Sample:
    """A sample of the process and its children. Pages that several of them share count once."""
    memory = files = threads = 0
    for member in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            memory += member.memory_full_info().pss
            files += member.num_fds()
            threads += member.num_threads()
    return Sample(memory / 2**20, files, threads, time.perf_counter())


def sweep(folder: Path, overrides: Sequence[str]) -> list[Sample]:
    """Trains the runs; returns a sample at the end of each."""
    command = [sys.executable, "-m", "mnist_exp.train", "-m", "experiment=smoke", *overrides]
    environ, samples = environment(folder), []
    with (
        (folder / "errors.txt").open("w") as errors,
        subprocess.Popen(command, cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if line.endswith(" s\n"):  # a run that ended
                samples.append(sample(psutil.Process(process.pid)))
                if not len(samples) % 50:
                    print(f"{len(samples)} runs", file=sys.stderr, flush=True)
    if process.returncode:
        raise SystemExit((folder / "errors.txt").read_text())
    return samples


def sweep_row(name: str, samples: Sequence[Sample]) -> str:
    """Medians of the runs after the 50th and of the last ones, as `before → after`."""
    parts = samples[BEFORE : BEFORE + SPAN], samples[-SPAN:]
    cells = [
        " → ".join(f"{statistics.median(row[column] for row in part):,.0f}" for part in parts) for column in range(3)
    ]
    seconds = " → ".join(f"{(part[-1].time - part[0].time) / (len(part) - 1):.2f}" for part in parts)
    return f"| {name} | {' | '.join(cells)} | {seconds} |"


def store_rows(small: Path, large: Path) -> list[str]:
    """Runs each command in both stores in turn; returns a row of median seconds, start to exit, for each command."""
    seconds: dict[tuple[str, Path], list[float]] = {}
    for number in range(REPEATS):
        for folder in (small, large):
            for name, command in (
                ("one run", ["experiment=smoke", f"seed={1000 + number}"]),
                ("the check of a sweep of 200 jobs", CHECK),
            ):
                seconds.setdefault((name, folder), []).append(execute(folder, "mnist_exp.train", *command)[1])
        print(f"stores: {number + 1} of {REPEATS}", file=sys.stderr, flush=True)
    names = dict.fromkeys(name for name, _ in seconds)
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    return [f"| {name} | {medians[name, small]:.1f} | {medians[name, large]:.1f} |" for name in names]


def main() -> None:
    """Measures both tables."""
    lines = [machine_line(), "", f"Medians of the {SPAN} runs after the {BEFORE}th → of the last {SPAN}:", ""]
    lines += ["| sweep | memory, MiB | open files | threads | seconds a run |", "|---|--:|--:|--:|--:|"]
    with tempfile.TemporaryDirectory() as name:
        for number, (title, overrides) in enumerate(SWEEPS.items()):
            folder = Path(name) / str(number)
            folder.mkdir()
            lines.append(sweep_row(title, sweep(folder, overrides)))
            print(lines[-1], file=sys.stderr, flush=True)
        small, large = (Path(name) / word for word in ("small", "large"))
        for folder in (small, large):
            folder.mkdir()
        store.make(large, RUNS)
        for folder in (small, large):
            execute(folder, "mnist_exp.train", "experiment=smoke")
        lines += ["", "Seconds from process start to exit:", ""]
        lines += [f"| command | store of 1 run | store of {RUNS:,} runs |", "|---|--:|--:|"]
        lines += store_rows(small, large)
    (RESULTS / "load.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
