"""Hydra's events around a multirun, in their order."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from mnist_exp import console, provenance
from mnist_exp.config import ConfigError, explain, run_name, targets
from mnist_exp.errors import EXIT_FAILED, EXIT_INVALID, RequestError
from mnist_exp.provenance.modules import user_code
from mnist_exp.redact import redact_file
from mnist_exp.sweep import grid, jobs, processes, search, startup, summary


class SweepCallback(Callback):
    """Checks a multirun before its first job, opens and closes the sweep's own run, passes its id to the jobs."""

    folder: Path  # of the sweep, absolute: jobs may have other names and working directories

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Checks all jobs, resolves data=auto, opens the sweep's run; exits with 2 if a job is invalid."""
        HydraConfig.instance().set_config(config)  # Hydra interpolates sweep.dir=multirun/${name} outside of jobs too
        try:
            self.folder = Path(config.hydra.sweep.dir).absolute()
            self._begin(config, kwargs["config_name"])
        except OmegaConfBaseException as error:
            _exit(ConfigError(explain(error)))
        except Exception as error:  # noqa: BLE001 - Hydra would turn it into a warning and go on
            _exit(error)

    def _begin(self, config: DictConfig, config_name: str) -> None:
        given = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
        assert isinstance(given, list)
        threads = _threads(config, given)
        asked = search.requested(config, given + threads)
        seeds = [] if asked else grid.seeds(config, given)
        expanded = asked.probes() if asked else grid.expand(config, given + threads + seeds)
        label = grid.label(config, sorted(asked.keys) if asked else grid.varied(expanded))
        checked = jobs.check_jobs(config_name, [[*job, *label] for job in expanded])
        resolved = {jobs.resolve_data(job.config) for job in checked if jobs.is_auto(job.config)}
        datasets = jobs.load_all(checked)
        startup.start_fork_server(config.hydra.launcher)
        from mnist_exp import tracking  # MLflow takes a second to import, which a mistake above need not wait for

        first = checked[0].config
        store = tracking.open_store(first.tracking.uri, first.tracking.experiment)
        for job in checked:
            if job.config.init_from is not None:
                job.config.init_from = tracking.find_finished(store.uri, job.config.init_from)
        tracking.end_dead_runs(store)
        here = "BasicLauncher" in config.hydra.launcher._target_
        jobs.check_models(checked, datasets, store, here=here, search=bool(asked))
        if first.sweep.preflight == "only":
            for number, job in enumerate(checked):
                console.say(f"{number:>4}  {run_name(job.config)}  {job.swept}")
            sys.exit(0)
        if asked:  # the number of its jobs is known, their values are not
            planned = [jobs.Job(first, "")] * (asked.remaining() * len(asked.seeds))
            sweep = summary.open_sweep(planned, store, asked.keys)
        else:
            sweep = summary.open_sweep(checked, store)
        ours = [*threads, *label, f"sweep.id={sweep.id}", *(f"sweep.data={name}" for name in resolved)]
        _add_overrides(config, seeds, ours)
        jobs.warn_unrecorded(user_code(frozenset().union(*(targets(job.config) for job in checked))))
        console.say(f"sweep {sweep.id}: {len(sweep.jobs)} runs", sys.stderr)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Tells the progress bar the job's number, and removes secrets from the files that Hydra has just written."""
        settings = config.hydra
        if settings.mode == RunMode.MULTIRUN:
            console.RunProgress.position = summary.position(settings.job.num)
        files = [self.folder / "multirun.yaml"] if settings.mode == RunMode.MULTIRUN else []
        if settings.output_subdir is not None:
            files += Path(settings.runtime.output_dir, settings.output_subdir).glob("*.yaml")
        for path in files:
            redact_file(path)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Drops the configs of a job that ended; its result is all that a sweeper reads.

        Hydra keeps those of all jobs to the end, and Keras collects garbage before each run: in a sweep of 500 runs a
        run took 1.6 s at first and 1.9 s at last.
        """
        job_return.cfg = job_return.hydra_cfg = None

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Closes the sweep's run with its summary; exits with 1 if a job has no result."""
        try:
            complete = summary.close_open_sweep("FINISHED", self.folder / "search")
        except Exception as error:  # noqa: BLE001 - as above
            summary.print_error(error)
            sys.exit(EXIT_FAILED)
        if not complete:
            sys.exit(EXIT_FAILED)


def _threads(config: DictConfig, overrides: Sequence[str]) -> list[str]:
    """The override that divides the cores among jobs that run side by side; none if their threads are given."""
    threads = processes.threads_of_a_job(config.hydra.launcher, provenance.cores())
    swept = any(override.startswith("trainer.threads=") for override in overrides)
    return [] if threads is None or swept or config.trainer.threads is not None else [f"trainer.threads={threads}"]


def _add_overrides(config: DictConfig, seeds: Sequence[str], ours: Sequence[str]) -> None:
    """Adds overrides to those of every job, and excludes all but the seeds from `hydra:job.override_dirname`."""
    keys = [*(override.partition("=")[0] for override in ours), "sweep.trial"]
    excluded = ",".join(map(json.dumps, [*config.hydra.job.config.override_dirname.exclude_keys, *keys]))
    with read_write(config.hydra), open_dict(config):
        config.hydra.overrides.task += [*seeds, *ours]
        config.hydra.overrides.hydra += [f"hydra.job.config.override_dirname.exclude_keys=[{excluded}]"]


def _exit(error: Exception) -> NoReturn:
    summary.print_error(error)
    sys.exit(EXIT_INVALID if isinstance(error, RequestError) else EXIT_FAILED)
