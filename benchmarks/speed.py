"""`python -m benchmarks.speed [--quick]`: this project against the plain Keras scripts it replaces, side by side.

A second table has two of the networks in PyTorch and PyTorch Lightning. All sides compute in float32.

Each row runs both sides one after the other, each in a process of its own, and compares the medians of the epochs
after the first. Ours is the whole tracked command; the seconds between the ends of two epochs are read from the run's
own record and so hold validation, callbacks and tracking. The table goes to standard output and to benchmarks/results/,
the chart to docs/images/.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import chart
from mnist_exp.provenance import hardware

RESULTS = Path(__file__).parent / "results"
CHARTS = Path(__file__).parent.parent / "docs" / "images"
IMAGES = 60_000


class Work(NamedTuple):
    """A row: what both sides train, and how many times faster ours has to be."""

    name: str
    peer: list[str]
    ours: list[str]
    bar: float
    epochs: tuple[int, int]  # of the peer, of ours
    flops: float  # of one training image


def dense(*sizes: int) -> float:
    """Operations of training on one image: 2 forward and 4 back a weight, 2 back in the first layer."""
    weights = [a * b for a, b in itertools.pairwise(sizes)]
    return 6 * sum(weights) - 2 * weights[0]


CNN_FLOPS = 4 * 28 * 28 * 9 * 32 + 6 * 14 * 14 * 9 * 32 * 64 + 6 * 7 * 7 * 64 * 10
RESIDUAL_FLOPS = 4 * 784 * 100 + 6 * (2 * 100 * 100 + 300 * 10)
CNN = ["model=cnn", "data=mnist", "data.validation=test"]
WORKS = (
    Work(
        "784-128-10, batch 128 (`workshop_mlp`)",
        ["workshop_mlp"],
        ["experiment=workshop_mlp"],
        4.5,
        (6, 12),
        dense(784, 128, 10),
    ),
    Work(
        "784-512-256-10, batch 32 (`wide_mlp`)",
        ["wide_mlp"],
        ["experiment=wide_mlp"],
        3.2,
        (4, 6),
        dense(784, 512, 256, 10),
    ),
    Work(
        "784-128-10, dropout 0.2, batch 32 (`dropout_mlp`)",
        ["dropout_mlp"],
        ["experiment=dropout_mlp"],
        8,
        (5, 12),
        dense(784, 128, 10),
    ),
    Work("`residual_mlp`, SGD, batch 32", ["residual_mlp"], ["experiment=residual_mlp"], 9, (5, 12), RESIDUAL_FLOPS),
    Work("linear, batch 32", ["linear"], ["experiment=linear"], 8, (5, 12), dense(784, 10)),
    Work("`cnn`, batch 128", ["cnn"], CNN, 2, (3, 3), CNN_FLOPS),
    Work("`cnn`, dropout 0.25, batch 128", ["cnn_dropout"], [*CNN, "model.dropout=0.25"], 2, (3, 3), CNN_FLOPS),
)
JAX = (
    ("784-128-10, batch 32, against JAX `lax.scan`", [128], 1.1),
    ("784-512-256-10, batch 32, against JAX `lax.scan`", [512, 256], 1.15),
)
TORCH = {"mlp": WORKS[0], "cnn": WORKS[5]}  # by the name of the network in `torch_fit`
TORCH_LOOPS = {"PyTorch": [], "PyTorch Lightning": ["--lightning"]}


class Row(NamedTuple):
    """A finished comparison; `met` says whether the bar is."""

    work: str
    peer: float  # seconds
    ours: float
    bar: str
    met: bool
    note: str

    @property
    def ratio(self) -> float:
        """How many times faster ours is."""
        return self.peer / self.ours


def at_least(bar: float, work: str, peer: float, ours: float, note: str) -> Row:
    """A row whose bar is how many times faster ours has to be."""
    return Row(work, peer, ours, f">= {bar:g}", peer / ours >= bar, note)


def environment(folder: Path) -> dict[str, str]:
    """A store of the benchmark's own, and this checkout's code; everything else as the user has it."""
    paths = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    own = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": paths}
    return {**os.environ, **own}


def execute(folder: Path, module: str, *arguments: str) -> tuple[str, float]:
    """Run `python -m module` in `folder`; its standard output and the seconds from start to exit."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{module} {' '.join(arguments)} failed:\n{done.stderr}")
    return done.stdout, time.perf_counter() - began


