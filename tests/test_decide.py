"""The command `decide` on a store that a stand-in for `train` fills, and with children that end in every way."""

import signal
import time

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from mnist_exp import decide, provenance, tracking
from mnist_exp.errors import RequestError
from tests.helpers import tracked_runs
from tests.helpers.tracked_runs import METRIC

NOISE = np.random.default_rng(0).normal(0, 0.002, 1000)
GIVEN = ("model=mlp,residual", "seed=3")


@pytest.fixture
def store(tmp_path, with_store, monkeypatch):
    monkeypatch.chdir(with_store(tmp_path))
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # which MLflow sets, and here it is unset again
    return tracking.open_store(uri, "mnist_exp")


@pytest.fixture
def trained(store, monkeypatch):
    """Numbers of seeds that were trained; `trained.gap` is the difference of the two models."""

    class Trained(list):
        gap, data, models = 0.0, ("d", "d"), ("mlp", "residual")

    done, client = Trained(), MlflowClient(store.uri)

    def train(settings, seeds):
        assert settings == (["model=mlp,residual"], 3, None, "mnist_exp")
        sweep = f"s{seeds}"
        for number, model in enumerate(done.models):
            for seed in range(3, 3 + seeds):
                tags = {**tracked_runs.TAGS, **tracking.sweep_tags(sweep, 0, "#000000")}
                run = client.create_run("1", tags={**tags, "data.fingerprint": done.data[number]}).info.run_id
                accuracy = 0.9 + seed / 1000 + number * (done.gap + NOISE[seed])
                params = {"name": model, "seed": seed, "model._target_": f"mnist_exp.models.{model}"}
                client.log_batch(
                    run,
                    [Metric(METRIC, accuracy, 1, 0), Metric("loss", 1.0, 1, 0)],
                    [Param(key, str(value)) for key, value in params.items()],
                )
                client.set_terminated(run)
        done.append(seeds)
        return sweep

    monkeypatch.setattr(decide, "_train", train)
    return done


def test_a_large_difference_is_shown_at_the_first_look(trained, capsys):
    trained.gap = 0.05
    assert decide.main(GIVEN) == 0
    assert trained == [5]
    out = capsys.readouterr().out.splitlines()
    assert " ".join(out[:3]).startswith("residual is better than mlp, as is shown after 5 of at most 40 seeds: final_")
    assert out[3:] == ["see the runs:  python -m mnist_exp.compare --sweep s5"]
    assert max(map(len, out)) <= 80


def test_without_a_decision_all_seeds_are_used(trained, capsys):
    assert decide.main([*GIVEN, "--max-seeds", "7", "--smallest", "0.05"]) == 0
    assert trained == [5, 7]
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("after 5 seeds: ")
    assert out[1].startswith("  not decided yet; about ")
    assert " ".join(out[2:]).startswith("Not decided between ")
    assert out[-1] == "go on:         the same command with seed=10 (these seeds have been looked at)"
    assert max(map(len, out)) <= 80


def test_an_interval_within_the_smallest_difference_decides(trained, capsys):
    assert decide.main([*GIVEN, "--smallest", "3"]) == 0
    assert trained == [5]
    assert " differ by less than 3.00 points, as is shown after 5 " in " ".join(capsys.readouterr().out.splitlines())


@pytest.mark.parametrize(
    ("models", "data", "arguments", "message"),
    [
        (("mlp", "mlp"), ("d", "d"), [], "the two settings give the same runs, so there is nothing to decide"),
        (
            ("mlp", "residual"),
            ("d", "e"),
            [],
            "the two settings give runs that are not scored on the same images, so there is nothing to decide",
        ),
        (
            ("mlp", "residual"),
            ("d", "d"),
            ["--metric", "f1_accuracy"],
            "no chosen run has the metric 'f1_accuracy'; their metrics are: final_val_accuracy, loss",
        ),
    ],
)
def test_settings_that_cannot_be_compared(trained, capsys, models, data, arguments, message):
    trained.models, trained.data = models, data
    assert decide.main([*GIVEN, *arguments]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_scores_without_chance(trained, capsys):
    assert decide.main([*GIVEN, "--metric", "loss", "--smallest", "1"]) == 1
    assert capsys.readouterr().err == (
        "error: no decision: neither side varies with the seed, so chance cannot be estimated\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--max-seeds 1", "--max-seeds must be from 2 to 1,000, got 1"),
        ("--smallest 0", "--smallest must be above 0, got 0"),
        ("--metric val_loss", "--smallest has a default for accuracies only: give it for val_loss"),
        (
            "--metric test_accuracy",
            "--metric must not be a test metric, because the runs are chosen by it; got 'test_accuracy'",
        ),
    ],
)
def test_mistakes_have_one_line(capsys, arguments, message):
    assert decide.main([*GIVEN, *arguments.split()]) == 2
    assert capsys.readouterr().err == f"error: {message}; python -m mnist_exp.decide --help lists the arguments\n"


