"""The SQLite store: created completely or not at all, never written by a reader, found after a move."""

import ast
import inspect
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import ExitStack, closing

import mlflow
import pytest
from mlflow.entities import Dataset, DatasetInput
from mlflow.exceptions import MlflowException
from mlflow.tracking._tracking_service import utils
from omegaconf import OmegaConf
from sqlalchemy import event
from sqlalchemy.engine import Engine

from mnist_exp import relocate, tracking
from mnist_exp.sweep import callback, summary
from mnist_exp.tracking import database, tables
from tests.helpers.commands import environment

# Opens a store, and kills itself once MLflow has begun to make the tables.
KILLED = """
import os, signal
from sqlalchemy import event
from sqlalchemy.engine import Engine
from mnist_exp import tracking

@event.listens_for(Engine, "after_cursor_execute")
def interrupt(connection, cursor, statement, *_):
    if statement.strip().startswith("CREATE TABLE datasets"):
        os.kill(os.getpid(), signal.SIGKILL)

tracking.open_store(None, "x")
"""
READS = """
from mnist_exp import tracking
for uri in ("sqlite:///mlflow.db", "sqlite:///other.db"):
    run = tracking.find_run(uri, "r").run_id
    store = tracking.find_store(uri, "mnist_exp")
    print(len(tracking.search_runs(store)), tracking.read_files(uri, run, ["config.yaml"]), end=" ")
    print(tracking.curve(store.uri, run, "loss"))
"""
TAGS = {"identity": "1", "kind": "run"}


def query(path, statement):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


def a_run(store, folder, name="r", end=None):
    """A run with one artifact that is closed at once, or as `end` does."""
    with tracking.tracked_run(store, name, {}, TAGS, folder / "outputs") as log:
        (log.folder / "config.yaml").write_text(f"name: {name}\n")
        log.metrics(1, {"loss": 0.5})
        if end is not None:
            log.upload()
            raise end
    return log.run_id


@pytest.fixture
def folder(tmp_path, with_store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "set here to be restored: MLflow leaves it there")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    folder = with_store(tmp_path / "project")
    monkeypatch.chdir(folder)
    return folder


def test_a_database_whose_making_was_killed_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    command = [sys.executable, "-c", KILLED]
    ended = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), timeout=60, check=False)
    assert ended.returncode == -signal.SIGKILL
    # What SQLite left of a database that somebody deleted must not get into the new one.
    with closing(sqlite3.connect(tmp_path / "old.db")) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE junk (a)")
        shutil.copy(tmp_path / "old.db-wal", tmp_path / "mlflow.db-wal")
    experiment = tracking.open_store(None, "x").experiment_id
    place = f"SELECT artifact_location FROM experiments WHERE experiment_id = {experiment}"
    assert query(tmp_path / "mlflow.db", place) == [(str(tmp_path / "mlruns" / experiment),)]
    assert query(tmp_path / "mlflow.db", "PRAGMA integrity_check") == [("ok",)]
    assert not query(tmp_path / "mlflow.db", "SELECT name FROM sqlite_master WHERE name = 'junk'")
    assert not list(tmp_path.glob("mlflow.db.new*"))


