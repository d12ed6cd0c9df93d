"""The jobs of a multirun: their overrides, their checks, and what one of them does besides its run."""

import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from mnist_exp import console, provenance
from mnist_exp.config import (
    CONF_DIR,
    PACKAGE,
    Config,
    ConfigError,
    build,
    check,
    check_batch,
    explain,
    run_name,
    targets,
)
from mnist_exp.data import Dataset, check_dataset, resolve_auto
from mnist_exp.errors import RequestError, first_line
from mnist_exp.experiment import prepare
from mnist_exp.provenance.modules import recordable, user_code
from mnist_exp.sweep.reuse import alike_runs, finished
from mnist_exp.sweep.startup import device, import_tensorflow

TELL_SECONDS = 5.0
Result = TypeVar("Result")


class Job(NamedTuple):
    """One run that a multirun is to make: its config, and the overrides that set it apart from its siblings."""

    config: Config
    swept: str

    @property
    def name(self) -> str:
        """That of its run."""
        return run_name(self.config)


def grid(config: DictConfig, overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of every job of Hydra's own sweeper; of two overrides of a key the later counts.

    Raises:
        RequestError: there is no job, or what is asked for needs a search.
    """
    given = [*(f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()), *overrides]
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    parsed = {override.get_key_element(): override for override in parser.parse_overrides(given)}.values()
    axes = [
        [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()]
        if o.is_discrete_sweep()
        else [o.input_line or ""]
        for o in parsed
    ]
    if not all(axes):
        raise RequestError(f"the sweep has no runs: {' '.join(overrides)} matches no option and no value")
    for override in parsed:
        if override.is_interval_sweep():
            raise RequestError(f"{override.input_line} needs a search: hydra/sweeper=random or hydra/sweeper=optuna")
    if config.sweep.seeds != 1:
        raise RequestError(f"sweep.seeds is for a search; in a grid say 'seed=range({config.sweep.seeds})'")
    return [list(job) for job in itertools.product(*axes)]


def check_jobs(config_name: str, overrides: Sequence[Sequence[str]]) -> list[Job]:
    """Compose and check jobs, each given by its overrides.

    Raises:
        ConfigError: with a line for each mistake that all jobs share, and for each of one job behind its overrides.
    """
    jobs, mistakes = [], []
    shared = set.intersection(*map(set, overrides)) if len(overrides) > 1 else set(overrides[0])
    before, told = HydraConfig.instance().cfg, time.monotonic()
    for number, job in enumerate(overrides):
        if time.monotonic() > told + TELL_SECONDS:
            told = time.monotonic()
            print(f"preflight: {number} of {len(overrides)} jobs checked", file=sys.stderr, flush=True)
        swept = " ".join(override for override in job if override not in shared)
        try:
            jobs.append(Job(check(_composed(config_name, job)), swept))
        except ConfigError as error:
            mistakes += [(swept, line) for line in str(error).splitlines()]
    HydraConfig.instance().cfg = before
    if mistakes:
        jobs_with = Counter(line for _, line in mistakes)
        said = [line if jobs_with[line] == len(overrides) else f"{swept}: {line}" for swept, line in mistakes]
        raise ConfigError("\n".join(dict.fromkeys(said)))
    return jobs


def _composed(config_name: str, job: Sequence[str]) -> DictConfig:
    try:
        composed = compose(config_name, list(job), return_hydra_config=True)
    except Exception as error:  # Hydra lets errors of several libraries and plain ValueErrors pass
        raise ConfigError(explain(error)) from error
    HydraConfig.instance().set_config(composed)
    with open_dict(composed):
        del composed["hydra"]
    return composed


def is_auto(config: Config) -> bool:
    """Whether the data source is still to be settled."""
    return config.data["_target_"] == "mnist_exp.data.auto"


def settle(config: Config) -> str:
    """Put the concrete source in the place of data=auto; returns its name."""
    option = config.sweep.data or resolve_auto(config.data.get("path"))
    node = dict(OmegaConf.load(CONF_DIR / "data" / f"{option}.yaml"))
    given = {key: value for key, value in config.data.items() if key in node and value is not None}
    config.data = {**node, **given, "_target_": node["_target_"]}
    return option


def load(config: Config) -> Dataset:
    """Load the data of a config that names a concrete source, print its warnings, refuse a batch that is larger.

    Raises:
        RequestError: the data cannot be used, or not so.
    """
    dataset = check_dataset(build(config.data))
    for line in dataset.warnings:
        console.warn(line)
    check_batch(config, len(dataset.train.labels))
    return dataset


def check_data(jobs: Sequence[Job]) -> None:
    """Load what the jobs train on, each kind of it once.

    Raises:
        ConfigError: with a line for each mistake.
    """
    configs = [job.config for job in jobs]
    mistakes = []
    for config in {json.dumps([c.data, c.trainer.batch_size]): c for c in configs}.values():
        try:
            load(config)
        except RequestError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ConfigError("\n".join(dict.fromkeys(mistakes)))


def announce(jobs: Sequence[Job], store: Any, *, here: bool, what: str = "runs") -> None:
    """Build every model on shapes only, and say what is to come.

    Args:
        jobs: all of them.
        store: says which of them an earlier run has the result of.
        here: they will be run by this process, and so have its devices.
        what: they are called.

    Raises:
        ConfigError: with a line for each model or optimizer that cannot be built.
        DeviceError: this process lacks the devices.
    """
    kinds = {json.dumps(job.config.data): job.config for job in jobs}
    datasets = {kind: load(config) for kind, config in kinds.items()}
    missing = []
    for job in jobs:
        data = datasets[json.dumps(job.config.data)]
        with suppress(RequestError):  # another machine may have the devices that this one lacks
            experiment = prepare(job.config, data, device(job.config.trainer))
            if finished(experiment, alike_runs(experiment, store)) is not None:
                continue
        missing.append((job, data))
    before = f", {len(jobs) - len(missing)} of them finished before" if len(missing) < len(jobs) else ""
    said = f"{len(jobs)} {what}{before}"
    if missing:
        import_tensorflow()
        from mnist_exp.sweep import preflight
        from mnist_exp.training import devices

        trainer = missing[0][0].config.trainer
        devices.configure(trainer.devices if here else "cpu", trainer.threads or provenance.cores())
        memory = provenance.memory() if here else None
        sizes = preflight.models([(job.config, data, job.swept) for job, data in missing], memory)
        sized = [(job.config, data, size) for (job, data), size in zip(missing, sizes, strict=True)]
        span = " to ".join(f"{size:,}" for size in sorted({min(sizes), max(sizes)}))
        said += f"; models of {span} parameters; {preflight.plan(sized, store)}"
    console.say(f"preflight: {said}", sys.stderr)


def warn_unrecorded(configs: Sequence[Config]) -> None:
    """Say, once a command, what of the code its runs cannot record."""
    _, lost = recordable(user_code(frozenset().union(*map(targets, configs))))
    for line in (*provenance.own_code(PACKAGE).problems, *([lost] if lost else [])):
        console.warn(line)


def stopped(config: Config, store: Any) -> bool:
    """Whether the sweep of a job has had a failure after which nothing more is to start."""
    from mnist_exp import tracking

    assert config.sweep.id is not None
    return config.sweep.on_error == "stop" and tracking.sweep_stopped(store, config.sweep.id)


def attempt(train: Callable[[], Result], retries: int) -> Result:
    """Train, and again up to `retries` times when the memory did not suffice, after all that was kept is freed."""
    from mnist_exp.training import device_loop
    from mnist_exp.training.devices import OUT_OF_MEMORY

    for left in reversed(range(retries + 1)):
        try:
            return train()
        except OUT_OF_MEMORY as error:
            if not left:
                raise
            console.complain(f"out of memory, trying again: {type(error).__name__}: {first_line(error)}")
        device_loop.free()  # after the except clause, whose traceback holds what the failed attempt had
    raise AssertionError


def job_failed(sweep: DictConfig, tracked: DictConfig) -> None:
    """Do what `sweep.on_error` says."""
    if sweep.on_error == "stop":
        from mnist_exp import tracking

        try:
            tracking.stop_sweep(tracking.open_store(tracked.uri, tracked.experiment), sweep.id)
        except RequestError as error:
            console.complain(f"the other jobs are not stopped: {error}")
