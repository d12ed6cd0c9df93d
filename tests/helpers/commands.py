"""Running the command as a user does: in a process of its own, in an empty folder, without this machine's settings."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import psutil

SHORT = "MNIST_EXP_SHORT" in os.environ  # .ci/run sets it: what is slow by repetition repeats less

# Runs commands one after the other in one process, because importing TensorFlow for each would take minutes.
DRIVER = """
import contextlib, faulthandler, importlib, io, json, os, resource, signal, sys, threading, time
from pathlib import Path
from hydra.core.global_hydra import GlobalHydra

def send_when(errors, text, number):
    while text not in errors.getvalue():
        time.sleep(0.01)
    os.kill(os.getpid(), number)

results, home = {}, os.getcwd()
for name, case in json.load(sys.stdin).items():
    GlobalHydra.instance().clear()
    os.chdir(case["folder"])
    command = importlib.import_module(f"mnist_exp.{case['module']}")
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # MLflow leaves it there
    sys.argv, out, err, code = [case["module"], *case["arguments"]], io.StringIO(), io.StringIO(), 0
    if case["signal"]:
        threading.Thread(target=send_when, args=(err, *case["signal"]), daemon=True).start()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a command leaves it ignored
    faulthandler.dump_traceback_later(case["seconds"], exit=True)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    began, used = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        if case["full"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit[1]))
        try:
            code = command.main() or 0
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            code = repr(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    seconds, used = time.perf_counter() - began, time.process_time() - used
    results[name] = (code, out.getvalue(), err.getvalue(), seconds, "tensorflow" in sys.modules, used)
faulthandler.cancel_dump_traceback_later()
Path(home, "results.json").write_text(json.dumps(results))
"""


class Said(NamedTuple):
    """Exit code, output and seconds of a command, and whether TensorFlow was imported by then."""

    code: int
    out: str
    err: str
    seconds: float = 0.0
    tensorflow: bool = False
    processor_seconds: float = 0.0  # other processes of a busy machine do not change it


class Case(NamedTuple):
    """A command, the folder it starts in, a signal sent once standard error has a text, whether the disk is full."""

    arguments: list[str]
    folder: str
    signal: tuple[str, int] | None = None
    full: bool = False
    module: str = "train"
    seconds: int = 90  # it may take


def environment(folder: Path) -> dict[str, str]:
    """This process's environment without what could make a command depend on the machine."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW", "MNIST_EXP", "HYDRA", "TF_"))}
    return {**kept, "KERAS_HOME": str(folder / "keras")}


def drive(folder: Path, driver: str, given: object, timeout: int, *flags: str) -> str:
    """What Python code that reads JSON prints, in a process of its own that starts in `folder`."""
    done = subprocess.run(
        [sys.executable, *flags, "-c", driver],
        input=json.dumps(given),
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def commands(folder: Path, cases: Mapping[str, Case], timeout: int = 170) -> dict[str, Said]:
    """Run the cases in one process that starts in `folder`."""
    given = {name: case._asdict() for name, case in cases.items()}
    drive(folder, DRIVER, given, timeout, "-W", "error::UserWarning:hydra")
    return {name: Said(*said) for name, said in json.loads((folder / "results.json").read_text()).items()}


def start(folder: Path, *arguments: str, group: bool = False) -> "subprocess.Popen[str]":
    """Start the command in a process of its own; with `group` in a group of its own, as a terminal makes it."""
    return subprocess.Popen(
        [sys.executable, "-m", "mnist_exp.train", *arguments],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=group,
    )


def workers(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The processes that a command of `hydra/launcher=processes` trains in: children of it or of its fork server."""
    found = []
    for child in psutil.Process(process.pid).children():
        started = " ".join(child.cmdline())
        found += [child] if "spawn_main" in started else child.children() if "forkserver" in started else []
    return found


def runs(folder: Path) -> dict[str, str]:
    """Status of each run in a folder's store, by its name; that of a sweep's own as `sweep`."""
    with sqlite3.connect(folder / "mlflow.db") as database:
        found = list(database.execute("SELECT name, status FROM runs"))
    database.close()
    return {"sweep" if name.startswith("sweep-") else name: status for name, status in found}