def test_ctrl_c_waits_until_the_database_is_made(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri := f"sqlite:///{tmp_path / 'mlflow.db'}")
    sent = []

    def interrupt(connection, cursor, statement, *_):
        if statement.strip().startswith("CREATE TABLE datasets") and not sent:
            sent.append(signal.raise_signal(signal.SIGINT))

    event.listen(Engine, "after_cursor_execute", interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            tracking.open_store(None, "x")
    finally:
        event.remove(Engine, "after_cursor_execute", interrupt)
    assert tracking.existing(None) == uri


@pytest.mark.parametrize(
    ("statements", "says"),
    [
        ("DROP TABLE alembic_version", "was interrupted; it has no runs: delete it"),
        ("CREATE TABLE _alembic_tmp_metrics (a)", "was interrupted; it has no runs: delete it"),
        ("UPDATE alembic_version SET version_num = 'x'; DROP TABLE runs", "was interrupted; it has no runs: delete it"),
        (
            "UPDATE alembic_version SET version_num = 'x'; INSERT INTO runs (run_uuid) VALUES ('r')",
            "`mlflow db upgrade ",
        ),
        ("DROP TABLE experiments", "is no database of MLflow"),
    ],
)
@pytest.mark.parametrize("command", [tracking.open_store, tracking.find_store])
def test_a_database_that_is_not_whole_is_left_alone_and_the_way_out_is_named(command, statements, says, folder):
    with closing(sqlite3.connect("mlflow.db")) as connection:
        connection.executescript(f"PRAGMA foreign_keys=OFF; {statements}")
    before = query("mlflow.db", "SELECT * FROM sqlite_master")
    with pytest.raises(tracking.StoreError, match=f"mlflow.db.* {says}"):
        command(None, "mnist_exp")
    assert query("mlflow.db", "SELECT * FROM sqlite_master") == before


def test_two_runs_that_name_the_same_new_data_at_once_both_do(folder, capfd):
    """MLflow looks for the data set, and adds it: the other run adds it in between."""
    store = tracking.open_store(None, "mnist_exp")
    client = mlflow.MlflowClient(store.uri)
    other = a_run(store, folder, "other")
    client.update_run(other, "RUNNING")
    same = DatasetInput(Dataset("digits", "f" * 36, "local", "{}"), [])
    raced = []

    def race(connection, cursor, statement, *_):
        if statement.startswith("INSERT INTO datasets") and not raced:
            raced.append(True)
            client.log_inputs(other, [same])

    event.listen(Engine, "before_cursor_execute", race)
    try:
        with tracking.tracked_run(store, "r", {}, TAGS, folder / "outputs") as log:
            log.dataset("digits", "here", "f" * 64, {"train": (1, 28, 28, 1)})
    finally:
        event.remove(Engine, "before_cursor_execute", race)
    named = [client.get_run(run).inputs.dataset_inputs[0].dataset.name for run in (log.run_id, other)]
    assert (raced, named, capfd.readouterr().err) == ([True], ["digits", "digits"], "")


def test_a_store_in_a_folder_without_write_access_is_read(folder):
    """Access rights do not bind root: the folder is mounted for reading only."""
    a_run(tracking.open_store(None, "mnist_exp"), folder)
    with closing(sqlite3.connect("mlflow.db")) as connection, closing(sqlite3.connect("other.db")) as other:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.backup(other)
        other.execute("PRAGMA journal_mode=delete")
    shutil.copytree(folder, there := folder.parent / "there", ignore=shutil.ignore_patterns("*-wal", "*-shm"))
    before = sorted(path.name for path in there.iterdir())
    mount = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && cd "$1" || exit 77; shift; exec "$@"'
    command = ["unshare", "-rm", "sh", "-c", mount, "sh", str(there), sys.executable, "-c", READS]
    done = subprocess.run(command, env=environment(there), capture_output=True, text=True, timeout=60, check=False)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"nothing can be mounted here: {done.stderr}")
    assert done.stdout == 2 * "1 {'config.yaml': b'name: r\\n'} {1: 0.5}\n", done.stderr
    assert sorted(path.name for path in there.iterdir()) == before


def test_reading_an_empty_file_makes_no_database_of_it(folder):
    (folder / "mlflow.db").write_bytes(b"")
    with pytest.raises(tracking.StoreError, match=r"mlflow\.db is empty"):
        tracking.find_store(None, "mnist_exp")
    assert (folder / "mlflow.db").read_bytes() == b""


@pytest.mark.parametrize(
    ("kind", "journal"),
    [("ext4", "wal"), ("nfs4", "delete"), ("cifs", "delete"), ("fuse.sshfs", "delete"), ("", "delete")],
)
def test_the_journal_is_what_the_file_system_supports(kind, journal, folder, tmp_path, monkeypatch):
    mounts = tmp_path / "mounts"
    mounts.write_text(
        f"/dev/a / ext4 rw 0 0\nserver:/x {folder} {kind or 'new'} rw 0 0\nserver:/y {folder}2 nfs rw 0 0\n"
    )
    monkeypatch.setattr(database, "MOUNTS", mounts if kind else tmp_path / "none")
    for before in ("wal", "delete"):
        query("mlflow.db", f"PRAGMA journal_mode={before}")
        with database.locked(folder / "mlflow.db"):
            pass
        assert query("mlflow.db", "PRAGMA journal_mode") == [(journal,)]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("sqlite:///x.db?timeout=60", "x.db"),
        ("sqlite+pysqlite:///x.db", "x.db"),
        ("sqlite:///file:x.db?uri=true&cache=private", "x.db"),
        ("sqlite:///a%20b.db", "a b.db"),
        ("sqlite:///50%25.db?timeout=60", "50%.db"),
    ],
)
def test_a_uri_with_options_names_one_file_and_is_found_again(given, name, folder):
    (folder / "mlflow.db").rename(name)
    before = {path.name for path in folder.iterdir()}
    store = tracking.open_store(given, "mnist_exp")
    run = a_run(store, folder)
    assert tracking.find_run(given, run[:6]).run_id == run
    assert tracking.find_store(given, "mnist_exp").experiment_id == store.experiment_id
    assert ("timeout=60" in store.uri) == ("timeout=60" in given)
    new = {path.name for path in folder.iterdir()} - before
    assert new == {f"{name}.lock", "mlruns", "outputs"} | {
        f"{name}{end}" for end in ("-wal", "-shm") if f"{name}{end}" in new
    }


