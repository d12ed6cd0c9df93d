"""What surrounds the runs of a multirun, on numbers; `test_train` and `test_bad_input` run whole sweeps."""

import json
import os
import shutil
import subprocess
import sys
import weakref
from types import SimpleNamespace

import mlflow
import pytest
from hydra import compose, initialize_config_dir
from hydra.types import RunMode

from mnist_exp import console, provenance, tracking
from mnist_exp.config import CONF_DIR, PACKAGE, check, identity
from mnist_exp.provenance.modules import user_code
from mnist_exp.sweep import callback
from tests.helpers.commands import drive, environment, runs
from tests.helpers.configs import composed

FACTS = {"source": "abc", "data": "def", "threads": 1, "versions": {"keras": "3.15.0", "numpy": "2.4.6"}}
FACTS |= {"onednn": "default", "variables": {}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"source": "xyz"}, "not the same code"),
        ({"data": "xyz", "source": "xyz"}, "not the same code, data"),
        ({"threads": 2}, "not the same threads (1, now 2)"),
        ({"versions": {"keras": "3.15.1"}}, "not the same keras (3.15.0, now 3.15.1), numpy (2.4.6, now none)"),
        ({"onednn": "1"}, "not the same onednn (default, now 1)"),
        ({"variables": {"XLA_FLAGS": "x"}}, "not the same variables.XLA_FLAGS (none, now x)"),
        ({"keras_config": {"floatx": "float32"}, "processor": {"cpu": "x"}}, "no record of keras_config, processor"),
        ({"source": "xyz", "processor": {"cpu": "x"}}, "not the same code, and no record of processor"),
    ],
)
def test_what_differs_between_two_runs_of_one_config(change, said):
    assert callback.difference(FACTS, {**FACTS, **change}) == said


def run(name="x-s0", status="FINISHED", sweep_id="A", jobs="0", accuracy=0.9, **tags):
    metrics = {"final_val_accuracy": accuracy, "test_accuracy": accuracy - 0.01, "fit_seconds": 2.0}
    return SimpleNamespace(
        info=SimpleNamespace(run_id=f"id of {name}", run_name=name, status=status),
        data=SimpleNamespace(tags={"sweep": sweep_id, "sweep.A": jobs, **tags}, metrics=metrics),
    )


@pytest.fixture
def job(monkeypatch):
    """Whether a job of sweep A has a result, given finished runs of its config; and what joined the sweep."""
    monkeypatch.setattr(provenance, "facts", lambda *_: FACTS)

    def ask(finished, *overrides):
        config = check(composed("data=digits", "sweep.id=A", *overrides))
        joined = []
        found = [run(**{"identity": identity(config, FACTS)} | tags) for tags in finished]
        for made in found:
            made.data.tags = {key: text for key, text in made.data.tags.items() if text is not None}
        monkeypatch.setattr(tracking, "finished_runs", lambda store, digest: found)
        monkeypatch.setattr(tracking, "join_sweep", lambda store, run, *where: joined.append((run.info.run_id, *where)))
        known = callback.finished_before(config, SimpleNamespace(fingerprint="def"), None, 7)
        return known and known["final_val_accuracy"], joined

    return ask


def test_a_finished_run_of_the_same_identity_is_the_result_of_a_job(job, capsys):
    assert job([{"identity": "other"}, {}]) == (0.9, [("id of x-s0", "A", 7)])
    assert "mlp-adam-s0  val_accuracy 90.00%  test_accuracy 89.00%  skipped: finished before" in capsys.readouterr().out


def test_what_keeps_a_finished_run_from_being_used_is_named(job, capsys):
    before = {"identity": "other", "identity.facts": json.dumps({**FACTS, "source": "xyz"})}
    assert job([before]) == (None, [])
    assert capsys.readouterr().err == (
        "mlp-adam-s0  trained again: run id of x-s0 has the same config but not the same code\n"
    )


