"""`python -m benchmarks.speedrun`: 99 % on MNIST in one epoch, from process start to exit.

The preset `speedrun` against the same net and recipe in plain Keras and in PyTorch, in float32, in turns, each in a
process of its own. All train on the same 60,000 images. Ours is the whole tracked command. The table has the median of
each side's seconds and the mean of its test accuracies; it goes to standard output and to benchmarks/results/.
"""

import argparse
import json
import statistics
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from benchmarks.speed import RESULTS, execute, machine_line
from mnist_exp.tracking import metrics_file

PEERS = {"plain Keras": "benchmarks.peers.speedrun", "PyTorch": "benchmarks.speedrun_torch"}


def ours(folder: Path, seed: int) -> tuple[float, float]:
    """Seconds and test accuracy of the preset."""
    output = folder / f"seed-{seed}"
    overrides = ("experiment=speedrun", f"seed={seed}", f"hydra.run.dir={output}")
    _, seconds = execute(folder, "mnist_exp.train", *overrides)
    (record,) = output.glob("**/" + metrics_file.NAME)
    return seconds, next(row["test_accuracy"] for row in metrics_file.read(record).values() if "test_accuracy" in row)


def theirs(folder: Path, peer: str) -> tuple[float, float]:
    """Seconds and test accuracy of a script."""
    stdout, seconds = execute(folder, peer)
    return seconds, json.loads(stdout.splitlines()[-1])["val_accuracy"]


def main() -> None:
    """Measure all sides and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    settings = parser.parse_args()
    peers = dict(PEERS)
    if find_spec("torch") is None:
        print("without PyTorch, which is not installed", file=sys.stderr)
        del peers["PyTorch"]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ("mnist_exp", *peers)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        execute(folder, "mnist_exp.train", "experiment=smoke")  # creates the database: once a project, not once a run
        for seed in range(settings.repeats):
            found["mnist_exp"].append(ours(folder, seed))
            for side, peer in peers.items():
                found[side].append(theirs(folder, peer))
            print({side: runs[-1] for side, runs in found.items()}, file=sys.stderr, flush=True)
    seconds = {side: statistics.median(run[0] for run in runs) for side, runs in found.items()}
    lines = [
        machine_line("" if "PyTorch" not in peers else f"torch {version('torch')}; "),
        "",
        "| | seconds, start to exit | test accuracy | times faster with mnist_exp |",
        "|---|--:|--:|--:|",
    ]
    for side, runs in found.items():
        accuracy = statistics.mean(run[1] for run in runs)
        lines.append(f"| {side} | {seconds[side]:.1f} | {accuracy:.2%} | {seconds[side] / seconds['mnist_exp']:.1f} |")
    table = "\n".join(lines) + "\n"
    print(table)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "speedrun.md").write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
