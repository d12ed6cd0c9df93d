"""`import mnist_exp`: one run is trained, for all tests."""

import importlib
import os
import random
import signal
import subprocess
import sys
from contextlib import chdir

import keras
import mlflow
import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

import mnist_exp
from mnist_exp import RequestError, api, compare
from mnist_exp.tracking.charts import in_section
from mnist_exp.training import devices
from tests.helpers import tracked_runs

# MLflow's, when it imports its pyfunc.
pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")
SMOKE = ("experiment=smoke", "trainer.epochs=2", "trainer.execution=keras")


def state():
    """What the process has for everything in it, and a run changes meanwhile."""
    return {
        "folder": os.getcwd(),  # noqa: PTH109
        "variables": {key: text for key, text in os.environ.items() if key.startswith("MLFLOW_")},
        "store": mlflow.get_tracking_uri(),
        "experiment": mlflow.tracking.fluent._active_experiment_id,
        "hydra": (GlobalHydra.instance().hydra, HydraConfig.instance().cfg),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "precision": keras.config.dtype_policy().name,
        "prints": keras.config.is_interactive_logging_enabled(),
        "generators": (random.getstate(), repr(np.random.get_state())),  # noqa: NPY002
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory, with_store):
    """A folder with a run, the run, and the state of the process before and after."""
    folder = with_store(tmp_path_factory.mktemp("api"))
    with chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "configure", lambda *_: None)  # an earlier test of this process fixed the threads
        before = state()
        run = mnist_exp.train(*SMOKE, "trainer.precision=mixed_bfloat16")
        return folder, run, before, state()


def test_train_returns_the_run_and_leaves_the_process_as_it_was(trained):
    folder, run, before, after = trained
    assert (run.name, run.status, run.settings["trainer.epochs"]) == ("mlp-adam-smoke-s0", "FINISHED", 2)
    assert mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").get_run(run.id).data.metrics == {
        in_section(name): value for name, value in run.metrics.items()
    }
    assert after == before


def test_a_frame_has_metrics_and_config_keys_by_their_own_names(trained):
    folder, run, *_ = trained
    with chdir(folder):
        frame = mnist_exp.runs(model="mlp", seed=0).frame()
    assert list(frame.index) == [run.id]
    row = frame.loc[run.id]
    assert (row["val_accuracy"], row["name"]) == (run.metrics["val_accuracy"], run.name)
    assert (row["optimizer.learning_rate"], row["seed"], row["model"]) == (0.001, 0, "mlp")
    assert (row["model.hidden"], row["model.batch_norm"], row["schedule"]) == ((128,), False, "constant")
    assert (row["optimizer"], row["data"]) == ("adam", "digits")  # options as they are typed
    assert not [column for column in frame if "_target_" in column]


def test_a_run_gives_back_its_curves_predictions_data_config_and_figures(trained):
    folder, run, *_ = trained
    with chdir(folder):
        curves = run.curves()
        assert list(curves.index) == [1, 2]
        assert curves.loc[2, "val_accuracy"] == run.metrics["val_accuracy"]
        assert "test_accuracy" not in curves
        long = mnist_exp.runs().curves()
        assert [*long.columns[:3]] == ["run", "run_id", "step"]
        assert long["train_loss"].tolist() == curves["train_loss"].tolist()
        assert fake().curves().empty
        dataset, predicted = run.dataset(), run.predictions()
        assert dataset.fingerprint == run.stored.tags["data.fingerprint"]
        assert np.array_equal(predicted.labels, dataset.test.labels)
        assert predicted.right.mean() == pytest.approx(run.metrics["test_accuracy"])
        assert (run.config.trainer.epochs, run.config["model"]["hidden"]) == (2, [128])
        logits = run.model().predict(dataset.test.images, verbose=0)
        assert np.array_equal(logits.argmax(axis=1), predicted.logits.argmax(axis=1))
        assert np.abs(logits - predicted.logits).max() < 0.05  # the run computed in bfloat16
        assert run.figure("curves").format == "PNG"
        with pytest.raises(RequestError, match=r"no artifact curve.png; it has: confusion_matrix.png, curves.png, "):
            run.figure("curve")


def test_data_that_has_changed_is_not_the_runs(trained, monkeypatch):
    folder, run, *_ = trained
    monkeypatch.setitem(run.stored.tags, "data.fingerprint", "other")
    with chdir(folder), pytest.raises(RequestError, match=r"has changed: its fingerprint is .*, was other"):
        run.dataset()


def test_filters_choose_by_the_values_of_the_config(trained):
    with chdir(trained[0]):
        for settings, count in (
            ({"model": "cnn"}, 0),
            ({"seed": 1}, 0),
            ({"optimizer.learning_rate": 0.001, "model.hidden": [128]}, 1),
            ({"optimizer": "adam", "loss": "cross_entropy"}, 1),
        ):
            assert len(mnist_exp.runs(**settings)) == count
        with pytest.raises(RequestError, match=r"'modle' is not a key of these runs; their keys: .*, model, model\."):
            mnist_exp.runs(modle="mlp")
        with pytest.raises(RequestError, match=r"no experiment 'other'; it has: Default, mnist_exp"):
            mnist_exp.runs(experiment="other")
        with pytest.raises(RequestError, match="the experiment mnist_exp has no sweep"):
            mnist_exp.runs("latest")


