"""A sweep that is killed again and again, and the same command given until it is done: `pytest -m slow`.

kill -9 leaves a process no time to do anything. It strikes, at a moment that a seed chooses, the parent, or a worker
(and a little later everything), or everything at once.
"""

import csv
import json
import os
import random
import signal
import time

import mlflow
import psutil
import pytest

from mnist_exp.tracking.queries import run_info
from tests.helpers.commands import SHORT, start, workers

KILLS = 3 if SHORT else 10
LONG = ["trainer.epochs=30", "trainer.checkpoint=true", "trainer.threads=1"]  # so that some die half-trained
SWEEP = ["-m", "experiment=smoke", "name=${hydra:runtime.choices.model}", "model=linear,mlp", "seed=range(6)", *LONG]
TWO = ["hydra/launcher=processes", "hydra.launcher.n_jobs=2"]


def finished(folder):
    """The finished runs of a folder's store, by name: a list each."""
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = client.search_runs(experiments, "tags.kind = 'run' and attributes.status = 'FINISHED'")
    found = {}
    for run in runs:
        found.setdefault(run.info.run_name, []).append(run)
    return found


def weights(folder, run):
    """The digest after each epoch."""
    record = folder / "mlruns" / run.info.experiment_id / run.info.run_id / "artifacts" / "metrics.jsonl"
    rows = [json.loads(line) for line in record.read_text().splitlines()]
    return {row["step"]: row["weights"] for row in rows if "weights" in row}


def kill(folder, chance, whom):
    """Start the sweep, and kill it up to two seconds after it or one of the first runs that it trains has begun."""
    process = start(folder, *SWEEP, *TWO, group=True)
    wanted, trained = chance.choice((0, 1, 1, 2, 3)), set()
    for line in process.stderr:
        if " epoch " in line:
            trained.add(line.split(" ")[0])
        if (line.startswith("sweep 2") and not wanted) or (wanted and len(trained) == wanted):
            break
    time.sleep(chance.uniform(0, 2))
    alive = process.poll() is None
    training = workers(process) if alive else []
    if whom == "a worker" and training:
        chance.choice(training).kill()
        time.sleep(chance.uniform(0, 4))
    if whom == "the parent":
        process.kill()
        psutil.wait_procs(training, timeout=40)  # which close their runs and end
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return alive


@pytest.mark.slow
def test_kills_cost_no_job_and_repeat_none(tmp_path):
    killed, quiet = tmp_path / "killed", tmp_path / "quiet"
    for folder in (killed, quiet):
        folder.mkdir()
    chance, kills, after = random.Random(0), 0, []
    for number in range(KILLS):
        kills += kill(killed, chance, ("the parent", "a worker", "everything")[number % 3])
        after.append(sum(map(len, finished(killed).values())))
    for folder, side_by_side in ((killed, TWO), (quiet, [])):
        with start(folder, *SWEEP, *side_by_side) as process:
            _, err = process.communicate()
        assert process.returncode == 0, err
    print(f"{kills} kills; finished runs after each: {after}")
    assert after == sorted(after)
    disturbed, undisturbed = finished(killed), finished(quiet)
    assert sorted(disturbed) == sorted(undisturbed)
    assert len(undisturbed) == 12
    assert {len(runs) for runs in disturbed.values()} == {1}
    for name, (run,) in disturbed.items():
        (other,) = undisturbed[name]
        assert run_info(run).tags["identity"] == run_info(other).tags["identity"]
        assert weights(killed, run) == weights(quiet, other)
        assert run.data.metrics["test_loss"] == other.data.metrics["test_loss"]
    tables = sorted(killed.glob("mlruns/*/*/artifacts/sweep.csv"), key=lambda path: path.stat().st_mtime)
    rows = list(csv.DictReader(tables[-1].read_text().splitlines()))
    assert {row["run_id"] for row in rows} == {run.info.run_id for (run,) in disturbed.values()}
    assert {row["status"] for row in rows} <= {"FINISHED", "SKIPPED"}
    assert sum(row["status"] == "SKIPPED" for row in rows) == after[-1]