def figures(folder: Path, module: str, *arguments: str) -> dict:
    """Runs `python -m module`; returns the figures that it prints as its last line."""
    stdout, _ = execute(folder, module, *arguments)
    return json.loads(stdout.splitlines()[-1])


def run_peer(folder: Path, name: str, *arguments: str) -> dict:
    """The figures of one of `benchmarks.peers`."""
    return figures(folder, f"benchmarks.peers.{name}", *arguments)


def run_ours(folder: Path, *overrides: str) -> list[dict]:
    """The epochs of the run's own record."""
    execute(folder, "mnist_exp.train", *overrides)
    newest = max(folder.glob("outputs/**/metrics.jsonl"), key=lambda path: path.stat().st_mtime)
    records = [json.loads(line) for line in newest.read_text().splitlines()]
    return [record for record in records if "train_loss" in record]


def epoch_seconds(epochs: Sequence[dict]) -> float:
    """The median seconds from the end of one epoch to the end of the next."""
    return float(statistics.median(np.diff([epoch["time"] for epoch in epochs])))


def compare(folder: Path, work: Work, *, quick: bool, peak: float) -> Row:
    """One row: peer, then ours."""
    theirs, ours = (max(3, epochs // 2) if quick else epochs for epochs in work.epochs)
    peer = run_peer(folder, *work.peer, f"--epochs={theirs}")
    epochs = run_ours(folder, *work.ours, f"trainer.epochs={ours}")
    seconds = epoch_seconds(epochs)
    rate = statistics.median(epoch["images_per_second"] for epoch in epochs[1:])
    note = f"{rate:,.0f} images/s, {work.flops * rate / peak:.0%} of peak"
    return at_least(work.bar, work.name, statistics.median(peer["epoch_seconds"]), seconds, note)


def compare_jax(folder: Path, name: str, hidden: list[int], most: float) -> Row:
    """Training only, without validation, against one compiled epoch in JAX."""
    jax = run_peer(folder, "jax_scan", "--hidden", *map(str, hidden), "--epochs=8")
    epochs = run_ours(folder, "experiment=wide_mlp", f"model.hidden={hidden}", "trainer.epochs=8")
    ours = statistics.median(IMAGES / epoch["images_per_second"] for epoch in epochs[1:])
    theirs = statistics.median(jax["epoch_seconds"])
    return Row(name, theirs, ours, f"<= {most:g} x its time", ours <= most * theirs, f"{ours / theirs:.2f} x its time")


def compare_torch(folder: Path, net: str, work: Work) -> str:
    """Trains one network in PyTorch, in Lightning and here; returns a row with the median seconds of an epoch."""
    theirs, ours = work.epochs
    seconds = {}
    for name, options in TORCH_LOOPS.items():
        peer = figures(folder, "benchmarks.torch_fit", f"--net={net}", f"--epochs={theirs}", *options)
        seconds[name] = statistics.median(peer["epoch_seconds"])
    seconds["mnist_exp"] = epoch_seconds(run_ours(folder, *work.ours, f"trainer.epochs={ours}", "seed=1"))
    cells = " | ".join(f"{value:.2f}" for value in seconds.values())
    return f"| {work.name} | {cells} | {min(seconds, key=seconds.__getitem__)} |"


def compare_processes(folder: Path) -> list[Row]:
    """From process start to exit: one run, and the README's sweep against four scripts."""

    def scripts(*runs: Sequence[str]) -> float:
        return sum(execute(folder, f"benchmarks.peers.{name}", "--epochs=5", *rest)[1] for name, *rest in runs)

    one = scripts(["workshop_mlp"])
    _, ours = execute(folder, "mnist_exp.train", "experiment=workshop_mlp", "trainer.epochs=5")
    four = scripts(
        *(
            [name, "--batch-size=128", f"--optimizer={o}"]
            for name in ("workshop_mlp", "residual_mlp")
            for o in ("adam", "rmsprop")
        )
    )
    grid = [
        "-m",
        "model=mlp,residual",
        "optimizer=adam,rmsprop",
        "data=mnist",
        "data.validation=test",
        "trainer.epochs=5",
        "sweep.skip_finished=false",  # one of the four has run above
    ]
    _, sweep = execute(folder, "mnist_exp.train", *grid)
    _, side_by_side = execute(folder, "mnist_exp.train", *grid, "hydra/launcher=processes", "hydra.launcher.n_jobs=2")
    return [
        at_least(1, "5 epochs of `workshop_mlp`, process start to exit", one, ours, "tracked against untracked"),
        at_least(3, "sweep of 4 runs, 5 epochs, start to exit", four, sweep, "against four scripts"),
        at_least(3, "the same, two at a time", four, side_by_side, "`hydra/launcher=processes`"),
    ]


def peak_flops() -> float:
    """Operations a second of a float32 matrix product in NumPy, the best of several."""
    a = np.random.default_rng(0).standard_normal((2048, 2048), np.float32)
    seconds = []
    for _ in range(8):
        began = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - began)
    return 2 * 2048**3 / min(seconds)


def machine_line(more: str = "") -> str:
    """Where and on what a table was measured."""
    machine = hardware()
    packages = ", ".join(f"{name} {version(name)}" for name in ("tensorflow", "keras", "numpy", "mlflow"))
    return (
        f"{datetime.now(UTC):%Y-%m-%d}: {machine['cpu']}, {machine['cores']} cores, "
        f"{int(machine['memory']) / 2**30:.0f} GiB, no GPU; {more}"
        f"Python {platform.python_version()}, {packages}."
    )


def markdown(rows: Sequence[Row], torch: Sequence[str], peak: float) -> str:
    """The tables under a line that says where they were measured."""
    lines = [
        machine_line(f"matrix product {peak / 1e9:.0f} GFLOP/s; ")
        + " Seconds an epoch of 60,000 images in float32, medians after the first.",
        "",
        "| work | plain Keras, s | mnist_exp, s | times faster | bar | met | |",
        "|---|--:|--:|--:|--:|---|---|",
    ]
    for row in rows:
        met = "yes" if row.met else "**no**"
        lines.append(
            f"| {row.work} | {row.peer:.2f} | {row.ours:.2f} | {row.ratio:.1f} | {row.bar} | {met} | {row.note} |"
        )
    if torch:
        lines += ["", f"Against torch {version('torch')} and lightning {version('lightning')}, seconds an epoch:", ""]
        lines += [f"| work | {' | '.join(TORCH_LOOPS)} | mnist_exp | fastest |", "|---|--:|--:|--:|---|", *torch]
    return "\n".join(lines) + "\n"


def measure(folder: Path, only: str, *, quick: bool, peak: float) -> list[Row]:
    """The rows beside Keras and JAX whose names contain `only`."""
    rows = []
    for work in WORKS:
        if only in work.name and not (quick and "cnn" in work.name):
            rows.append(compare(folder, work, quick=quick, peak=peak))
            print(rows[-1], file=sys.stderr, flush=True)
    for title, hidden, most in () if quick else JAX:
        if only in title:
            rows.append(compare_jax(folder, title, hidden, most))
            print(rows[-1], file=sys.stderr, flush=True)
    return rows + (compare_processes(folder) if only in "process start to exit" else [])


def main() -> None:
    """Measure every row and write the tables and their plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer epochs, no CNN, no JAX, no PyTorch")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    settings = parser.parse_args()
    peak = peak_flops()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        execute(folder, "mnist_exp.train", "experiment=smoke")  # creates the database: once a project, not once a run
        rows = measure(folder, settings.only, quick=settings.quick, peak=peak)
        chosen = {} if settings.quick else {net: work for net, work in TORCH.items() if settings.only in work.name}
        torch = [compare_torch(folder, net, work) for net, work in chosen.items()]
    table = markdown(rows, torch, peak)
    print(table)
    if not settings.only:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "speed.md").write_text(table, encoding="utf-8")
        chart.ratios([(row.work, row.ratio, row.met) for row in rows]).savefig(CHARTS / "speed.png")


if __name__ == "__main__":
    main()
