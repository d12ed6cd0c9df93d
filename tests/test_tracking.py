"""What the store is told, and what it must not be."""

import json
import resource
import signal
from contextlib import suppress

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from mnist_exp import tracking


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
    monkeypatch.setattr(tracking.mlflow.tracking.context.registry, "resolve_tags", lambda tags: {**tags, **found})
    assert tracking._context({"kind": "run"}) == {**found, "kind": "run", "mlflow.source.git.repoURL": kept}


@pytest.fixture
def store(tmp_path, with_store, monkeypatch):
    uri = f"sqlite:///{with_store(tmp_path) / 'mlflow.db'}"
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
    assert (run.info.status, run.data.params) == ("KILLED", {**PARAMS, "trainer.later": "1"})
    assert [json.loads(line)["step"] for line in log.record.read_text().splitlines()] == [1, 2]


def test_a_record_cut_anywhere_keeps_its_whole_rows_and_goes_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "time": 1.5, "loss": step / 7}).encode() + b"\n" for step in (1, 2, 3)]
    for end in range(len(b"".join(lines)) + 1):
        content = b"".join(lines)[:end]
        path.write_bytes(content)
        whole = content.count(b"\n")
        assert list(tracking._read_record(path)) == [1, 2, 3][:whole]
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
    assert list(tracking._read_record(path)) == [1, 4]
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
    assert list(tracking._read_record(log.record)) == [1, 2, 3]


def _log_a_row(store, output):
    with tracking.tracked_run(store, "r", {}, {"identity": "1", "kind": "run"}, output) as log:
        log.metrics(1, {"loss": 0.5})
        raise AssertionError("not interrupted")


def test_ctrl_c_does_not_cut_through_a_transaction(tmp_path, monkeypatch):
    """What is left of one that was cut may lock the database, until this process ends, against closing the run."""
    monkeypatch.chdir(tmp_path)
    store = tracking.open_store(None, "x")
    happened = []

    def interrupt(connection, cursor, statement, *_):
        if statement.startswith("INSERT INTO metrics") and not happened:
            happened.append("interrupted")
            signal.raise_signal(signal.SIGINT)

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
    assert (run.info.status, run.data.metrics) == ("KILLED", {"loss": 0.5})
