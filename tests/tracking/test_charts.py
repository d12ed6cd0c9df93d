import base64
import json
import zlib

import mlflow
import pytest

from mnist_exp import tracking
from mnist_exp.tracking import charts, database


@pytest.mark.parametrize(
    ("metric", "shown"),
    [
        ("val_accuracy", "val_accuracy"),
        ("best_val_accuracy", "best_val_accuracy"),
        ("best_val_accuracy_epoch", "system/best_val_accuracy_epoch"),
        ("fit_seconds", "system/fit_seconds"),
        ("seconds_to_97", "system/seconds_to_97"),
    ],
)
def test_only_mlflow_sees_the_sections(metric, shown):
    assert charts.in_section(metric) == shown
    assert charts.plain(shown) == charts.plain(metric) == metric


def test_mlflows_own_system_metrics_keep_their_names():
    assert charts.plain("system/cpu_utilization_percentage") == "system/cpu_utilization_percentage"


def test_a_sweep_opens_on_the_charts_of_its_runs(tmp_path, with_store):
    store = tracking.open_store(database.uri_of(with_store(tmp_path) / "mlflow.db"), "mnist_exp")
    tracking.open_sweep(store, "mine", "command", 2)
    assert "viewStateShareKey=mine" in store.ui_link("mine")
    form, text = (
        mlflow.MlflowClient(store.uri)
        .get_experiment(store.experiment_id)
        .tags["mlflow.sharedViewState.mine"]
        .split(";")
    )
    assert form == "deflate"
    state = json.loads(zlib.decompress(base64.b64decode(text)))
    assert state["searchFilter"] == tracking.store.sweep_filter("mine")
    first, *_, last = [chart["metricKey"] for chart in state["compareRunCharts"]]
    assert (first, last) == ("val_accuracy", "test_loss")
    sections = {section["uuid"] for section in state["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == sections
