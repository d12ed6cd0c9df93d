"""`python -m benchmarks.compare`: seconds and memory that `compare` takes over a store of 10,000 runs of 20 epochs.

`benchmarks.store` makes the store. Time counts from the end of the imports, memory is the peak of the process.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import store

MEASURED = """
import contextlib, io, resource, sys, time
from mnist_exp import compare, tracking
from mnist_exp.analysis import export, leaderboard, pictures, predictions, render, report
began, cpu = time.perf_counter(), time.process_time()
text = io.StringIO()
with contextlib.redirect_stdout(text):
    code = compare.main(sys.argv[1:])
seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
said = " ".join(sys.argv[1:]) or "no arguments"
print(f"{seconds:.2f} s ({cpu:.2f} s of a core), {peak:.0f} MiB at most, exit {code}: {said}")
assert "tensorflow" not in sys.modules
"""
RUNS = 10_000


def main() -> None:
    """Make the store in a temporary folder and measure; print a line for each command."""
    with tempfile.TemporaryDirectory() as name:
        database = store.make(Path(name), RUNS)
        print(f"{RUNS:,} runs, {database.stat().st_size / 2**20:.0f} MiB")
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW")}
        environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
        everything = ["--experiment", "mnist_exp"]
        for arguments in ([], ["--html", "sweep.html"], everything, [*everything, "--html", "report.html"]):
            subprocess.run([sys.executable, "-c", MEASURED, *arguments], cwd=name, env=environment, check=True)


if __name__ == "__main__":
    main()
