"""Runs the jobs of a multirun side by side in worker processes of this machine.

Each worker is a pool of one process, so that a worker that is killed loses its own job only. (`hydra/launcher=joblib`
has one pool for all: a killed worker ends the sweep.) Workers live as long as the sweep.
"""

import math
import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any

import cloudpickle
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from mnist_exp import console, provenance
from mnist_exp.config import run_name
from mnist_exp.errors import EXIT_TERMINATED, RequestError
from mnist_exp.sweep.jobs import stop_others
from mnist_exp.sweep.startup import prepare_worker, start_method

STARTS = 3  # attempts to start a worker for a job, if each is killed before it has the job
CLOSING_SECONDS = 30.0  # a run that is ended may take so long to close itself in the store


def threads_of_a_job(launcher: DictConfig, cores: int) -> int | None:
    """Threads for each of the jobs that run side by side; None for a launcher that runs one job at a time.

    Raises:
        RequestError: the launcher's settings are invalid.
    """
    kind = launcher._target_.rpartition(".")[2]
    if kind in ("Processes", "JoblibLauncher"):
        return max(1, cores // workers(launcher.n_jobs, cores))
    if kind == "RayLauncher":
        return math.ceil(launcher.ray.remote.get("num_cpus") or 1)  # Ray's default for a task is 1
    if kind in ("LocalLauncher", "SlurmLauncher"):
        return launcher.cpus_per_task or 1
    return None


def workers(n_jobs: Any, cores: int) -> int:
    """The number of worker processes that `hydra.launcher.n_jobs` asks for.

    Raises:
        RequestError: `n_jobs` is neither a whole number above 0 nor -1.
    """
    if type(n_jobs) is not int or not (n_jobs > 0 or n_jobs == -1):
        raise RequestError(f"hydra.launcher.n_jobs must be a whole number above 0, or -1 for all cores, got {n_jobs!r}")
    return cores if n_jobs == -1 else n_jobs


class ProcessLauncher:
    """The launcher behind `hydra/launcher=processes`.

    Args:
        n_jobs: number of worker processes; -1 means one for each core.
    """

    def __init__(self, n_jobs: int) -> None:
        self.count = workers(n_jobs, provenance.cores())
        self.idle: deque[ProcessPoolExecutor] = deque()
        self.started = 0

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before the first `launch`."""
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Runs the jobs; returns their results in the order given, NaN for a job whose processes were killed."""
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        waiting = deque((number, list(overrides)) for number, overrides in enumerate(job_overrides, initial_job_idx))
        running: dict[Future, tuple[ProcessPoolExecutor, int, list[str]]] = {}
        results: dict[int, JobReturn] = {}
        kills: dict[int, int] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self.count:
                    job = waiting.popleft()
                    worker, future = self._submit(*job)
                    running[future] = worker, *job
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    worker, number, overrides = running.pop(future)
                    try:
                        results[number] = future.result()
                        self.idle.append(worker)
                    except BrokenProcessPool:
                        worker.shutdown()
                        kills[number] = kills.get(number, 0) + 1
                        if self._report_kill(overrides, kills[number]):
                            waiting.appendleft((number, overrides))
                        else:
                            results[number] = JobReturn(overrides, status=JobStatus.COMPLETED, _return_value=math.nan)
        except BaseException:
            _end_workers(running)
            for worker in (*self.idle, *(worker for worker, _, _ in running.values())):
                worker.shutdown()  # else Python, as it ends, may write to a pipe that is just being closed
            raise
        return [results[number] for number in sorted(results)]

    def _submit(self, number: int, overrides: list[str]) -> tuple[ProcessPoolExecutor, Future]:
        """Gives a job to an idle worker or to a new one; skips workers that were killed while idle."""
        for left in reversed(range(len(self.idle) + STARTS)):
            worker = self.idle.popleft() if self.idle else self._start_worker()
            try:
                return worker, worker.submit(_run, number, overrides)
            except (BrokenProcessPool, OSError, EOFError):  # the worker or the fork server was killed
                worker.shutdown()
                if not left:
                    raise
        raise AssertionError

    def _start_worker(self) -> ProcessPoolExecutor:
        available = provenance.gpus()
        gpu = available[self.started % len(available)] if available else None
        self.started += 1
        # The task function is in `__main__`, which pickle refuses.
        shared = cloudpickle.dumps((self.context, self.config, self.task, Singleton.get_state()))
        context = multiprocessing.get_context(start_method())
        return ProcessPoolExecutor(1, mp_context=context, initializer=_begin, initargs=(shared, gpu))

    def _report_kill(self, overrides: list[str], kills: int) -> bool:
        """Prints and records that the process of a job was killed; returns whether to try the job again."""
        from mnist_exp import tracking  # MLflow takes a second to import

        config = self.context.config_loader.load_sweep_config(self.config, overrides)
        before = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(config)  # the default name interpolates it
        name = run_name(config)
        HydraConfig.instance().cfg = before
        again = kills <= config.sweep.retries
        console.complain(f"run {name} failed: its process was killed" + (", trying again" if again else ""))
        try:
            tracking.end_dead_runs(tracking.open_store(config.tracking.uri, config.tracking.experiment))
        except RequestError as error:  # the other jobs go on, as they would if their own calls failed
            console.complain(str(error))
        if not again:
            stop_others(config.sweep, config.tracking)
        return again


def _end_workers(running: Any) -> None:
    """Ends all workers, after `CLOSING_SECONDS` by force; those that train close their runs first."""
    for process in multiprocessing.active_children():
        process.terminate()
    wait(running, timeout=CLOSING_SECONDS)
    for process in multiprocessing.active_children():
        process.kill()


# The rest runs in the workers.
_busy = threading.Lock()
_shared: tuple[HydraContext, DictConfig, TaskFunction]


def _begin(shared: bytes, gpu: str | None) -> None:
    """Prepares a worker for its jobs."""
    global _shared
    prepare_worker()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    signal.signal(signal.SIGTERM, console.terminate)
    threading.Thread(target=_follow_parent, daemon=True).start()
    context, config, task, singletons = pickle.loads(shared)
    _shared = context, config, task
    setup_globals()
    Singleton.set_state(singletons)


def _follow_parent() -> None:
    """Ends this worker when its parent or the fork server is killed, because neither can end it then."""
    parent, started_by = multiprocessing.parent_process(), os.getppid()
    assert parent is not None
    while not wait_for([parent.sentinel], timeout=1.0) and os.getppid() == started_by:
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    _busy.acquire(timeout=CLOSING_SECONDS)
    os._exit(EXIT_TERMINATED)


def _run(number: int, overrides: list[str]) -> JobReturn:
    """Runs one job as Hydra's own launcher does."""
    context, multirun, task = _shared
    config = context.config_loader.load_sweep_config(multirun, overrides)
    with open_dict(config):
        config.hydra.job.id = config.hydra.job.num = number
    HydraConfig.instance().set_config(config)
    with _busy:
        done = run_job(task, config, "hydra.sweep.dir", "hydra.sweep.subdir", context)
    return JobReturn(overrides, status=done.status, _return_value=done._return_value)
