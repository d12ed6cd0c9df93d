"""Where Hydra finds this package's sweepers and launcher: it takes them from the namespace hydra_plugins only."""

from mnist_exp import launcher, search


class Random(search.Random):
    """`hydra/sweeper=random`."""


class Optuna(search.Optuna):
    """`hydra/sweeper=optuna`."""


class Processes(launcher.Processes):
    """`hydra/launcher=processes`."""
