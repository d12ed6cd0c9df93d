"""The main job end to end: a sweep in a process of its own, then everything it left behind."""

import csv
import io
import json
import signal
import zipfile

import mlflow
import numpy as np
import pytest
import tensorflow as tf

from mnist_exp import data, provenance
from mnist_exp.tracking.queries import run_info
from tests.helpers.commands import Case, Said, commands, start

ARTIFACTS = {
    "code.diff",
    "config.yaml",
    "confusion_matrix.png",
    "curves.png",
    "environment.json",
    "metrics.jsonl",
    "mistakes.png",
    "model.keras",
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
    "system/epoch_seconds",
    "system/images_per_second",
}


def identity(run):
    return run_info(run).tags["identity"]


class Left:
    """A folder in which a command has run, and what its store says."""

    def __init__(self, folder, said):
        self.folder, self.said = folder, said
        assert said.code == 0, said.err
        self.client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
        (experiment,) = (e for e in self.client.search_experiments() if e.name == "mnist_exp")
        self.found = self.client.search_runs([experiment.experiment_id])
        self.runs = {run.info.run_name: run for run in self.of_kind("run")}
        self.sweeps = self.of_kind("sweep")
        self.models = self.client.search_logged_models([experiment.experiment_id])

    def of_kind(self, kind):
        return [run for run in self.found if run.data.tags["kind"] == kind]

    def artifacts(self, run):
        return self.folder / "mlruns" / run.info.experiment_id / run.info.run_id / "artifacts"

    def table(self, sweep):
        return list(csv.DictReader((self.artifacts(sweep) / "sweep.csv").read_text().splitlines()))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dossier à runs")  # spaces and accents in the path
    arguments = ["-m", "experiment=smoke", "name=${hydra:runtime.choices.model}", "model=linear,mlp", "seed=0,1"]
    with start(folder, *arguments) as process:
        out, err = process.communicate(timeout=170)
    return Left(folder, Said(process.returncode, out, err))


@pytest.fixture(scope="module")
def afterwards(sweep, tmp_path_factory, with_store):
    """Runs of the sweep again, from config.yaml, its name and an archive, then a user's own model, in one process."""
    again, own = with_store(tmp_path_factory.mktemp("again")), with_store(tmp_path_factory.mktemp("own"))
    (own / "conf" / "model").mkdir(parents=True)
    (own / "mine.py").write_text(MINE)
    (own / "conf" / "model" / "tiny.yaml").write_text("_target_: mine.tiny\nwidth: 5\n")
    config = ["--config-dir", str(sweep.artifacts(sweep.runs["mlp-s1"])), "--config-name", "config"]
    tiny = ["--config-dir", "conf", "experiment=smoke", "model=tiny", "model.width=7"]
    wider = ["-m", "experiment=smoke", "model=linear", "seed=2,1,0,2"]  # another order, name and preset's value
    dying = with_store(tmp_path_factory.mktemp("dying"))
    long = ["experiment=smoke", "model=linear", "trainer.epochs=60", "trainer.checkpoint=true"]
    folders = {"again": again, "own": own, "only": sweep.folder, "wider": sweep.folder, "killed": dying}
    folders |= {"continued": dying, "reproduce": sweep.folder, "archive": sweep.folder, "from_archive": again}
    same_result = [
        f"trainer.threads={provenance.cores()}",
        "trainer.profile=true",
        "tracking.uri=sqlite:///./mlflow.db",
    ]
    arguments = {"again": config, "own": tiny, "only": [*wider, "sweep.preflight=only"], "wider": wider}
    arguments |= {"killed": long, "continued": [*long, *same_result, "name=other"], "reproduce": ["mlp-s1", "--strict"]}
    arguments["archive"] = ["capsule", sweep.runs["mlp-s1"].info.run_id[:8], str(again / "run.zip")]
    arguments["from_archive"] = ["run.zip", "--strict", "--epochs", "1"]
    folders |= {"own_swept": own, "continued_swept": dying}
    arguments |= {"own_swept": ["-m", *tiny, "seed=0"], "continued_swept": ["-m", *long, "seed=0"]}
    folders["warm"] = sweep.folder
    still = ["optimizer=sgd", "optimizer.learning_rate=1e-12", "trainer.epochs=1"]
    arguments["warm"] = ["experiment=smoke", *still, "name=warm", f"init_from={sweep.runs['mlp-s0'].info.run_id[:12]}"]
    folders |= {"evaluated": sweep.folder, "shifted": sweep.folder}
    ids = [run.info.run_id for run in sweep.runs.values()]
    arguments |= {
        "evaluated": [*ids[:2], "mlp-s1", "--log-model"],
        "shifted": ["mlp-s1", "--data", "digits", "--shifts", "1"],
    }
    cases = {name: Case(arguments[name], str(folder)) for name, folder in folders.items()}
    cases["killed"] = cases["killed"]._replace(signals=(("epoch 3/", signal.SIGINT),))
    for name in ("reproduce", "archive", "from_archive"):
        cases[name] = cases[name]._replace(module="reproduce")
    for name in ("evaluated", "shifted"):
        cases[name] = cases[name]._replace(module="evaluate")
    said = commands(cases)
    assert said["killed"].code == 130, said["killed"].err
    return {name: Left(folders[name], said[name]) for name in cases if name != "killed"}


