"""Runs that fail or are stopped: one clear line, the exit code that is promised, and no run that looks alive."""

import signal
import sqlite3
import time
from typing import NamedTuple

import pytest

from tests.helpers.commands import Case, commands, runs, start, typed

MINE = """
import keras

def probabilities(shape, classes):
    images = keras.Input(shape, dtype="uint8")
    return keras.Model(images, keras.layers.Dense(classes, "softmax")(keras.layers.Flatten()(images)))

def buggy(shape, classes, *, width):
    return keras.Input(shape) + undefined
"""


class Failing(NamedTuple):
    """A run that ends badly: what is added to `experiment=smoke`, and what is to come of it."""

    typed: str
    code: int
    err: tuple[str, ...]  # parts of standard error
    runs: dict[str, str]  # the status of each run
    signals: tuple[tuple[str, int], ...] = ()  # each sent when the output has its text


DIVERGING = "optimizer=sgd name=${optimizer.learning_rate} optimizer.learning_rate"
BARE = "model=linear"  # an option without keys
FAILING = {
    "devices that are not there": Failing("trainer.devices=gpu:99", 2, ("trainer.devices=gpu:99 needs 99 GPU(s)",), {}),
    "NaN": Failing(
        f"{DIVERGING}=1e30",
        1,
        ("error: run 1e+30-s0 failed: Diverged: train_loss is nan after epoch 1; a smaller learning rate may help",),
        {"1e+30-s0": "FAILED"},
    ),
    "NaN in a sweep": Failing(
        f"-m {DIVERGING}=0.1,1e30,0.2",
        1,
        ("error: run 1e+30-s0 failed: Diverged: train_loss is nan after epoch 1",),
        {"0.1-s0": "FINISHED", "1e+30-s0": "FAILED", "0.2-s0": "FINISHED", "sweep": "FINISHED"},
    ),
    "NaN in a sweep that is to stop": Failing(
        f"-m {DIVERGING}=0.1,1e30,0.2,0.3 sweep.on_error=stop",
        1,
        ("error: run 1e+30-s0 failed: Diverged: train_loss is nan after epoch 1",),
        {"0.1-s0": "FINISHED", "1e+30-s0": "FAILED", "sweep": "FINISHED"},
    ),
    "models that cannot be built": Failing(
        "-m model=cnn model.filters=[8],[1,1,1,1,1] model.activation=relu,gelu trainer.batch_size=8,16",
        2,
        ("error: model.filters=[1,1,1,1,1] model.activation=relu trainer.batch_size=8: model.filters: 5 poo",),
        {},
    ),
    "a model that ends in softmax": Failing(
        f"name=x model._target_=mine.probabilities {BARE}",
        2,
        ("error: model._target_ must return a model of logits, got one that ends in Softmax: leave out",),
        {},
    ),
    "a bug of the user's": Failing(
        f"name=x model._target_=mine.buggy +model.width=3 {BARE}",
        1,
        ("mine.py", "error: run x-s0 failed: NameError: name 'undefined' is not defined"),
        {"x-s0": "FAILED"},
    ),
    "a model larger than the machine": Failing(
        "name=x model.hidden=[1000000,1000000]", 2, ("error: this model needs at least 8,00", "GB, the machine has"), {}
    ),
    "an argument of a wrong type": Failing(
        "name=x +optimizer.clipnorm=x", 2, ("error: the optimizer cannot be applied: ",), {}
    ),
    "artifacts cannot be kept": Failing("name=x", 1, ("error: run x-s0 failed: ", "mlruns"), {"x-s0": "FAILED"}),
    "Ctrl-C": Failing("name=x trainer.epochs=100000", 130, (), {"x-s0": "KILLED"}, (("epoch 3/", signal.SIGINT),)),
    "Ctrl-C in a sweep": Failing(
        "-m name=${trainer.epochs} trainer.epochs=1,100000,2",
        130,
        (),
        {"1-s0": "FINISHED", "100000-s0": "KILLED", "sweep": "KILLED"},
        (("epoch 3/100000", signal.SIGINT),),
    ),
    "Ctrl-C again while the sweep is closed": Failing(
        "-m name=x model=linear trainer.epochs=100000 seed=0,1",
        130,
        (),
        {"x-s0": "KILLED", "sweep": "KILLED"},
        (("epoch 2/", signal.SIGINT), (" not run", signal.SIGINT)),
    ),
    "SIGTERM twice": Failing(
        "name=x trainer.epochs=100000",
        143,
        (),
        {"x-s0": "KILLED"},
        (("epoch 2/", signal.SIGTERM), ("epoch 2/", signal.SIGTERM)),
    ),
}


