"""What the store is told, and what it must not be."""

import json
import os
import resource
import shutil
import signal
import sqlite3
import threading
import time
from contextlib import suppress
from pathlib import Path

import mlflow
import psutil
import pytest
from filelock import FileLock
from mlflow.exceptions import MlflowException
from sqlalchemy import event
from sqlalchemy.engine import Engine

from mnist_exp import tracking
from mnist_exp.errors import RunError
from mnist_exp.tracking import metrics_file, run_log, sender
from tests.helpers.commands import Case, commands, drive, runs
from tests.helpers.interrupts import hidden


@pytest.mark.parametrize(
    ("address", "kept"),
    [
        ("https://user:token@example.org/a/b.git", "https://example.org/a/b.git"),
        ("https://token@example.org/a", "https://example.org/a"),
        ("https://example.org/a@b", "https://example.org/a@b"),
        ("git@example.org:a/b.git", "git@example.org:a/b.git"),
        ("/home/me/a@b", "/home/me/a@b"),
    ],
)
def test_no_password_of_a_repository_is_recorded(address, kept, monkeypatch):
    found = {"mlflow.source.git.repoURL": address, "mlflow.user": "a//b@c"}
    monkeypatch.setattr(mlflow.tracking.context.registry, "resolve_tags", lambda tags: {**tags, **found})
    assert run_log.context_tags({"kind": "run"}) == {**found, "kind": "run", "mlflow.source.git.repoURL": kept}


@pytest.fixture
def store(tmp_path, with_store, monkeypatch):
    monkeypatch.chdir(with_store(tmp_path))
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # which MLflow sets, and here it is unset again
    return tracking.open_store(uri, "mnist_exp")


PARAMS = {"name": "r", "trainer.threads": "None", "data.path": "here"}


def _killed(store, output, params=PARAMS, *, resume=False):
    """A run that records an epoch more than it has and is then interrupted."""
    tags = {"identity": "1", "kind": "run"}
    with suppress(KeyboardInterrupt), tracking.tracked_run(store, "r", params, tags, output, resume) as log:
        log.metrics(log.epochs + 1, {"loss": 0.5})
        raise KeyboardInterrupt
    return log


def test_a_continued_run_keeps_its_params_and_drops_a_torn_row(store, tmp_path):
    log = _killed(store, tmp_path / "out")
    with log.record.open("ab") as record:
        record.write(b'{"step": 2, "ti')
    others = {"name": "other", "trainer.threads": "2", "data.path": "there", "trainer.later": "1"}
    again = _killed(store, tmp_path / "elsewhere", others, resume=True)
    assert again.run_id == log.run_id
    run = tracking.find_run(store.uri, log.run_id)
    assert (run.status, run.params) == ("KILLED", {**PARAMS, "trainer.later": "1"})
    assert [json.loads(line)["step"] for line in log.record.read_text().splitlines()] == [1, 2]


def test_a_record_cut_anywhere_keeps_its_whole_rows_and_goes_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "time": 1.5, "loss": step / 7}).encode() + b"\n" for step in (1, 2, 3)]
    for end in range(len(b"".join(lines)) + 1):
        content = b"".join(lines)[:end]
        path.write_bytes(content)
        whole = content.count(b"\n")
        assert list(metrics_file.read(path)) == [1, 2, 3][:whole]
        assert path.read_bytes() == b"".join(lines[:whole])


@pytest.mark.parametrize(
    "torn",
    [b'{"step": 2, "ti{"step": 3, "time": 1.0}\n', b"\0" * 40 + b"\n", b"\xff\n", b"\n", b"[1]\n", b"1\n", b"{}\n"],
)
def test_a_torn_line_within_a_record_is_dropped(torn, tmp_path):
    """An earlier version wrote the next row behind half a row; a loss of power leaves zeros."""
    path = tmp_path / "metrics.jsonl"
    first, last = (json.dumps({"step": step, "time": 1.5}).encode() + b"\n" for step in (1, 4))
    path.write_bytes(first + torn + last)
    assert list(metrics_file.read(path)) == [1, 4]
    assert path.read_bytes() == first + last


def test_a_full_disk_leaves_no_half_row_and_the_row_follows_when_there_is_room(store, tmp_path, capsys):
    log = _killed(store, tmp_path / "out")
    before = log.record.read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 9, limit[1]))
    try:
        log._append({"step": 2, "time": 1.5})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert log.record.read_bytes() == before
    assert "metrics.jsonl not written: " in capsys.readouterr().err
    log._append({"step": 3, "time": 1.5})
    assert list(metrics_file.read(log.record)) == [1, 2, 3]


