"""Jobs side by side: their share of the machine, and what a process that ends before its time leaves behind."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time

import psutil
import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.types import HydraContext
from omegaconf import OmegaConf

from mnist_exp import provenance, tracking
from mnist_exp.config import CONF_DIR
from mnist_exp.errors import RequestError
from mnist_exp.sweep import processes, startup
from tests.helpers.commands import SHORT, environment, runs, start, workers
from tests.helpers.jobs import task

# A model that kills its process while it is built: of width 2 the first time, of width 3 every time. Not in the parent.
DEADLY = """
import multiprocessing, os, signal
from pathlib import Path
import keras


def model(image_shape, num_classes, *, width):
    if multiprocessing.parent_process() is not None:
        with Path(f"pids-{width}").open("a") as file:
            file.write(f"{os.getpid()}\\n")
        if width == 3 or (width == 2 and len(Path("pids-2").read_text().split()) == 1):
            os.kill(os.getpid(), signal.SIGKILL)
    images = keras.Input(image_shape, dtype="uint8")
    features = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(images))
    return keras.Model(images, keras.layers.Dense(num_classes)(keras.layers.Dense(width, "relu")(features)))
"""
TWO = ("-m", "hydra/launcher=processes", "hydra.launcher.n_jobs=2")


def node(target, **keys):
    return OmegaConf.create({"_target_": target, **keys})


@pytest.mark.parametrize(
    ("given", "threads"),
    [
        (node("hydra._internal.core_plugins.basic_launcher.BasicLauncher"), None),
        (node("hydra_plugins.mnist_exp.Processes", n_jobs=2), 4),
        (node("hydra_plugins.mnist_exp.Processes", n_jobs=3), 2),
        (node("hydra_plugins.mnist_exp.Processes", n_jobs=20), 1),
        (node("hydra_plugins.mnist_exp.Processes", n_jobs=-1), 1),
        (node("x.JoblibLauncher", n_jobs=4), 2),
        (node("x.RayLauncher", ray={"remote": {"num_cpus": 3}}), 3),
        (node("x.RayLauncher", ray={"remote": {}}), 1),
        (node("x.SlurmLauncher", cpus_per_task=6), 6),
        (node("x.LocalLauncher", cpus_per_task=None), 1),
    ],
)
def test_jobs_side_by_side_share_the_cores(given, threads):
    assert processes.threads_of_a_job(given, cores=8) == threads


@pytest.mark.parametrize("n_jobs", [0, -2, 1.5, True, "two", None])
def test_a_number_of_processes_that_makes_no_sense_is_refused(n_jobs):
    with pytest.raises(RequestError, match=r"hydra\.launcher\.n_jobs must be a whole number above 0, or -1"):
        processes.workers(n_jobs, cores=8)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a fork is not safe")
@pytest.mark.parametrize(("gpus", "method"), [(["0"], "spawn"), ([], "forkserver")])
def test_workers_are_forked_where_there_is_no_gpu(monkeypatch, gpus, method):
    monkeypatch.setattr(provenance, "gpus", lambda: gpus)
    assert startup.start_method() == method


# TensorFlow's runtime starts threads, which a fork loses; what else starts one brings it back by itself.
THREADS = """
import mnist_exp.sweep.preload
from pathlib import Path
from tensorflow.python.eager import context
threads = [path.joinpath("comm").read_text().strip() for path in Path("/proc/self/task").iterdir()]
print(context._context, len(threads) - threads.count("jemalloc_bg_thd"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_workers_are_forked_from_has_started_nothing(tmp_path):
    alone = {**environment(tmp_path), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", THREADS], env=alone, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout == "None 1\n"


def parent(folder, *overrides, count=2):
    """The launcher as Hydra sets it up, for jobs that run `task`, and what it found lost."""
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = compose("train", [f"hydra.sweep.dir={folder}", *overrides], return_hydra_config=True)
        made = processes.ProcessLauncher(count)
        context = HydraContext(config_loader=GlobalHydra.instance().config_loader(), callbacks=Callbacks())
        made.setup(hydra_context=context, task_function=task, config=config)
    return made


def tried(folder, seed):
    return [int(line) for line in (folder / f"tried-{seed}").read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="no fork server is used there")
def test_workers_and_their_server_may_be_killed(tmp_path, monkeypatch):
    lost = []
    monkeypatch.setattr(
        processes.ProcessLauncher, "_report_kill", lambda self, given, times: lost.append((given, times)) or True
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    made = parent(tmp_path)
    (tmp_path / "deadly").touch()
    jobs = made.launch([[f"seed={seed}"] for seed in range(4)], 0)
    assert [job.return_value for job in jobs] == [0, 1, 2, 3]
    assert (["seed=1"], 1) in lost
    first, again = tried(tmp_path, 1)
    assert first != again
    if psutil.pid_exists(first):
        psutil.Process(first).wait(timeout=20)  # it ends: nobody waits for what it trains
    lost.clear()
    for worker in made.idle:
        for process in worker._processes.values():
            psutil.Process(process.pid).kill()
            process.join()
        worker._executor_manager_thread.join(timeout=20)  # it notes the death, so that `submit` refuses the next job
    jobs = made.launch([[f"seed={seed}"] for seed in range(4)], 4)
    assert [job.return_value for job in jobs] == [0, 1, 2, 3]
    assert not lost  # no job was under way


def test_a_lost_job_is_told_by_its_own_name(tmp_path, monkeypatch, capsys):
    ended = []
    monkeypatch.setattr(tracking, "open_store", lambda uri, experiment: experiment)
    monkeypatch.setattr(tracking, "end_dead_runs", ended.append)
    made = parent(tmp_path, "sweep.retries=1")
    given = ["model=linear", "optimizer=sgd", "seed=3", "sweep.retries=1"]
    assert (made._report_kill(given, 1), made._report_kill(given, 2)) == (True, False)
    assert capsys.readouterr().err.splitlines() == [
        "error: run linear-sgd-s3 failed: its process was killed, trying again",
        "error: run linear-sgd-s3 failed: its process was killed",
    ]
    assert ended == ["mnist_exp", "mnist_exp"]


def test_a_store_that_fails_when_a_job_is_lost_does_not_end_the_others(tmp_path, monkeypatch, capsys):
    def gone(*_):
        raise tracking.StoreError("tracking.uri=x cannot be used: gone")

    monkeypatch.setattr(tracking, "open_store", gone)
    assert parent(tmp_path)._report_kill(["name=x"], 1)
    assert capsys.readouterr().err.splitlines()[1:] == ["error: tracking.uri=x cannot be used: gone"]


def digests(folder):
    """What each run's weights were after each epoch, by the run's name."""
    found = {}
    for record in folder.glob("mlruns/*/*/artifacts/metrics.jsonl"):
        config = OmegaConf.load(record.parent / "config.yaml")
        found[config.model.width] = [json.loads(line).get("weights") for line in record.read_text().splitlines()]
    return found


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_its_own_job_and_the_others_give_the_bits_of_a_serial_sweep(tmp_path):
    given = ["experiment=smoke", "model=linear", "model._target_=mine.model", "+model.width=1,2,3,4"]
    side_by_side, serial = tmp_path / "two", tmp_path / "one"
    for folder in (side_by_side, serial):
        folder.mkdir()
        (folder / "mine.py").write_text(DEADLY)
    with start(side_by_side, *TWO, *given, group=True) as process:
        _, err = process.communicate(timeout=300)
    assert process.returncode == 1, err
    killed = re.findall(r"run linear-adam-smoke-width=(\d)-s0 failed: its process was killed(, trying again)?", err)
    assert sorted(killed) == [("2", ", trying again"), ("3", ""), ("3", ", trying again")]
    # Each process builds the model twice: to estimate its memory, and to train it.
    pids = {width: set((side_by_side / f"pids-{width}").read_text().split()) for width in (1, 2, 3, 4)}
    assert {width: len(ids) for width, ids in pids.items()} == {1: 1, 2: 2, 3: 2, 4: 1}
    with start(serial, "-m", "trainer.threads=1", *given, group=True) as process:
        _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    found = digests(side_by_side)
    assert {1, 2, 4} <= found.keys()
    assert {width: found[width] for width in (1, 2, 4)} == {w: d for w, d in digests(serial).items() if w != 3}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="no fork server is used there")
def test_a_fork_server_that_is_killed_costs_no_run(tmp_path, with_store):
    given = ["experiment=smoke", "trainer.epochs=400", "seed=0,1,2"]
    with start(with_store(tmp_path), *TWO, *given, group=True) as process:
        waiting = {"-s0  epoch 3/", "-s1  epoch 3/"}
        while waiting:
            line = process.stderr.readline()
            assert line, process.poll()
            waiting -= {begun for begun in waiting if begun in line}
        (server,) = (c for c in psutil.Process(process.pid).children() if "forkserver" in " ".join(c.cmdline()))
        server.kill()
        _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "run mlp-adam-smoke-s0 failed: its process was killed, trying again" in err
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        found = list(database.execute("SELECT name, status FROM runs"))
    database.close()
    statuses = {name: sorted(s for n, s in found if n == name) for name, _ in found if "sweep" not in name}
    twice = ["FINISHED", "KILLED"]
    assert statuses == {f"mlp-adam-smoke-s{seed}": twice if seed < 2 else ["FINISHED"] for seed in range(3)}


@pytest.mark.slow
def test_two_sweeps_at_the_same_moment_in_a_fresh_folder(tmp_path):
    both = [
        start(tmp_path, "-m", "experiment=smoke", f"name={name}", "seed=0,1", *TWO[1:], group=True)
        for name in ("x", "y")
    ]
    for process in both:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    assert runs(tmp_path) == {f"{name}-s{seed}": "FINISHED" for name in ("x", "y") for seed in (0, 1)} | {
        "sweep": "FINISHED"
    }


ROWS = 200 if SHORT else 2000
WRITES = f"""
import sys
from pathlib import Path
from mnist_exp import tracking

store = tracking.open_store(None, "mnist_exp")
number = sys.argv[1]
tags = {{"identity": number, "kind": "run"}}
with tracking.tracked_run(store, "w" + number, {{}}, tags, Path("out" + number)) as log:
    for step in range({ROWS}):
        log.metrics(step, {{"value": step + int(number) / 10}})
"""


@pytest.mark.slow
def test_no_row_of_eight_processes_that_write_to_one_store_is_lost_or_doubled(tmp_path):
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITES, str(i)], cwd=tmp_path, env=environment(tmp_path))
        for i in range(8)
    ]
    assert [writer.wait(timeout=900) for writer in writers] == [0] * 8
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        rows = list(database.execute("SELECT name, step, value FROM metrics JOIN runs USING (run_uuid)"))
    database.close()
    assert sorted(rows) == [(f"w{i}", step, step + i / 10) for i in range(8) for step in range(ROWS)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "group", "code"), [(signal.SIGINT, True, 130), (signal.SIGTERM, False, 143), (signal.SIGKILL, False, -9)]
)
def test_workers_end_with_their_parent_and_close_their_runs(tmp_path, with_store, number, group, code):
    given = ("experiment=smoke", "trainer.epochs=100000", "name=x", "seed=0,1,2")
    process = start(with_store(tmp_path), *TWO, *given, group=True)
    waiting = {"x-s0  epoch 3/", "x-s1  epoch 3/"}
    while waiting:
        assert process.poll() is None
        line = process.stderr.readline()
        waiting -= {begun for begun in waiting if begun in line}
    training = workers(process)
    assert len(training) == 2
    began = time.perf_counter()
    (os.killpg if group else os.kill)(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    # Python 3.11 may wake a thread of a pool whose pipe is just being closed, when all is done and said.
    assert "Traceback" not in err.partition("Exception ignored in: <module 'threading'")[0]
    _, alive = psutil.wait_procs(training, timeout=40)
    assert not alive
    assert time.perf_counter() - began < 40
    statuses = runs(tmp_path)
    assert statuses.pop("sweep") == ("RUNNING" if code == -9 else "KILLED")  # nobody is left to close it
    assert statuses == {"x-s0": "KILLED", "x-s1": "KILLED"}