@pytest.mark.parametrize("given", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_that_keeps_nothing_is_refused(given):
    with pytest.raises(tracking.StoreError, match="must name a file"):
        tracking.open_store(given, "x")


@pytest.fixture
def moved(folder, monkeypatch):
    """A project with a finished and an interrupted run, in another folder than where they were made."""
    store = tracking.open_store(None, "mnist_exp")
    a_run(store, folder, "done")
    with pytest.raises(KeyboardInterrupt):
        a_run(store, folder, "cut", KeyboardInterrupt())
    there = folder.parent / "50% there"
    folder.rename(there)
    utils._artifact_repos_cache.clear()  # as in another process
    monkeypatch.chdir(there)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    return there


def test_a_store_that_was_moved_is_read(moved):
    done = tracking.find_run(None, "done").run_id
    assert tracking.read_files(None, done, ["config.yaml"]) == {"config.yaml": b"name: done\n"}
    assert tracking.download(None, done, "metrics.jsonl", moved).is_file()
    assert tracking.artifact_names(tracking.existing(None), done) == ["config.yaml", "metrics.jsonl"]


def test_what_is_written_into_a_store_that_was_moved_goes_beside_it(moved, folder, capfd):
    store = tracking.open_store(None, "mnist_exp")
    assert f"{moved / 'mlflow.db'} was moved here" in capfd.readouterr().err
    new = a_run(store, moved, "new")
    cut = tracking.find_run(None, "cut").run_id
    with tracking.tracked_run(store, "", {}, TAGS, moved / "elsewhere", resume=cut) as log:
        assert (log.run_id, log.epochs) == (cut, 1)
        log.metrics(2, {"loss": 0.25})
    assert {path.parent.name for path in (moved / "mlruns" / store.experiment_id).glob("*/artifacts")} >= {new, cut}
    assert tracking.curve(store.uri, cut, "loss") == {1: 0.5, 2: 0.25}
    assert len(tracking.read_files(None, cut, ["metrics.jsonl"])["metrics.jsonl"].splitlines()) == 2
    assert not folder.exists()


def test_relocating_has_the_database_name_no_place_outside(moved, folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["relocate"])
    relocate.main()
    assert capsys.readouterr().out.startswith(
        f"{moved / 'mlflow.db'}: corrected the artifact locations of 2 runs; they are in "
    )
    with closing(sqlite3.connect("mlflow.db")) as connection:
        assert f"{folder}/" not in "\n".join(connection.iterdump())
    store = tracking.open_store(None, "mnist_exp")
    cut = tracking.find_run(None, "cut").run_id
    with tracking.tracked_run(store, "", {}, TAGS, moved / "elsewhere", resume=cut) as log:
        assert log.epochs == 1
    assert capsys.readouterr().err == ""
    assert not folder.exists()


def test_runs_of_a_copied_project_leave_the_original_alone(folder):
    store = tracking.open_store(None, "mnist_exp")
    a_run(store, folder, "done")
    utils._get_store(None).engine.dispose()
    copy = folder.parent / "copy"
    shutil.copytree(folder, copy)
    before = sorted(folder.rglob("*"))
    a_run(tracking.open_store(f"sqlite:///{copy}/mlflow.db", "mnist_exp"), copy, "new")
    assert sorted(folder.rglob("*")) == before
    assert len(list(copy.glob("mlruns/*/*/artifacts"))) == 2


def test_artifacts_go_beside_the_database_or_the_command_says_so(folder, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    run = a_run(tracking.open_store(uri, "another"), tmp_path)
    assert [path.parent.name for path in folder.glob("mlruns/*/*/artifacts")] == [run]
    assert capfd.readouterr().err == ""
    (tmp_path / "mlruns" / "1").mkdir(parents=True)  # as MLflow does it
    moved = f"UPDATE experiments SET artifact_location = '{tmp_path}/mlruns/1' WHERE name = 'mnist_exp'"
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection, connection:
        connection.execute(moved)
    a_run(tracking.open_store(uri, "mnist_exp"), tmp_path)
    assert f"artifacts go to {tmp_path}/mlruns/1, which is not beside" in capfd.readouterr().err


def test_of_a_deleted_run_it_is_said_how_to_restore_it(folder):
    store = tracking.open_store(None, "mnist_exp")
    run = a_run(store, folder)
    client = mlflow.MlflowClient(store.uri)
    client.delete_run(run)
    for wanted in (run[:8], "r"):
        with pytest.raises(tracking.StoreError, match=f"deleted; `mlflow runs restore --run-id {run}` restores it"):
            tracking.find_run(None, wanted)
    again = a_run(store, folder)
    assert tracking.find_run(None, "r").run_id == again
    client.delete_experiment(store.experiment_id)
    with pytest.raises(tracking.StoreError, match="`mlflow experiments restore --experiment-id 1` restores it"):
        tracking.find_run(None, again)


def test_a_run_to_begin_with_is_named_as_everywhere(folder):
    store = tracking.open_store(None, "mnist_exp")
    run = a_run(store, folder)
    assert [tracking.find_finished(None, wanted) for wanted in (run, run[:6], "r")] == [run] * 3
    with pytest.raises(KeyboardInterrupt):
        a_run(store, folder, "cut", KeyboardInterrupt())
    with pytest.raises(tracking.StoreError, match="init_from=cut must name a finished run, that one is KILLED"):
        tracking.find_finished(None, "cut")


VALUES = {
    **{"uri": None, "experiment": "mnist_exp", "wanted": "r", "run_id": "0" * 32, "names": ["config.yaml"]},
    **{"name": "config.yaml", "sweep": "s", "number": 0, "command": "c", "jobs": 1, "config_digest": "0"},
    **{"model": "m", "optimizer": "o", "batch_size": 1, "data": "d", "status": "KILLED", "best": None, "counts": {}},
    **{"note": "", "process": "p", "metric": "loss", "color": "#4c78a8", "params": {}, "tags": TAGS},
}
NAMES = {
    alias.name
    for node in ast.walk(ast.parse(inspect.getsource(tracking)))
    if isinstance(node, ast.ImportFrom) and str(node.module).startswith(f"{tracking.__name__}.")
    for alias in node.names
}
PUBLIC = {
    name: function
    for name in sorted(NAMES)
    if inspect.isfunction(function := getattr(tracking, name))
    and name not in ("is_own", "is_evaluated", "unsent_files")  # ask no store
    and {"store", "uri"} & set(inspect.signature(function).parameters)
}


@pytest.mark.parametrize("name", PUBLIC)
def test_what_the_store_refuses_is_told_in_one_line(name, folder, monkeypatch):
    """Every function that asks the store, whatever is added later."""
    store = tracking.open_store(None, "mnist_exp")
    run = tracking.find_run(None, a_run(store, folder))

    def refuse(*_, **__):
        raise MlflowException("database is locked\nand more")

    for method in (
        "search_runs",
        "set_tag",
        "create_run",
        "set_terminated",
        "log_batch",
        "get_run",
        "get_metric_history",
    ):
        monkeypatch.setattr(mlflow.MlflowClient, method, refuse)
    for method in ("list_artifacts", "download_artifacts", "get_experiment_by_name", "search_experiments"):
        monkeypatch.setattr(mlflow.MlflowClient, method, refuse)
    monkeypatch.setattr(mlflow, "get_experiment_by_name", refuse)
    monkeypatch.setattr(tables, "_reading", refuse)
    monkeypatch.setattr(database, "relocate", refuse)
    given = VALUES | {"store": store, "run": run, "folder": folder, "output": folder}
    if name in ("curve", "artifact_names", "experiments"):
        given["uri"] = store.uri
    parameters = inspect.signature(PUBLIC[name]).parameters.values()
    arguments = [given[p.name] for p in parameters if p.default is p.empty]
    if name == "existing":
        monkeypatch.setattr(database, "is_complete", refuse)
    with pytest.raises(tracking.StoreError, match=r"^[^\n]*cannot be used: database is locked$"), ExitStack() as stack:
        stack.enter_context(PUBLIC[name](*arguments))  # what is no context has raised before


def test_a_sweep_whose_own_run_was_deleted_ends_in_one_line(folder, capsys):
    store = tracking.open_store(None, "mnist_exp")
    opened = summary.open_sweep([], store)
    (own,) = mlflow.MlflowClient(store.uri).search_runs([store.experiment_id])
    mlflow.MlflowClient(store.uri).delete_run(own.info.run_id)
    assert not tracking.sweep_stopped(store, opened.id)
    hydras = callback.SweepCallback()
    hydras.folder = folder  # which it sets when the sweep begins
    with pytest.raises(SystemExit) as ended:
        hydras.on_multirun_end(OmegaConf.create({}))
    (line,) = capsys.readouterr().err.splitlines()
    assert (ended.value.code, line.startswith("error: tracking.uri=")) == (1, True)
    assert "deleted" in line
    assert summary.abandon_sweep("KILLED") is False


def test_overrides_with_spaces_survive_their_tag():
    given = ["name='a b'", "model.hidden=[64, 32]", "seed=1"]
    assert summary._overrides(summary.shlex.join(given)) == given
    assert summary._overrides("model=mlp model.hidden=[64,32] name=it's") == [
        "model=mlp",
        "model.hidden=[64,32]",
        "name=it's",
    ]
