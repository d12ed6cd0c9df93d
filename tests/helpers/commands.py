"""Running the command as a user does: in a process of its own, in an empty folder, without this machine's settings."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import psutil

SHORT = "MNIST_EXP_SHORT" in os.environ  # .ci/run sets it: what is slow by repetition repeats less

# So that processes that start in another folder compose as quickly.
QUICK_HYDRA = (Path(__file__).parent / "quick_hydra.py").read_text(encoding="utf-8") + "\n\nuse()\n"

# Runs batches of commands, a line of JSON each, one after the other, because each process of TensorFlow costs ten
# seconds. Its own standard output carries the answers; what native code prints there goes to standard error.
DRIVER = """
import contextlib, faulthandler, gc, importlib, io, json, os, resource, signal, sys, threading, time
from hydra.core.global_hydra import GlobalHydra

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

def send_when(printed, signals, ended):
    for text, number in signals:
        while not any(text in stream.getvalue() for stream in printed):
            if ended.wait(0.01):
                return
        os.kill(os.getpid(), number)

def forget_modules(folder):
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(folder):
            del sys.modules[name]
    importlib.invalidate_caches()

def run(case):
    GlobalHydra.instance().clear()
    os.chdir(case["folder"])
    command = importlib.import_module(f"mnist_exp.{case['module']}")
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # MLflow leaves it there
    sys.argv, out, err, code = [case["module"], *case["arguments"]], io.StringIO(), io.StringIO(), 0
    ended = threading.Event()
    sender = threading.Thread(target=send_when, args=((out, err), case["signals"], ended))
    sender.start()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a command leaves it ignored
    faulthandler.dump_traceback_later(case["seconds"], exit=True)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    imported, began, used = "tensorflow" in sys.modules, time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.ExitStack() as undo:
        exec(case["setup"], {"undo": undo})
        if case["full"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit[1]))
        try:
            code = command.main() or 0
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            code = repr(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a signal that comes late must not end this process
    ended.set()
    sender.join()
    seconds, used = time.perf_counter() - began, time.process_time() - used
    faulthandler.cancel_dump_traceback_later()
    forget_modules(case["folder"])
    imported = "tensorflow" in sys.modules and not imported
    return code, out.getvalue(), err.getvalue(), seconds, imported, used

for batch in sys.stdin:
    gc.collect()
    gc.freeze()  # else the collector walks all that was imported, again and again
    print(json.dumps({name: run(case) for name, case in json.loads(batch).items()}), file=answers, flush=True)
"""


class Said(NamedTuple):
    """Exit code, output and seconds of a command, and whether it was the first to import TensorFlow."""

    code: int
    out: str
    err: str
    seconds: float = 0.0
    tensorflow: bool = False
    processor_seconds: float = 0.0  # other processes of a busy machine do not change it


class Case(NamedTuple):
    """A command, the folder it starts in, signals each sent once the output has a text, whether the disk is full."""

    arguments: list[str]
    folder: str
    signals: tuple[tuple[str, int], ...] = ()
    full: bool = False
    module: str = "train"
    seconds: int = 90  # it may take
    setup: str = ""  # code to be run before; what it enters into the ExitStack `undo` is left afterwards


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


class Process:
    """A process that runs commands one after the other."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="commands-"))
        with (self.folder / "errors").open("w") as errors:
            self.popen = subprocess.Popen(
                [sys.executable, "-W", "error::UserWarning:hydra", "-c", QUICK_HYDRA + DRIVER],
                cwd=self.folder,
                env=environment(self.folder),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def run(self, cases: Mapping[str, Case]) -> dict[str, Said]:
        """What the commands said; fails when the process ends on the way, as after a command's `seconds`."""
        self.popen.stdin.write(json.dumps({name: case._asdict() for name, case in cases.items()}) + "\n")
        self.popen.stdin.flush()
        answer = self.popen.stdout.readline()
        assert answer, (self.folder / "errors").read_text()
        return {name: Said(*said) for name, said in json.loads(answer).items()}

    def end(self) -> None:
        """End the process, which waits for the end of its input."""
        self.popen.communicate()
        shutil.rmtree(self.folder)


_shared: dict[bool, Process] = {}


def commands(cases: Mapping[str, Case], *, trains: bool = True) -> dict[str, Said]:
    """Run the cases one after the other in a process that all tests share.

    Args:
        cases: the commands by name.
        trains: False for commands that are refused before TensorFlow is imported: they share a process without it.
    """
    if trains not in _shared:
        _shared[trains] = Process()
    try:
        return _shared[trains].run(cases)
    except AssertionError:
        _shared.pop(trains).end()  # the next commands start another
        raise


def end_processes() -> None:
    """End the processes of `commands`."""
    while _shared:
        _shared.popitem()[1].end()


def typed(text: str) -> list[str]:
    """The arguments of a command line; the preset keeps MNIST, which may not be there, out of it."""
    words = text.split(" ")
    return (
        words
        if "--config-name" in words
        else [*words[: words[0] == "-m"], "experiment=smoke", *words[words[0] == "-m" :]]
    )


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
