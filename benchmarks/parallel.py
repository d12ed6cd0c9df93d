"""`python -m benchmarks.parallel`: eight equal jobs one after the other, and by two processes side by side.

Both with one thread a job; start-up of the processes included. Give an idle machine of at least two cores.
"""

import sys
import tempfile
from pathlib import Path

from benchmarks.speed import execute

JOBS = ["-m", "experiment=workshop_mlp", "seed=range(8)", "trainer.threads=1", "trainer.epochs=110"]
SIDE_BY_SIDE = ["hydra/launcher=processes", "hydra.launcher.n_jobs=2"]


def seconds(arguments: list[str]) -> float:
    """Wall time of a sweep in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        return execute(Path(folder), "mnist_exp.train", *arguments)[1]


def main() -> None:
    """Measure and print; exit with 1 when the bar of 1.7 is missed."""
    serial, parallel = seconds(JOBS), seconds(JOBS + SIDE_BY_SIDE)
    faster = serial / parallel
    print(f"8 jobs: {serial:.0f} s one after the other, {parallel:.0f} s side by side: {faster:.2f} times faster")
    sys.exit(faster < 1.7)


if __name__ == "__main__":
    main()
