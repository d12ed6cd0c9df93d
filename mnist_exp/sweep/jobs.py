"""The jobs of a multirun: checked before the first of them runs, tried again, stopped."""

import copy
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from hydra import compose
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict

from mnist_exp import console, provenance
from mnist_exp.config import (
    AUTO,
    CONF_DIR,
    PACKAGE,
    Config,
    ConfigError,
    build,
    check,
    check_batch,
    explain,
    subset,
    without_subset,
)
from mnist_exp.data import Dataset, Subset, check_dataset, resolve_auto, take
from mnist_exp.errors import RequestError, first_line
from mnist_exp.experiment import prepare
from mnist_exp.provenance.modules import UserCode, recordable
from mnist_exp.sweep import reuse
from mnist_exp.sweep.startup import device, import_tensorflow

PROGRESS_SECONDS = 5.0  # between two lines that show how far the check of the jobs is
Result = TypeVar("Result")


class Job(NamedTuple):
    """One run of a multirun: its config, and the overrides that distinguish it from the other jobs."""

    config: Config
    swept: str


def check_jobs(config_name: str, overrides: Sequence[Sequence[str]]) -> list[Job]:
    """Composes and checks jobs, each given by its overrides.

    Raises:
        ConfigError: one line for each mistake; a mistake that not all jobs have follows the overrides of its job.
    """
    jobs, mistakes = [], []
    shared = set.intersection(*map(set, overrides)) if len(overrides) > 1 else set(overrides[0])
    before, printed = HydraConfig.instance().cfg, time.monotonic()
    composed: dict[tuple[str, ...], DictConfig] = {}
    for number, job in enumerate(overrides):
        if time.monotonic() > printed + PROGRESS_SECONDS:
            printed = time.monotonic()
            console.say(f"preflight: {number} of {len(overrides)} jobs checked", sys.stderr)
        swept = " ".join(override for override in job if override not in shared)
        try:
            jobs.append(Job(check(compose_job(config_name, job, composed)), swept))
        except ConfigError as error:
            mistakes += [(swept, line) for line in str(error).splitlines()]
    HydraConfig.instance().cfg = before
    if mistakes:
        counts = Counter(line for _, line in mistakes)
        lines = [line if counts[line] == len(overrides) else f"{swept}: {line}" for swept, line in mistakes]
        raise ConfigError("\n".join(dict.fromkeys(lines)))
    return jobs


def compose_job(
    config_name: str, job: Sequence[str], known: dict[tuple[str, ...], DictConfig] | None = None
) -> DictConfig:
    """Composes a config from overrides, and makes it the one that Hydra's own interpolations read.

    Args:
        config_name: the file of `conf` to begin with.
        job: the overrides.
        known: configs by the overrides that choose their options. Jobs that differ only in values share one.

    Raises:
        ConfigError: Hydra refuses an override.
    """
    try:
        if known is None:
            composed = compose(config_name, list(job), return_hydra_config=True)
        else:
            composed = _compose_values(config_name, job, known)
    except Exception as error:  # Hydra passes on errors of several libraries and plain ValueErrors
        raise ConfigError(explain(error)) from error
    HydraConfig.instance().set_config(composed)
    with open_dict(composed):
        del composed["hydra"]
    return composed


def _compose_values(config_name: str, job: Sequence[str], known: dict[tuple[str, ...], DictConfig]) -> DictConfig:
    """Composes the options of a job if `known` lacks them, and applies its values to a copy.

    Hydra reads and merges 40 files to compose a job, which takes 0.2 s. Only the options decide which files these are.
    """
    loader = GlobalHydra.instance().config_loader()
    assert isinstance(loader, ConfigLoaderImpl)

    def is_value(override: Override) -> bool:
        if override.is_hydra_override() or override.is_sweep_override():
            return False
        return isinstance(override.value(), dict) or not loader.repository.group_exists(override.key_or_group)

    given = OverridesParser.create().parse_overrides(list(job))
    values = [override for override in given if is_value(override)]
    options = tuple(str(override.input_line) for override in given if not is_value(override))
    if options not in known:
        known[options] = compose(config_name, list(options), return_hydra_config=True)
    composed = copy.deepcopy(known[options])
    loader._apply_overrides_to_config(values, composed)
    task = [override for override in given if not override.is_hydra_override()]
    composed.hydra.overrides.task = [override.input_line for override in task]
    naming = composed.hydra.job.config.override_dirname
    composed.hydra.job.override_dirname = get_overrides_dirname(
        task, naming.exclude_keys, naming.item_sep, naming.kv_sep
    )
    return composed


def is_auto(config: Config) -> bool:
    """Whether the config has `data=auto`, which `resolve_data` replaces."""
    return config.data["_target_"] == AUTO


def resolve_data(config: Config) -> str:
    """Replaces `data=auto` by the data set that is available; returns the name of its option.

    The jobs of a sweep get the answer, and the warning is printed, where the sweep begins.
    """
    option = config.sweep.data
    if option is None:
        option = resolve_auto(config.data.get("path"))
        if option != "mnist":
            console.warn_no_mnist(option)
    node = dict(OmegaConf.load(CONF_DIR / "data" / f"{option}.yaml"))
    kept = {*node, *Subset._fields}
    given = {key: value for key, value in config.data.items() if key in kept and value is not None}
    config.data = {**Subset()._asdict(), **node, **given, "_target_": node["_target_"]}
    return option


