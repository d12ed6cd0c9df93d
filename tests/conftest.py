"""What all tests share."""

import gc
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest
from filelock import FileLock

from mnist_exp import tracking
from mnist_exp.tracking.database import uri_of
from mnist_exp.tracking.store import Store
from tests.helpers import quick_hydra
from tests.helpers.commands import end_processes, environment

quick_hydra.use()

signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores Ctrl-C


# The files that take longest. Begun last, one of them would leave the other test process without work.
FIRST = ("tests/training/", "tests/test_train.py", "tests/end_to_end/", "tests/test_everything.py", "tests/config/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files of `FIRST` first, in this order."""
    items.sort(key=lambda item: next((n for n, path in enumerate(FIRST) if item.nodeid.startswith(path)), len(FIRST)))


def pytest_collection_finish() -> None:
    """Has the garbage collector skip what the test modules imported: walking it took 2 s of 5 in tests/config."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def no_process_is_left() -> Iterator[None]:
    """Ends the processes that commands were run in."""
    yield
    end_processes()


@pytest.fixture(scope="module", autouse=True)
def mlflow_forgets_the_store() -> Iterator[None]:
    """MLflow keeps the last store in an environment variable, where the tests of the next file would find it."""
    with tracking.defaults_kept():
        yield


def make_store(folder: Path) -> None:
    folder.mkdir()
    make = "from mnist_exp import tracking; tracking.open_store(None, 'mnist_exp')"
    subprocess.run([sys.executable, "-c", make], cwd=folder, env=environment(folder), check=True, timeout=60)
    with sqlite3.connect(folder / "mlflow.db") as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()


@pytest.fixture
def store(with_store: Callable[[Path], Path], tmp_path: Path) -> Store:
    """An empty experiment in a store of its own."""
    uri = uri_of(with_store(tmp_path) / "mlflow.db")
    return Store(uri, "mine", mlflow.MlflowClient(uri).create_experiment("mine"))


@pytest.fixture(scope="session")
def with_store(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Puts an empty store into a folder: a copy of one that all test processes share, for MLflow takes seconds."""
    own = tmp_path_factory.getbasetemp()
    template = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "template"
    with FileLock(f"{template}.lock"):
        if not template.exists():
            make_store(template)

    def put(folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        shutil.copy(template / "mlflow.db", folder / "mlflow.db")
        with sqlite3.connect(folder / "mlflow.db") as copy:
            moved = (str(template), str(folder))
            copy.execute("UPDATE experiments SET artifact_location = replace(artifact_location, ?, ?)", moved)
        copy.close()
        return folder

    return put