def test_all_runs_finished_under_their_names(sweep):
    assert sorted(sweep.runs) == ["linear-s0", "linear-s1", "mlp-s0", "mlp-s1"]
    assert {run.info.status for run in sweep.runs.values()} == {"FINISHED"}
    assert len({run.data.tags["sweep"] for run in sweep.runs.values()}) == 1
    assert len({identity(run) for run in sweep.runs.values()}) == 4


def test_terminal_shows_a_line_a_run_and_the_table_best_first(sweep):
    lines = sweep.said.out.splitlines()
    assert sum("  val_accuracy " in line and line.endswith(" s") for line in lines) == 4
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
    assert EACH_EPOCH | {"test_loss", "test_accuracy", "system/parameters"} <= run.data.metrics.keys()
    for metric in EACH_EPOCH:
        assert [m.step for m in sweep.client.get_metric_history(run.info.run_id, metric)] == [1, 2]
    assert run.data.params["trainer.epochs"] == "2"
    assert run.data.params["model"] == name[:-3]
    tags = run.data.tags
    assert (tags["data.name"], tags["selection"], tags["execution"], tags["device"]) == (
        "digits",
        "validation",
        "device_loop",
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
    rows = sweep.table(own)
    assert {row["run_id"] for row in rows} == {run.info.run_id for run in sweep.runs.values()}
    assert best.info.run_id in own.data.tags["mlflow.note.content"]


def test_a_logged_config_trains_the_same_bits_alone(sweep, afterwards):
    last, again = sweep.runs["mlp-s1"], afterwards["again"].runs["mlp-s1"]
    same = {name for name in last.data.metrics if not name.startswith("system/")}
    assert {name: again.data.metrics[name] for name in same} == {name: last.data.metrics[name] for name in same}
    assert identity(again) == identity(last)
    digests = [
        [json.loads(line).get("weights") for line in (left.artifacts(run) / "metrics.jsonl").read_text().splitlines()]
        for left, run in ((sweep, last), (afterwards["again"], again))
    ]
    assert digests[0] == digests[1]
    assert [len(digest or "") for digest in digests[0]] == [64, 64, 0]  # two epochs, then what belongs to none


def test_an_interrupted_command_given_again_continues_its_run(afterwards):
    (run,) = afterwards["continued"].runs.values()
    assert run.info.status == "FINISHED"
    for metric in EACH_EPOCH | {"test_accuracy"}:
        steps = [m.step for m in afterwards["continued"].client.get_metric_history(run.info.run_id, metric)]
        assert steps == ([0] if metric == "test_accuracy" else list(range(1, 61)))
    assert f"continues run {run.info.run_id}, which was interrupted after " in afterwards["continued"].said.err
    assert len(list(afterwards["continued"].folder.glob("outputs/*/*/run-*"))) == 1
    kept = {"name": "linear-adam-smoke", "trainer.threads": "None", "trainer.profile": "False", "tracking.uri": "None"}
    assert {key: run.data.params[key] for key in kept} == kept
    assert len(afterwards["continued"].models) == 1


def test_a_run_of_a_sweep_is_reproduced_from_its_name(sweep, afterwards):
    left = afterwards["reproduce"]
    said = left.said
    original = sweep.runs["mlp-s1"]
    assert said.code == 0
    assert said.out.startswith(f"run {original.info.run_id}: nothing that was recorded differs here\n")
    assert said.out.endswith("identical: 2 epochs and the final scores compared\n")
    (run,) = left.of_kind("reproduction")
    tags = {key: run.data.tags[key] for key in ("reproduces", "verdict", "epochs_compared")}
    expected = {"reproduces": original.info.run_id, "verdict": "identical", "epochs_compared": "2"}
    assert tags == expected
    assert identity(run) == identity(original)
    assert run.info.run_name == "reproduction of mlp-s1"
    report = json.loads((left.artifacts(run) / "reproduction.json").read_text())
    assert [epoch["weights_identical"] for epoch in report["epochs"]] == [True, True, None]
    assert (report["first_difference"], report["factors"], report["unrecorded"]) == (None, [], [])
    assert (left.artifacts(run) / "reproduction.png").stat().st_size > 5000
    now = sweep.client.get_run(original.info.run_id)
    assert now.to_dictionary() == original.to_dictionary()


def test_an_archive_is_reproduced_where_there_is_no_store(sweep, afterwards):
    assert afterwards["archive"].said.out.endswith("4 weights (those after epoch 2)\n")
    said = afterwards["from_archive"].said
    assert (said.code, said.out.splitlines()[-1]) == (0, "identical: 1 epoch compared")
    (run,) = afterwards["from_archive"].of_kind("reproduction")
    assert run.data.tags["reproduces"] == sweep.runs["mlp-s1"].info.run_id
    history = afterwards["again"].client.get_metric_history(run.info.run_id, "train_loss")
    assert [metric.step for metric in history] == [1]
    with zipfile.ZipFile(afterwards["again"].folder / "run.zip") as archive:
        assert np.load(io.BytesIO(archive.read("weights.npz")))["0"].shape == (784, 128)


def test_a_run_begins_with_the_weights_of_another(sweep, afterwards):
    run, source = afterwards["warm"].runs["warm-s0"], sweep.runs["mlp-s0"]
    assert run.data.metrics["test_loss"] == pytest.approx(source.data.metrics["test_loss"], rel=1e-6)
    assert run.data.tags["init_from"] == run.data.params["init_from"] == source.info.run_id
    assert identity(run) != identity(source)


def test_an_own_folder_adds_options(afterwards):
    (run,) = afterwards["own"].runs.values()
    assert run.data.metrics["system/parameters"] == (784 * 7 + 7) + (7 * 10 + 10)


def test_a_wider_sweep_trains_only_what_is_new(sweep, afterwards):
    wider = afterwards["wider"]
    (own,) = (run for run in wider.sweeps if run.info.run_id != sweep.sweeps[0].info.run_id)
    assert {name: own.data.metrics[name] for name in ("finished", "skipped", "failed", "not_run")} == {
        "finished": 1,
        "skipped": 3,
        "failed": 0,
        "not_run": 0,
    }
    rows = {row["swept"] + row["job"]: row for row in wider.table(own)}
    new = wider.runs["linear-adam-smoke-s2"].info.run_id
    assert {key: (row["status"], row["run_id"]) for key, row in rows.items()} == {
        "seed=20": ("FINISHED", new),
        "seed=11": ("SKIPPED", sweep.runs["linear-s1"].info.run_id),
        "seed=02": ("SKIPPED", sweep.runs["linear-s0"].info.run_id),
        "seed=23": ("SKIPPED", new),
    }
    assert (wider.artifacts(own) / "sweep.png").stat().st_size > 5000
    assert sum(line.endswith("  reused") for line in wider.said.out.splitlines()) == 3
    assert own.data.metrics["final_val_accuracy"] == max(float(row["val_accuracy"]) for row in rows.values())


@pytest.mark.parametrize("name", ["own", "continued"])
def test_a_sweep_takes_over_a_run_that_was_made_alone(afterwards, name):
    left = afterwards[f"{name}_swept"]
    (own,), (run,) = left.sweeps, left.runs.values()
    assert (own.info.status, own.data.metrics["skipped"]) == ("FINISHED", 1)
    (row,) = left.table(own)
    assert (row["status"], row["run_id"]) == ("SKIPPED", run.info.run_id)


def test_preflight_says_what_is_missing_and_begins_nothing(afterwards):
    said, wider = afterwards["only"].said, afterwards["wider"]
    listed = [f"{job:>4}  linear-adam-smoke-s{seed}  seed={seed}" for job, seed in enumerate((2, 1, 0, 2))]
    assert (said.code, said.out.splitlines()) == (0, listed)
    assert said.err.startswith("preflight: 4 runs, 2 of them finished before; models of 7,850 parameters; about ")
    assert said.err.endswith(" s one after the other; 1 MB on disk\n")
    assert len(wider.sweeps) == 2


def test_a_run_that_a_later_sweep_uses_stays_in_its_own(sweep, afterwards):
    (first,) = sweep.sweeps
    for name, run in sweep.runs.items():
        now = sweep.client.get_run(run.info.run_id)
        assert now.data.tags["sweep"] == first.data.tags["sweep"]
        assert (now.data.metrics, now.info.end_time) == (run.data.metrics, run.info.end_time)
        assert len([tag for tag in now.data.tags if tag.startswith("sweep.")]) == (2 if "linear" in name else 1)


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")  # MLflow, when it imports its pyfunc
def test_the_logged_model_predicts_from_raw_pixels(sweep):
    """What `mlflow models serve` loads."""
    run = sweep.runs["mlp-s0"]
    (model,) = (m for m in sweep.models if m.source_run_id == run.info.run_id)
    images = data.digits().test.images
    logits = mlflow.pyfunc.load_model(model.artifact_location).predict(images)
    loaded = mlflow.keras.load_model(model.artifact_location)
    assert {type(layer).__module__.split(".")[0] for layer in loaded.layers} == {"keras"}  # none of this package's
    with np.load(sweep.artifacts(run) / "predictions.npz") as predictions:
        np.testing.assert_allclose(logits, predictions["logits"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(loaded.predict(images, verbose=0), predictions["logits"], rtol=1e-4, atol=1e-5)


def test_the_metrics_of_a_model_belong_to_a_data_set(sweep, afterwards):
    """MLflow's tab Models compares models on each data set by these metrics. A later evaluation adds its own."""
    run = sweep.runs["mlp-s1"]
    (model,) = (m for m in afterwards["evaluated"].models if m.source_run_id == run.info.run_id)
    digest = run.data.tags["data.fingerprint"][:36]
    assert {(m.dataset_name, m.dataset_digest) for m in model.metrics} == {("digits", digest)}
    found = {(m.run_id, m.key): m.value for m in model.metrics}
    assert found[run.info.run_id, "test_accuracy"] == run.data.metrics["test_accuracy"]
    assert len({run_id for run_id, _ in found}) > 1


def test_an_evaluation_on_a_runs_own_data_gives_its_test_scores_exactly(sweep, afterwards):
    scored = {"test_loss", "test_accuracy", "test_calibration_error"}
    run = sweep.runs["mlp-s1"]
    wanted = {"evaluates": run.info.run_id, "shifts": "0"}
    (evaluation,) = (each for each in afterwards["evaluated"].of_kind("evaluation") if each.data.params == wanted)
    assert evaluation.info.status == "FINISHED"
    assert evaluation.data.metrics == {name: run.data.metrics[name] for name in scored}
    before, now = (np.load(sweep.artifacts(each) / "predictions.npz") for each in (run, evaluation))
    assert np.array_equal(before["logits"], now["logits"])
    (dataset,) = evaluation.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.tags[0].value) == ("digits", "testing")
    (model,) = (each for each in sweep.models if each.source_run_id == run.info.run_id)
    inputs = sweep.client.get_run(evaluation.info.run_id).inputs
    assert [each.model_id for each in inputs.model_inputs] == [model.model_id]


def test_several_runs_are_evaluated_as_an_ensemble_too(sweep, afterwards):
    out = afterwards["evaluated"].said.out
    assert max(map(len, out.splitlines())) <= 80
    size = out.count(" on digits: ") - 1
    assert f"ensemble of {size} on digits: test_accuracy" in out
    evaluations = afterwards["evaluated"].of_kind("evaluation")
    (ensemble,) = (run for run in evaluations if run.info.run_name == f"ensemble of {size}")
    assert len(json.loads(ensemble.data.tags["evaluates"])) == size
    (model,) = (m for m in afterwards["evaluated"].models if m.source_run_id == ensemble.info.run_id)
    loaded = mlflow.keras.load_model(model.artifact_location)
    with np.load(sweep.artifacts(ensemble) / "predictions.npz") as predictions:
        logits = loaded.predict(data.digits().test.images, verbose=0)
        np.testing.assert_allclose(logits, predictions["logits"], rtol=1e-4, atol=1e-4)


def test_shifted_images_give_other_probabilities(sweep, afterwards):
    assert "mlp-s1 on digits: test_accuracy" in afterwards["shifted"].said.out
    (shifted,) = (run for run in afterwards["shifted"].of_kind("evaluation") if run.data.params["shifts"] == "1")
    own = sweep.runs["mlp-s1"].data.metrics["test_loss"]
    assert 0 < abs(shifted.data.metrics["test_loss"] - own) < 1
