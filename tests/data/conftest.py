"""No test of data sees this machine's data sets, home folder or network."""

import urllib.request
from pathlib import Path

import pytest

from mnist_exp.data import download, published
from tests.helpers.data_files import offline


@pytest.fixture(autouse=True)
def isolated(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    if "mnist" not in request.keywords:
        monkeypatch.delenv("MNIST_EXP_DATA", raising=False)
    download.answers.cache_clear()
    monkeypatch.setattr(published, "DEBIAN", tmp_path / "debian")
    monkeypatch.setattr(urllib.request, "urlopen", offline)
