"""The order of Hydra's events around a multirun."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from mnist_exp import provenance
from mnist_exp.config import ConfigError, explain
from mnist_exp.errors import EXIT_FAILED, EXIT_INVALID, RequestError
from mnist_exp.redact import redact_file
from mnist_exp.sweep import processes, search
from mnist_exp.sweep.jobs import Job, announce, check_data, check_jobs, grid, is_auto, settle, warn_unrecorded
from mnist_exp.sweep.summary import _open, _say, close_sweep, open_sweep


class SweepCallback(Callback):
    """Hydra calls this around a multirun. It opens and closes the sweep's own run and tells the jobs about it."""

    folder: Path  # of the sweep, absolute: jobs may have other names and working directories

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check all jobs, settle what data=auto means, open the sweep's run; exit with 2 when a job makes no sense."""
        given = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
        assert isinstance(given, list)
        HydraConfig.instance().set_config(config)  # Hydra resolves sweep.dir=multirun/${name} outside of jobs too
        try:
            self.folder = Path(config.hydra.sweep.dir).absolute()
            shared = _threads(config, given)
            searched = search.searcher(config, given + shared)
            expanded = searched.probes() if searched else grid(config, given + shared)
            jobs = check_jobs(kwargs["config_name"], expanded)
            settled = {settle(job.config) for job in jobs if is_auto(job.config)}
            check_data(jobs)
            processes.import_beside(config.hydra.launcher)
            from mnist_exp import tracking  # MLflow takes a second to import: not for a mistake

            first = jobs[0].config
            store = tracking.open_store(first.tracking.uri, first.tracking.experiment)
            for job in jobs:
                if job.config.init_from is not None:
                    job.config.init_from = tracking.find_finished(store.uri, job.config.init_from)
            tracking.end_dead_runs(store)
            what = "ends of the space" if searched else "runs"
            announce(jobs, store, here="BasicLauncher" in config.hydra.launcher._target_, what=what)
            if first.sweep.preflight == "only":
                sys.exit(0)
            if searched:  # the values of its jobs are not known yet, their number is
                jobs = [Job(first, "")] * (searched.remaining() * len(searched.seeds))
            sweep = open_sweep(jobs, store, searched.keys if searched else frozenset())
        except OmegaConfBaseException as error:
            _leave(ConfigError(explain(error)))
        except Exception as error:  # noqa: BLE001 - Hydra would make a warning of it and go on
            _leave(error)
        _add(config, [*shared, f"sweep.id={sweep.id}", *(f"sweep.data={name}" for name in settled)])
        warn_unrecorded([job.config for job in jobs])
        print(f"sweep {sweep.id}: {len(jobs)} runs", file=sys.stderr, flush=True)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Remove secrets from the files that Hydra has just written for a job and its sweep."""
        settings = config.hydra
        files = [self.folder / "multirun.yaml"] if settings.mode == RunMode.MULTIRUN else []
        if settings.output_subdir is not None:
            files += Path(settings.runtime.output_dir, settings.output_subdir).glob("*.yaml")
        for path in files:
            redact_file(path)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Close the sweep's run with its summary; exit with 1 when a job has no result."""
        try:
            complete = [close_sweep(sweep, "FINISHED", self.folder / "search") for sweep in _open[:]]
        except Exception as error:  # noqa: BLE001 - as above
            _say(error)
            sys.exit(EXIT_FAILED)
        if not all(complete):
            sys.exit(EXIT_FAILED)


def _threads(config: DictConfig, overrides: Sequence[str]) -> list[str]:
    """The override that divides the cores among jobs which run side by side, unless their threads are given."""
    threads = processes.threads_of_a_job(config.hydra.launcher, provenance.cores())
    swept = any(override.startswith("trainer.threads=") for override in overrides)
    return [] if threads is None or swept or config.trainer.threads is not None else [f"trainer.threads={threads}"]


def _add(config: DictConfig, overrides: Sequence[str]) -> None:
    """Add overrides of ours to those of every job, and keep them out of `hydra:job.override_dirname`."""
    ours = [*(override.partition("=")[0] for override in overrides), "sweep.trial"]
    excluded = ",".join(map(json.dumps, [*config.hydra.job.config.override_dirname.exclude_keys, *ours]))
    with read_write(config.hydra), open_dict(config):
        config.hydra.overrides.task += overrides
        config.hydra.overrides.hydra += [f"hydra.job.config.override_dirname.exclude_keys=[{excluded}]"]


def _leave(error: Exception) -> NoReturn:
    _say(error)
    sys.exit(EXIT_INVALID if isinstance(error, RequestError) else EXIT_FAILED)
