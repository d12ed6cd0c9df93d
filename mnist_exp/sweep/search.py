"""Searches: Hydra sweepers that draw the values of each trial from a space instead of running a whole grid.

The space is written as for any multirun (`choice`, `range`, `interval`, `tag(log, interval(...))`).
`hydra/sweeper=random` is here, `hydra/sweeper=optuna` in optuna_search.py; `hydra_plugins` passes Hydra's calls on.
"""

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, cast

import numpy as np
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from mnist_exp import console
from mnist_exp.config import build, explain
from mnist_exp.errors import RequestError
from mnist_exp.sweep.grid import parse

SEARCHES = ("hydra_plugins.mnist_exp.Random", "hydra_plugins.mnist_exp.Optuna")


class Axis(NamedTuple):
    """The values of one key: one of `values`, or if that is empty a number from `low` to `high`, both included."""

    key: str
    values: tuple[str, ...] = ()  # as they are written in an override
    low: float = 0
    high: float = 0
    step: float | None = None  # distance of neighbours if `values` are evenly spaced numbers
    log: bool = False

    @property
    def ends(self) -> tuple[str, ...]:
        """The values that represent the axis when a space is checked."""
        return self.values or (repr(self.low), repr(self.high))

    def draw(self, share: float) -> str:
        """The value at a share of the axis, from 0 to below 1."""
        if self.values:
            return self.values[int(share * len(self.values))]
        whole = isinstance(self.low, int)
        low, high = (self.low - 0.5, self.high + 0.5) if whole else (self.low, self.high)
        if self.log:
            value = math.exp(math.log(low) + (math.log(high) - math.log(low)) * share)
        else:
            value = low + (high - low) * share
        return repr(min(max(math.floor(value + 0.5) if whole else value, self.low), self.high))

    def write(self, value: Any) -> str:
        """Writes a value that Optuna chose as it stands in an override."""
        if isinstance(value, str):
            return value
        return repr(value) if self.step is None else self.values[round((value - self.low) / self.step)]


def space(overrides: Sequence[str]) -> tuple[list[str], list[Axis]]:
    """Splits overrides into those that all trials share and the axes; of two overrides of one key the later wins.

    Raises:
        RequestError: an axis cannot be searched, or there is none.
    """
    parsed = parse(overrides)
    axes = [_axis(override) for override in parsed if override.is_sweep_override()]
    if not axes:
        raise RequestError(
            "a search needs at least one key with several values, as in model=mlp,residual or "
            "'optimizer.learning_rate=tag(log, interval(1e-4, 1e-1))'"
        )
    return [override.input_line or "" for override in parsed if not override.is_sweep_override()], axes


def _axis(override: Override) -> Axis:
    key, sweep = override.get_key_element(), cast(Any, override.value())
    tags: set[str] = getattr(sweep, "tags", set())
    if tags - {"log"} or (tags and not override.is_interval_sweep()):
        raise RequestError(
            f"{override.input_line}: the only tag of a search is log, for an interval; tags pair values in a grid"
        )
    if override.is_interval_sweep():
        low, high = sweep.start, sweep.end
        if not low < high or (tags and low <= 0):
            raise RequestError(f"{override.input_line}: the interval must rise" + (" from above 0" if tags else ""))
        return Axis(key, (), low, high, log=bool(tags))
    if override.is_range_sweep():
        numbers = [round(number, 12) for number in sorted(sweep.range())]
        ends = (numbers[0], numbers[-1], abs(sweep.step)) if numbers else ()
        axis = Axis(key, tuple(map(str, numbers)), *ends)
    else:
        axis = Axis(key, tuple(override.sweep_string_iterator()))
    if not axis.values:
        raise RequestError(f"the search has no trials: {override.input_line} matches no option and no value")
    return axis


class Trial(NamedTuple):
    """One point of the space: its overrides, and the object by which its search knows it."""

    handle: Any
    overrides: list[str]


