"""The jobs of a multirun: expanded and checked, tried again, stopped."""

import os
import shutil
import subprocess
import sys
import weakref

import pytest
from hydra import compose, initialize_config_dir
from hydra.types import RunMode

from mnist_exp import tracking
from mnist_exp.config import CONF_DIR, PACKAGE, check
from mnist_exp.sweep import grid, jobs
from tests.helpers.commands import environment
from tests.helpers.configs import composed

# Its first argument is Hydra's; what would import TensorFlow fails instead.
UNTRAINED = """
import sys
from mnist_exp import job
from mnist_exp.errors import RunError
from mnist_exp.sweep import jobs
from mnist_exp.train import main

def fail():
    raise RunError("not trained")

job.import_tensorflow, jobs.check_models = fail, lambda *_, **__: None
main()
"""


DUBIOUS = "fatal: detected dubious ownership in repository at '/there'"


@pytest.mark.skipif(os.name != "posix", reason="needs a program that is a shell script")
@pytest.mark.parametrize(
    "options",
    [pytest.param(["seed=1"], id="run", marks=pytest.mark.slow), pytest.param(["-m", "seed=1,2,3"], id="sweep")],
)
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
    warning = f"warning: code.commit is not recorded, git failed: {DUBIOUS}"
    assert [line for line in done.stderr.splitlines() if "dubious" in line] == [warning]


@pytest.mark.parametrize(
    ("policy", "failed", "stops"), [("stop", True, True), ("stop", False, False), ("continue", True, False)]
)
def test_only_a_sweep_that_is_to_stop_stops(policy, failed, stops, monkeypatch):
    monkeypatch.setattr(tracking, "sweep_stopped", lambda store, sweep: failed)
    assert jobs.is_stopped(check(composed("data=digits", "sweep.id=A", f"sweep.on_error={policy}")), None) is stops


SWEEPS = {
    "activation_depth": 12,
    "augmentation_study": 21,
    "data_size": 21,
    "depth_study": 24,
    "folds": 5,
    "optimizer_lr": 30,
    "optimizer_study": 40,
    "regularisation_study": 48,
    "seeds": 10,
    "tune_cnn": 8,
    "tune_mlp": 36,
}


def test_every_kept_sweep_is_known_here():
    assert sorted(path.stem for path in (CONF_DIR / "sweep").glob("*.yaml")) == sorted(SWEEPS)


@pytest.mark.parametrize(("name", "count"), SWEEPS.items(), ids=SWEEPS)
def test_kept_sweeps_make_sense(name, count):
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = compose("train", [f"sweep={name}"], return_hydra_config=True)
        assert config.hydra.mode is RunMode.MULTIRUN  # without -m
        found = grid.expand(config, [f"sweep={name}"])
        assert len(found) == count == len({tuple(job) for job in found})
        assert len(jobs.check_jobs("train", [found[0], found[-1]])) == 2


def test_a_long_check_shows_how_far_it_is(monkeypatch, capsys):
    monkeypatch.setattr(jobs, "PROGRESS_SECONDS", 0.0)
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        jobs.check_jobs("train", [["seed=0"], ["seed=1"]])
    assert capsys.readouterr().err.endswith("preflight: 1 of 2 jobs checked\n")


def test_warnings_about_data_are_printed_before_a_sweep_and_not_by_its_jobs(capsys):
    config = check(composed("data=digits", "data.train_size=12", "data.imbalance=30", "trainer.batch_size=1"))
    config.sweep.id = "A"
    jobs.load(config)
    assert capsys.readouterr().err == ""
    config.sweep.id = None
    jobs.load(config)
    assert " leaves no training image of " in capsys.readouterr().err


class Training:
    """Raises what it is given, one a call, then returns a result."""

    def __init__(self, *errors):
        self.errors = list(errors)

    def __call__(self):
        if self.errors:
            raise self.errors.pop(0)
        return "result"


def test_running_out_of_memory_is_tried_again_and_nothing_else(capsys):
    import tensorflow as tf

    exhausted = tf.errors.ResourceExhaustedError(None, None, "OOM when allocating\nmore")
    assert jobs.retry(Training(exhausted, MemoryError("no room")), retries=2) == "result"
    assert capsys.readouterr().err == (
        "error: out of memory, trying again: ResourceExhaustedError: OOM when allocating\n"
        "error: out of memory, trying again: MemoryError: no room\n"
    )
    with pytest.raises(MemoryError):
        jobs.retry(Training(MemoryError(), MemoryError()), retries=1)
    with pytest.raises(ValueError):
        jobs.retry(Training(ValueError()), retries=5)


def test_a_second_try_begins_without_the_programs_that_were_kept():
    import keras

    from mnist_exp.training import device_loop

    model = keras.Sequential([keras.Input((28, 28, 1), dtype="uint8"), keras.layers.Flatten(), keras.layers.Dense(10)])
    model.compile("adam", "mse")
    kept = device_loop._cached_programs(device_loop._description(model), 128, 1000, False)
    kept.model.optimizer.build(kept.model.trainable_variables)
    weights = weakref.ref(kept.model.layers[-1].kernel)
    slots = weakref.ref(kept.model.optimizer.variables[-1])
    del kept
    found = []

    def train():
        found.append((device_loop._cached_programs.cache_info().currsize, weights() is None, slots() is None))
        if len(found) == 1:
            raise MemoryError
        return "result"

    assert jobs.retry(train, retries=1) == "result"
    assert found == [(1, False, False), (0, True, True)]
