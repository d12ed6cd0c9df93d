"""Jobs of a multirun side by side in processes of this machine.

The official `hydra/launcher=joblib` loses the rest of a sweep when a worker is killed: its workers are one pool, and a
pool that loses a process is broken. Here every worker is a pool of its own, so that it takes its job alone with it.
Workers live as long as the sweep. On Linux they are forked from a server that has imported TensorFlow and done nothing
with it, so that none waits for the import; where there are GPUs, each imports it anew.
"""

import math
import multiprocessing
import multiprocessing.forkserver
import os
import pickle
import signal
import sys
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from mnist_exp import console, provenance
from mnist_exp.config import run_name
from mnist_exp.errors import EXIT_TERMINATED, RequestError

STARTS = 3  # times that a worker is begun for a job, where each is killed before it has the job
CLOSING_SECONDS = 30.0  # that a run which is ended may take to close itself in the store


def threads_of_a_job(launcher: DictConfig, cores: int) -> int | None:
    """Threads that leave room for the jobs beside it; None where a launcher runs one job at a time.

    Raises:
        RequestError: the launcher's settings make no sense.
    """
    kind = launcher._target_.rpartition(".")[2]
    if kind in ("Processes", "JoblibLauncher"):
        return max(1, cores // workers(launcher.n_jobs, cores))
    if kind == "RayLauncher":
        return math.ceil(launcher.ray.remote.get("num_cpus") or 1)  # what Ray gives a task unless told otherwise
    if kind in ("LocalLauncher", "SlurmLauncher"):
        return launcher.cpus_per_task or 1
    return None


def workers(n_jobs: Any, cores: int) -> int:
    """How many processes `hydra.launcher.n_jobs` asks for.

    Raises:
        RequestError: it is no such number.
    """
    if type(n_jobs) is not int or not (n_jobs > 0 or n_jobs == -1):
        raise RequestError(f"hydra.launcher.n_jobs must be a whole number above 0, or -1 for all cores, got {n_jobs!r}")
    return cores if n_jobs == -1 else n_jobs


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; TensorFlow would take hold of them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name not in ("", "-1")]
    return sorted(path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))


def start_method() -> str:
    """How workers are begun. A fork keeps no threads and no GPU: it has to come before TensorFlow computes."""
    return "forkserver" if sys.platform == "linux" and not gpus() else "spawn"


def import_beside(launcher: DictConfig) -> None:
    """Begin the import of what workers are forked with: it takes as long as the same import in this process."""
    if launcher._target_.endswith(".Processes") and start_method() == "forkserver":
        multiprocessing.set_forkserver_preload(["mnist_exp.sweep.preloaded"])
        multiprocessing.forkserver.ensure_running()


class Shared(NamedTuple):
    """What all jobs of a multirun need, as Hydra hands it to a launcher."""

    context: HydraContext
    config: DictConfig
    task: TaskFunction
    singletons: Any