def _log_a_row(store, output):
    with tracking.tracked_run(store, "r", {}, {"identity": "1", "kind": "run"}, output) as log:
        log.metrics(1, {"loss": 0.5})
        time.sleep(20)  # another thread writes
        raise AssertionError("not interrupted")


def test_ctrl_c_does_not_cut_through_a_transaction(store, tmp_path):
    """What is left of one that was cut may lock the database, until this process ends, against closing the run."""
    happened = []

    def interrupt(connection, cursor, statement, *_):
        if statement.startswith("INSERT INTO metrics") and not happened:
            happened.append("interrupted")
            os.kill(os.getpid(), signal.SIGINT)

    def commit(connection):
        if happened:
            happened.append("committed")

    event.listen(Engine, "after_cursor_execute", interrupt)
    event.listen(Engine, "commit", commit)
    try:
        with pytest.raises(KeyboardInterrupt):
            _log_a_row(store, tmp_path / "out")
    finally:
        event.remove(Engine, "after_cursor_execute", interrupt)
        event.remove(Engine, "commit", commit)
    assert happened[:2] == ["interrupted", "committed"]
    run = tracking.find_run(store.uri, "r")
    assert (run.status, run.metrics) == ("KILLED", {"loss": 0.5})


def test_a_ctrl_c_that_a_library_hides_behind_an_error_kills_the_run(store):
    with pytest.raises(KeyboardInterrupt), _run(store):
        hidden()
    assert tracking.find_run(store.uri, "r").status == "KILLED"


def _run(store, resume=False):
    return tracking.tracked_run(store, "r", {}, {"identity": "1", "kind": "run"}, Path("out"), resume)


def test_the_run_that_mlflow_run_began_is_used_once(store, monkeypatch):
    client = mlflow.MlflowClient(store.uri)
    begun = client.create_run(store.experiment_id).info.run_id
    client.log_param(begun, "model", "mlp")
    monkeypatch.setenv("MLFLOW_RUN_ID", begun)
    for _ in range(2):
        with _run(store) as log:
            log.metrics(1, {"loss": 0.5})
    assert log.run_id != begun
    run = tracking.find_run(store.uri, begun)
    assert (run.name, run.status, run.params, run.metrics) == ("r", "FINISHED", {"model": "mlp"}, {"loss": 0.5})


