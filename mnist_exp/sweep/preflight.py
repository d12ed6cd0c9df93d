"""Checks before the first run: builds every model without its weights, estimates memory, time and disk space."""

import json
import math
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import keras

from mnist_exp import provenance
from mnist_exp.builders import (
    build_augmentation,
    build_callbacks,
    build_loss,
    build_model,
    build_optimizer,
    build_scores,
    explained,
)
from mnist_exp.config import Config, ConfigError, build, params, targets
from mnist_exp.data import Dataset
from mnist_exp.errors import RequestError
from mnist_exp.tracking import Store, similar_runs
from mnist_exp.training import devices

BYTES_A_PARAMETER = 16  # a SavedModel holds float32 weights twice; a run has two, for MLflow and for TF Serving
BYTES_A_RUN = 600_000  # figures, configs, the model's graph and example


class Plan(NamedTuple):
    """What jobs are expected to take if they run one after the other."""

    seconds: float  # of the jobs for which the store has similar runs
    unknown: int  # jobs for which it has none
    bytes: int

    def __str__(self) -> str:
        minutes, seconds = divmod(round(self.seconds), 60)
        hours, minutes = divmod(minutes, 60)
        known = f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
        times = [f"about {known} one after the other"] * (self.seconds > 0)
        times += [f"time unknown for {self.unknown} of them"] * bool(self.unknown)
        return f"{', '.join(times)}; {self.bytes / 1e6:,.0f} MB on disk"


class Size(NamedTuple):
    """The size of a model."""

    parameters: int
    outputs: int  # of the largest layer, for one image


def models(jobs: Sequence[tuple[Config, Dataset, str]], memory: int | None = None) -> list[int]:
    """Builds the models and optimizers of jobs, each kind once, without allocating weights.

    Args:
        jobs: for each its config, its data set, and the overrides that distinguish it from the others.
        memory: bytes of the machine that runs the jobs; None if it is unknown.

    Returns:
        The number of parameters of each job's model.

    Raises:
        ConfigError: one line for each mistake, after the overrides of the first job that has it.
    """
    counts: list[int] = []
    mistakes: dict[str, list[str]] = {}
    for config, dataset, swept in jobs:
        try:
            counts.append(_check_job(config, dataset, memory))
        except RequestError as error:
            mistakes.setdefault(str(error), []).append(swept)
    if mistakes:
        raise ConfigError("\n".join(_line(*mistake) for mistake in mistakes.items()))
    return counts


def check(config: Config, dataset: Dataset) -> None:
    """Refuses a run on this machine whose model or optimizer cannot be built, before the run begins.

    An exception in a user's own builder passes: the run will raise it again and record its traceback.

    Raises:
        RequestError: names what cannot be built, or the devices or the memory that are missing.
    """
    ours = all(target.startswith(("mnist_exp.", "keras.")) for target in targets(config))
    devices.configure(config.trainer.devices, config.trainer.threads or provenance.cores())
    try:
        _check_job(config, dataset, provenance.memory())
    except RequestError as error:
        if ours or error.__cause__ is None:
            raise


def _check_job(config: Config, dataset: Dataset, memory: int | None) -> int:
    """Checks model, optimizer and memory; returns the number of parameters."""
    settings = config.trainer
    size = _size(json.dumps(config.model), dataset.image_shape, dataset.num_classes, settings.precision)
    steps = settings.epochs * math.ceil(len(dataset.train.labels) / settings.batch_size)
    _check_optimizer(json.dumps(config.optimizer), json.dumps(config.schedule), steps)
    _check_parts(config, dataset)
    on_cpu = settings.devices.startswith("cpu") or not provenance.gpus()
    if memory is not None and on_cpu:  # a GPU has a memory of its own
        # Training holds at least the weights, as many gradients, and the largest layer's outputs for a batch.
        width = 4 if settings.precision == "float32" else 2
        needed = 8 * size.parameters + width * settings.batch_size * size.outputs
        if needed > memory:
            raise RequestError(
                f"this model needs at least {needed / 1e9:,.0f} GB, the machine has {memory / 1e9:,.0f}: it has"
                f" {size.parameters:,} parameters, and its largest layer has {size.outputs:,} outputs for each of the"
                f" {settings.batch_size:,} images of a batch"
            )
    return size.parameters


_checked: set[str] = set()  # parts of which a job of this process has been checked


