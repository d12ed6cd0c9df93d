"""Private names of MLflow that `mnist_exp.tracking` uses, and what breaks when they change."""

import base64
import json
import zlib
from pathlib import Path

import mlflow
from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry, get_artifact_repository
from mlflow.store.db.utils import _get_latest_schema_revision
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking._tracking_service.utils import _get_store

from mnist_exp import tracking
from mnist_exp.tracking import charts, client, database, store


def test_the_registry_uses_our_artifact_folder(tmp_path):
    """Else the artifacts of a store that was moved are not found."""
    for scheme in ("", "file"):
        assert _artifact_repository_registry._registry[scheme] is client._Artifacts
    uri = database.uri_of(tmp_path / "mlflow.db")
    assert isinstance(get_artifact_repository(str(tmp_path), uri), client._Artifacts)


def test_the_latest_schema_is_that_of_a_new_database(tmp_path, with_store):
    """Else each existing database is refused as one of another version."""
    uri = database.uri_of(with_store(tmp_path) / "mlflow.db")
    assert store._schema() == _get_latest_schema_revision()
    assert database.is_complete(uri, store._schema())


def test_a_store_has_the_engine_that_the_client_writes_with(tmp_path, with_store, monkeypatch):
    """Else the write-ahead log is not merged into the database at exit."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "set here to be restored: MLflow leaves it there")
    opened = tracking.open_store(database.uri_of(with_store(tmp_path) / "mlflow.db"), "mnist_exp")
    found = _get_store(opened.uri)
    assert isinstance(found, SqlAlchemyStore)
    assert mlflow.MlflowClient(opened.uri)._tracking_client.store is found
    found.engine.dispose()
    assert found.engine.pool.checkedout() == 0


def test_the_ui_knows_the_names_in_the_view_of_a_sweep():
    """Else the address that a sweep prints opens MLflow's own order of charts, or an error."""
    program = b"".join(
        path.read_bytes() for path in Path(mlflow.__file__).parent.glob("server/js/build/static/js/*.js")
    )
    names = {"viewStateShareKey", "compareRunsMode", "deflate;", charts.VIEW}
    state = json.loads(zlib.decompress(base64.b64decode(charts.sweep_view("").removeprefix("deflate;"))))
    names |= state.keys() | state["compareRunCharts"][0].keys() | state["compareRunSections"][0].keys()
    assert not {name for name in names if name.encode() not in program}
