"""Searching: Hydra sweepers that draw the values of each trial from a space instead of running a whole grid.

The space is written as for any multirun (`choice`, `range`, `interval`, `tag(log, interval(...))`).
`hydra/sweeper=random` needs nothing else; `hydra/sweeper=optuna` asks a study, which is stored and can be continued.
"""

import math
import sys
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, cast

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from mnist_exp import console
from mnist_exp.config import build, explain
from mnist_exp.errors import RequestError

SEARCHES = ("hydra_plugins.mnist_exp.Random", "hydra_plugins.mnist_exp.Optuna")  # Hydra takes plugins from there


class Axis(NamedTuple):
    """What one key may be: one of `values`, or with none of those a number from `low` to `high`, both included."""

    key: str
    values: tuple[str, ...] = ()  # as they are written in an override
    low: float = 0
    high: float = 0
    step: float | None = None  # from one to the next when `values` are evenly spaced numbers
    log: bool = False

    @property
    def ends(self) -> tuple[str, ...]:
        """What stands for the whole axis when a space is checked."""
        return self.values or (repr(self.low), repr(self.high))

    def draw(self, share: float) -> str:
        """The value at a share of the axis, from 0 to below 1."""
        if self.values:
            return self.values[int(share * len(self.values))]
        whole = isinstance(self.low, int)
        low, high = (self.low - 0.5, self.high + 0.5) if whole else (self.low, self.high)
        if self.log:
            low, high = math.log(low), math.log(high)
        value = low + (high - low) * share
        value = math.exp(value) if self.log else value
        return repr(min(max(math.floor(value + 0.5) if whole else value, self.low), self.high))

    def written(self, value: Any) -> str:
        """A value of the axis as Optuna has it, as it is written in an override."""
        if isinstance(value, str):
            return value
        return repr(value) if self.step is None else self.values[round((value - self.low) / self.step)]


def space(overrides: Sequence[str]) -> tuple[list[str], list[Axis]]:
    """Part overrides into those that all trials share and the axes; of two with one key the later counts.

    Raises:
        RequestError: an axis that cannot be searched, or no axis at all.
    """
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    last = {override.get_key_element(): override for override in parser.parse_overrides(list(overrides))}.values()
    axes = [_axis(override) for override in last if override.is_sweep_override()]
    if not axes:
        raise RequestError(
            "a search needs at least one key with several values, as in model=mlp,residual or "
            "'optimizer.learning_rate=tag(log, interval(1e-4, 1e-1))'"
        )
    return [override.input_line or "" for override in last if not override.is_sweep_override()], axes


def _axis(override: Override) -> Axis:
    key, sweep = override.get_key_element(), cast(Any, override.value())
    tags: set[str] = getattr(sweep, "tags", set())
    if tags - {"log"} or (tags and not override.is_interval_sweep()):
        raise RequestError(f"{override.input_line}: the one tag a search knows is log, of an interval")
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
    """One point of the space: what its sweeper knows it by, and its overrides."""

    handle: Any
    overrides: list[str]


class Search(Sweeper):
    """Launches batches of trials, each of one run or one for each of several seeds; a failed trial is just that.

    Args:
        n_trials: points to try in all.
        n_jobs: trials launched at once; how many run side by side is the launcher's matter.
        seed: of what is drawn.
        params: the space, by key; overrides on the command line win.
    """

    def __init__(self, n_trials: int, n_jobs: int, seed: int, params: dict[str, str] | None) -> None:
        self.n_trials, self.n_jobs, self.seed = n_trials, n_jobs, seed
        self.params = params or {}
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
        """Work out what is searched.

        Args:
            config: as Hydra composes it for a multirun, without what is swept.
            overrides: those of the command line.

        Raises:
            RequestError: it makes no sense.
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
        """What sets one run of the search apart from another."""
        return frozenset(axis.key for axis in self.axes) | (frozenset(["seed"]) if len(self.seeds) > 1 else frozenset())

    def probes(self) -> list[list[str]]:
        """Jobs that stand for all: each value or end of each axis once, the other axes at their first."""
        first = [f"{axis.key}={axis.ends[0]}" for axis in self.axes]
        others = [
            [*first[:i], f"{axis.key}={end}", *first[i + 1 :]]
            for i, axis in enumerate(self.axes)
            for end in axis.ends[1:]
        ]
        return [[*self.fixed, *chosen] for chosen in (first, *others)]

    def remaining(self) -> int:
        """How many trials are to be run."""
        return self.n_trials

    @abstractmethod
    def ask(self, number: int) -> Trial:
        """The point to try as the n-th of this command, from 0."""

    @abstractmethod
    def tell(self, trial: Trial, values: Sequence[float] | None) -> None:
        """Take what a trial came to, a value for each objective; None: it failed."""

    def finish(self) -> None:
        """Called when all trials have run."""

    def sweep(self, arguments: list[str]) -> None:
        """Run the trials; called by Hydra."""
        self.prepare(self.multirun, arguments)
        total, asked, launched = self.remaining(), 0, 0
        while asked < total:
            batch = [self.ask(asked + i) for i in range(min(self.n_jobs, total - asked))]
            asked += len(batch)
            jobs = [job for trial in batch for job in self._jobs(trial)]
            results = self._launch(jobs, launched)
            launched += len(jobs)
            for i, trial in enumerate(batch):
                values = _mean(results[i * len(self.seeds) : (i + 1) * len(self.seeds)], len(self.objective))
                self.tell(trial, values)
                said = ("failed",) if values is None else map("{} {:.4g}".format, self.objective, values)
                console.say(
                    f"trial {asked - len(batch) + i + 1}/{total}  {' '.join(trial.overrides)}  {'  '.join(said)}",
                    sys.stderr,
                )
        self.finish()

    def _jobs(self, trial: Trial) -> list[list[str]]:
        job = [*self.fixed, *trial.overrides]
        return [job] if len(self.seeds) == 1 else [[*job, f"seed={seed}"] for seed in self.seeds]

    def _launch(self, jobs: list[list[str]], first: int) -> list[JobReturn | None]:
        """Launch the jobs that compose; None for each other: a combination of values that no end of an axis showed."""
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
    """The mean of each objective over a trial's runs; None when a run of them failed."""
    rows = []
    for result in results:
        if result is None or result.status is not JobStatus.COMPLETED:
            return None
        value = result.return_value
        rows.append([value] if isinstance(value, float) else list(value))
    means = [fmean(column) for column in zip(*rows, strict=True)]
    return means if len(means) == objectives and all(map(math.isfinite, means)) else None


class Random(Search):
    """Every axis drawn independently; the n-th trial is a pure function of the seed and n."""

    def ask(self, number: int) -> Trial:
        """Draw a point."""
        import numpy as np

        shares = np.random.default_rng([self.seed, number]).random(len(self.axes))
        return Trial(number, [f"{axis.key}={axis.draw(share)}" for axis, share in zip(self.axes, shares, strict=True)])

    def tell(self, trial: Trial, values: Sequence[float] | None) -> None:
        """Nothing is learnt from it."""


def searcher(config: DictConfig, overrides: Sequence[str]) -> Search | None:
    """The search that a multirun's config asks for, ready to be probed and counted; None where it asks for none.

    Raises:
        RequestError: it makes no sense.
    """
    if config.hydra.sweeper._target_ not in SEARCHES:
        return None
    node = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
    assert isinstance(node, dict)
    search: Search = build({str(key): value for key, value in node.items()})
    search.prepare(config, overrides)
    return search
