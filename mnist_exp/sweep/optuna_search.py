"""Searches with an Optuna study, which is stored after every trial and can be continued by a later command."""

import importlib.util
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig

from mnist_exp import console
from mnist_exp.config import SweepConfig
from mnist_exp.errors import RequestError, first_line
from mnist_exp.sweep.search import Axis, Search, Trial

try:
    import optuna
except ImportError as error:
    raise RequestError("hydra/sweeper=optuna needs optuna: pip install 'mnist_exp[optuna]'") from error
from optuna import distributions, pruners, samplers
from optuna.storages import JournalStorage, RDBStorage, journal
from optuna.trial import TrialState

SAMPLERS = ("tpe", "cmaes", "random", "qmc", "grid")
PRUNERS = {"median": pruners.MedianPruner, "hyperband": pruners.HyperbandPruner}
PRUNED = "pruned"
EACH_EPOCH = {"final_val_accuracy": "val_accuracy", "final_val_loss": "val_loss"}
PLOTS = ("optimization_history", "param_importances", "parallel_coordinate")


class OptunaSearch(Search):
    """Asks an Optuna study for the points.

    A command that was killed leaves trials in the state RUNNING; the next command on the same study runs them again.
    So only one command at a time may use a study.

    Args:
        sampler: one of `SAMPLERS`.
        pruner: one of `PRUNERS`, or None.
        storage: where the study is kept: `journal:FILE`, or an SQLAlchemy URL such as `sqlite:///FILE`.
        study: its name; an existing study is continued until it has `n_trials`. None: a new study for each sweep.
        settings: as for `Search`.

    Raises:
        RequestError: a value is invalid, or a package is missing.
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
        if sampler == "cmaes" and importlib.util.find_spec("cmaes") is None:
            raise RequestError("hydra.sweeper.sampler=cmaes needs cmaes: pip install 'mnist_exp[optuna]'")

    def prepare(self, config: DictConfig, overrides: Sequence[str]) -> None:
        """As for every search; also refuses a space or an objective that the sampler or the pruner cannot handle."""
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
        # A study without a name has that of the sweep, whose id is among the overrides once the sweep has begun.
        ids = (override.partition("=")[2] for override in self.fixed if override.startswith("sweep.id="))
        self.study_name = self.name or next(ids, None)

    def remaining(self) -> int:
        """The number of trials, or of points of a grid, that the study lacks.

        Raises:
            RequestError: the storage cannot be used, or the study has other objectives or values.
        """
        if self.study_name is None:  # the sweep has not begun: the study will be new
            open_storage(self.storage)
            return math.prod(len(axis.values) for axis in self.axes) if self.sampler == "grid" else self.n_trials
        self.study = self._open_study()
        return len(self._missing()) if self.sampler == "grid" else max(self.n_trials - len(self._finished()), 0)

    def _open_study(self) -> optuna.Study:
        directions = ["maximize" if name.endswith("accuracy") else "minimize" for name in self.objective]
        storage = open_storage(self.storage)
        study = optuna.create_study(
            study_name=self.study_name, storage=storage, directions=directions, load_if_exists=True
        )
        trials = study.get_trials(deepcopy=False)
        known = [direction.name.lower() for direction in study.directions]
        if known != directions:
            raise RequestError(
                f"hydra.sweeper.study={self.study_name} has the directions {known}, sweep.objective {directions}"
            )
        self.distributions = {axis.key: self._distribution(axis) for axis in self.axes}
        before = trials[-1].distributions if trials else {}
        for key in before.keys() & self.distributions.keys():
            try:
                distributions.check_distribution_compatibility(before[key], self.distributions[key])
            except ValueError as error:
                raise RequestError(f"hydra.sweeper.study={self.study_name} searched another {key}: {error}") from error
        study.sampler = self._sampler(len(trials))
        return study

    def _sampler(self, trials: int) -> samplers.BaseSampler:
        seed = self.seed + trials  # a continued study must not draw its first points again
        if self.sampler == "tpe":
            return samplers.TPESampler(seed=seed)
        if self.sampler == "cmaes":  # draws keys that are no numbers at random
            return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
        if self.sampler == "qmc":  # finds its position in the sequence in the study
            with warnings.catch_warnings(action="ignore"):  # it is experimental
                return samplers.QMCSampler(scramble=True, seed=self.seed, warn_independent_sampling=False)
        return samplers.RandomSampler(seed=seed)  # also for a grid, all of whose points are queued

    def _distribution(self, axis: Axis) -> distributions.BaseDistribution:
        if axis.values and (axis.step is None or self.sampler == "grid"):
            return distributions.CategoricalDistribution(axis.values)
        if isinstance(axis.low, int):
            return distributions.IntDistribution(axis.low, int(axis.high), log=axis.log, step=int(axis.step or 1))
        return distributions.FloatDistribution(axis.low, axis.high, log=axis.log, step=axis.step)

    def _finished(self) -> list[optuna.trial.FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))

    def _missing(self) -> list[dict[str, str]]:
        """The points of a grid without a result."""
        keys = [axis.key for axis in self.axes]
        points = [dict(zip(keys, chosen, strict=True)) for chosen in product(*(axis.values for axis in self.axes))]
        done = [trial.params for trial in self._finished()]
        return [point for point in points if point not in done]

    def ask(self, number: int) -> Trial:
        """The next trial, chosen by the sampler.

        The first call puts other points before it: all missing points of a grid, or those that a killed command left.
        """
        if number == 0:
            left = self.study.get_trials(states=(TrialState.RUNNING,))
            for trial in left:
                self.study.tell(trial.number, state=TrialState.FAIL)
            for point in self._missing() if self.sampler == "grid" else [t.params for t in left if t.params]:
                self.study.enqueue_trial(point, skip_if_exists=False)
        asked = self.study.ask(self.distributions)
        return Trial(asked, self._overrides(asked.params))

    def _overrides(self, point: Mapping[str, Any]) -> list[str]:
        return [f"{axis.key}={axis.write(point[axis.key])}" for axis in self.axes]

    def jobs_of(self, trial: Trial) -> list[list[str]]:
        """The overrides of each run of a trial, with the trial itself if a pruner may end it."""
        jobs = super().jobs_of(trial)
        if self.pruner is None:
            return jobs
        texts = {"storage": self.storage, "study": str(self.study_name), "pruner": self.pruner}
        quoted = [f"{key}:{QuotedString(text, Quote.single).with_quotes()}" for key, text in texts.items()]
        return [[*job, f"sweep.trial={{id:{trial.handle._trial_id},{','.join(quoted)}}}"] for job in jobs]

    def tell(self, trial: Trial, values: Sequence[float] | None) -> None:
        """Stores the trial's result."""
        if values is None:
            self.study.tell(trial.handle, state=TrialState.FAIL)
        elif PRUNED in self.study.get_trials(deepcopy=False)[trial.handle.number].user_attrs:  # set by `pruning`
            self.study.tell(trial.handle, state=TrialState.PRUNED)
        else:
            self.study.tell(trial.handle, values)

    def finish(self) -> None:
        """Prints the best trials and draws Optuna's plots."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for trial in self.study.best_trials[:10]:  # several if objectives conflict
            scores = "  ".join(map("{} {:.4g}".format, self.objective, trial.values))
            console.tell(
                f"best of study {self.study_name}: {' '.join(self._overrides(trial.params))}  {scores}", sys.stderr
            )
        for i, name in enumerate(self.objective):
            for plot in PLOTS:
                self._plot(plot, i, self.folder / f"{plot}-{name}.png")

    def _plot(self, plot: str, objective: int, path: Path) -> None:
        os.environ.setdefault("MPLBACKEND", "agg")  # Matplotlib reads it when it is imported
        from optuna.visualization import matplotlib

        with warnings.catch_warnings(action="ignore"), suppress(ValueError, RuntimeError):  # too few or equal trials
            draw = getattr(matplotlib, f"plot_{plot}")  # experimental
            axes = draw(self.study, target=lambda trial: trial.values[objective], target_name=self.objective[objective])
            axes.figure.savefig(path, bbox_inches="tight")


def pruning(sweep: SweepConfig) -> Callable[[Any], AbstractContextManager[Callable[..., bool]]]:
    """The argument `follow` of `experiment.run`: reports each epoch to the study, and ends a run that the study prunes.

    A pruned run is evaluated and FINISHED like any other, after fewer epochs; it has the tag `pruned`.
    """
    trial, metric = sweep.trial, EACH_EPOCH[sweep.objective[0]]
    pruner = PRUNERS[str(trial.pruner)]()
    study = optuna.load_study(study_name=trial.study, storage=open_storage(str(trial.storage)), pruner=pruner)

    @contextmanager
    def follow(log: Any) -> Iterator[Callable[..., bool]]:
        own = optuna.trial.Trial(study, trial.id)

        def on_epoch(epoch: int, values: Mapping[str, float], weights: str) -> bool:
            own.report(values[metric], epoch)
            prune = own.should_prune()
            if prune:
                own.set_user_attr(PRUNED, True)
                log.tags({PRUNED: "true"})
            return prune

        yield on_epoch

    return follow


def open_storage(url: str) -> optuna.storages.BaseStorage:
    """Opens the storage of a study.

    Raises:
        RequestError: it cannot be used.
    """
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
        raise RequestError(f"hydra.sweeper.storage={url} cannot be used: {first_line(error)}") from error


def _drop_torn_line(path: Path, lock: Any) -> None:
    """Removes half a line from the end of a journal: Optuna would append to it and could not read the file again."""
    lock.acquire()
    try:
        with path.open("r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
    finally:
        lock.release()