class Search(ABC):
    """Launches batches of trials, each of one run, or of one run for each of several seeds. A trial may fail.

    Args:
        n_trials: number of points to try.
        n_jobs: trials launched at once; the launcher decides how many run side by side.
        seed: of the generator that draws the points.
        params: the space, by key; overrides on the command line win.

    Raises:
        RequestError: a value is invalid.
    """

    def __init__(self, n_trials: int, n_jobs: int, seed: int, params: dict[str, str] | None) -> None:
        self.n_trials, self.n_jobs, self.seed, self.params = n_trials, n_jobs, seed, params or {}
        for key, value, low in (("n_trials", n_trials, 1), ("n_jobs", n_jobs, 1), ("seed", seed, 0)):
            if type(value) is not int or value < low:
                raise RequestError(f"hydra.sweeper.{key} must be a whole number, at least {low}, got {value!r}")

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before `sweep`."""
        self.loader, self.folder = hydra_context.config_loader, Path(config.hydra.sweep.dir, "search")
        self.multirun = config
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def prepare(self, config: DictConfig, overrides: Sequence[str]) -> None:
        """Determines the space, the objectives and the seeds.

        Args:
            config: the multirun's, as Hydra composes it without the swept values.
            overrides: of the command line.

        Raises:
            RequestError: the search is invalid.
        """
        self.fixed, self.axes = space([*(f"{key}={value}" for key, value in self.params.items()), *overrides])
        self.objective = list(config.sweep.objective)
        self.seeds = range(config.seed, config.seed + config.sweep.seeds)
        if len(self.seeds) > 1:
            if "seed" in {axis.key for axis in self.axes}:
                raise RequestError("sweep.seeds averages each trial over several seeds: seed cannot be searched too")
            self.fixed = [override for override in self.fixed if not override.startswith("seed=")]

    @property
    def keys(self) -> frozenset[str]:
        """The keys whose values distinguish the runs of the search."""
        return frozenset(axis.key for axis in self.axes) | (frozenset(["seed"]) if len(self.seeds) > 1 else frozenset())

    def probes(self) -> list[list[str]]:
        """Jobs to check before the search: each value or end of each axis once, the other axes at their first."""
        first = [f"{axis.key}={axis.ends[0]}" for axis in self.axes]
        probes = [first]
        for i, axis in enumerate(self.axes):
            probes += [[*first[:i], f"{axis.key}={end}", *first[i + 1 :]] for end in axis.ends[1:]]
        return [[*self.fixed, *probe] for probe in probes]

    def remaining(self) -> int:
        """The number of trials to run."""
        return self.n_trials

    @abstractmethod
    def ask(self, number: int) -> Trial:
        """Chooses the point of this command's n-th trial, from 0."""

    def tell(self, trial: Trial, values: Sequence[float] | None) -> None:  # noqa: B027 - random draws learn nothing
        """Receives a trial's result, one value for each objective; None means that it failed."""

    def finish(self) -> None:  # noqa: B027
        """Called after the last trial."""

    def sweep(self, arguments: list[str]) -> None:
        """Runs the trials; called by Hydra."""
        self.prepare(self.multirun, arguments)
        total, asked, launched = self.remaining(), 0, 0
        while asked < total:
            batch = [self.ask(asked + i) for i in range(min(self.n_jobs, total - asked))]
            jobs = [job for trial in batch for job in self.jobs_of(trial)]
            results = self._launch(jobs, launched)
            launched += len(jobs)
            for i, trial in enumerate(batch):
                values = _mean(results[i * len(self.seeds) : (i + 1) * len(self.seeds)], len(self.objective))
                self.tell(trial, values)
                scores = "failed" if values is None else "  ".join(map("{} {:.4g}".format, self.objective, values))
                point = console.shortened(" ".join(trial.overrides))
                console.tell(f"trial {asked + i + 1}/{total}  {point}  {scores}", sys.stderr)
            asked += len(batch)
        self.finish()

    def jobs_of(self, trial: Trial) -> list[list[str]]:
        """The overrides of each run of a trial."""
        job = [*self.fixed, *trial.overrides]
        return [job] if len(self.seeds) == 1 else [[*job, f"seed={seed}"] for seed in self.seeds]

    def _launch(self, jobs: list[list[str]], first: int) -> list[JobReturn | None]:
        """Launches the jobs; None for a job that does not compose, as no probe had its combination of values."""
        results: list[JobReturn | None] = [None] * len(jobs)
        composed = []
        for i, job in enumerate(jobs):
            try:
                self.loader.load_sweep_config(self.multirun, job)
                composed.append(i)
            except HydraException as error:
                console.complain(explain(error))
        for i, result in zip(composed, self.launcher.launch([jobs[i] for i in composed], first), strict=True):
            results[i] = result
        return results


def _mean(results: Sequence[JobReturn | None], objectives: int) -> list[float] | None:
    """The mean of each objective over a trial's runs; None if one of them failed."""
    if any(result is None or result.status is not JobStatus.COMPLETED for result in results):
        return None
    rows = [np.atleast_1d(cast(JobReturn, result).return_value).tolist() for result in results]
    means = [fmean(column) for column in zip(*rows, strict=True)]
    return means if len(means) == objectives and all(map(math.isfinite, means)) else None


class RandomSearch(Search):
    """Draws every axis independently; the n-th trial is a pure function of the seed and n."""

    def ask(self, number: int) -> Trial:
        """Draws a point."""
        shares = np.random.default_rng([self.seed, number]).random(len(self.axes))
        return Trial(number, [f"{axis.key}={axis.draw(share)}" for axis, share in zip(self.axes, shares, strict=True)])


def requested(config: DictConfig, overrides: Sequence[str]) -> Search | None:
    """The search that a multirun's config requests, prepared; None if it requests none.

    Raises:
        RequestError: the search is invalid.
    """
    if config.hydra.sweeper._target_ not in SEARCHES:
        return None
    node = cast(dict[str, Any], OmegaConf.to_container(config.hydra.sweeper, resolve=True))
    search: Search = build(node).search
    search.prepare(config, overrides)
    return search
