"""Evaluates finished runs: loads model and data by the logged config, predicts, and records what came of it."""

import csv
import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mnist_exp import provenance, scores
from mnist_exp.config import Config
from mnist_exp.config.untrusted import read_config
from mnist_exp.data import Dataset, Split, Subset, load_unlabelled
from mnist_exp.errors import RequestError
from mnist_exp.evaluation import ensemble
from mnist_exp.reproduction.replay import load_recorded
from mnist_exp.sweep.jobs import resolve_data
from mnist_exp.sweep.startup import import_tensorflow

if TYPE_CHECKING:
    from mnist_exp.tracking import RunInfo, Store

MAX_SHIFT = 4  # pixels: 81 copies of each image


class Member(NamedTuple):
    """A finished run and its config."""

    run: "RunInfo"
    config: Config


def members(runs: Sequence[str], uri: str | None) -> list[Member]:
    """The finished runs with these ids, beginnings of ids, or names, each once, best validation accuracy first.

    Raises:
        RequestError: a run does not exist, did not finish, is no training run, or its config is not trusted.
    """
    from mnist_exp import tracking

    found = {run.run_id: run for run in (tracking.find_run(uri, wanted) for wanted in runs)}
    chosen = []
    for run in found.values():
        kind = run.tags.get("kind")
        if kind not in ("run", "reproduction") or run.status != "FINISHED":
            raise RequestError(
                f"run {run.run_id} must be a finished training run; its kind is {kind}, its status {run.status}"
            )
        content = tracking.read_files(uri, run.run_id, ["config.yaml"]).get("config.yaml")
        if content is None:
            raise RequestError(f"run {run.run_id} has no artifact config.yaml")
        config = read_config(content, trusted=tracking.is_own(uri, run.tags))
        config.trainer.threads = int(run.tags.get("threads", 0)) or config.trainer.threads
        chosen.append(Member(run, config))
    return sorted(chosen, key=lambda member: -member.run.metrics.get("final_val_accuracy", 0.0))


def load_data(member: Member, named: str | None) -> Dataset:
    """The run's own data, or with `named` another option of `data` or a file in a format of `data=file`.

    Raises:
        RequestError: the data cannot be used, or the run's own have changed since.
    """
    config = member.config
    if named is None:
        dataset = load_recorded(config)
        then = member.run.tags.get("data.fingerprint")
        if dataset.fingerprint != then:
            raise RequestError(f"{dataset.source} has changed since run {member.run.run_id}; --data names the new data")
        return dataset
    from mnist_exp.config import CONF_DIR

    options = sorted({path.stem for path in (CONF_DIR / "data").glob("*.yaml")} - {"auto", "file"})
    config.trainer.batch_size = 1  # nothing is trained, so that any number of training images will do
    if named in options:
        config.data, config.sweep.data = {}, named
        resolve_data(config)
    elif Path(named).expanduser().exists():
        config.data = {**Subset()._asdict(), "_target_": "mnist_exp.data.file", "path": named}
    else:
        raise RequestError(f"--data must be a file or one of {', '.join(options)}, got {named!r}")
    return load_recorded(config)


def predict(model: Any, images: np.ndarray, shift: int = 0) -> np.ndarray:
    """float32 (n, classes): logits of uint8 images (n, height, width, channels), computed as the run computed them.

    Args:
        model: of Keras, from `load_model`.
        images: to predict.
        shift: if above 0, the mean probabilities over all shifts of up to so many pixels, as their logarithm.
    """
    from mnist_exp.training import evaluation

    if not shift:
        return evaluation.predict(model, Split(images, np.zeros(len(images), np.int64)))
    height, width = images.shape[1:3]
    padded = np.pad(images, [(0, 0), (shift, shift), (shift, shift), (0, 0)])
    steps = range(2 * shift + 1)
    shifted = (padded[:, y : y + height, x : x + width] for y in steps for x in steps)
    return ensemble.combine([evaluation.predict(model, Split(part, np.zeros(len(part), int))) for part in shifted])


def load_model(member: Member, image_shape: tuple[int, ...], classes: int, uri: str | None) -> Any:
    """The run's model, with the threads, devices and precision of the run, so that it computes the same bits.

    Raises:
        RequestError: the model does not fit the images or the classes.
    """
    import_tensorflow()
    from mnist_exp import builders, models, tracking
    from mnist_exp.training import devices

    config, tags = member.config, member.run.tags
    strategy = devices.configure(config.trainer.devices, config.trainer.threads or provenance.cores())
    devices.fresh_session(config.seed, config.trainer.precision)
    with strategy.scope() if strategy is not None else nullcontext():
        model = builders.build_model(config.model, image_shape, classes)  # type: ignore[arg-type]
        with tempfile.TemporaryDirectory() as scratch:
            weights = models.saved_weights(tracking.download(uri, member.run.run_id, "saved_model", Path(scratch)))
        try:
            model.set_weights(weights)
        except ValueError as error:
            raise RequestError(
                f"run {member.run.run_id} was trained on other images or classes than {image_shape} and {classes}"
            ) from error
        model.compile(jit_compile=tags.get("execution") == "keras" and tags.get("execution.xla") == "True")
    return model


