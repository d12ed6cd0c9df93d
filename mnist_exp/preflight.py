"""What a sweep would come to, before its first run: every model built on shapes only, its time and its disk space."""

import json
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from statistics import median
from typing import Any, NamedTuple

import keras

from mnist_exp import RequestError, devices
from mnist_exp.config import Config, ConfigError
from mnist_exp.data import Dataset
from mnist_exp.run import build_model, build_optimizer
from mnist_exp.tracking import Store, similar_runs

BYTES_A_PARAMETER = 16  # a SavedModel holds float32 weights twice, a run two of those: for MLflow and for TF Serving
BYTES_A_RUN = 600_000  # figures, configs, the model's graph and example


class Plan(NamedTuple):
    """What jobs are expected to take, one after the other."""

    seconds: float  # of those whose like has run before
    unknown: list[str]  # of which none has
    bytes: int

    def __str__(self) -> str:
        minutes, seconds = divmod(round(self.seconds), 60)
        hours, minutes = divmod(minutes, 60)
        known = f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
        times = [f"about {known} one after the other"] * (self.seconds > 0)
        times += [f"time unknown for {' and '.join(self.unknown)}"] * bool(self.unknown)
        return f"{', '.join(times)}; {self.bytes / 1e6:,.0f} MB on disk"


def models(jobs: Sequence[tuple[Config, Dataset, str]]) -> list[int]:
    """Build the model and the optimizer of each job, each kind of it once, without allocating weights.

    Args:
        jobs: config, data, and the overrides that set the job apart.

    Returns:
        The number of parameters of each job's model.

    Raises:
        ConfigError: with a line for each mistake, behind the overrides of the first job that has it.
    """
    counts: list[int] = []
    mistakes: dict[str, list[str]] = {}
    for config, dataset, swept in jobs:
        steps = config.trainer.epochs * -(-len(dataset.train.labels) // config.trainer.batch_size)
        precision = config.trainer.precision
        try:
            counts.append(_parameters(json.dumps(config.model), dataset.image_shape, dataset.num_classes, precision))
            _check_optimizer(json.dumps([config.optimizer, config.schedule]), steps)
        except RequestError as error:
            mistakes.setdefault(str(error), []).append(swept)
    if mistakes:
        raise ConfigError("\n".join(_line(*mistake) for mistake in mistakes.items()))
    return counts


def _line(mistake: str, swept: Sequence[str]) -> str:
    others = f" (and {len(swept) - 1} more)" if len(swept) > 1 else ""
    return f"{swept[0]}: {mistake}{others}" if swept[0] else mistake + others


@cache
def _parameters(model: str, image_shape: tuple[int, int, int], classes: int, precision: str) -> int:
    devices.fresh_session(0, precision)
    facts = (json.loads(model), image_shape, classes)
    try:
        with suppress(Exception), keras.StatelessScope(initialize_variables=False):
            return int(build_model(*facts).count_params())
        return int(build_model(*facts).count_params())  # a builder may want real weights, which the scope forbids
    except RequestError:
        raise
    except Exception as error:
        raise RequestError(f"the model cannot be built: {type(error).__name__}: {_first_line(error)}") from error


@cache
def _check_optimizer(optimizer_and_schedule: str, steps: int) -> None:
    try:
        optimizer, schedule = json.loads(optimizer_and_schedule)
        build_optimizer(optimizer, schedule, steps)
    except RequestError:
        raise
    except Exception as error:
        raise RequestError(f"the optimizer cannot be built: {type(error).__name__}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def plan(jobs: Sequence[tuple[Config, Dataset, int]], store: Store) -> Plan:
    """Estimate what jobs will take, by finished runs of the same model, optimizer, batch size and data.

    Args:
        jobs: config, data and number of parameters of each.
        store: where those runs are looked for.
    """
    kinds: dict[tuple[str, str, int, str], list[tuple[int, int]]] = {}
    size = 0
    for config, dataset, parameters in jobs:
        model, optimizer = (node["_target_"].rpartition(".")[2] for node in (config.model, config.optimizer))
        kind = (model, optimizer, config.trainer.batch_size, dataset.name)
        kinds.setdefault(kind, []).append((config.trainer.epochs, parameters))
        size += BYTES_A_RUN + BYTES_A_PARAMETER * parameters + len(dataset.test.labels) * (4 * dataset.num_classes + 8)
    runs = {kind: [run for run in similar_runs(store, *kind) if _is_timed(run)] for kind in kinds}
    known = [_seconds(runs[kind], *job) for kind, members in kinds.items() if runs[kind] for job in members]
    unknown = [f"{kind[0]} with {kind[1]} at batch size {kind[2]}" for kind in kinds if not runs[kind]]
    return Plan(sum(known), unknown, size)


def _is_timed(run: Any) -> bool:
    """Whether the run recorded what `_seconds` reads: one of an older version may not."""
    metrics = {"parameters", "fit_seconds", "compile_seconds"}
    return metrics <= run.data.metrics.keys() and "trainer.epochs" in run.data.params


def _seconds(runs: Sequence[Any], epochs: int, parameters: int) -> float:
    """Median over the runs with models of the nearest size, their training after compilation scaled to `epochs`."""
    nearest = min((run.data.metrics["parameters"] for run in runs), key=lambda size: abs(size - parameters))
    times = []
    for run in runs:
        if run.data.metrics["parameters"] == nearest:
            fit = run.data.metrics["fit_seconds"] - run.data.metrics["compile_seconds"]
            around = (run.info.end_time - run.info.start_time) / 1000 - fit
            times.append(around + fit * epochs / int(run.data.params["trainer.epochs"]))
    return median(times)