@pytest.fixture(scope="module")
def failed(tmp_path_factory, with_store):
    """The answers to all of these, given by one process, and each one's folder."""
    folders = {name: with_store(tmp_path_factory.mktemp("failing")) for name in FAILING}
    for name in ("a bug of the user's", "a model that ends in softmax"):
        (folders[name] / "mine.py").write_text(MINE)
    (folders["artifacts cannot be kept"] / "mlruns").write_text("in the way of a folder")
    cases = {name: Case(typed(f.typed), str(folders[name]), f.signals) for name, f in FAILING.items()}
    return commands(cases), folders


@pytest.mark.parametrize("name", FAILING)
def test_a_run_that_ends_badly_says_so_and_no_run_looks_alive(failed, name):
    said, folder, expected = failed[0][name], failed[1][name], FAILING[name]
    assert said.code == expected.code, said
    for part in expected.err:
        assert part in said.err
    assert ("Traceback" in said.err) == (name == "a bug of the user's")
    assert runs(folder) == expected.runs


@pytest.mark.parametrize("name", ["NaN", "NaN in a sweep", "a bug of the user's"])
def test_a_failed_run_keeps_its_traceback(failed, name):
    (kept,) = failed[1][name].glob("mlruns/*/*/artifacts/traceback.txt")
    assert kept.read_text().startswith("Traceback")
    assert ("undefined" in kept.read_text()) == (name == "a bug of the user's")


def test_models_that_cannot_be_built_are_told_together(failed):
    lines = failed[0]["models that cannot be built"].err.splitlines()
    (first,) = (line for line in lines if line.startswith("error: "))  # a slow machine shows how far the check is
    assert first.endswith("5 poolings need images of 32 pixels or more (and 3 more)")


def test_an_interrupted_sweep_prints_its_summary(failed):
    lines = failed[0]["Ctrl-C in a sweep"].out.splitlines()
    assert any(line.startswith("sweep ") and line.endswith(": 1 trained, 1 interrupted, 1 not run") for line in lines)
    assert [line.split()[:2] for line in lines if "000-s0" in line] == [["100000-s0", "interrupted"]]


def test_a_sweep_that_is_to_stop_starts_nothing_after_a_failure(failed):
    lines = failed[0]["NaN in a sweep that is to stop"].out.splitlines()
    assert any(line.startswith("sweep ") and line.endswith(": 1 trained, 1 failed, 2 not run") for line in lines)
    assert [line.split()[:3] for line in lines if "  not run" in line] == [
        ["0.2-s0", "not", "run"],
        ["0.3-s0", "not", "run"],
    ]


def test_an_interrupted_run_keeps_the_metrics_it_had(failed):
    with sqlite3.connect(failed[1]["Ctrl-C"] / "mlflow.db") as database:
        ((epochs,),) = database.execute("SELECT count(*) FROM metrics WHERE key = 'val_accuracy'")
    database.close()
    (record,) = failed[1]["Ctrl-C"].glob("outputs/*/*/run-*/metrics.jsonl")
    assert epochs == len(record.read_text().splitlines()) >= 3


@pytest.mark.slow
def test_sigterm_ends_the_process_of_a_run_within_seconds(tmp_path, with_store):
    process = start(with_store(tmp_path), "experiment=smoke", "name=x", "trainer.epochs=100000")
    while "epoch 2/" not in process.stderr.readline():
        assert process.poll() is None
    began = time.perf_counter()
    process.terminate()
    process.send_signal(signal.SIGTERM)  # an impatient second one must not interrupt the first
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert time.perf_counter() - began < 10
    assert runs(tmp_path) == {"x-s0": "KILLED"}
    assert "Traceback" not in err


@pytest.mark.slow
def test_two_commands_at_the_same_moment_in_a_fresh_folder(tmp_path):
    both = [start(tmp_path, "experiment=smoke", f"name={name}") for name in ("x", "y")]
    for process in both:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert runs(tmp_path) == {"x-s0": "FINISHED", "y-s0": "FINISHED"}