def _portable(member: Member, model: Any) -> Any:
    """A copy of a member's model that Keras loads without this package."""
    from mnist_exp import models

    copy = models.portable(model)
    if copy is None:
        raise RequestError(f"--log-model needs models of Keras' own layers; {member.run.name} has others")
    return copy


def predict_images(run: str, uri: str | None, place: str) -> tuple[list[str], tuple[str, ...], np.ndarray]:
    """Predicts images without labels: a folder of image files, or an .npz file with one array.

    Args:
        run: id, beginning of an id, or name of a finished run.
        uri: the tracking store.
        place: of the images, of the size that the run was trained on.

    Returns:
        Names of the images, names of the classes, and float32 probabilities (images, classes).

    Raises:
        RequestError: the run or the images cannot be used.
    """
    from mnist_exp import tracking

    (member,) = members([run], uri)
    names, images = load_unlabelled(place)
    table = tracking.read_files(uri, member.run.run_id, ["per_class.csv"]).get("per_class.csv")
    if table is None:
        raise RequestError(f"run {member.run.run_id} has no artifact per_class.csv, which names the classes")
    rows = csv.DictReader(table.decode().splitlines())
    classes = tuple(row.get("name") or row["class"] for row in rows)
    logits = predict(load_model(member, images.shape[1:], len(classes), uri), images)
    return names, classes, scores.softmax(logits)


def evaluate(
    runs: Sequence[str], uri: str | None, *, data: str | None, shift: int, log_model: bool = False
) -> list[str]:
    """Scores runs on the test images, records each as a run of kind `evaluation`; several also as an ensemble.

    Args:
        runs: ids, beginnings of ids, or names.
        uri: the tracking store.
        data: another data set than the runs' own: an option of `data`, or a file.
        shift: as in `predict`.
        log_model: whether the ensemble becomes a model that can be served.

    Returns:
        Lines for the terminal.

    Raises:
        RequestError: a run, the data or the store cannot be used.
    """
    chosen = members(runs, uri)
    dataset = load_data(chosen[0], data)
    foreign = [m for m in chosen[1:] if data is None and m.run.tags.get("data.fingerprint") != dataset.fingerprint]
    if foreign:
        raise RequestError(f"run {foreign[0].run.run_id} has other data than {chosen[0].run.run_id}; --data names one")
    import_tensorflow()
    from mnist_exp import models, tracking

    every, copies, lines = [], [], []
    for member in chosen:
        store = tracking.open_store(uri, member.config.tracking.experiment)
        model = load_model(member, dataset.image_shape, dataset.num_classes, uri)
        copies += [_portable(member, model)] if log_model else []
        logits = predict(model, dataset.test.images, shift)
        found, run_id = _record([member], dataset, logits, store, shift)
        every.append(logits)
        lines.append(_line(member.run.name, found, dataset.name, run_id))
    if len(chosen) > 1:
        combined = ensemble.combine(every)
        whole = models.average(copies) if log_model else None
        found, run_id = _record(chosen, dataset, combined, store, shift, whole)
        names = [f"{member.run.name} {member.run.run_id[:8]}" for member in chosen]
        lines += [_line(f"ensemble of {len(chosen)}", found, dataset.name, run_id), ""]
        lines += ensemble.report(names, every, dataset.test.labels)
    return lines


def _line(name: str, found: dict[str, float], data: str, run_id: str) -> str:
    figures = f"test_accuracy {found['test_accuracy']:.2%}  test_loss {found['test_loss']:.4f}"
    return f"{name} on {data}: {figures}  run {run_id[:8]}"


def _record(
    chosen: Sequence[Member],
    dataset: Dataset,
    logits: np.ndarray,
    store: "Store",
    shift: int,
    model: Any = None,
) -> tuple[dict[str, float], str]:
    """Records the scores, predictions and plots, and a new model; returns the scores and the id of the new run."""
    from mnist_exp import builders, tracking
    from mnist_exp.experiment import write_test_results
    from mnist_exp.training.evaluation import test_metrics

    labels = dataset.test.labels
    further: dict[str, Any] = dict(builders.build_scores(chosen[0].config, dataset.num_classes))
    found = test_metrics(logits, labels)
    found |= {f"test_{name}": value for score in further.values() for name, value in score(logits, labels).items()}
    ids = [member.run.run_id for member in chosen]
    tags = {
        "kind": "evaluation",
        "evaluates": json.dumps(ids),
        "data.name": dataset.name,
        "data.fingerprint": dataset.fingerprint,
        "data.base": dataset.base or dataset.fingerprint,
    }
    output = Path("outputs", time.strftime("%Y-%m-%d"), f"{time.strftime('%H-%M-%S')}-{time.time_ns() % 10**9:09}")
    name = f"evaluation of {chosen[0].run.name}" if len(chosen) == 1 else f"ensemble of {len(chosen)}"
    params = {"evaluates": " ".join(ids), "shifts": str(shift)}
    with tracking.tracked_run(store, name, params, tags, output) as log:
        log.dataset(dataset.name, dataset.source, dataset.fingerprint, {"test": dataset.test.images.shape}, "testing")
        log.metrics(0, found)
        log.uses_models_of(ids)
        write_test_results(log.folder, dataset, logits)
        if model is not None:
            log.model(model, model, dataset.test.images[:2], dataset.num_classes, provenance.requirements())
    return found, log.run_id
