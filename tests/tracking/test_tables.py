"""What is read from MLflow's tables equals what MLflow reads."""

import math
import subprocess
import sys

import mlflow
from mlflow.entities import Metric, Param, RunTag, ViewType

from mnist_exp import tracking
from mnist_exp.tracking import database, tables
from mnist_exp.tracking.queries import run_info


def test_runs_curves_and_experiments_are_those_of_mlflow(tmp_path, with_store):
    uri = database.uri_of(with_store(tmp_path) / "mlflow.db")
    client = mlflow.MlflowClient(uri)
    experiment = client.create_experiment("other")
    deleted = client.create_experiment("deleted")
    client.delete_experiment(deleted)
    for number, name in enumerate(("a", "b%", "c'é")):
        run = client.create_run(experiment, start_time=[3, 1, 3][number], run_name=name).info.run_id
        scores = [Metric("loss", value, 5 + step, step) for step, value in enumerate((1.0, math.inf, -math.inf, 0.5))]
        ends = [Metric("nan", math.nan, 1, 0), Metric("most", math.inf, 1, 0), Metric("loss", 0.25, 9, 3)]
        client.log_batch(run, [*scores, *ends], [Param("seed", "1"), Param("none", "")], [RunTag("kind", "run")])
    client.set_terminated(run, "KILLED", 7)
    client.delete_run(run)
    found = tables.runs(uri, "experiment_id = ?", int(experiment))
    assert repr(found) == repr([run_info(run) for run in client.search_runs([experiment], "", ViewType.ALL)])
    assert [sorted(run.params.items()) for run in found] == [[("none", ""), ("seed", "1")]] * 3
    assert tables.curve(uri, run, "loss") == {0: 1.0, 1: math.inf, 2: -math.inf, 3: 0.25}
    assert tables.experiments(uri)[deleted] == ("deleted", "deleted")
    assert tracking.find_run(uri, "b%").run_id in {run.run_id for run in found}


def test_a_store_is_read_without_mlflow(tmp_path, with_store):
    code = (
        "import sys; from mnist_exp import tracking; store = tracking.find_store(None, 'Default'); "
        "assert tracking.search_runs(store) == [] and 'mlflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=with_store(tmp_path), check=True)