def load(config: Config) -> Dataset:
    """Loads the data set of a config and prints its warnings.

    Raises:
        RequestError: the data set cannot be used, or a batch is larger than its training set.
    """
    whole = check_dataset(build(without_subset(config.data)))
    dataset = take(whole, subset(config.data), config.data.get("split_seed", 0))
    for line in dataset.warnings if config.sweep.id is None else ():  # else it was said before the first job
        console.warn(line)
    check_batch(config, len(dataset.train.labels))
    return dataset


def load_all(jobs: Sequence[Job]) -> dict[str, Dataset]:
    """Loads each data set of the jobs once for each batch size; returns them by their config node as JSON.

    Raises:
        ConfigError: one line for each mistake.
    """
    datasets, mistakes = {}, []
    configs = [job.config for job in jobs]
    for config in {json.dumps([c.data, c.trainer.batch_size]): c for c in configs}.values():
        try:
            datasets[json.dumps(config.data)] = load(config)
        except RequestError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ConfigError("\n".join(dict.fromkeys(mistakes)))
    return datasets


def check_models(jobs: Sequence[Job], datasets: Mapping[str, Dataset], store: Any, *, here: bool, search: bool) -> None:
    """Builds each model without its weights, and prints how many runs, parameters, minutes and megabytes are to come.

    Args:
        jobs: all jobs of the multirun.
        datasets: what `load_all` returned for them.
        store: the `tracking.Store` in which finished runs are looked for.
        here: whether this machine runs the jobs, so that they get its devices and its memory.
        search: whether the jobs are no runs, but the corners of a search space.

    Raises:
        ConfigError: one line for each model or optimizer that cannot be built.
        DeviceError: this machine lacks the devices.
    """
    missing, again = [], Counter[str]()
    for job in jobs:
        dataset = datasets[json.dumps(job.config.data)]
        with suppress(RequestError):  # another machine may have devices that this one lacks
            experiment = prepare(job.config, dataset, device(job.config.trainer))
            alike = reuse.alike_runs(experiment, store)
            if reuse.finished(experiment, alike) is not None:
                continue
            again.update(filter(None, [reuse.outdated(experiment, alike)]))
        missing.append((job.config, dataset, job.swept))
    before = f", {len(jobs) - len(missing)} of them finished before" if len(missing) < len(jobs) else ""
    message = f"{len(jobs)} corners of the search space" if search else f"{len(jobs)} runs{before}"
    for different, count in again.items() if not search else ():
        console.tell(
            f"preflight: {count} of {len(jobs)} runs are trained again, because the finished ones have {different}",
            sys.stderr,
        )
    if missing:
        import_tensorflow()
        from mnist_exp.sweep import preflight
        from mnist_exp.training import devices

        trainer = missing[0][0].trainer
        devices.configure(trainer.devices if here else "cpu", trainer.threads or provenance.cores())
        sizes = preflight.models(missing, provenance.memory() if here else None)
        sized = [(config, dataset, size) for (config, dataset, _), size in zip(missing, sizes, strict=True)]
        span = " to ".join(f"{size:,}" for size in sorted({min(sizes), max(sizes)}))
        message += f"; models of {span} parameters" + ("" if search else f"; {preflight.plan(sized, store)}")
    console.tell(f"preflight: {message}", sys.stderr)


def warn_unrecorded(code: UserCode) -> None:
    """Warns, once a command, of what its runs cannot record of the package's code and the user's."""
    _, lost = recordable(code)
    for line in (*provenance.own_code(PACKAGE).problems, *([lost] if lost else [])):
        console.warn(line)


def retry(train: Callable[[], Result], retries: int) -> Result:
    """Calls `train`; after an out-of-memory error frees the kept programs and calls again, up to `retries` times."""
    from mnist_exp.training import device_loop  # imports TensorFlow
    from mnist_exp.training.devices import OUT_OF_MEMORY

    for left in reversed(range(retries + 1)):
        try:
            return train()
        except OUT_OF_MEMORY as error:
            if not left:
                raise
            console.complain(f"out of memory, trying again: {type(error).__name__}: {first_line(error)}")
        device_loop.free()  # after the except clause: its traceback refers to the failed attempt's tensors
    raise AssertionError


def is_stopped(config: Config, store: Any) -> bool:
    """Whether `sweep.on_error=stop` and a failure of another job forbid this job to start."""
    from mnist_exp import tracking  # MLflow takes a second to import

    assert config.sweep.id is not None
    return config.sweep.on_error == "stop" and tracking.sweep_stopped(store, config.sweep.id)


def stop_others(sweep: DictConfig, tracked: DictConfig) -> None:
    """After the failure of a job: prevents the start of others if `sweep.on_error=stop`."""
    if sweep.on_error == "stop":
        from mnist_exp import tracking  # MLflow takes a second to import

        try:
            tracking.stop_sweep(tracking.open_store(tracked.uri, tracked.experiment), sweep.id)
        except RequestError as error:
            console.complain(f"the other jobs are not stopped: {error}")
