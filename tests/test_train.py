"""The main job end to end: a sweep in a process of its own, then everything it left behind."""

import csv
import json

import mlflow
import numpy as np
import pytest
import tensorflow as tf

from mnist_exp import data
from tests.conftest import Case, Said, commands, start

ARTIFACTS = {
    "code.diff",
    "config.yaml",
    "confusion_matrix.png",
    "curves.png",
    "environment.json",
    "mistakes.png",
    "model_summary.txt",
    "overrides.yaml",
    "per_class.csv",
    "predictions.npz",
    "requirements.txt",
    "samples.png",
    "saved_model",
}
MINE = """
import keras


def tiny(image_shape, num_classes, *, width):
    images = keras.Input(image_shape, dtype="uint8")
    features = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(images))
    return keras.Model(images, keras.layers.Dense(num_classes)(keras.layers.Dense(width, "relu")(features)))
"""
EACH_EPOCH = {
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "learning_rate",
    "epoch_seconds",
    "images_per_second",
}


class Left:
    """A folder in which a command has run, and what its store says."""

    def __init__(self, folder, said):
        self.folder, self.said = folder, said
        assert said.code == 0, said.err
        self.client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
        (experiment,) = (e for e in self.client.search_experiments() if e.name == "mnist_exp")
        runs = self.client.search_runs([experiment.experiment_id])
        self.runs = {run.info.run_name: run for run in runs if run.data.tags["kind"] == "run"}
        self.sweeps = [run for run in runs if run.data.tags["kind"] == "sweep"]
        self.models = self.client.search_logged_models([experiment.experiment_id])

    def artifacts(self, run):
        return self.folder / "mlruns" / run.info.experiment_id / run.info.run_id / "artifacts"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dossier à runs")  # spaces and accents in the path
    arguments = ["-m", "experiment=smoke", "name=${hydra:runtime.choices.model}", "model=linear,mlp", "seed=0,1"]
    with start(folder, *arguments) as process:
        out, err = process.communicate(timeout=170)
    return Left(folder, Said(process.returncode, out, err))


@pytest.fixture(scope="module")
def afterwards(sweep, tmp_path_factory, with_store):
    """The last run of the sweep again from its config.yaml, then a user's own model, in one process of their own."""
    again, own = with_store(tmp_path_factory.mktemp("again")), with_store(tmp_path_factory.mktemp("own"))
    (own / "conf" / "model").mkdir(parents=True)
    (own / "mine.py").write_text(MINE)
    (own / "conf" / "model" / "tiny.yaml").write_text("_target_: mine.tiny\nwidth: 5\n")
    config = ["--config-dir", str(sweep.artifacts(sweep.runs["mlp-s1"])), "--config-name", "config"]
    tiny = ["--config-dir", "conf", "experiment=smoke", "model=tiny", "model.width=7"]
    said = commands(again, {"again": Case(config, str(again)), "own": Case(tiny, str(own))})
    return Left(again, said["again"]), Left(own, said["own"])


def test_all_runs_finished_under_their_names(sweep):
    assert sorted(sweep.runs) == ["linear-s0", "linear-s1", "mlp-s0", "mlp-s1"]
    assert {run.info.status for run in sweep.runs.values()} == {"FINISHED"}
    assert len({run.data.tags["sweep"] for run in sweep.runs.values()}) == 1
    assert len({run.data.tags["identity"] for run in sweep.runs.values()}) == 4


def test_terminal_shows_a_line_a_run_and_the_table_best_first(sweep):
    lines = sweep.said.out.splitlines()
    assert sum(" epochs in " in line for line in lines) == 4
    start = next(i for i, line in enumerate(lines) if line.startswith("sweep "))
    shares = [float(word[:-1]) for line in lines[start + 1 : start + 5] for word in line.split() if word.endswith("%")]
    assert shares[::2] == sorted(shares[::2], reverse=True)
    assert "mlflow ui" in sweep.said.out
    for noise in ("oneDNN", "absl", "alembic", "WARNING", "cuda"):
        assert noise not in sweep.said.err + sweep.said.out