class Processes(Launcher):
    """`hydra/launcher=processes`.

    Args:
        n_jobs: processes; -1: one for each core.
    """

    def __init__(self, n_jobs: int) -> None:
        self.count = workers(n_jobs, provenance.cores())
        self.idle: deque[ProcessPoolExecutor] = deque()
        self.begun = 0

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before the first `launch`."""
        self.shared = Shared(hydra_context, config, task_function, None)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Run the jobs; called by Hydra, by some sweepers several times."""
        Path(self.shared.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        todo = deque((number, list(overrides)) for number, overrides in enumerate(job_overrides, initial_job_idx))
        running: dict[Future, tuple[ProcessPoolExecutor, int, list[str]]] = {}
        results: dict[int, JobReturn] = {}
        lost: dict[int, int] = {}
        try:
            while todo or running:
                while todo and len(running) < self.count:
                    number, overrides = todo.popleft()
                    worker, future = self._submit(number, overrides)
                    running[future] = worker, number, overrides
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    worker, number, overrides = running.pop(future)
                    try:
                        results[number] = future.result()
                        self.idle.append(worker)
                    except BrokenProcessPool:
                        worker.shutdown()
                        lost[number] = lost.get(number, 0) + 1
                        if self._again(overrides, lost[number]):
                            todo.appendleft((number, overrides))
                        else:
                            results[number] = JobReturn(overrides, status=JobStatus.COMPLETED, _return_value=math.nan)
        except BaseException:
            _end(running)
            for worker in (*self.idle, *(worker for worker, _, _ in running.values())):
                worker.shutdown()  # else Python, on its way out, may write to a pipe that is just being closed
            raise
        return [results[number] for number in sorted(results)]

    def _submit(self, number: int, overrides: list[str]) -> tuple[ProcessPoolExecutor, Future]:
        """Give a job to a worker that is alive."""
        for left in reversed(range(len(self.idle) + STARTS)):
            worker = self._worker()
            try:
                return worker, worker.submit(_run, number, overrides)
            except (BrokenProcessPool, OSError, EOFError):  # it was killed while it waited, or the fork server was
                worker.shutdown()
                if not left:
                    raise
        raise AssertionError

    def _worker(self) -> ProcessPoolExecutor:
        """One that waits, or a new one."""
        if self.idle:
            return self.idle.popleft()
        available = gpus()
        gpu = available[self.begun % len(available)] if available else None
        self.begun += 1
        shared = cloudpickle.dumps(self.shared._replace(singletons=Singleton.get_state()))
        context = multiprocessing.get_context(start_method())
        return ProcessPoolExecutor(1, mp_context=context, initializer=_begin, initargs=(shared, gpu))

    def _again(self, overrides: list[str], times: int) -> bool:
        """Record that the run of a worker was killed, and say so; whether the job is to be tried again."""
        from mnist_exp import tracking

        config = self.shared.context.config_loader.load_sweep_config(self.shared.config, overrides)
        before = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(config)  # for interpolations such as that of the default name
        name, own = run_name(config), config.sweep
        place = config.tracking.uri, config.tracking.experiment
        HydraConfig.instance().cfg = before
        again = times <= own.retries
        console.complain(f"run {name} failed: its process was killed" + (", trying again" if again else ""))
        try:
            store = tracking.open_store(*place)
            tracking.end_dead_runs(store)
            if not again and own.on_error == "stop":
                tracking.stop_sweep(store, own.id)
        except RequestError as error:  # the other jobs go on, as they would if their own calls failed
            console.complain(str(error))
        return again


def _end(running: Any) -> None:
    """End all workers; those that train close their runs first."""
    for process in multiprocessing.active_children():
        process.terminate()
    wait(running, timeout=CLOSING_SECONDS)
    for process in multiprocessing.active_children():
        process.kill()


# What follows runs in the workers.
_busy = threading.Lock()
_shared: Shared


def _begin(shared: bytes, gpu: str | None) -> None:
    global _shared
    os.environ["TTY_COMPATIBLE"] = "0"  # a terminal that many write to shows lines, no progress bars
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group: the parent decides
    signal.signal(signal.SIGTERM, console.terminate)
    threading.Thread(target=_follow_parent, daemon=True).start()
    _shared = pickle.loads(shared)
    setup_globals()
    Singleton.set_state(_shared.singletons)


def _follow_parent() -> None:
    """End this worker when its parent or the fork server is killed: nobody else tells it, nobody waits for it."""
    parent, started_by = multiprocessing.parent_process(), os.getppid()
    assert parent is not None
    while not wait_for([parent.sentinel], timeout=1.0) and os.getppid() == started_by:
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    _busy.acquire(timeout=CLOSING_SECONDS)
    os._exit(EXIT_TERMINATED)


def _run(number: int, overrides: list[str]) -> JobReturn:
    config = _shared.context.config_loader.load_sweep_config(_shared.config, overrides)
    with open_dict(config):
        config.hydra.job.id = config.hydra.job.num = number
    HydraConfig.instance().set_config(config)
    with _busy:
        done = run_job(_shared.task, config, "hydra.sweep.dir", "hydra.sweep.subdir", _shared.context)
    return JobReturn(overrides, status=done.status, _return_value=done._return_value)