def test_a_finished_run_that_lacks_what_is_read_of_it_is_not_used(job, capsys):
    assert job([{"identity": None}]) == (None, [])  # without identity.facts too, so nothing can be named
    assert capsys.readouterr().err == ""
    assert job([{}], "sweep.objective=[final_val_loss]") == (None, [])  # the run did not record it
    assert job([{}], "sweep.objective=[fit_seconds]")[1] == [("id of x-s0", "A", 7)]


def test_a_job_trains_when_nothing_is_finished_or_skipping_is_off(job, capsys):
    assert job([]) == (None, [])
    assert job([{"pruned": "true"}]) == (None, [])  # a search has ended it early
    assert job([{}], "sweep.skip_finished=false") == (None, [])
    assert capsys.readouterr() == ("", "")


# Its first argument is Hydra's; what would import TensorFlow fails instead.
UNTRAINED = """
import sys
from mnist_exp import train
from mnist_exp.errors import RunError
from mnist_exp.sweep import callback

def fail():
    raise RunError("not trained")

train.import_tensorflow, callback.prepare = fail, lambda *_, **__: None
train.main()
"""
DUBIOUS = "fatal: detected dubious ownership in repository at '/there'"


@pytest.mark.skipif(os.name != "posix", reason="needs a program that is a shell script")
@pytest.mark.parametrize("options", [["seed=1"], ["-m", "seed=1,2,3"]], ids=["run", "sweep"])
def test_a_repository_that_git_refuses_is_told_to_the_user_once_a_command(options, tmp_path, with_store):
    folder = with_store(tmp_path / "here")
    shutil.copytree(PACKAGE, tmp_path / "code" / "mnist_exp", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(CONF_DIR, tmp_path / "code" / "conf")
    (tmp_path / "code" / ".git").mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "git").write_text(f'#!/bin/sh\necho "{DUBIOUS}" >&2\nexit 128\n')
    (tmp_path / "bin" / "git").chmod(0o755)
    environ = environment(tmp_path) | {"PYTHONPATH": str(tmp_path / "code")}
    environ["PATH"] = f"{tmp_path / 'bin'}{os.pathsep}{environ['PATH']}"
    command = [sys.executable, "-c", UNTRAINED, *options, "data=digits"]
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "not trained" in done.stderr
    warning = f"warning: code.commit is not recorded, git cannot tell it: {DUBIOUS}"
    assert [line for line in done.stderr.splitlines() if "dubious" in line] == [warning]


@pytest.mark.parametrize(
    ("policy", "failed", "stops"), [("stop", True, True), ("stop", False, False), ("continue", True, False)]
)
def test_only_a_sweep_that_is_to_stop_stops(policy, failed, stops, monkeypatch):
    monkeypatch.setattr(tracking, "sweep_stopped", lambda store, sweep: failed)
    assert callback.stopped(check(composed("data=digits", "sweep.id=A", f"sweep.on_error={policy}")), None) is stops


@pytest.mark.parametrize("devices", ["auto", "cpu", "cpu:2"])
def test_the_device_is_known_without_tensorflow_where_there_is_no_gpu(devices, monkeypatch):
    monkeypatch.setattr(provenance, "may_have_gpu", lambda: False)
    assert callback._device(devices, 1) == {"cpu:2": "2 x cpu"}.get(devices, "cpu")


def test_facts_are_those_that_identity_names():
    facts = provenance.facts(PACKAGE, user_code(frozenset()), "abc", 2, "cpu")
    assert sorted(facts) == [
        *("data", "device", "keras_config", "onednn", "processor", "source", "threads", "variables", "versions"),
    ]
    assert (facts["data"], facts["threads"], facts["device"]) == ("abc", 2, "cpu")
    json.dumps(facts)


SWEEPS = {"activation_depth": 12, "depth_study": 24, "optimizer_lr": 30, "seeds": 10, "tune_cnn": 8, "tune_mlp": 36}


def test_every_kept_sweep_is_known_here():
    assert sorted(path.stem for path in (CONF_DIR / "sweep").glob("*.yaml")) == sorted(SWEEPS)


