"""The sweepers and the launcher of mnist_exp, where Hydra looks for them.

Every program that uses Hydra in this environment imports this file. So it imports mnist_exp only when a program asks
for one of these objects.
"""

from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper


class Grid(BasicSweeper):
    """`hydra/sweeper=grid`: Hydra's own sweeper without its check of each job, which `SweepCallback` has made.

    Composing a job takes 0.6 s.
    """

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
