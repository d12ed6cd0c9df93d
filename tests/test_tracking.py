"""What the store is told, and what it must not be."""

import signal

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
