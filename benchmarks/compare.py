"""`python -m benchmarks.compare`: seconds and memory that `compare` takes over a store of 2,000 runs of 20 epochs.

The store is written with SQL, as MLflow lays it out: 200 settings (2 models, 2 optimizers, 10 learning rates, 5 batch
sizes) with 10 seeds each. Time counts from the end of the imports, memory is growth of the resident peak since then.
"""

import itertools
import math
import os
import sqlite3
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np

EPOCHS, SEEDS = 20, 10
AXES = {
    "model._target_": ("mnist_exp.models.mlp", "mnist_exp.models.residual"),
    "optimizer._target_": ("keras.optimizers.Adam", "keras.optimizers.RMSprop"),
    "optimizer.learning_rate": tuple(float(f"{10**power:.3g}") for power in np.linspace(-4, -1, 10)),
    "trainer.batch_size": (16, 32, 64, 128, 256),
}
# What else a run records; only their number matters here.
PARAMS = {f"optimizer.other_{number}": "0.9" for number in range(28)} | {"data.split_seed": "0", "trainer.epochs": "20"}
TAGS = {
    "kind": "run",
    "sweep": "20260101-000000-abcd",
    "selection": "validation",
    "data.name": "mnist",
    "data.fingerprint": "f" * 64,
    "identity": "e" * 64,
    "device": "cpu",
    "threads": "2",
    "code.commit": "c" * 40,
    "code.dirty": "false",
    "execution": "device_loop",
    "execution.why": "one device",
    "execution.xla": "True",
    "overrides": "model=mlp",
    "mlflow.user": "me",
    "mlflow.source.name": "train.py",
    "mlflow.source.type": "LOCAL",
}
MEASURED = """
import contextlib, io, resource, sys, time
from mnist_exp import compare
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
began, cpu, before = time.perf_counter(), time.process_time(), peak()
text = io.StringIO()
with contextlib.redirect_stdout(text):
    code = compare.main(sys.argv[1:])
seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
said = " ".join(sys.argv[1:]) or "no arguments"
print(f"{seconds:.2f} s ({cpu:.2f} s of a core), {peak() - before:.0f} MiB above {before:.0f}, exit {code}: {said}")
assert "tensorflow" not in sys.modules
"""


def fill(database: Path) -> int:
    """Write the runs into an MLflow store whose experiment 1 exists; returns how many."""
    random = np.random.default_rng(0)
    runs, params, tags, latest, history = [], [], [], [], []
    for number, (values, seed) in enumerate(itertools.product(itertools.product(*AXES.values()), range(SEEDS))):
        run = uuid.UUID(int=number, version=4).hex
        start = 1_700_000_000_000 + 60_000 * number
        name = f"{str(values[0]).rpartition('.')[2]}-s{seed}"
        runs.append((run, name, "FINISHED", start, start + 50_000, "active", 1, f"mlruns/1/{run}/artifacts"))
        given = dict(zip(AXES, map(str, values), strict=True)) | {"seed": str(seed)} | PARAMS
        params += [(key, value, run) for key, value in given.items()]
        tags += [(key, value, run) for key, value in (TAGS | {"mlflow.runName": name}).items()]
        for key, value, epoch in results(values, random):
            history.append((key, value, start, run, epoch, 0))
            if epoch in (0, EPOCHS):
                latest.append((key, value, start, epoch, 0, run))
    with sqlite3.connect(database) as store:
        store.executemany(
            "INSERT INTO runs (run_uuid, name, status, start_time, end_time, lifecycle_stage, experiment_id, "
            "artifact_uri, user_id, source_type) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'me', 'LOCAL')",
            runs,
        )
        for table, rows in (("params", params), ("tags", tags), ("latest_metrics", latest), ("metrics", history)):
            store.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)
    store.close()
    return len(runs)


def results(values: tuple, random: np.random.Generator) -> Iterator[tuple[str, float, int]]:
    """Metrics of a made-up run: name, value, epoch (0 for the final ones)."""
    model, _, rate, batch = values
    best = 0.975 + 0.003 * model.endswith("residual") - 0.004 * abs(math.log10(rate) + 3) - 1e-5 * batch
    final = best + 0.001 * random.standard_normal()
    for epoch in range(1, EPOCHS + 1):
        accuracy = final - 0.08 * math.exp(-epoch / 3)
        for part, share in (("train", min(accuracy + 0.01, 1)), ("val", accuracy)):
            yield f"{part}_accuracy", share, epoch
            yield f"{part}_loss", -math.log(share), epoch
        yield "learning_rate", rate, epoch
        yield "epoch_seconds", 40 / batch, epoch
        yield "images_per_second", 55_000 * batch / 40, epoch
    scores = {"final_val_accuracy": accuracy, "test_accuracy": accuracy + 0.001 * random.standard_normal()}
    times = {"fit_seconds": 800 / batch, "compile_seconds": 1.5, "seconds_to_97": 400 / batch}
    rest = {"final_val_loss": 0.1, "test_loss": 0.1, "test_calibration_error": 0.01, "best_epoch": 20.0}
    for key, value in (scores | times | rest | {"parameters": 101770.0 if model.endswith("mlp") else 110810.0}).items():
        yield key, value, 0


def main() -> None:
    """Make the store in a temporary folder and measure; print a line for each command."""
    with tempfile.TemporaryDirectory() as name:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW")}
        environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
        make = "from mnist_exp import tracking; tracking.open_store(None, 'mnist_exp')"
        subprocess.run([sys.executable, "-c", make], cwd=name, env=environment, check=True)
        print(f"{fill(Path(name, 'mlflow.db'))} runs, {Path(name, 'mlflow.db').stat().st_size / 2**20:.0f} MiB")
        for arguments in ([], ["--by", "optimizer"], ["--format", "json"], ["--html", "report.html"]):
            subprocess.run([sys.executable, "-c", MEASURED, *arguments], cwd=name, env=environment, check=True)


if __name__ == "__main__":
    main()