@pytest.mark.parametrize("name", ["linear-s0", "mlp-s1"])
def test_a_run_leaves_everything(sweep, name):
    run = sweep.runs[name]
    assert {path.name for path in sweep.artifacts(run).iterdir()} == ARTIFACTS
    assert EACH_EPOCH | {"test_loss", "test_accuracy", "parameters"} <= run.data.metrics.keys()
    for metric in EACH_EPOCH:
        assert [m.step for m in sweep.client.get_metric_history(run.info.run_id, metric)] == [1, 2]
    assert run.data.params["trainer.epochs"] == "2"
    assert run.data.params["model._target_"] == f"mnist_exp.models.{name[:-3]}"
    tags = run.data.tags
    assert (tags["data.name"], tags["selection"], tags["execution"], tags["device"]) == (
        "digits",
        "validation",
        "resident",
        "cpu",
    )
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.name == "digits"
    assert tags["data.fingerprint"].startswith(dataset.dataset.digest)
    assert any(model.source_run_id == run.info.run_id for model in sweep.models)


def test_predictions_metrics_and_saved_model_agree(sweep):
    for run in sweep.runs.values():
        with np.load(sweep.artifacts(run) / "predictions.npz", allow_pickle=False) as predictions:
            logits, labels = predictions["logits"], predictions["labels"]
        assert (logits.argmax(axis=1) == labels).mean() == run.data.metrics["test_accuracy"]
        loaded = tf.saved_model.load(str(sweep.artifacts(run) / "saved_model"))
        np.testing.assert_allclose(loaded.serve(data.digits().test.images), logits, rtol=1e-4, atol=1e-5)


def test_local_record_is_what_the_store_has(sweep):
    run = sweep.runs["mlp-s1"]
    records = [path.read_text().splitlines() for path in (sweep.folder / "outputs").rglob("metrics.jsonl")]
    losses = [[json.loads(line).get("train_loss") for line in lines][:2] for lines in records]
    assert [m.value for m in sweep.client.get_metric_history(run.info.run_id, "train_loss")] in losses


def test_the_sweep_has_a_run_of_its_own(sweep):
    (own,) = sweep.sweeps
    best = max(sweep.runs.values(), key=lambda run: run.data.metrics["final_val_accuracy"])
    assert own.info.status == "FINISHED"
    assert own.data.metrics["final_val_accuracy"] == best.data.metrics["final_val_accuracy"]
    assert sweep.client.get_run(own.data.tags["best_run"]).data.metrics == best.data.metrics
    rows = list(csv.DictReader((sweep.artifacts(own) / "sweep.csv").read_text().splitlines()))
    assert {row["run_id"] for row in rows} == {run.info.run_id for run in sweep.runs.values()}
    assert best.info.run_id in own.data.tags["mlflow.note.content"]


def test_a_logged_config_trains_the_same_bits_alone(sweep, afterwards):
    last, again = sweep.runs["mlp-s1"], afterwards[0].runs["mlp-s1"]
    timed = {"epoch_seconds", "images_per_second", "fit_seconds", "compile_seconds"}
    same = {name for name in last.data.metrics if name not in timed and not name.startswith("seconds_to")}
    assert {name: again.data.metrics[name] for name in same} == {name: last.data.metrics[name] for name in same}
    assert again.data.tags["identity"] == last.data.tags["identity"]


def test_an_own_folder_adds_options(afterwards):
    (run,) = afterwards[1].runs.values()
    assert run.data.metrics["parameters"] == (784 * 7 + 7) + (7 * 10 + 10)


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")  # MLflow, when it imports its pyfunc
def test_the_logged_model_predicts_from_raw_pixels(sweep):
    """What `mlflow models serve` loads."""
    run = sweep.runs["mlp-s0"]
    (model,) = (m for m in sweep.models if m.source_run_id == run.info.run_id)
    images = data.digits().test.images
    logits = mlflow.pyfunc.load_model(model.artifact_location).predict(images)
    with np.load(sweep.artifacts(run) / "predictions.npz") as predictions:
        np.testing.assert_allclose(logits, predictions["logits"], rtol=1e-4, atol=1e-5)