def _check_parts(config: Config, dataset: Dataset) -> None:
    """Builds the loss, the augmentation, the callbacks and the scores once for all jobs that share them."""
    parts = json.dumps([config.loss, config.augment, config.callbacks, config.scores, dataset.fingerprint])
    if parts in _checked:
        return
    with explained("the augmentation cannot be built"):
        augmentation = build_augmentation(config, dataset)
    with explained("the loss cannot be built"):
        build_loss(config.loss, dataset.class_counts, augmentation.mixing if augmentation is not None else ())
    with explained("the callbacks cannot be built"), tempfile.TemporaryDirectory() as folder:
        build_callbacks(config, Path(folder))
    build_scores(config, dataset.num_classes)
    _checked.add(parts)


def _line(mistake: str, swept: Sequence[str]) -> str:
    others = f" (and {len(swept) - 1} more)" if len(swept) > 1 else ""
    return f"{swept[0]}: {mistake}{others}" if swept[0] else mistake + others


@cache
def _size(model: str, image_shape: tuple[int, int, int], num_classes: int, precision: str) -> Size:
    keras.config.set_dtype_policy(precision)
    with explained("the model cannot be built"):
        with suppress(Exception), keras.StatelessScope(initialize_variables=False):
            return _measure(build_model(json.loads(model), image_shape, num_classes))
        return _measure(build_model(json.loads(model), image_shape, num_classes))  # its builder may need real weights


def _measure(model: keras.Model) -> Size:
    outputs = [0]
    for layer in model.layers:
        with suppress(AttributeError, ValueError):  # a layer that was called twice or never has no output
            outputs += [math.prod(tensor.shape[1:]) for tensor in keras.tree.flatten(layer.output)]
    return Size(int(model.count_params()), max(outputs))


@cache
def _check_optimizer(optimizer: str, schedule: str, steps: int) -> None:
    node = json.loads(optimizer)
    with explained("the optimizer cannot be built"):
        build_optimizer(node, json.loads(schedule), steps)
    if not node["_target_"].startswith("keras."):
        return
    with explained("the optimizer cannot be applied"):  # Keras rejects some arguments, such as clipnorm=x, in a step
        variable = keras.Variable(keras.ops.zeros((2, 2), "float32"), dtype="float32")
        built = build({**node, "learning_rate": 0.1})
        built.build([variable])
        built.scale_loss(keras.ops.zeros(()))
        built.apply([keras.ops.zeros((2, 2), "float32")])


def plan(jobs: Sequence[tuple[Config, Dataset, int]], store: Store) -> Plan:
    """Estimates time and disk space from finished runs with the same model, optimizer, batch size and data set.

    Args:
        jobs: for each its config, its data set and its number of parameters.
        store: in which those runs are looked for.
    """
    kinds: dict[tuple[str, str, int, str], list[tuple[int, int, int]]] = {}
    size = 0
    for config, dataset, parameters in jobs:
        logged = params(config)
        kind = (logged["model"], logged["optimizer"], config.trainer.batch_size, dataset.name)
        kinds.setdefault(kind, []).append((config.trainer.epochs, len(dataset.train.labels), parameters))
        size += BYTES_A_RUN + BYTES_A_PARAMETER * parameters + len(dataset.test.labels) * (4 * dataset.num_classes + 8)
    runs = {kind: [run for run in similar_runs(store, *kind) if _is_timed(run)] for kind in kinds}
    known = [_seconds(runs[kind], *job) for kind, members in kinds.items() if runs[kind] for job in members]
    return Plan(sum(known), len(jobs) - len(known), size)


def _is_timed(run: Any) -> bool:
    """Whether the run recorded what `_seconds` reads; runs of older versions may not have."""
    metrics = {"parameters", "fit_seconds", "compile_seconds"}
    return metrics <= run.metrics.keys() and "trainer.epochs" in run.params


def _seconds(runs: Sequence[Any], epochs: int, images: int, parameters: int) -> float:
    """The median time of the runs whose size is nearest.

    Their training after compilation is scaled to the epochs and the number of training images. Runs of versions that
    did not record that number had all images.
    """
    nearest = min((run.metrics["parameters"] for run in runs), key=lambda size: abs(size - parameters))
    times = []
    for run in runs:
        if run.metrics["parameters"] == nearest:
            fit = run.metrics["fit_seconds"] - run.metrics["compile_seconds"]
            around = run.end_time - run.start_time - fit
            trained = int(run.params["trainer.epochs"]) * int(run.tags.get("data.train_images", images))
            times.append(around + fit * epochs * images / trained)
    return median(times)
