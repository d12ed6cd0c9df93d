"""One experiment from a checked config to a finished run in the tracking store.

TensorFlow, MLflow and Matplotlib take 7 s to import. The functions that use them import them, so that `prepare` and the
search for a finished run need not wait.
"""

import csv
import json
import math
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from omegaconf import OmegaConf

from mnist_exp import console, provenance, scores
from mnist_exp.config import PACKAGE, Config, identity, params, run_name, targets, to_yaml
from mnist_exp.data import Dataset, Split
from mnist_exp.errors import RequestError
from mnist_exp.provenance.modules import FOLDER, UserCode, recordable, user_code, write
from mnist_exp.redact import redact

if TYPE_CHECKING:
    import keras

    from mnist_exp.tracking import RunLog, Store
    from mnist_exp.training.evaluation import Evaluation, Scores
    from mnist_exp.training.trainer import Execution, Fitted, Training

# Gets an epoch's number, its metrics and the digest of its weights. True ends the training there.
EpochCallback = Callable[[int, dict[str, float], str], bool]


class Experiment(NamedTuple):
    """A run before it is trained, with everything that identifies it. `prepare` makes it once per job."""

    config: Config  # checked, with `data` naming a concrete source
    dataset: Dataset
    name: str
    threads: int
    user_code: UserCode
    factors: Mapping[str, Any]  # environment factors: everything outside the config that can change the result
    identity: str  # SHA-256 (hex) of config and factors. Runs of equal identity have equal results
    config_identity: str  # the same of the config alone

    @property
    def selection(self) -> str:
        """The images that runs are selected on: `validation`, or `test` if the test set is used for it."""
        return "test" if self.config.data["validation"] == "test" else "validation"


class Result(NamedTuple):
    """A finished run. The store has every metric under the same name."""

    run_id: str
    metrics: dict[str, float]


def prepare(config: Config, dataset: Dataset, device: str) -> Experiment:
    """Collects the factors that identify a run.

    Args:
        config: checked, with `data` naming a concrete source.
        dataset: loaded from `config.data`.
        device: its device, as `training.devices.describe` names it.
    """
    threads = config.trainer.threads or provenance.cores()
    own = user_code(targets(config))
    factors = provenance.environment_factors(PACKAGE, own, dataset.fingerprint, threads, device)
    identities = identity(config, factors), identity(config, {})
    return Experiment(config, dataset, run_name(config), threads, own, factors, *identities)


@contextmanager
def _nobody(log: "RunLog") -> Iterator[EpochCallback]:
    yield lambda epoch, values, weights: False


