"""Searching: Hydra sweepers that draw the values of each trial from a space instead of running a whole grid.

The space is written as for any multirun (`choice`, `range`, `interval`, `tag(log, interval(...))`).
`hydra/sweeper=random` needs nothing else; `hydra/sweeper=optuna` asks a study, which is stored and can be continued.
"""

import importlib.util
import math
import os
import sys
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, cast

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from mnist_exp import console
from mnist_exp.config import SweepConfig, build, explain
from mnist_exp.errors import RequestError

SEARCHES = ("hydra_plugins.mnist_exp.Random", "hydra_plugins.mnist_exp.Optuna")  # Hydra takes plugins from there
SAMPLERS = ("tpe", "cmaes", "random", "qmc", "grid")
PRUNERS = ("median", "hyperband")
PRUNED = "pruned"
EACH_EPOCH = {"final_val_accuracy": "val_accuracy", "final_val_loss": "val_loss"}
PLOTS = ("optimization_history", "param_importances", "parallel_coordinate")


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


class Optuna(Search):
    """Asks a study of Optuna's, which is stored after every trial.

    A command that was killed leaves trials behind that look alive; the next one on the same study runs them anew. So a
    study belongs to one command at a time.

    Args:
        sampler: one of `SAMPLERS`.
        pruner: one of `PRUNERS`, or None.
        storage: where the study is kept: `journal:FILE`, or an SQLAlchemy URL as in `sqlite:///FILE`.
        study: its name; one that exists is continued until it has `n_trials`. None: a new one for each sweep.
        settings: as for `Search`.
    """

    def __init__(self, *, sampler: str, pruner: str | None, storage: str, study: str | None, **settings: Any) -> None:
        super().__init__(**settings)
        self.sampler, self.pruner, self.storage, self.name = sampler, pruner, storage, study
        for key, value, choices in (("sampler", sampler, SAMPLERS), ("pruner", pruner, (None, *PRUNERS))):
            if value not in choices:
                names = ", ".join("null" if choice is None else choice for choice in choices)
                raise RequestError(f"hydra.sweeper.{key} must be one of {names}, got {value!r}")
        if not isinstance(storage, str) or ":" not in storage:
            raise RequestError(
                f"hydra.sweeper.storage must be journal:FILE or a URL like sqlite:///FILE, got {storage!r}"
            )
        for prefix in ("journal:", "sqlite:///"):  # workers may have another working directory
            if storage.startswith(prefix):
                self.storage = prefix + str(Path(storage.removeprefix(prefix)).absolute())
        for package in ("optuna", *(["cmaes"] if sampler == "cmaes" else [])):
            if importlib.util.find_spec(package) is None:
                raise RequestError(f"hydra/sweeper=optuna needs {package}: pip install 'mnist_exp[optuna]'")

    def prepare(self, config: DictConfig, overrides: Sequence[str]) -> None:
        """As for every search; and what samplers and pruners cannot do."""
        super().prepare(config, overrides)
        endless = [axis.key for axis in self.axes if not axis.values]
        if self.sampler == "grid" and endless:
            raise RequestError(
                f"hydra.sweeper.sampler=grid needs lists or ranges, but {', '.join(endless)} has an interval"
            )
        if self.sampler == "cmaes" and len(self.objective) > 1:
            raise RequestError("hydra.sweeper.sampler=cmaes has one objective; tpe, random, qmc and grid take several")
        if self.pruner and (len(self.objective) > 1 or self.objective[0] not in EACH_EPOCH or len(self.seeds) > 1):
            raise RequestError(
                f"hydra.sweeper.pruner={self.pruner} compares one run's epochs: it needs sweep.seeds=1 and "
                f"sweep.objective one of {', '.join(EACH_EPOCH)}"
            )
        # Without a name of its own the study has that of the sweep, which is among the overrides once it has begun.
        self.study_name = self.name or next(
            (o.partition("=")[2] for o in self.fixed if o.startswith("sweep.id=")), None
        )

    def remaining(self) -> int:
        """How many trials the study lacks; of a grid, how many of its points.

        Raises:
            RequestError: the storage cannot be used, or the study is of something else.
        """
        if self.study_name is None:  # the sweep has not begun: the study will be a new one
            _storage(self.storage)
            return math.prod(len(axis.values) for axis in self.axes) if self.sampler == "grid" else self.n_trials
        self.study = self._open(_storage(self.storage))
        return len(self._missing()) if self.sampler == "grid" else max(self.n_trials - len(self._finished()), 0)

    def _open(self, storage: Any) -> Any:
        import optuna

        directions = ["maximize" if name.endswith("accuracy") else "minimize" for name in self.objective]
        study = optuna.create_study(
            study_name=self.study_name, storage=storage, directions=directions, load_if_exists=True
        )
        trials = study.get_trials(deepcopy=False)
        known = [direction.name.lower() for direction in study.directions]
        if known != directions:
            raise RequestError(f"hydra.sweeper.study={self.study_name} is to {known}, sweep.objective to {directions}")
        self.distributions = {axis.key: self._distribution(axis) for axis in self.axes}
        before = trials[-1].distributions if trials else {}
        for key in before.keys() & self.distributions.keys():
            try:
                optuna.distributions.check_distribution_compatibility(before[key], self.distributions[key])
            except ValueError as error:
                raise RequestError(f"hydra.sweeper.study={self.study_name} searched another {key}: {error}") from error
        study.sampler = self._sampler(len(trials))
        return study

    def _sampler(self, trials: int) -> Any:
        from optuna import samplers

        seed = self.seed + trials  # a study that is continued must not draw its first points again
        if self.sampler == "tpe":
            return samplers.TPESampler(seed=seed)
        if self.sampler == "cmaes":  # what is not a number is drawn at random
            return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
        if self.sampler == "qmc":  # counts its points in the study
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of being experimental
                return samplers.QMCSampler(scramble=True, seed=self.seed, warn_independent_sampling=False)
        return samplers.RandomSampler(seed=seed)  # a grid leaves it nothing to draw

    def _distribution(self, axis: Axis) -> Any:
        from optuna import distributions

        if axis.values and (axis.step is None or self.sampler == "grid"):
            return distributions.CategoricalDistribution(axis.values)
        if isinstance(axis.low, int):
            return distributions.IntDistribution(axis.low, int(axis.high), log=axis.log, step=int(axis.step or 1))
        return distributions.FloatDistribution(axis.low, axis.high, log=axis.log, step=axis.step)

    def _finished(self) -> list[Any]:
        from optuna.trial import TrialState

        return self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))

    def _missing(self) -> list[dict[str, str]]:
        """The points of a grid that have no result."""
        keys = [axis.key for axis in self.axes]
        points = [dict(zip(keys, chosen, strict=True)) for chosen in product(*(axis.values for axis in self.axes))]
        done = [trial.params for trial in self._finished()]
        return [point for point in points if point not in done]

    def _take_up(self) -> None:
        """Queue what is to be tried whatever the sampler says: trials that a killed command left, a grid's points."""
        from optuna.trial import TrialState

        left = self.study.get_trials(states=(TrialState.RUNNING,))
        for trial in left:
            self.study.tell(trial.number, state=TrialState.FAIL)
        points = self._missing() if self.sampler == "grid" else [trial.params for trial in left if trial.params]
        for point in points:
            self.study.enqueue_trial(point, skip_if_exists=False)

    def ask(self, number: int) -> Trial:
        """Have the sampler choose a point."""
        if number == 0:
            self._take_up()
        trial = self.study.ask(self.distributions)
        overrides = [f"{axis.key}={axis.written(trial.params[axis.key])}" for axis in self.axes]
        return Trial(trial, overrides)

    def _jobs(self, trial: Trial) -> list[list[str]]:
        jobs = super()._jobs(trial)
        if self.pruner is None:
            return jobs
        texts = {"storage": self.storage, "study": str(self.study_name), "pruner": self.pruner}
        told = [f"{key}:{QuotedString(text, Quote.single).with_quotes()}" for key, text in texts.items()]
        return [[*job, f"sweep.trial={{id:{trial.handle._trial_id},{','.join(told)}}}"] for job in jobs]

    def tell(self, trial: Trial, values: Sequence[float] | None) -> None:
        """Store what it came to."""
        from optuna.trial import TrialState

        attributes = self.study.get_trials(deepcopy=False)[trial.handle.number].user_attrs  # set by the run's process
        if values is None:
            self.study.tell(trial.handle, state=TrialState.FAIL)
        elif PRUNED in attributes:
            self.study.tell(trial.handle, state=TrialState.PRUNED)
        else:
            self.study.tell(trial.handle, values)

    def finish(self) -> None:
        """Name the best trials, draw Optuna's plots."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for trial in self.study.best_trials[:10]:  # several where several objectives pull apart
            point = " ".join(f"{axis.key}={axis.written(trial.params[axis.key])}" for axis in self.axes)
            scores = "  ".join(map("{} {:.4g}".format, self.objective, trial.values))
            console.say(f"best of study {self.study_name}: {point}  {scores}", sys.stderr)
        for i, name in enumerate(self.objective):
            for plot in PLOTS:
                self._plot(plot, i, self.folder / f"{plot}-{name}.png")

    def _plot(self, plot: str, objective: int, path: Path) -> None:
        os.environ.setdefault("MPLBACKEND", "agg")  # read when matplotlib is imported
        from optuna.visualization import matplotlib

        with warnings.catch_warnings(), suppress(ValueError, RuntimeError):  # trials too few or too alike to plot
            warnings.simplefilter("ignore")  # of being experimental
            draw = getattr(matplotlib, f"plot_{plot}")
            axes = draw(self.study, target=lambda trial: trial.values[objective], target_name=self.objective[objective])
            axes.figure.savefig(path, bbox_inches="tight")


def pruning(sweep: SweepConfig) -> Callable[[Any], AbstractContextManager[Callable[..., bool]]]:
    """A witness of `run.run_experiment` that tells the study of each epoch and ends the run when that has seen enough.

    The run is evaluated and FINISHED like any other, on the epochs that it had; its tag `pruned` tells it apart.
    """
    import optuna

    trial, metric = sweep.trial, EACH_EPOCH[sweep.objective[0]]
    study = optuna.load_study(
        study_name=trial.study, storage=_storage(str(trial.storage)), pruner=_pruner(trial.pruner)
    )

    @contextmanager
    def witness(log: Any) -> Iterator[Callable[..., bool]]:
        own = optuna.trial.Trial(study, trial.id)

        def watch(epoch: int, values: Mapping[str, float], weights: str) -> bool:
            own.report(values[metric], epoch)
            stop = own.should_prune()
            if stop:
                own.set_user_attr(PRUNED, True)
                log.tags({PRUNED: "true"})
            return stop

        yield watch

    return witness


def _pruner(name: str | None) -> Any:
    from optuna import pruners

    return pruners.MedianPruner() if name == "median" else pruners.HyperbandPruner()


def _storage(url: str) -> Any:
    """Open what a study is kept in.

    Raises:
        RequestError: it cannot be used.
    """
    import optuna
    from optuna.storages import JournalStorage, RDBStorage, journal

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        if url.startswith("journal:"):
            path = Path(url.removeprefix("journal:"))
            backend = journal.JournalFileBackend(str(path))
            if not path.read_bytes().endswith(b"\n"):
                _drop_torn_line(path, journal.JournalFileSymlinkLock(str(path)))
            return JournalStorage(backend)
        wait = {"connect_args": {"timeout": 60}} if url.startswith("sqlite:") else {}  # for other processes' writes
        return RDBStorage(url, engine_kwargs=wait)
    except Exception as error:  # whatever the database's driver raises
        raise RequestError(f"hydra.sweeper.storage={url} cannot be used: {str(error).partition(chr(10))[0]}") from error


def _drop_torn_line(path: Path, lock: Any) -> None:
    """Remove half a line from the end of a journal, else Optuna appends to it and can never read the file again."""
    lock.acquire()
    try:
        with path.open("r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
    finally:
        lock.release()


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