def test_mlflows_own_monitor_runs_as_long_as_the_run(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")

    def names():
        return {thread.name for thread in threading.enumerate()}

    with _run(store):
        assert "SystemMetricsMonitor" in names()
    assert "SystemMetricsMonitor" not in names()


def _stored(store):
    """Status of the only run, its rows as (name, step, value), and its files."""
    run = tracking.find_run(store.uri, "r")
    client = mlflow.MlflowClient(store.uri)
    rows = [
        (name, point.step, point.value) for name in run.metrics for point in client.get_metric_history(run.run_id, name)
    ]
    files = {path.name for path in Path("mlruns").glob(f"*/{run.run_id}/artifacts/*")}
    return run.status, sorted(rows), files


def _fail(*_, **__):
    raise MlflowException("out of order")


def test_training_does_not_wait_for_the_store(store, monkeypatch):
    trained, client = threading.Event(), mlflow.MlflowClient

    def slow(method):
        def call(*given, **more):
            assert trained.wait(20), "the training waits for this call"
            return method(*given, **more)

        return call

    with _run(store) as log:
        for name in ("log_batch", "log_inputs", "log_artifact", "log_artifacts", "set_tag"):
            monkeypatch.setattr(client, name, slow(getattr(client, name)))
        (log.folder / "config.yaml").write_text("a: 1")
        log.dataset("digits", "x", "0" * 64, {"train": (1,)})
        log.tags({"execution": "keras"})
        log.upload()
        for epoch in range(1, 31):
            log.metrics(epoch, {"loss": 1 / epoch})
        trained.set()
    assert _stored(store) == (
        "FINISHED",
        [("loss", epoch, 1 / epoch) for epoch in range(1, 31)],
        {"config.yaml", "metrics.jsonl"},
    )
    run = tracking.find_run(store.uri, "r")
    assert run.tags["execution"] == "keras"
    assert [found.dataset.name for found in client(store.uri).get_run(run.run_id).inputs.dataset_inputs] == ["digits"]


def test_rows_whose_answers_are_lost_arrive_once_and_in_order(store, monkeypatch):
    monkeypatch.setattr(sender, "RETRY_SECONDS", 0.0)
    client, sent = mlflow.MlflowClient, []
    log_batch = client.log_batch

    def lossy(self, run_id, metrics=(), **more):
        log_batch(self, run_id, metrics=metrics, **more)
        sent.append([metric.step for metric in metrics])
        if len(sent) % 2:
            raise MlflowException("the answer is lost")

    with _run(store) as log:
        monkeypatch.setattr(client, "log_batch", lossy)
        for epoch in range(1, 21):
            log.metrics(epoch, {"loss": float(epoch)})
    assert _stored(store)[:2] == ("FINISHED", [("loss", epoch, float(epoch)) for epoch in range(1, 21)])
    firsts = [steps[0] for steps in sent if steps]
    assert firsts == sorted(firsts)


def test_an_error_text_of_the_store_cannot_control_the_terminal(store, monkeypatch, capsys):
    monkeypatch.setattr(sender, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(sender, "PAUSE_SECONDS", 0.0)

    def hostile(*_, **__):
        raise MlflowException("\x1b[2Jhttp://user:s3cret@host \x9b31m")

    def train():
        with _run(store) as log:
            monkeypatch.setattr(mlflow.MlflowClient, "log_batch", hostile)
            log.metrics(1, {"loss": 0.5})
            monkeypatch.setattr(log, "record", Path("no", "folder"))
            log._append({"step": 2, "time": 1.0})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    said = capsys.readouterr().err
    assert "did not accept the end of run" in said
    assert r"\x1b[2Jhttp://host \x9b31m" in said
    assert not {"\x1b", "\x9b"} & set(said)


def test_files_that_are_refused_do_not_hold_up_the_metrics(store, monkeypatch):
    monkeypatch.setattr(sender, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(sender, "RETRY_SECONDS", 0.0)
    client, arrived = mlflow.MlflowClient, threading.Event()
    log_batch = client.log_batch

    def tell(*given, **more):
        log_batch(*given, **more)
        arrived.set()

    def train():
        with _run(store) as log:
            for name in ("log_artifact", "log_artifacts"):
                monkeypatch.setattr(client, name, _fail)
            monkeypatch.setattr(client, "log_batch", tell)
            (log.folder / "config.yaml").write_text("a: 1")
            log.upload()
            log.metrics(1, {"loss": 0.5})
            assert arrived.wait(20)

    with pytest.raises(RunError, match="out of order"):
        train()
    assert _stored(store) == ("FAILED", [("loss", 1, 0.5)], set())


def _train(store, resume=False, scores=True):
    """As `run_experiment` does it; returns the run's id."""
    with _run(store, resume) as log:
        log.checkpoints.mkdir(exist_ok=True)
        log.metrics(1, {"loss": 0.5})
        if scores:
            log.metrics(0, {"test_accuracy": 0.9})
        (log.folder / "curves.png").write_text("a picture")
        assert not (resume and log.epochs == 0), "it began anew"
    return log.run_id


def test_a_run_that_only_the_store_refused_is_finished_by_the_same_command(store, monkeypatch, capsys):
    monkeypatch.setattr(sender, "PAUSE_SECONDS", 0.0)
    with monkeypatch.context() as broken:
        for name in ("log_artifact", "log_artifacts"):
            broken.setattr(mlflow.MlflowClient, name, _fail)
        with pytest.raises(
            RunError, match=r"record is in .*out/run-\w{8}: .*the same command, or resume=\w{32}"
        ) as failed:
            _train(store)
    assert _stored(store)[0] == "FAILED"
    assert "\n" not in str(failed.value)
    (checkpoints,) = Path("out").glob("run-*/checkpoints")
    assert _train(store, resume=True) in str(failed.value)
    assert _stored(store) == (
        "FINISHED",
        [("loss", 1, 0.5), ("test_accuracy", 0, 0.9)],
        {"curves.png", "metrics.jsonl"},
    )
    assert not checkpoints.exists()


def test_the_record_of_a_run_that_the_store_refused_is_sent_later(store, monkeypatch):
    monkeypatch.setattr(sender, "PAUSE_SECONDS", 0.0)
    with monkeypatch.context() as broken:
        send = mlflow.MlflowClient.log_batch  # params are sent when the run begins
        broken.setattr(
            mlflow.MlflowClient,
            "log_batch",
            lambda *given, **more: send(*given, **more) if "params" in more else _fail(),
        )
        for name in ("log_artifacts", "set_terminated"):
            broken.setattr(mlflow.MlflowClient, name, _fail)
        with suppress(ZeroDivisionError), _run(store) as log:
            log.metrics(1, {"loss": 0.5})
            (log.folder / "config.yaml").write_text("a: 1")
            raise ZeroDivisionError("a bug")
    assert _stored(store) == ("RUNNING", [], set())
    (run,) = tracking.search_runs(store)
    assert tracking.unsent_files(store.uri, run, ["config.yaml", "other"]) == {"config.yaml": b"a: 1"}
    mlflow.MlflowClient(store.uri).set_terminated(run.run_id, "KILLED", end_time=5000)
    (run,) = tracking.unsent_runs(store)
    for _ in range(2):  # twice does no harm
        tracking.send_record(store, run)
    assert _stored(store) == ("KILLED", [("loss", 1, 0.5)], {"config.yaml", "metrics.jsonl", "traceback.txt"})
    run = tracking.find_run(store.uri, run.run_id)
    assert (run.end_time, run.tags["error"]) == (5.0, "ZeroDivisionError: a bug")
    assert tracking.unsent_runs(store) == []


def test_a_record_that_cannot_be_sent_stays(store, monkeypatch):
    log = _killed(store, Path("out"))
    log.folder.mkdir()
    (log.folder / "config.yaml").write_text("a: 1")
    (run,) = tracking.unsent_runs(store)
    monkeypatch.setattr(sender, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(mlflow.MlflowClient, "log_artifacts", _fail)
    with FileLock(log.folder.parent / "lock"), pytest.raises(RunError, match="another process continues run"):
        tracking.send_record(store, run)
    with pytest.raises(tracking.StoreError, match=r"cannot be used: .*out of order"):
        tracking.send_record(store, run)
    assert tracking.unsent_runs(store) == [run]


def test_a_run_that_failed_before_its_evaluation_is_not_continued(store):
    logs = []

    def train(resume):
        with _run(store, resume) as log:
            logs.append(log)
            log.metrics(1, {"loss": 0.5})
            raise ZeroDivisionError

    for resume in (False, True):
        with pytest.raises(ZeroDivisionError):
            train(resume)
    assert logs[0].run_id != logs[1].run_id


def test_files_arrive_although_the_artifact_folder_was_deleted_meanwhile(store):
    with _run(store) as log:
        (log.folder / "config.yaml").write_text("a: 1")
        log.upload()
        while not list(Path("mlruns").rglob("config.yaml")):
            time.sleep(0.01)
        shutil.rmtree("mlruns")
        (log.folder / "curves.png").write_text("a picture")
    assert _stored(store) == ("FINISHED", [], {"config.yaml", "curves.png"})


def test_files_that_do_not_arrive_are_counted_and_named(store, monkeypatch):
    monkeypatch.setattr(sender, "PAUSE_SECONDS", 0.0)
    method = mlflow.MlflowClient.log_artifacts

    def forgetful(self, run_id, files, folder=None):
        if not Path(files, "curves.png").exists():
            method(self, run_id, files, folder)

    monkeypatch.setattr(mlflow.MlflowClient, "log_artifacts", forgetful)
    with pytest.raises(RunError, match=r"1 of 2 files did not arrive: curves\.png; the same command"):
        _train(store)
    assert _stored(store)[0] == "FAILED"


KILLED_WHILE_SENDING = """
import json, os, shutil, sys
from pathlib import Path
from mnist_exp import tracking

def kill(*_, **__):
    Path("killed").touch()
    os._exit(0)

def half(source, target, **more):
    return kill() if "mlruns" in str(target) else copy(source, target, **more)

json.load(sys.stdin)
copy, shutil.copyfile, shutil.copyfileobj = shutil.copyfile, half, kill
store = tracking.open_store("sqlite:///mlflow.db", "mnist_exp")
with tracking.tracked_run(store, "r", {}, {"identity": "1", "kind": "run"}, Path("out")) as log:
    (log.folder / "curves.png").write_text("a picture")
"""


def test_a_kill_while_a_file_is_sent_leaves_no_stray_file(tmp_path, with_store):
    drive(with_store(tmp_path), KILLED_WHILE_SENDING, None, 60)
    assert (tmp_path / "killed").exists()
    assert {path.name for path in (tmp_path / "mlruns").rglob("*") if path.is_file()} <= {"curves.png", "metrics.jsonl"}


def test_a_database_that_was_deleted_meanwhile_is_noticed(store):
    def train():
        with _run(store) as log:
            log.metrics(1, {"loss": 0.5})
            for path in Path().glob("mlflow.db*"):
                path.unlink()

    with pytest.raises(RunError, match=r"record is in .*out/run-\w{8}: .*mlflow\.db was deleted or replaced") as failed:
        train()
    assert "resume" not in str(failed.value)
    assert "\n" not in str(failed.value)
    assert len(list(Path("out").glob("run-*/artifacts/metrics.jsonl"))) == 1


def test_an_impatient_ctrl_c_ends_the_wait_for_a_store_that_hangs(store, monkeypatch, capsys):
    monkeypatch.setattr(sender, "PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr(sender, "STOP_SECONDS", 0.0)
    ended, method = threading.Event(), mlflow.MlflowClient.log_artifacts

    def hang(*given):
        os.kill(os.getpid(), signal.SIGINT)
        ended.wait(20)
        method(*given)

    def train():
        with _run(store) as log:
            monkeypatch.setattr(mlflow.MlflowClient, "log_artifacts", hang)
            log.metrics(1, {"loss": 0.5})

    with pytest.raises(KeyboardInterrupt):
        train()
    ended.set()
    for thread in threading.enumerate():
        if thread.name == "sender":
            thread.join(20)
    assert _stored(store)[0] == "KILLED"  # what was left is not done later
    assert "calls left" in capsys.readouterr().err


def test_the_end_does_not_wait_for_ever(store, monkeypatch):
    monkeypatch.setattr(sender, "STALLED_SECONDS", 0.0)
    monkeypatch.setattr(sender, "STOP_SECONDS", 0.0)
    ended = threading.Event()

    def train():
        with _run(store) as log:
            monkeypatch.setattr(mlflow.MlflowClient, "log_artifacts", lambda *_: ended.wait(20))
            log.metrics(1, {"loss": 0.5})

    with pytest.raises(RunError, match="nothing arrived for 0 s, calls left: 3"):
        train()
    ended.set()
    assert _stored(store)[:2] == ("FAILED", [("loss", 1, 0.5)])


def test_many_runs_leave_no_thread_and_no_open_file(store):
    left = []
    for _ in range(6):
        _train(store)
        left.append((threading.active_count(), psutil.Process().num_fds()))
    assert left[-1] == left[1]


LOST = """
from unittest import mock
from mlflow.exceptions import MlflowException
from mnist_exp.tracking import run_log

log = run_log.Model.log

def lost(*given, **more):
    log(*given, **more)
    raise MlflowException("the answer is lost")

undo.enter_context(mock.patch.object(run_log.Model, "log", lost))
"""


def test_an_answer_that_is_lost_at_the_end_costs_neither_scores_nor_training(tmp_path, with_store):
    case = Case(["name=r", "data=digits", "model=linear", "trainer.epochs=2"], str(with_store(tmp_path)))
    first, second = commands({"first": case._replace(setup=LOST), "second": case}).values()
    assert (first.code, second.code) == (1, 0), first.err + second.err
    assert "which was interrupted after 2 epochs (they are printed again)" in second.err  # of 2: none is trained again
    scores = [line.split("  ")[:3] for line in (first.out + second.out).splitlines() if "test_accuracy" in line]
    assert scores == [scores[0]] * 2
    assert runs(tmp_path) == {"r-s0": "FINISHED"}
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        twice = "SELECT key, step FROM metrics GROUP BY 1, 2 HAVING COUNT(*) > 1"
        assert database.execute(twice).fetchall() == []
        kept = "SELECT value FROM metrics WHERE key = 'test_accuracy'"
        ((accuracy,),) = database.execute(kept).fetchall()
        models = "SELECT COUNT(*) FROM logged_models WHERE lifecycle_stage = 'active'"
        assert database.execute(models).fetchone() == (1,)
    database.close()
    assert scores[0][2] == f"test_accuracy {accuracy:.2%}"
