"""`python -m benchmarks.store FOLDER --runs 10000`: writes a tracking store of made-up runs of 20 epochs.

SQL writes the rows as MLflow lays them out. A sweep has 200 runs: 20 settings with 10 seeds each. 1,000 settings (2
models, 2 optimizers, 10 learning rates, 5 batch sizes, 5 weight decays) are enough for 10,000 runs; more repeat them.
"""

import argparse
import itertools
import math
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from mnist_exp import tracking

EPOCHS, SEEDS, SWEEP = 20, 10, 200
AXES = {
    "optimizer.weight_decay": (0.0, 1e-5, 1e-4, 1e-3, 1e-2),
    "trainer.batch_size": (16, 32, 64, 128, 256),
    "optimizer.learning_rate": tuple(float(f"{10**power:.3g}") for power in np.linspace(-4, -1, 10)),
    "model._target_": ("mnist_exp.models.mlp", "mnist_exp.models.residual"),
    "optimizer._target_": ("keras.optimizers.Adam", "keras.optimizers.RMSprop"),
}
# What else a run records; only their number matters here.
PARAMS = {f"optimizer.other_{number}": "0.9" for number in range(28)} | {"data.split_seed": "0", "trainer.epochs": "20"}
TAGS = {
    "kind": "run",
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


def make(folder: Path, runs: int) -> Path:
    """Makes the store in a folder that has none; returns its file."""
    database = folder.absolute() / "mlflow.db"
    store = tracking.open_store(f"sqlite:///{database}", "mnist_exp")
    random = np.random.default_rng(0)
    settings = itertools.cycle(itertools.product(itertools.product(*AXES.values()), range(SEEDS)))
    with closing(sqlite3.connect(database)) as connection, connection:
        for number, (values, seed) in enumerate(itertools.islice(settings, runs)):
            _write_run(connection, int(store.experiment_id), number, values, seed, random)
    return database


def _write_run(
    connection: sqlite3.Connection,
    experiment: int,
    number: int,
    values: tuple,
    seed: int,
    random: np.random.Generator,
) -> None:
    given = dict(zip(AXES, map(str, values), strict=True)) | {"seed": str(seed)} | PARAMS
    model, optimizer = (given[f"{group}._target_"].rpartition(".")[2] for group in ("model", "optimizer"))
    sweep = f"20260101-000000-{number // SWEEP:04x}"
    name = f"{model}-{optimizer}-s{seed}".lower()
    tags = TAGS | {"sweep": sweep, f"sweep.{sweep}": str(number % SWEEP), "mlflow.runName": name}
    run, start = uuid.UUID(int=number, version=4).hex, 1_700_000_000_000 + 60_000 * number
    metrics = list(results(given, random))
    latest = [metric for metric in metrics if metric[2] in (0, EPOCHS)]
    connection.execute(
        "INSERT INTO runs (run_uuid, name, status, start_time, end_time, lifecycle_stage, experiment_id, "
        "artifact_uri, user_id, source_type) VALUES (?, ?, 'FINISHED', ?, ?, 'active', ?, ?, 'me', 'LOCAL')",
        (run, name, start, start + 50_000, experiment, f"mlruns/{experiment}/{run}/artifacts"),
    )
    for table, texts in (("params", given), ("tags", tags)):
        rows = [(key, value, run) for key, value in texts.items()]
        connection.executemany(f"INSERT INTO {table} (key, value, run_uuid) VALUES (?, ?, ?)", rows)
    for table, points in (("metrics", metrics), ("latest_metrics", latest)):
        rest = f"{start}, 0, '{run}'"
        connection.executemany(
            f"INSERT INTO {table} (key, value, step, timestamp, is_nan, run_uuid) VALUES (?, ?, ?, {rest})", points
        )


def results(given: dict[str, str], random: np.random.Generator) -> Iterator[tuple[str, float, int]]:
    """Metrics of a made-up run: name, value, epoch (0 for the final ones)."""
    rate, batch, residual = (
        float(given["optimizer.learning_rate"]),
        int(given["trainer.batch_size"]),
        given["model._target_"].endswith("residual"),
    )
    best = 0.975 + 0.003 * residual - 0.004 * abs(math.log10(rate) + 3) - 1e-5 * batch
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
    for key, value in (scores | times | rest | {"parameters": 110810.0 if residual else 101770.0}).items():
        yield key, value, 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=10_000)
    options = parser.parse_args()
    file = make(options.folder, options.runs)
    print(f"{file}: {options.runs:,} runs, {file.stat().st_size / 2**20:.0f} MiB")
