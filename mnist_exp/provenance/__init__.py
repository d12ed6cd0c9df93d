"""The origin of a result: code, libraries and machine."""

from mnist_exp.provenance.environment import (
    cores,
    environment_factors,
    environment_record,
    gpus,
    hardware,
    is_gone,
    is_here,
    keras_config,
    memory,
    process,
    requirements,
)
from mnist_exp.provenance.git import LEFT_OUT, Code, check_new, own_code, restore
from mnist_exp.provenance.source import package_files, source_files, source_trees

__all__ = [
    "LEFT_OUT",
    "Code",
    "check_new",
    "cores",
    "environment_factors",
    "environment_record",
    "gpus",
    "hardware",
    "is_gone",
    "is_here",
    "keras_config",
    "memory",
    "own_code",
    "package_files",
    "process",
    "requirements",
    "restore",
    "source_files",
    "source_trees",
]
