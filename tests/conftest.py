"""What all tests share."""

import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.commands import end_processes, environment

signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores Ctrl-C


@pytest.fixture(scope="session", autouse=True)
def no_process_is_left() -> Iterator[None]:
    """Ends the processes that commands were run in."""
    yield
    end_processes()


@pytest.fixture(scope="session")
def with_store(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Puts an empty store into a folder: a copy, for MLflow takes two seconds to make one."""
    template = tmp_path_factory.mktemp("template")
    make = "from mnist_exp import tracking; tracking.open_store(None, 'mnist_exp')"
    subprocess.run([sys.executable, "-c", make], cwd=template, env=environment(template), check=True, timeout=60)
    with sqlite3.connect(template / "mlflow.db") as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()

    def put(folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        shutil.copy(template / "mlflow.db", folder / "mlflow.db")
        with sqlite3.connect(folder / "mlflow.db") as copy:
            moved = (str(template), str(folder))
            copy.execute("UPDATE experiments SET artifact_location = replace(artifact_location, ?, ?)", moved)
        copy.close()
        return folder

    return put
