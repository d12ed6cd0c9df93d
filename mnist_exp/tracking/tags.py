"""Names of tags in MLflow. Its UI hides tags whose names begin with `mlflow.`.

The tags that only this program needs get such a name in the store. Everywhere else each tag has its plain name. Runs
of earlier versions have the plain names in the store too.
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
    """Add a tag of the store to `tags` under its plain name, unless it is MLflow's own.

    A run that an earlier version began and this one continued has some tags under both names. The hidden one counts.
    """
    tag = name.removeprefix(_PREFIX)
    if not tag.startswith("mlflow.") and (tag != name or tag not in tags):
        tags[sys.intern(tag)] = text
