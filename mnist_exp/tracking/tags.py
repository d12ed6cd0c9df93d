"""The names of tags in MLflow, whose UI hides those that begin with `mlflow.`.

So a person reads there the tags of a run without those that only this program needs. Everywhere else each tag has its
plain name. Runs of earlier versions have it in MLflow too.
"""

import sys
from collections.abc import Mapping

_PREFIX = "mlflow.mnist_exp."
_PROGRAM = {"data.base", "identity", "identity.config", "identity.facts", "process", "resume.exact"}


def stored(tag: str) -> str:
    """The name of a tag in MLflow."""
    return _PREFIX + tag if tag in _PROGRAM else tag


def in_store(tags: Mapping[str, str]) -> dict[str, str]:
    """The same tags under their names in MLflow."""
    return {stored(tag): text for tag, text in tags.items()}


def read_into(tags: dict[str, str], name: str, text: str) -> None:
    """Add one of MLflow's tags under its plain name; MLflow's own tags are left out.

    A run that an earlier version began and this one continued has a tag under both names: the newer one counts.
    """
    tag = name.removeprefix(_PREFIX)
    if not tag.startswith("mlflow.") and (tag != name or tag not in tags):
        tags[sys.intern(tag)] = text