@pytest.mark.parametrize(("name", "count"), SWEEPS.items(), ids=SWEEPS)
def test_kept_sweeps_make_sense(name, count):
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = compose("train", [f"sweep={name}"], return_hydra_config=True)
        assert config.hydra.mode is RunMode.MULTIRUN  # without -m
        jobs = callback.grid(config, [f"sweep={name}"])
        assert len(jobs) == count == len({tuple(job) for job in jobs})
        assert len(callback.check_jobs("train", [jobs[0], jobs[-1]])) == 2


def test_a_long_check_shows_how_far_it_is(monkeypatch, capsys):
    monkeypatch.setattr(callback, "TELL_SECONDS", 0.0)
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        callback.check_jobs("train", [["seed=0"], ["seed=1"]])
    assert capsys.readouterr().err.endswith("preflight: 1 of 2 jobs checked\n")


def test_the_command_line_wins_over_a_kept_sweep():
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = compose("train", ["sweep=seeds"], return_hydra_config=True)
        jobs = callback.grid(config, ["sweep=seeds", "seed=3,4", "name=x", "name=y"])
    assert jobs == [["seed=3", "sweep=seeds", "name=y"], ["seed=4", "sweep=seeds", "name=y"]]


class Training:
    """Raises what it is given, one a call, then returns a result."""

    def __init__(self, *errors):
        self.errors = list(errors)

    def __call__(self):
        if self.errors:
            raise self.errors.pop(0)
        return "result"


IMPORT = """
import gc, sys
from mnist_exp.sweep import callback

callback.import_tensorflow()
imported = [name in sys.modules for name in (*callback.UNUSED, "tensorflow")]
print(imported, gc.isenabled(), gc.get_freeze_count() > 100_000)
import sklearn.base
"""


def test_tensorflow_is_imported_without_what_no_run_needs_and_that_can_be_imported_later(tmp_path):
    assert drive(tmp_path, IMPORT, None, 60) == "[False, False, True] True True\n"


def test_running_out_of_memory_is_tried_again_and_nothing_else(capsys):
    import tensorflow as tf

    exhausted = tf.errors.ResourceExhaustedError(None, None, "OOM when allocating\nmore")
    assert callback.attempt(Training(exhausted, MemoryError("no room")), retries=2) == "result"
    assert capsys.readouterr().err == (
        "error: out of memory, trying again: ResourceExhaustedError: OOM when allocating\n"
        "error: out of memory, trying again: MemoryError: no room\n"
    )
    with pytest.raises(MemoryError):
        callback.attempt(Training(MemoryError(), MemoryError()), retries=1)
    with pytest.raises(ValueError):
        callback.attempt(Training(ValueError()), retries=5)


def test_a_second_try_begins_without_the_programs_that_were_kept():
    import keras

    from mnist_exp.training import device_loop

    model = keras.Sequential([keras.Input((28, 28, 1), dtype="uint8"), keras.layers.Flatten(), keras.layers.Dense(10)])
    model.compile("adam", "mse")
    kept = device_loop._twin(device_loop._description(model), 128, 1000, False)
    kept.model.optimizer.build(kept.model.trainable_variables)
    weights = weakref.ref(kept.model.layers[-1].kernel)
    slots = weakref.ref(kept.model.optimizer.variables[-1])
    del kept
    found = []

    def train():
        found.append((device_loop._twin.cache_info().currsize, weights() is None, slots() is None))
        if len(found) == 1:
            raise MemoryError
        return "result"

    assert callback.attempt(train, retries=1) == "result"
    assert found == [(1, False, False), (0, True, True)]