def fake(*runs):
    return mnist_exp.Runs(mnist_exp.Run(info, None) for info in runs)


def test_the_best_run_is_finished_and_has_the_best_value():
    chosen = fake(
        tracked_runs.run(1, accuracy=0.9, metrics={"final_val_loss": 0.2}),
        tracked_runs.run(2, accuracy=0.8, metrics={"final_val_loss": 0.1}),
        tracked_runs.run(3, accuracy=0.99, status="FAILED"),
        tracked_runs.run(4, accuracy=float("nan")),
    )
    assert chosen.best() is chosen[0]
    assert chosen.best("final_val_loss") is chosen[1]
    with pytest.raises(RequestError, match="metric must not be a test metric"):
        chosen.best("test_accuracy")
    with pytest.raises(RequestError, match="no finished run has the metric 'f1'; metrics: final_val_accuracy, "):
        chosen.best("f1")
    assert [len(part) for part in (chosen[1:], chosen[:0], fake())] == [3, 0, 0]
    assert fake().frame().empty


def test_a_comparison_is_that_of_the_command(trained, capsys):
    folder, run, *_ = trained
    with chdir(folder):
        found = mnist_exp.runs().compare()
        assert compare.main(["--run", run.id]) == 0
        table = capsys.readouterr().out.split("\n\n")[2]
        assert table in str(found)
        assert "| --: |" in found._repr_markdown_()
        with pytest.raises(RequestError, match="must not be a test metric"):
            mnist_exp.runs().compare(metric="test_accuracy")
        with pytest.raises(RequestError, match="there are no runs to compare"):
            fake().compare()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("mlp", "mlp"),
        ("3", 3),
        ("1e-07", 1e-07),
        ("None", None),
        ("True", True),
        ("[64, 32]", (64, 32)),
        ("{}", "{}"),
        ("[" * 5000, "[" * 5000),
        ("inf", "inf"),
    ],
)
def test_a_param_gets_its_value_back(text, value):
    assert api._value(text) == value


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.epochs=0"], "trainer.epochs must be "),
        (["model=mlp,cnn"], "Ambiguous value for argument 'model=mlp,cnn'"),
        (["modle=mlp"], "modle"),
        (["-m", "seed=1,2"], "'-m' is not of the form key=value"),
        (["sweep=seeds"], "sweep=seeds is a sweep, not a single run"),
        (["sweep.retries=3"], "sweep.retries is for a sweep, got 3 in a single run"),
        (["trainer.patience=3"], "trainer.patience is no key any more"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_mistake_is_an_exception_with_the_line_of_the_command(overrides, message):
    before = state()
    with pytest.raises(RequestError) as raised:
        mnist_exp.train(*overrides)
    assert str(raised.value).startswith(message) or message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert state() == before


def test_a_sweep_runs_in_a_process_of_its_own_and_returns_its_runs(trained, capfd):
    folder, run, *_ = trained
    with chdir(folder):
        found = mnist_exp.sweep(*SMOKE, "trainer.precision=mixed_bfloat16", "seed=0")  # which is finished already
        assert [known.id for known in found] == [run.id]
        assert [known.id for known in mnist_exp.runs("latest")] == [run.id]
        with pytest.raises(RequestError, match=r"^trainer\.epochs=0: trainer\.epochs must be "):
            mnist_exp.sweep("trainer.epochs=0,1")
    assert run.name in capfd.readouterr().out


def test_train_and_sweep_are_the_functions_whatever_is_imported_first():
    """In a process that imports the modules first; this process imported them after it."""
    program = (
        "import sys, mnist_exp.train, mnist_exp.sweep.jobs, mnist_exp\n"
        "assert 'mlflow' not in sys.modules and 'pandas' not in sys.modules\n"
        "from mnist_exp import train; from mnist_exp.train import main; from mnist_exp.sweep import jobs\n"
        "print(train.__module__, mnist_exp.train is train, mnist_exp.sweep.__module__, main.__module__, jobs.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["mnist_exp.api", "True", "mnist_exp.api", "mnist_exp.train", "mnist_exp.sweep.jobs"]
    for name in ("train", "sweep"):
        module = importlib.import_module(f"mnist_exp.{name}")
        assert sys.modules[f"mnist_exp.{name}"] is module is not getattr(mnist_exp, name)
        assert getattr(mnist_exp, name) is getattr(api, name)


def test_importing_the_package_takes_no_time():
    program = (
        "import sys, typing; before = {*sys.modules}; import mnist_exp; print({*sys.modules} - before, dir(mnist_exp))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == f"{{'mnist_exp'}} {sorted(mnist_exp.__all__)}\n"
