"""Where Hydra finds this package's sweepers and launcher: it takes them from the namespace hydra_plugins only."""

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

from mnist_exp.sweep import optuna_search, processes, search


class Grid(BasicSweeper):
    """`hydra/sweeper=grid`: Hydra's own, which would compose every job once more after `SweepCallback` has."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Nothing is left to check."""


class Random(search.Random):
    """`hydra/sweeper=random`."""


class Optuna(optuna_search.Optuna):
    """`hydra/sweeper=optuna`."""


class Processes(processes.Processes):
    """`hydra/launcher=processes`."""
