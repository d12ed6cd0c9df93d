"""Searching with a study of Optuna's, which is stored and can be continued."""

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

SAMPLERS = ("tpe", "cmaes", "random", "qmc", "grid")
PRUNERS = ("median", "hyperband")
PRUNED = "pruned"
EACH_EPOCH = {"final_val_accuracy": "val_accuracy", "final_val_loss": "val_loss"}
PLOTS = ("optimization_history", "param_importances", "parallel_coordinate")


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
    """A follower of `experiment.run` that reports each epoch to the study, and ends a run that the study prunes.

    The run is evaluated and FINISHED like any other, on the epochs that it had; its tag `pruned` tells it apart.
    """
    import optuna

    trial, metric = sweep.trial, EACH_EPOCH[sweep.objective[0]]
    study = optuna.load_study(
        study_name=trial.study, storage=_storage(str(trial.storage)), pruner=_pruner(trial.pruner)
    )

    @contextmanager
    def follow(log: Any) -> Iterator[Callable[..., bool]]:
        own = optuna.trial.Trial(study, trial.id)

        def on_epoch(epoch: int, values: Mapping[str, float], weights: str) -> bool:
            own.report(values[metric], epoch)
            stop = own.should_prune()
            if stop:
                own.set_user_attr(PRUNED, True)
                log.tags({PRUNED: "true"})
            return stop

        yield on_epoch

    return follow


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
        raise RequestError(f"hydra.sweeper.storage={url} cannot be used: {first_line(error)}") from error


def _drop_torn_line(path: Path, lock: Any) -> None:
    """Remove half a line from the end of a journal, else Optuna appends to it and can never read the file again."""
    lock.acquire()
    try:
        with path.open("r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
    finally:
        lock.release()
