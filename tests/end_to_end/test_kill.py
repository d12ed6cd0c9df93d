"""Runs that die by kill -9 at any moment, and end as if they had not.

`python -m tests.end_to_end.test_kill 20` kills twenty runs and prints a line for each, as the slow tests do.
"""

import json
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.commands import SHORT, environment, runs, start

COMMAND = [
    *("data=digits", "data.folds=5", "data.fold=1", "model=mlp", "model.dropout=0.2", "model.batch_norm=true"),
    *("augment=[affine,cutout,mixup]", "loss.label_smoothing=0.1", "scores=[top_k,macro_f1]", "optimizer=adamw"),
    *("callbacks=[early_stopping,reduce_on_plateau]", "callbacks.early_stopping.patience=20"),
    *("trainer.epochs=10", "trainer.batch_size=32"),
]
NOW = {  # has it begun in this folder?
    "start-up": lambda folder: any(folder.glob("outputs")),
    "checkpoint": lambda folder: any(folder.glob("outputs/*/*/run-*/checkpoints/unfinished")),
    "plots": lambda folder: any(folder.glob("outputs/*/*/run-*/artifacts/predictions.npz")),
    "export": lambda folder: any(folder.glob("outputs/*/*/run-*/artifacts/saved_model")),
    "logging": lambda folder: any(folder.glob("mlruns/*/*/artifacts/saved_model")),
}


def result(folder):
    """All that does not depend on the clock: rows of the store, digests of the weights, predictions, names."""
    with sqlite3.connect(folder / "mlflow.db") as database:
        rows = database.execute("SELECT key, step, value, is_nan FROM metrics ORDER BY 1, 2, 3").fetchall()
        models = database.execute("SELECT COUNT(*) FROM logged_models WHERE lifecycle_stage = 'active'").fetchone()
    database.close()
    (artifacts,) = folder.glob("mlruns/*/*/artifacts")
    record = map(json.loads, (artifacts / "metrics.jsonl").read_text().splitlines())
    with np.load(artifacts / "predictions.npz") as predictions:
        logits = predictions["logits"].tobytes()
    names = sorted(str(path.relative_to(artifacts)) for path in artifacts.rglob("*"))
    values = [row if not row[0].startswith("system/") else row[:2] for row in rows]
    return values, models, [row.get("weights") for row in record], logits, names


def die(folder, moment, chance):
    """Start the command and kill it; returns how it ended and after how many recorded epochs."""
    process = start(folder, *COMMAND)
    began, limit, epochs = time.monotonic(), chance.uniform(2, 12), chance.randint(1, 9)

    def due():
        if moment == "any time":
            return time.monotonic() - began > limit
        return rows(folder) >= epochs if moment == "training" else NOW[moment](folder)

    while process.poll() is None and not due():
        time.sleep(0.0005)
    time.sleep(chance.uniform(0, 0.02))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode, rows(folder)


def rows(folder):
    return sum(path.read_text().count("\n") for path in folder.glob("outputs/*/*/run-*/metrics.jsonl"))


def finish(folder, command=COMMAND):
    done = subprocess.run(
        [sys.executable, "-m", "mnist_exp.train", *command],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def kill(number, folder, with_store, report=print):
    """Kill `number` runs at moments that take turns; each, continued, has to end as the run that nobody killed."""
    whole = with_store(folder / "whole")
    finish(whole)
    expected, chance = result(whole), random.Random(number)
    moments = [*NOW, "training", "training", "any time"]
    for index in range(number):
        moment, one = moments[index % len(moments)], with_store(folder / str(index))
        code, epochs = die(one, moment, chance)
        if "FINISHED" in runs(one).values():  # killed on its way out
            assert result(one) == expected
            report(f"{index + 1:3}  killed in {moment} (code {code}): had finished, identical")
            continue
        (origin,) = [*one.glob("mlruns/*/*/artifacts/overrides.yaml"), None][:1]  # its id is enough once that is logged
        finish(one, COMMAND if origin is None or index % 2 else [f"resume={origin.parents[1].name[:12]}"])
        assert result(one) == expected, f"killed in {moment} after {epochs} rows"
        states = sorted(runs(one).values())
        assert set(states) == {"FINISHED"}, states
        assert not list(one.glob("outputs/*/*/run-*/checkpoints"))
        report(f"{index + 1:3}  killed in {moment} (code {code}) with {epochs} rows recorded: continued, identical")


@pytest.mark.slow
def test_killed_runs_end_as_if_they_had_not_been(tmp_path, with_store):
    kill(5 if SHORT else 20, tmp_path, with_store)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:

        def fresh(folder):
            folder.mkdir()
            make = "from mnist_exp import tracking; tracking.open_store(None, 'mnist_exp')"
            subprocess.run([sys.executable, "-c", make], cwd=folder, env=environment(folder), check=True)
            return folder

        kill(int(sys.argv[1]), Path(scratch), fresh)
