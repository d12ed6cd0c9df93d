"""Tags of the program, which MLflow's UI hides."""

import mlflow
import pytest

from mnist_exp import tracking
from mnist_exp.provenance import process
from mnist_exp.tracking import queries, tables, tags

OWN = {"kind": "run", "identity": "abc", "process": "host 1 2", "sweep": "today"}


def record(store, found):
    client = mlflow.MlflowClient(store.uri)
    run = client.create_run(store.experiment_id, tags=found).info.run_id
    client.set_terminated(run)
    return run


def test_a_person_reads_the_tags_of_the_run_alone():
    shown = {name for name in tags.in_store(OWN) if not name.startswith("mlflow.")}
    assert shown == {"kind", "sweep"}


def test_tags_come_back_under_their_plain_names(store):
    run = record(store, {**tags.in_store(OWN), "mlflow.note.content": "a note"})
    (table,) = tables.runs(store.uri, "run_uuid = ?", run)
    assert table.tags == OWN
    assert queries.run_info(mlflow.MlflowClient(store.uri).get_run(run)).tags == OWN


@pytest.mark.parametrize("place", ["file", "server"])
def test_runs_of_an_earlier_version_are_found_with_the_newer_ones(store, place, monkeypatch):
    if place == "server":  # where only MLflow can search
        monkeypatch.setattr(queries.database, "file_of", lambda uri: None)
    runs = [record(store, OWN), record(store, tags.in_store(OWN)), record(store, {**OWN, "identity": "other"})]
    found = queries.tagged_runs(store, "identity", "abc", finished=True)
    assert sorted(run.run_id for run in found) == sorted(runs[:2])
    assert queries.tagged_runs(store, "identity", "abc", finished=False) == []


def test_a_run_that_two_versions_recorded_has_the_tags_of_the_newer(store):
    newer = {**OWN, "process": "host 3 4"}
    run = record(store, {**OWN, **tags.in_store(newer)})
    (table,) = tables.runs(store.uri, "run_uuid = ?", run)
    assert table.tags == newer
    assert queries.run_info(mlflow.MlflowClient(store.uri).get_run(run)).tags == newer


def test_no_run_of_another_program_is_ended(store):
    client = mlflow.MlflowClient(store.uri)
    theirs = client.create_run(store.experiment_id, tags={}).info.run_id
    ours = client.create_run(store.experiment_id, tags=tags.in_store(OWN)).info.run_id
    ended = process().rsplit(" ", 1)[0] + " 1.00"  # the number of this process in 1970
    gone = client.create_run(store.experiment_id, tags=tags.in_store({**OWN, "process": ended})).info.run_id
    tracking.end_dead_runs(store)
    assert [client.get_run(run).info.status for run in (theirs, ours, gone)] == ["RUNNING", "RUNNING", "KILLED"]
