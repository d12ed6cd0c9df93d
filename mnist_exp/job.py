"""One job from its config to its run: the same for the command, for a job of a sweep, and for Python."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.version import VersionBase

from mnist_exp.config import CONF_DIR, REPLACED, Config, SweepConfig, check
from mnist_exp.errors import RequestError
from mnist_exp.experiment import Experiment, Result, prepare, run
from mnist_exp.reproduction.record import resumed
from mnist_exp.sweep.jobs import compose_job, is_auto, is_stopped, load, resolve_data, retry, warn_unrecorded
from mnist_exp.sweep.reuse import take_finished
from mnist_exp.sweep.startup import device, import_tensorflow
from mnist_exp.sweep.summary import job_tags

if TYPE_CHECKING:
    from mnist_exp.tracking import Store

# Matches an override whose value is the name or id of a run, or the name of an experiment.
NAMED = re.compile(r"(name|init_from|resume|tracking\.experiment)=([\w.+=,-]+)")


class PreparedJob(NamedTuple):
    """A job whose data is loaded and whose store is open."""

    experiment: Experiment
    store: "Store"
    overrides: Sequence[str]  # to be recorded


class ComposedJob(NamedTuple):
    """A single run as the command composes it."""

    config: Config  # checked
    overrides: Sequence[str]  # those that are not Hydra's own
    output: Path  # folder for the run's local record, absolute; it does not exist yet


def checked(overrides: Sequence[str]) -> list[str]:
    """The overrides with names in quotation marks where Hydra would not read them as they are written.

    Raises:
        RequestError: an override has a key that only earlier versions had.
    """
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key in REPLACED:
            raise RequestError(f"{key} is no key any more; write callbacks=early_stopping {REPLACED[key]}={value}")
    return [
        f"{found[1]}={','.join(map(_quoted, found[2].split(',')))}"
        if (found := NAMED.fullmatch(override))
        else override
        for override in overrides
    ]


def _quoted(name: str) -> str:
    """A name in quotation marks if it has a `=`, as those of runs have, or looks like a number, as `12e45678` does."""
    with suppress(ValueError):
        float(name)
        return f"'{name}'"
    return f"'{name}'" if "=" in name or name.lower() in ("true", "false") else name


def compose(overrides: Sequence[str]) -> ComposedJob:
    """Composes and checks a single run outside of Hydra's command.

    Raises:
        ConfigError: an override or the config is invalid, one line for each mistake.
    """
    overrides = checked(overrides)
    with _hydra():
        composed = compose_job("train", overrides)
        settings = HydraConfig.get()
        if settings.mode == RunMode.MULTIRUN:
            raise RequestError(f"{' '.join(overrides)} is a sweep, not a single run")
        return ComposedJob(check(composed), list(settings.overrides.task), Path(settings.run.dir).absolute())


@contextmanager
def _hydra() -> Iterator[None]:
    """Hydra on our configs; afterwards it is as it was, because the caller may use it for other configs."""
    state, config, version = GlobalHydra.instance(), HydraConfig.instance(), VersionBase.instance()
    before = state.hydra, config.cfg, version.version_base
    state.clear()
    try:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra, config.cfg, version.version_base = before


def prepare_job(config: Config, overrides: Sequence[str]) -> PreparedJob:
    """Loads the data and opens the store. Most mistakes are found here, before TensorFlow is imported, which is slow.

    Args:
        config: of a single run or of a job of a sweep, checked. Its relative paths start from the working directory.
        overrides: with which it was composed.

    Raises:
        RequestError: the data, the store, or a run that the config names cannot be used.
    """
    if config.sweep.id is None and config.sweep != SweepConfig():
        usual, given = asdict(SweepConfig()), asdict(config.sweep)
        key = next(key for key in given if given[key] != usual[key])
        raise RequestError(f"sweep.{key} is for a sweep, got {given[key]!r} in a single run: add -m")
    overrides = [text for text in overrides if not text.startswith("sweep.")]
    if config.resume is not None:
        config, overrides = resumed(config, overrides)
    if is_auto(config):
        resolve_data(config)
    dataset = load(config)
    from mnist_exp import tracking

    store = tracking.open_store(config.tracking.uri, config.tracking.experiment)
    if config.init_from is not None:
        config.init_from = tracking.find_finished(config.tracking.uri, config.init_from)
    return PreparedJob(prepare(config, dataset, device(config.trainer)), store, overrides)


def run_job(job: PreparedJob, output: Path, number: int = 0) -> Result | None:
    """Trains a job, or in a sweep takes the result of a finished run of equal identity.

    Args:
        job: from `prepare_job`.
        output: folder for the run's local record.
        number: of the job in its sweep.

    Returns:
        The run; None if the failure of another job stopped the sweep.
    """
    experiment, store, overrides = job
    config = experiment.config
    tags, retries = {}, 0
    if config.sweep.id is None:
        from mnist_exp import tracking

        tracking.end_dead_runs(store)
        warn_unrecorded(experiment.user_code)
    else:
        if is_stopped(config, store):
            return None
        if (known := take_finished(experiment, store, number)) is not None:
            return Result(known.run_id, known.metrics)
        tags, retries = job_tags(config.sweep.id, number), config.sweep.retries
    import_tensorflow()
    from mnist_exp.sweep import preflight

    preflight.check(config, experiment.dataset)
    further = {"tags": tags, "overrides": overrides, **_follower(config)}
    return retry(lambda: run(experiment, store, output, **further), retries)


def _follower(config: Config) -> dict[str, Any]:
    """The Optuna study that may prune the run, as an argument of `experiment.run`."""
    if config.sweep.trial.id is None:
        return {}
    from mnist_exp.sweep import optuna_search  # Optuna takes a second to import

    return {"follow": optuna_search.pruning(config.sweep)}
