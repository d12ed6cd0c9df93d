"""The sweepers, the launcher and the callback of mnist_exp, where Hydra looks for them.

Every program that uses Hydra in this environment imports this file. So it imports mnist_exp only when a program asks
for one of these objects.
"""

from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper


def __getattr__(name: str) -> Any:
    """The callback of sweeps: Hydra cannot find a path that begins with `mnist_exp.sweep`, which is a function."""
    if name != "SweepCallback":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mnist_exp.sweep.callback import SweepCallback

    return SweepCallback


class Grid(BasicSweeper):
    """`hydra/sweeper=grid`: Hydra's own sweeper, which also pairs the values of keys with the same tag.

    It skips Hydra's own check of each job, because `SweepCallback` has checked all jobs.
    """

    @staticmethod
    def split_arguments(overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:
        """The batches of jobs, each job given by its overrides."""
        from mnist_exp.sweep.grid import last_of_each_key, product

        jobs = product(last_of_each_key(overrides))
        return list(BasicSweeper.split_overrides_to_chunks(jobs, max_batch_size))

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Checks nothing."""


class Random(Sweeper):
    """`hydra/sweeper=random`: passes Hydra's calls on to a `RandomSearch`."""

    def __init__(self, **settings: Any) -> None:
        from mnist_exp.sweep.search import RandomSearch

        self.search: Any = RandomSearch(**settings)

    def setup(self, **context: Any) -> None:
        """Called by Hydra before `sweep`."""
        self.search.setup(**context)

    def sweep(self, arguments: list[str]) -> None:
        """Runs the trials; called by Hydra."""
        self.search.sweep(arguments)


class Optuna(Random):
    """`hydra/sweeper=optuna`: passes Hydra's calls on to an `OptunaSearch`."""

    def __init__(self, **settings: Any) -> None:
        from mnist_exp.sweep.optuna_search import OptunaSearch

        self.search = OptunaSearch(**settings)


class Processes(Launcher):
    """`hydra/launcher=processes`: passes Hydra's calls on to a `ProcessLauncher`."""

    def __init__(self, n_jobs: int) -> None:
        from mnist_exp.sweep.processes import ProcessLauncher

        self.launcher = ProcessLauncher(n_jobs)

    def setup(self, **context: Any) -> None:
        """Called by Hydra before the first `launch`."""
        self.launcher.setup(**context)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs the jobs; called by Hydra, by some sweepers several times."""
        return self.launcher.launch(job_overrides, initial_job_idx)