def test_the_command_to_see_the_runs():
    settings = decide.Settings([], 0, "https://me:secret@host", "mine")
    assert decide._compare(settings, "s1", "val_loss") == (
        "python -m mnist_exp.compare --sweep s1 --experiment mine --tracking-uri https://host --metric val_loss"
    )


def test_settings_with_options_of_the_user(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tiny.yaml").write_text("_target_: mnist_exp.models.linear\n")
    given = ["model=tiny,mlp", 'tracking.uri="sqlite:///a b.db"', "tracking.experiment=x"]
    assert decide._settings(given, tmp_path) == ([*given, "--config-dir", str(tmp_path)], 0, "sqlite:///a b.db", "x")
    with pytest.raises(RequestError, match=r"^.*Could not find 'model/tiny'.*$"):
        decide._settings(given, None)
    with pytest.raises(RequestError, match=r"^trainer.epochs must be a whole number, at least 1, got -1$"):
        decide._settings(["model=mlp,linear", "trainer.epochs=-1"], None)


@pytest.fixture
def child(tmp_path, monkeypatch):
    """Replaces the Python that trains by a shell script."""

    def put(script):
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(decide.sys, "executable", str(path))

    return put


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (1, "error: no decision: a run failed, see above; the same command trains only what is missing\n"),
        (130, "error: interrupted; the same command continues: python -m mnist_exp.decide model=mlp,residual seed=3\n"),
    ],
)
def test_a_batch_that_fails(child, capsys, code, line):
    child(f"exit {code}")
    assert decide.main(GIVEN) == code
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("code", [2, 143])
def test_a_batch_that_has_said_why_it_ends(child, code):
    child(f"exit {code}")
    with pytest.raises(SystemExit) as end:
        decide.main(GIVEN)
    assert end.value.code == code


def test_ctrl_c_reaches_the_batch_and_waits_for_it(child, capsys, tmp_path):
    """Ctrl-C is sent to the parent only; a terminal sends it to both."""
    interrupted = f"trap 'sleep 0.2; touch {tmp_path}/closed; exit 130' INT"
    child(f"{interrupted}\nsleep 0.5\nkill -INT $PPID\nwhile true; do sleep 0.1; done")
    before = signal.getsignal(signal.SIGINT)
    began = time.monotonic()
    assert decide.main(GIVEN) == 130
    assert time.monotonic() - began < 20
    assert (tmp_path / "closed").exists()
    assert signal.getsignal(signal.SIGINT) is before
    assert capsys.readouterr().err.startswith("error: interrupted; the same command continues: ")


def test_the_command_of_a_batch_and_its_sweep(child, store, tmp_path, monkeypatch):
    child(f'echo "$@" > {tmp_path}/arguments')
    here = provenance.process()
    monkeypatch.setattr(decide.provenance, "process", lambda pid: here)
    settings = decide.Settings(["model=mlp,residual", "--config-dir", "x"], 3, None, "mnist_exp")
    with pytest.raises(RequestError, match="the batch trained nothing"):
        decide._train(settings, 10)
    tracking.open_sweep(store, "mine", "command", 10)
    assert decide._train(settings, 10) == "mine"
    words = "-m mnist_exp.train -m seed=range(3,13) model=mlp,residual --config-dir x\n"
    assert (tmp_path / "arguments").read_text() == words