def run(
    experiment: Experiment,
    store: "Store",
    output: Path,
    *,
    tags: Mapping[str, str],
    overrides: Sequence[str],
    follow: Callable[["RunLog"], AbstractContextManager[EpochCallback]] = _nobody,
) -> Result:
    """Train, evaluate and record one model.

    Args:
        experiment: from `prepare`.
        store: where the run is recorded.
        output: folder for the run's local record.
        tags: of the run, besides those made here, and before them.
        overrides: the command's overrides, recorded as they were given.
        follow: a context entered with the run's log before it trains, left before the run is closed.

    Raises:
        DeviceError: the machine lacks the devices asked for.
        StoreError: the store did not take the run.
    """
    from mnist_exp import builders, models, tracking
    from mnist_exp.training import devices

    config, dataset, name = experiment.config, experiment.dataset, experiment.name
    strategy = devices.configure(config.trainer.devices, experiment.threads)
    devices.fresh_session(config.seed, config.trainer.precision)
    code = provenance.own_code(PACKAGE)
    tags = {"overrides": shlex.join(overrides), **_tags(experiment, code), **tags}
    logged = params(config)
    resume = config.resume or config.trainer.checkpoint
    with tracking.tracked_run(store, name, logged, tags, output, resume) as log, follow(log) as on_epoch:
        if log.epochs or log.checkpoints.is_dir():
            done = "1 epoch" if log.epochs == 1 else f"{log.epochs} epochs"
            console.tell(
                f"{name}  continues run {log.run_id}, which was interrupted after {done} (they are printed again)",
                sys.stderr,
            )
        _write_origin(log.folder, experiment, logged, overrides, code)
        shapes = {part: getattr(dataset, part).images.shape for part in ("train", "validation", "test")}
        log.dataset(dataset.name, dataset.source, dataset.fingerprint, shapes)
        with strategy.scope() if strategy is not None else nullcontext():
            model, training = _build(experiment, log, strategy.num_replicas_in_sync if strategy is not None else 1)
            if config.init_from is not None:
                take_weights(model, config.init_from, store)
        further = builders.build_scores(config, dataset.num_classes)
        _describe(log, model, training.execution)
        fitted = _fit(experiment, model, training, log, on_epoch)
        scored, final, failure = _score(experiment, model, fitted, further)
        final |= _suggested(training)
        # Before anything is written or sent that may fail.
        log.metrics(0, final)
        epochs = len(fitted.history["train_loss"])
        early = (
            f", {epochs} of {training.epochs} epochs" if epochs < training.epochs else ""
        )  # a callback ended the training
        console.run_line(name, final, f"{fitted.seconds:.1f} s{early}")
        _write_results(log.folder, experiment, training, fitted, scored)
        _write_range_test(log.folder, name, training)
        requirements = provenance.requirements(experiment.user_code.packages)
        log.model(model, models.portable(model), dataset.test.images[:2], dataset.num_classes, requirements)
        if failure is not None:
            raise failure
    return Result(log.run_id, final)


def _tags(experiment: Experiment, code: provenance.Code) -> dict[str, str]:
    config, dataset, factors = experiment.config, experiment.dataset, experiment.factors
    return {
        "kind": "run",
        "identity": experiment.identity,
        "identity.config": experiment.config_identity,
        "identity.facts": json.dumps(factors),
        "data.name": dataset.name,
        "data.fingerprint": dataset.fingerprint,
        "data.base": dataset.base or dataset.fingerprint,
        "data.train_images": str(len(dataset.train.labels)),
        "data.validation_images": str(len(dataset.validation.labels)),
        **({"init_from": config.init_from} if config.init_from is not None else {}),
        "selection": experiment.selection,
        "device": factors["device"],
        "threads": str(factors["threads"]),
        "code.commit": code.commit or "unknown",
        "code.dirty": "unknown" if code.dirty is None else str(code.dirty).lower(),
    }


