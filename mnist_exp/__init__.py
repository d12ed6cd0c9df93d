"""Experiment tracking for image classification: Hydra composes, Keras trains, MLflow records.

From Python: `mnist_exp.train`, `mnist_exp.sweep` and `mnist_exp.runs`, see `mnist_exp.api`.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mnist_exp.api import Run, Runs, runs, sweep, train
    from mnist_exp.errors import RequestError, RunError

    __version__: str

__all__ = ["RequestError", "Run", "RunError", "Runs", "__version__", "runs", "sweep", "train"]


def __getattr__(name: str) -> Any:
    """Looks a name up when it is first asked for: every command and worker process imports this module."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "__version__":
        from importlib import metadata

        try:
            return metadata.version("mnist_exp")
        except metadata.PackageNotFoundError:  # a checkout that is not installed
            return "unknown"
    from mnist_exp import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return __all__


class _Package(ModuleType):
    """Keeps `mnist_exp.train` and `mnist_exp.sweep` the functions.

    The import of a submodule, such as that of the command `mnist_exp/train.py`, would set its name to the module.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in __all__:
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
