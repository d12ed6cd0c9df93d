"""`python -m mnist_exp.sync`."""

import sqlite3

from tests.helpers.commands import Case, commands, runs

# The store takes no file, or not the end of a run either.
REFUSED = """
from unittest import mock
import mlflow
from mlflow.exceptions import MlflowException
from mnist_exp import provenance
from mnist_exp.tracking import sender

def gone(*given, **more):
    raise MlflowException("the server is gone")

for name in {names}:
    undo.enter_context(mock.patch.object(mlflow.MlflowClient, name, gone))
undo.enter_context(mock.patch.object(sender, "PAUSE_SECONDS", 0.0))
"""
# One process runs all commands of this test; here a run's process is told to be gone.
DIED = """
from unittest import mock
from mnist_exp.tracking import left_runs

undo.enter_context(mock.patch.object(left_runs, "is_gone", lambda process: True))
"""


def test_what_the_store_did_not_take_is_sent_and_finished(tmp_path, with_store):
    folder = str(with_store(tmp_path))
    train = ["data=digits", "model=linear"]
    refused = REFUSED.format(names=("log_artifacts",))
    gone = REFUSED.format(names=("log_artifacts", "set_terminated"))
    said = commands(
        {
            "finished": Case([*train, "name=a"], folder, setup=refused),
            "diverged": Case([*train, "name=b", "optimizer.learning_rate=1e38"], folder, setup=gone),
            "still gone": Case([], folder, module="sync", setup=refused + DIED),
            "sync": Case([], folder, module="sync"),
            "again": Case([], folder, module="sync"),
        }
    )
    assert [case.code for case in said.values()] == [1, 1, 1, 0, 0], said
    assert "Traceback" not in said["still gone"].err
    assert "cannot be used: the server is gone" in said["still gone"].err
    assert "a-s0  continues run " in said["sync"].err
    assert "  sent; it is KILLED\n" in said["sync"].out
    assert said["again"].out.startswith("nothing to send: ")
    assert runs(tmp_path) == {"a-s0": "FINISHED", "b-s0": "KILLED"}
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        counts = dict(database.execute("SELECT key, COUNT(*) FROM metrics WHERE key = 'test_accuracy' GROUP BY key"))
        errors = database.execute("SELECT name FROM tags JOIN runs USING (run_uuid) WHERE key = 'error'").fetchall()
    database.close()
    assert counts == {"test_accuracy": 1}
    assert errors == [("b-s0",)]