def _build(experiment: Experiment, log: "RunLog", replicas: int) -> tuple["keras.Model", "Training"]:
    """Everything that Keras needs, built from the config."""
    from mnist_exp import builders
    from mnist_exp.training import trainer
    from mnist_exp.training.callbacks import not_resumable, profile

    config, dataset, settings = experiment.config, experiment.dataset, experiment.config.trainer
    model = builders.build_model(config.model, dataset.image_shape, dataset.num_classes)
    steps = settings.epochs * -(-len(dataset.train.labels) // settings.batch_size)
    _warn_of_few_steps(model, steps)
    on_gpu = experiment.factors["device"] != "cpu"
    callbacks = builders.build_callbacks(config, log.folder)
    unsaved = not_resumable(callbacks)
    if unsaved and settings.checkpoint:
        log.tags({"resume.exact": "false"})
        console.warn(
            f"callbacks.{', callbacks.'.join(unsaved)}: without get_state and set_state no checkpoint holds the state; "
            "if this run is continued, its result may differ from that of an uninterrupted run"
        )
    if settings.profile:
        callbacks["trainer.profile"] = profile(log.folder / "profile", settings.epochs)
    augmentation = builders.build_augmentation(config, dataset)
    mixing = augmentation.mixing if augmentation is not None else ()
    return model, trainer.Training(
        loss=builders.build_loss(config.loss, dataset.class_counts, mixing),
        optimizer=builders.build_optimizer(config.optimizer, config.schedule, steps),
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        seed=config.seed,
        execution=trainer.choose_execution(settings.execution, model, replicas, gpu=on_gpu),
        augmentation=augmentation,
        callbacks=callbacks,
        checkpoints=log.checkpoints if settings.checkpoint else None,
    )


def _warn_of_few_steps(model: "keras.Model", steps: int) -> None:
    """Warns if the training is too short for batch normalisation.

    Its moving averages start at fixed values and forget them step by step. At most 1 % of these values may be left at
    the end. The variance starts at 1, which may be a hundred times the variance of a layer's inputs: one epoch of 215
    steps gave 96 % training accuracy and 11 % validation accuracy.
    """
    import keras

    found = [layer.momentum for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    if (momentum := max(found, default=0.0)) ** steps > 0.01:
        enough = math.ceil(math.log(0.01) / math.log(momentum))
        console.warn(
            f"trainer.epochs: batch normalisation needs about {enough} steps until its moving averages describe the "
            f"images, and this run has {steps}: its validation and test scores may be far too low"
        )


def _describe(log: "RunLog", model: "keras.Model", execution: "Execution") -> None:
    """Records the execution and the layers of the model, and sends the files that are written so far."""
    log.tags({"execution": execution.name, "execution.xla": str(execution.xla), "execution.why": execution.why})
    lines: list[str] = []
    model.summary(print_fn=lines.append, line_length=80)
    (log.folder / "model_summary.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    log.upload()


def _fit(
    experiment: Experiment, model: "keras.Model", training: "Training", log: "RunLog", follow: EpochCallback
) -> "Fitted":
    """Trains the model, and prints and records every epoch."""
    from mnist_exp.training import trainer

    with console.RunProgress(experiment.name, training.epochs) as progress:

        def on_epoch(epoch: int, values: dict[str, float], weights: str) -> bool:
            log.metrics(epoch, values, weights=weights)
            progress.epoch(epoch, values)
            return follow(epoch, values, weights)

        return trainer.fit(model, experiment.dataset, training, on_epoch=on_epoch, within_epoch=progress.within_epoch)


def _score(
    experiment: Experiment, model: "keras.Model", fitted: "Fitted", further: "Scores"
) -> tuple["Evaluation", dict[str, float], Exception | None]:
    """The evaluation, all final metrics, and the exception of a user's score. The run raises it once all is stored."""
    from mnist_exp.training import evaluation

    scored = evaluation.evaluate(model, experiment.dataset, selection=experiment.selection)
    final = {
        "fit_seconds": fitted.seconds,
        "parameters": float(model.count_params()),
        "compile_seconds": fitted.compile_seconds,
        "best_epoch": float(fitted.best_epoch),
        **scored.metrics,
        **evaluation.best_scores(fitted.history),
        **evaluation.milestones(fitted.history),
    }
    try:
        return scored, final | evaluation.further_scores(further, experiment.dataset, scored), None
    except Exception as error:  # noqa: BLE001 - a user's function may raise anything
        return scored, final, error


def take_weights(model: "keras.Model", run_id: str, store: "Store") -> None:
    """Gives a model the weights of a finished run.

    Raises:
        RequestError: the run has none, or they do not fit.
    """
    from mnist_exp.models import saved_weights
    from mnist_exp.tracking import download

    with tempfile.TemporaryDirectory() as scratch:
        weights = saved_weights(download(store.uri, run_id, "saved_model", Path(scratch)))
    try:
        model.set_weights(weights)
    except ValueError as error:
        shapes = [[weight.shape for weight in found] for found in (weights, model.weights)]
        raise RequestError(
            f"the weights of run {run_id} do not fit: they are {shapes[0]}, this model's {shapes[1]}"
        ) from error


def _write_origin(
    folder: Path, experiment: Experiment, logged: Mapping[str, str], overrides: Sequence[str], code: provenance.Code
) -> None:
    """Writes the run's origin, which suffices to train it again and to explain a different result."""
    config, own = experiment.config, experiment.user_code
    described = {
        "code": {"commit": code.commit, "branch": code.branch, "dirty": code.dirty},
        "source": provenance.source_files(PACKAGE, own),
        "source_trees": provenance.source_trees(PACKAGE, own),
        "facts": experiment.factors,
        "config": logged,
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


def _write_results(
    folder: Path, experiment: Experiment, training: "Training", fitted: "Fitted", scored: "Evaluation"
) -> None:
    """Writes the predictions on the test set, the scores of each class, and the plots."""
    from mnist_exp.figures import run as plots

    dataset = experiment.dataset
    title, validation, classes = experiment.name, experiment.selection, dataset.class_names
    write_test_results(folder, dataset, scored.test_logits)
    shown = range(min(dataset.num_classes, 12))
    of_each = np.concatenate([np.flatnonzero(dataset.train.labels == c)[:3] for c in shown])
    sample = Split(dataset.train.images[of_each], dataset.train.labels[of_each])
    augmentation = training.augmentation
    if augmentation is None:
        samples = plots.samples(*sample, classes)
    else:
        samples = plots.augmented(sample, augmentation.split(sample, 0), classes)
    plots.curves(fitted.history, title=title, validation=validation).savefig(folder / "curves.png")
    samples.savefig(folder / "samples.png")


def write_test_results(folder: Path, dataset: Dataset, logits: np.ndarray) -> None:
    """Writes the predictions on the test images, the scores of each class, the confusion matrix and the mistakes.

    Args:
        folder: for `predictions.npz`, `per_class.csv`, `confusion_matrix.png` and `mistakes.png`.
        dataset: whose test images were predicted.
        logits: float32 (n, classes).
    """
    from mnist_exp.figures import run as plots

    labels, classes = dataset.test.labels, dataset.class_names
    np.savez_compressed(folder / "predictions.npz", logits=logits, labels=labels)
    confusion = scores.confusion_matrix(labels, logits.argmax(axis=1), dataset.num_classes)
    # Not logged as metrics: MLflow would draw thirty charts of one bar each, between which the curves are lost.
    figures = scores.per_class(confusion)
    with (folder / "per_class.csv").open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["class", "images", *figures, "name"])
        for row in zip(range(dataset.num_classes), confusion.sum(axis=1), *figures.values(), classes, strict=True):
            table.writerow([*(f"{value:g}" for value in row[:-1]), row[-1]])
    plots.confusion_matrix(confusion, classes).savefig(folder / "confusion_matrix.png")
    plots.mistakes(dataset.test.images, labels, logits, classes).savefig(folder / "mistakes.png")


def _suggested(training: "Training") -> dict[str, float]:
    """The metric of a range test of the learning rate, if there was one."""
    from mnist_exp.training.callbacks import range_test

    test = range_test(training.callbacks)
    return {} if test is None else {"suggested_learning_rate": test.suggestion()}


def _write_range_test(folder: Path, name: str, training: "Training") -> None:
    """Draw and print what a range test of the learning rate found, if there was one."""
    from mnist_exp.figures import run as plots
    from mnist_exp.training.callbacks import range_test

    if (test := range_test(training.callbacks)) is None:
        return
    rate = test.suggestion()
    table = np.column_stack([test.rates, test.losses])
    np.savetxt(folder / "lr_range.csv", table, "%g", ",", header="learning_rate,train_loss", comments="")
    plots.lr_range(test.rates, test.losses, rate, title=name).savefig(folder / "lr_range.png")
    console.say(f"{name}: suggests optimizer.learning_rate={rate:.2g}, see the artifact lr_range.png")
