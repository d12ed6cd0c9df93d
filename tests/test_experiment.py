"""One experiment: what identifies it, and what is kept when a part of a user's own fails."""

from types import SimpleNamespace

import numpy as np
import pytest

from mnist_exp import builders, console, experiment, models, provenance
from mnist_exp.config import check, identity
from mnist_exp.experiment import prepare
from mnist_exp.training import devices
from tests.helpers.configs import composed
from tests.helpers.digits import small


def test_an_experiment_is_identified_by_its_config_data_threads_and_device():
    config, dataset = check(composed("data=digits", "trainer.threads=3", "seed=4")), small(50)
    made = prepare(config, dataset, "cpu")
    assert (made.name, made.threads, made.selection) == ("mlp-adam-s4", 3, "validation")
    assert (made.factors["data"], made.factors["threads"], made.factors["device"]) == (dataset.fingerprint, 3, "cpu")
    assert made.identity == identity(config, made.factors)
    others = [
        prepare(config, dataset._replace(fingerprint="other"), "cpu"),
        prepare(config, dataset, "2 x cpu"),
        prepare(check(composed("data=digits", "trainer.threads=2", "seed=4")), dataset, "cpu"),
        prepare(check(composed("data=digits", "trainer.threads=3", "seed=5")), dataset, "cpu"),
    ]
    assert len({made.identity, *(other.identity for other in others)}) == 5
    assert prepare(check(composed("data=digits", "seed=4")), dataset, "cpu").threads == provenance.cores()


def test_all_scores_are_kept_when_one_of_a_users_own_fails():
    def fails(logits, labels):
        raise ZeroDivisionError("no positives")

    devices.fresh_session(0, "float32")
    made = prepare(check(composed("data=digits")), small(50), "cpu")
    history = {"val_accuracy": [0.5, 0.98, 0.98], "val_loss": [0.4, np.nan, 0.9], "epoch_seconds": [1.0, 2.0, 3.0]}
    fitted = SimpleNamespace(seconds=3.0, compile_seconds=1.0, best_epoch=2, history=history)
    model = models.linear((28, 28, 1), 10)
    _, whole, failure = experiment._score(made, model, fitted, {"x": lambda logits, labels: {"x": 0.25}})
    assert failure is None
    assert (whole["best_val_accuracy"], whole["best_val_accuracy_epoch"]) == (0.98, 2)
    assert (whole["best_val_loss"], whole["best_val_loss_epoch"]) == (0.4, 1)
    assert (whole["final_val_x"], whole["test_x"], whole["seconds_to_98"]) == (0.25, 0.25, 3.0)
    _, kept, failure = experiment._score(made, model, fitted, {"x": fails})
    assert isinstance(failure, ZeroDivisionError)
    assert kept.keys() == whole.keys() - {"final_val_x", "test_x"}
    assert kept["test_loss"] == pytest.approx(whole["test_loss"])


@pytest.mark.parametrize(("steps", "warned"), [(215, True), (458, True), (459, False)])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_training_too_short_for_batch_normalisation_is_warned_of(steps, warned, batch_norm, capsys):
    """Keras' moving averages have a momentum of 0.99, and 0.99 ** 459 is 1 %."""
    console.warn.cache_clear()
    config = check(composed("data=digits", f"model.batch_norm={batch_norm}")).model
    experiment._warn_of_few_steps(builders.build_model(config, (28, 28, 1), 10), steps)
    said = capsys.readouterr().err
    assert (
        f"needs about 459 steps until its moving averages describe the images, and this run has {steps}:" in said
    ) == (warned and batch_norm)