def test_the_table_says_what_each_job_came_to():
    config = SimpleNamespace(name="x", seed=0)
    under_way = callback.Sweep("A", None, [callback.Job(config, f"seed={n}") for n in range(6)])
    found = {
        0: run(accuracy=0.7),
        1: run(sweep_id="before", jobs="1", accuracy=0.8),
        2: run(status="FAILED", jobs="2", accuracy=0),
        3: run(jobs="0 3", accuracy=0.7),
        4: run(status="KILLED", jobs="4", accuracy=0),
    }
    rows = [callback._row(under_way, number, found.get(number)) for number in range(6)]
    assert [row.status for row in rows] == ["FINISHED", "SKIPPED", "FAILED", "SKIPPED", "KILLED", "NOT RUN"]
    assert rows[5] == console.Row(5, "x-s0", "NOT RUN", "seed=5", None, None, None, "")
    assert [row.job for row in sorted(rows, key=callback._rank)] == [1, 0, 3, 2, 4, 5]
    assert callback._counts(rows) == {"finished": 1, "skipped": 2, "failed": 2, "not_run": 1}


def test_a_run_that_was_made_alone_or_by_another_version_is_a_row_of_the_table():
    config = SimpleNamespace(name="x", seed=0)
    under_way = callback.Sweep("A", None, [callback.Job(config, "seed=0")], frozenset(["model"]))
    alone = run()
    for key in ("sweep", "overrides"):
        alone.data.tags.pop(key, None)
    alone.data.metrics.clear()
    assert callback._row(under_way, 0, alone) == console.Row(
        0, "x-s0", "SKIPPED", "seed=0", None, None, None, "id of x-s0"
    )


@pytest.fixture
def under_way(tmp_path, with_store):
    """A sweep of two jobs whose own run has begun, and the statuses of all that its store holds."""
    store = tracking.open_store(f"sqlite:///{with_store(tmp_path)}/mlflow.db", "mnist_exp")
    jobs = [callback.Job(SimpleNamespace(name="x", seed=seed), f"seed={seed}") for seed in range(2)]
    return callback.open_sweep(jobs, store), lambda: runs(tmp_path)


def joined(opened, name, number, **metrics):
    """Add a finished run of an earlier command that job `number` takes the result of."""
    client = mlflow.MlflowClient(opened.store.uri)
    made = client.create_run(opened.store.experiment_id, run_name=name, tags={"kind": "run"})
    for key, value in metrics.items():
        client.log_metric(made.info.run_id, key, value)
    client.set_terminated(made.info.run_id, "FINISHED")
    tracking.join_sweep(opened.store, made, opened.id, number)


@pytest.mark.parametrize("metrics", [{"final_val_accuracy": 0.9, "test_accuracy": 0.8}, {}], ids=["whole", "bare"])
def test_a_sweep_of_runs_that_were_made_alone_is_closed(under_way, capsys, metrics):
    opened, statuses = under_way
    for number in range(2):
        joined(opened, f"x-s{number}", number, **metrics)
    assert callback.close_sweep(opened, "FINISHED")
    assert statuses() == {"x-s0": "FINISHED", "x-s1": "FINISHED", "sweep": "FINISHED"}
    assert "2 skipped" in capsys.readouterr().out


@pytest.mark.parametrize("error", [KeyError("a bug"), KeyboardInterrupt()], ids=["bug", "Ctrl-C"])
@pytest.mark.parametrize(("status", "left"), [("FINISHED", "FAILED"), ("KILLED", "KILLED")])
def test_whatever_goes_wrong_with_the_summary_the_sweep_does_not_look_alive(
    under_way, monkeypatch, error, status, left
):
    opened, statuses = under_way

    def fail(*_):
        raise error

    monkeypatch.setattr(console, "sweep_table", fail)
    with pytest.raises(type(error)):
        callback.close_sweep(opened, status)
    assert statuses() == {"sweep": left}
    assert not callback.abandon_sweep("KILLED")  # it is closed


def test_a_store_that_is_gone_when_a_sweep_is_abandoned_is_said_in_a_line(under_way, monkeypatch, capsys):
    def gone(*_):
        raise tracking.StoreError("tracking.uri=x cannot be used: gone")

    for name in ("end_dead_runs", "end_sweep"):
        monkeypatch.setattr(tracking, name, gone)
    assert callback.abandon_sweep("KILLED")
    assert capsys.readouterr().err == "error: tracking.uri=x cannot be used: gone\n"
