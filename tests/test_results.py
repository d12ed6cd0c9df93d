"""`benchmarks.results`: which runs count for a preset, and a line of its table."""

import mlflow
import pytest

from benchmarks.results import BASE, Preset, additions, row, runs_of
from mnist_exp.config.identity import identity
from mnist_exp.job import compose
from mnist_exp.tracking import tags


def record(store, *overrides, preset=("experiment=smoke",), accuracy=0.9, status="FINISHED"):
    config = compose([*preset, *overrides]).config
    own = {"kind": "run", "identity.config": identity(config, {}), "selection": "validation"}
    client = mlflow.MlflowClient(store.uri)
    run = client.create_run(store.experiment_id, tags=tags.in_store(own)).info.run_id
    for key, value in {"test_accuracy": accuracy, "final_val_accuracy": accuracy + 0.01, "fit_seconds": 2.0}.items():
        client.log_metric(run, key, value)
    client.set_terminated(run, status)
    return run


def test_the_newest_finished_run_of_each_seed_counts(store):
    record(store, "seed=0", accuracy=0.5)
    runs = [record(store, "seed=0", "trainer.threads=1", "name=other"), record(store, "seed=1", accuracy=0.92)]
    record(store, "seed=2", "trainer.epochs=3", accuracy=0.99)
    record(store, "seed=3", status="FAILED", accuracy=0.99)
    record(store, "seed=5", accuracy=0.99)
    found = [*runs_of([store], "experiment=smoke").values()]
    assert [run.run_id for run in found] == runs
    ids = " ".join(f"`{run[:8]}`" for run in runs)
    # The half of the interval is 12.706 s / sqrt(2) for n = 2 (Student's t), with s = 0.02 / sqrt(2).
    line = row(Preset("smoke", published=0.96), found)
    assert line == f"| `smoke` | 91.00% ± 12.71 | 96.00% | inside | 2 | 92.00% | 2 | {ids} |"


@pytest.mark.parametrize(
    ("preset", "columns"),
    [
        (Preset("smoke", aim=0.909), "| none, aim 90.90% | yes |"),
        (Preset("smoke", aim=0.9101), "| none, aim 91.01% | inside |"),
        (Preset("smoke", published=0.93), "| 93.00% | **no** |"),
        (Preset("smoke"), "| none |  |"),
    ],
)
def test_a_figure_above_the_mean_lies_inside_the_interval_or_is_not_reached(store, preset, columns):
    for seed, accuracy in enumerate((0.909, 0.911)):
        record(store, f"seed={seed}", accuracy=accuracy)
    assert columns in row(preset, [*runs_of([store], "experiment=smoke").values()])


def test_a_gain_is_paired_by_seed(store):
    for seed, (plain, adam) in enumerate([(0.95, 0.96), (0.96, 0.972)]):
        record(store, f"seed={seed}", preset=BASE, accuracy=plain)
        record(store, f"seed={seed}", "optimizer=adam", preset=BASE, accuracy=adam)
    # Differences of 1.0 and 1.2 points: the half of the interval is 12.706 * 0.1.
    gain = "+1.10 (-0.17 to +2.37)"
    assert additions([store]).splitlines()[2:] == [
        "| none |  |  | 95.50% | 2 |",
        f"| `optimizer=adam` | {gain} | {gain} | 96.60% | 2 |",
    ]
