"""One experiment, from a checked config to a finished run in the tracking store, top to bottom."""

import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from omegaconf import OmegaConf

from mnist_exp import console, provenance, scores
from mnist_exp.config import PACKAGE, Config, build, identity, params, run_name, targets, to_yaml
from mnist_exp.data import Dataset
from mnist_exp.errors import RequestError
from mnist_exp.figures import run as plots
from mnist_exp.models import Shape, check, saved_weights
from mnist_exp.provenance.modules import FOLDER, UserCode, recordable, user_code, write
from mnist_exp.redact import redact
from mnist_exp.tracking import RunLog, Store, download, tracked_run
from mnist_exp.training import devices, trainer

# Told of each epoch its number, its metrics and the digest of its weights; true ends the training there.
Watch = Callable[[int, dict[str, float], str], bool]


@contextmanager
def _nobody(log: RunLog) -> Iterator[Watch]:
    yield lambda epoch, values, weights: False


class Result(NamedTuple):
    """What a run came to; every metric is in the store under the same name."""

    run_id: str
    metrics: dict[str, float]


def run_experiment(
    config: Config,
    dataset: Dataset,
    store: Store,
    output: Path,
    tags: Mapping[str, str],
    overrides: Sequence[str],
    witness: Callable[[RunLog], AbstractContextManager[Watch]] = _nobody,
) -> Result:
    """Train, evaluate and record one model.

    Args:
        config: checked, with `data` naming a concrete source.
        dataset: loaded from `config.data`.
        store: where the run is recorded.
        output: folder for the run's local record.
        tags: of the run, besides those made here, and before them.
        overrides: the command's overrides, recorded as they were given.
        witness: entered with the run's log before it trains, left before the run is closed.

    Raises:
        DeviceError: the machine lacks the devices asked for.
        StoreError: the store did not take the run.
    """
    settings, images = config.trainer, len(dataset.train.labels)
    name = run_name(config)
    threads = settings.threads or provenance.cores()
    strategy = devices.configure(settings.devices, threads)
    devices.fresh_session(config.seed, settings.precision)
    own = user_code(targets(config))
    facts = provenance.environment_factors(PACKAGE, own, dataset.fingerprint, threads, devices.describe(strategy))
    code = provenance.own_code(PACKAGE)
    tags = {"overrides": shlex.join(overrides), **_tags(config, dataset, facts, code), **tags}
    resume = config.resume or settings.checkpoint
    with tracked_run(store, name, params(config), tags, output, resume) as log, witness(log) as watch:
        if log.epochs:
            console.say(console.continued_line(name, log.epochs, log.run_id), sys.stderr)
        _write_origin(log.folder, config, overrides, facts, code, own)
        shapes = {part: getattr(dataset, part).images.shape for part in ("train", "validation", "test")}
        log.dataset(dataset.name, dataset.source, dataset.fingerprint, shapes)
        with strategy.scope() if strategy is not None else nullcontext():
            model = build_model(config.model, dataset.image_shape, dataset.num_classes)
            if config.init_from is not None:
                _take_weights(model, config.init_from, store)
            optimizer = build_optimizer(
                config.optimizer, config.schedule, settings.epochs * -(-images // settings.batch_size)
            )
        replicas = strategy.num_replicas_in_sync if strategy is not None else 1
        execution = trainer.choose_execution(settings.execution, model, replicas, gpu=facts["device"] != "cpu")
        log.tags({"execution": execution.name, "execution.xla": str(execution.xla), "execution.why": execution.why})
        _write_summary(log.folder, model)
        log.upload()
        fitted = _fit(config, dataset, model, optimizer, execution, name, log, watch)
        measured, test_logits = _evaluate(model, dataset, fitted, validation=tags["selection"])
        final = {"fit_seconds": fitted.seconds, "parameters": float(model.count_params()), **measured}
        # Before anything is written or sent that may fail.
        log.metrics(0, final)
        epochs = len(fitted.history["train_loss"])
        console.say(console.summary_line(name, final, epochs, execution.name, log.run_id))
        _write_results(log.folder, dataset, fitted, test_logits, validation=tags["selection"], title=name)
        log.model(model, dataset.test.images[:2], dataset.num_classes, provenance.requirements(own.packages))
    return Result(log.run_id, final)


def _tags(config: Config, dataset: Dataset, facts: Mapping[str, Any], code: provenance.Code) -> dict[str, str]:
    return {
        "kind": "run",
        "identity": identity(config, facts),
        "identity.config": identity(config, {}),
        "identity.facts": json.dumps(facts),
        "data.name": dataset.name,
        "data.fingerprint": dataset.fingerprint,
        **({"init_from": config.init_from} if config.init_from is not None else {}),
        "selection": "test" if config.data["validation"] == "test" else "validation",
        "device": facts["device"],
        "threads": str(facts["threads"]),
        "code.commit": code.commit or "unknown",
        "code.dirty": "unknown" if code.dirty is None else str(code.dirty).lower(),
    }


def _fit(
    config: Config,
    dataset: Dataset,
    model: keras.Model,
    optimizer: keras.Optimizer,
    execution: trainer.Execution,
    name: str,
    log: RunLog,
    watch: Watch,
) -> trainer.Fitted:
    """Train with the config's callbacks, showing and recording every epoch."""
    settings = config.trainer
    callbacks = []
    if settings.early_stopping is not None:
        callbacks.append(trainer.early_stopping(settings.early_stopping, settings.patience))
    if settings.profile:
        callbacks.append(trainer.profile(log.folder / "profile", settings.epochs))
    with console.RunProgress(name, settings.epochs) as progress:

        def on_epoch(epoch: int, values: dict[str, float], weights: str) -> bool:
            log.metrics(epoch, values, weights=weights)
            progress.epoch(epoch, values)
            return watch(epoch, values, weights)

        return trainer.fit(
            model,
            optimizer,
            dataset,
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            seed=config.seed,
            execution=execution,
            on_epoch=on_epoch,
            within_epoch=progress.within_epoch,
            callbacks=callbacks,
            checkpoints=log.checkpoints if settings.checkpoint else None,
        )


def _take_weights(model: keras.Model, run_id: str, store: Store) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        weights = saved_weights(download(store.uri, run_id, "saved_model", Path(scratch)))
    try:
        model.set_weights(weights)
    except ValueError as error:
        shapes = [[weight.shape for weight in found] for found in (weights, model.weights)]
        raise RequestError(
            f"init_from={run_id}: that run's weights are {shapes[0]}, this model's {shapes[1]}"
        ) from error


def build_model(node: Mapping[str, Any], image_shape: Shape, num_classes: int) -> keras.Model:
    """A model from uint8 images to logits.

    Raises:
        RequestError: a user's builder returns something else. The tests check the models of this package.
    """
    model = build(node, image_shape, num_classes)
    if not node["_target_"].startswith("mnist_exp."):
        check(model, image_shape, num_classes)
    return model


def build_optimizer(node: Mapping[str, Any], schedule: Mapping[str, Any], total_steps: int) -> keras.Optimizer:
    """An optimizer whose base rate a schedule scales over the steps of the training.

    Raises:
        RequestError: the schedule returns no rate, or the optimizer's target no optimizer.
    """
    rate = build(schedule, node["learning_rate"], total_steps)
    if not schedule["_target_"].startswith("mnist_exp."):
        _check_rate(rate, total_steps)
    optimizer = build({**node, "learning_rate": rate})
    if not isinstance(optimizer, keras.Optimizer):
        raise RequestError(f"optimizer._target_ must return a keras.Optimizer, got {type(optimizer).__name__}")
    return optimizer


def _check_rate(rate: object, total_steps: int) -> None:
    """Keras also takes a function of no arguments, but a compiled loop would call it once and keep the first rate."""
    if not isinstance(rate, float | keras.optimizers.schedules.LearningRateSchedule):
        raise RequestError(
            f"schedule._target_ must return a float or a keras LearningRateSchedule, got {type(rate).__name__}"
        )
    for step in (0, total_steps - 1):
        value = np.asarray(rate if isinstance(rate, float) else rate(step))
        if value.shape != () or not 0 <= value < np.inf:
            raise RequestError(
                f"schedule._target_ must give a rate of at least 0 at each step, got {value} at step {step}"
            )


def _write_origin(
    folder: Path,
    config: Config,
    overrides: Sequence[str],
    facts: Mapping[str, Any],
    code: provenance.Code,
    own: UserCode,
) -> None:
    """Write what the run came from: enough to train it again, and to tell why the result is another one."""
    described = {
        "code": {"commit": code.commit, "branch": code.branch, "dirty": code.dirty},
        "source": provenance.source_files(PACKAGE, own),
        "source_trees": provenance.source_trees(PACKAGE, own),
        "facts": facts,
        "config": params(config),
    }
    environment = json.dumps({**provenance.environment_record(own.packages), **described}, indent=2)
    for name, text in (
        ("config.yaml", redact(to_yaml(config))),
        ("overrides.yaml", redact(OmegaConf.to_yaml(OmegaConf.create(list(overrides))))),
        ("environment.json", redact(environment) + "\n"),
        ("requirements.txt", "\n".join(provenance.requirements(own.packages)) + "\n"),
        ("code.diff", code.diff),
    ):
        (folder / name).write_text(text, encoding="utf-8", newline="")  # a diff keeps its line ends
    write(recordable(own)[0], folder / FOLDER)


def _write_summary(folder: Path, model: keras.Model) -> None:
    lines: list[str] = []
    model.summary(print_fn=lines.append, line_length=80)
    (folder / "model_summary.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _evaluate(
    model: keras.Model, dataset: Dataset, fitted: trainer.Fitted, *, validation: str
) -> tuple[dict[str, float], np.ndarray]:
    """Score the final weights, the test set just this once; return the final metrics and the test logits."""
    labels = dataset.test.labels
    test_logits = trainer.predict(model, dataset.test)
    val_logits = test_logits if validation == "test" else trainer.predict(model, dataset.validation)
    found = {"compile_seconds": fitted.compile_seconds, "best_epoch": float(fitted.best_epoch)}
    for part, logits, truth in (("final_val", val_logits, dataset.validation.labels), ("test", test_logits, labels)):
        found[f"{part}_loss"] = scores.cross_entropy(logits, truth)
        found[f"{part}_accuracy"] = float((logits.argmax(axis=1) == truth).mean())
    found["test_calibration_error"] = scores.calibration_error(test_logits, labels)
    for percent in (97, 98, 99):
        history = fitted.history
        seconds = scores.seconds_to(history["val_accuracy"], history["epoch_seconds"], percent / 100)
        if seconds is not None:
            found[f"seconds_to_{percent}"] = seconds
    return found, test_logits


def _write_results(
    folder: Path, dataset: Dataset, fitted: trainer.Fitted, test_logits: np.ndarray, *, validation: str, title: str
) -> None:
    """Write the predictions on the test set, the scores of each class, and the plots."""
    labels, classes = dataset.test.labels, [str(c) for c in range(dataset.num_classes)]
    confusion = scores.confusion_matrix(labels, test_logits.argmax(axis=1), dataset.num_classes)
    np.savez_compressed(folder / "predictions.npz", logits=test_logits, labels=labels)
    # Not metrics: thirty charts of one bar each would hide the curves in MLflow's view.
    figures = scores.per_class(confusion)
    table = np.column_stack([np.arange(dataset.num_classes), confusion.sum(axis=1), *figures.values()])
    header = ",".join(("class", "images", *figures))
    np.savetxt(folder / "per_class.csv", table, "%g", ",", header=header, comments="")
    shown = range(min(dataset.num_classes, 12))
    of_each = np.concatenate([np.flatnonzero(dataset.train.labels == c)[:3] for c in shown])
    for name, figure in (
        ("curves", plots.curves(fitted.history, title=title, validation=validation)),
        ("confusion_matrix", plots.confusion_matrix(confusion, classes)),
        ("mistakes", plots.mistakes(dataset.test.images, labels, test_logits)),
        ("samples", plots.samples(dataset.train.images[of_each], dataset.train.labels[of_each])),
    ):
        figure.savefig(folder / f"{name}.png")
