"""Check what the README's sweep left on real MNIST: four finished runs above 93 %, tagged, with models that load."""

import sys
from pathlib import Path

import mlflow

folder = Path(sys.argv[1])
client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
experiment = client.get_experiment_by_name("mnist_exp")
runs = client.search_runs([experiment.experiment_id], "tags.kind = 'run'")
assert sorted(run.info.run_name for run in runs) == [
    "mlp-adam-s0",
    "mlp-rmsprop-s0",
    "residual-adam-s0",
    "residual-rmsprop-s0",
]
assert {run.info.status for run in runs} == {"FINISHED"}
assert {run.data.tags["data.name"] for run in runs} == {"mnist"}
for run in runs:
    assert run.data.metrics["test_accuracy"] > 0.93, run.info.run_name
    assert (folder / "mlruns" / experiment.experiment_id / run.info.run_id / "artifacts" / "saved_model").is_dir()
    print(run.info.run_name, run.data.metrics["test_accuracy"])
(sweep,) = client.search_runs([experiment.experiment_id], "tags.kind = 'sweep'")
assert sweep.data.metrics["final_val_accuracy"] == max(run.data.metrics["final_val_accuracy"] for run in runs)
assert len(client.search_logged_models([experiment.experiment_id])) == 4
