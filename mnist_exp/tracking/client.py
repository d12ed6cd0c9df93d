"""MLflow's client. Functions import this module at their first use, because MLflow takes 2 s to import."""

import mlflow
from mlflow.store.artifact import artifact_repository_registry
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from mnist_exp.tracking import database


class _Artifacts(LocalArtifactRepository):
    """Finds an artifact folder also after it was moved together with the database."""

    def __init__(self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> None:
        path = database.file_of(tracking_uri or "")
        here = artifact_uri if path is None else database.lies_at(artifact_uri, path)
        super().__init__(here, tracking_uri, registry_uri)


for _scheme in ("", "file"):
    artifact_repository_registry._artifact_repository_registry.register(_scheme, _Artifacts)


def client_of(uri: str) -> mlflow.MlflowClient:
    """A client of the store at a resolved URI."""
    return mlflow.MlflowClient(uri)
