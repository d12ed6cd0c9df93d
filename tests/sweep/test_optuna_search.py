"""Searches with a study of Optuna's: what it asks for, keeps and refuses. No model is trained here."""

import math
import warnings
from collections import Counter
from types import SimpleNamespace

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from mnist_exp.config import SweepConfig, TrialConfig
from mnist_exp.errors import RequestError
from mnist_exp.sweep import optuna_search
from tests.helpers.searches import RATE, near_3e_3, run


def states(made):
    return Counter(trial.state.name for trial in made.study.get_trials())


@pytest.fixture
def study():
    """Optuna, or the test is skipped: it comes with the extra `optuna`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("optuna")


@pytest.mark.parametrize(("sampler", "trials"), [("tpe", 16), ("cmaes", 6), ("random", 4), ("qmc", 4)])
def test_samplers_stay_within_the_space(study, tmp_path, sampler, trials):
    given = (RATE, "trainer.batch_size=range(32,129,32)", "trainer.epochs=int(interval(1,9))", "model=mlp,linear")
    launcher, made = run(
        tmp_path, near_3e_3, *given, f"hydra.sweeper.sampler={sampler}", f"hydra.sweeper.n_trials={trials}"
    )
    rates = [float(job["optimizer.learning_rate"]) for job in launcher.jobs]
    assert len(set(rates)) == trials
    assert 1e-4 <= min(rates) < max(rates) <= 1e-1
    assert {job["trainer.batch_size"] for job in launcher.jobs} <= {"32", "64", "96", "128"}
    assert {int(job["trainer.epochs"]) for job in launcher.jobs} <= set(range(1, 10))
    assert {job["model"] for job in launcher.jobs} == {"mlp", "linear"}
    assert states(made) == {"COMPLETE": trials}
    if sampler == "tpe":
        assert abs(math.log10(made.study.best_params["optimizer.learning_rate"]) + 2.5) < 0.3


def test_the_plots_of_a_study(study, tmp_path):
    run(tmp_path, near_3e_3, RATE, "model=mlp,linear", "hydra.sweeper.n_trials=3", plots=True)
    assert {path.name for path in tmp_path.glob("*.png")} == {
        f"{plot}-final_val_accuracy.png"
        for plot in ("optimization_history", "param_importances", "parallel_coordinate")
    }


def test_a_grid_takes_each_point_once_over_several_commands(study, tmp_path):
    given = ("hydra.sweeper.sampler=grid", "hydra.sweeper.study=g", "model=mlp,linear", "trainer.epochs=range(1,4)")

    def stopped(job):
        if len(seen) == 4:
            raise KeyboardInterrupt
        seen.append((job["model"], job["trainer.epochs"]))
        return 0.5

    seen: list = []
    run(tmp_path, stopped, *given)
    launcher, made = run(tmp_path, lambda job: 0.5, *given)
    rest = [(job["model"], job["trainer.epochs"]) for job in launcher.jobs]
    assert sorted(seen + rest) == [(m, e) for m in ("linear", "mlp") for e in "123"]
    assert states(made) == {"COMPLETE": 6, "FAIL": 1, "WAITING": 1}
    assert made.remaining() == 0


def test_a_study_is_continued_where_it_was_killed(study, tmp_path):
    given = (RATE, "hydra.sweeper.study=s", "hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=2")
    rates: list = []

    def killed(job):
        rates.append(job["optimizer.learning_rate"])
        if len(rates) == 4:
            raise KeyboardInterrupt
        return near_3e_3(job)

    run(tmp_path, killed, *given)
    launcher, made = run(tmp_path, near_3e_3, *given)
    assert [job["optimizer.learning_rate"] for job in launcher.jobs][:2] == rates[2:]
    assert len(launcher.jobs) == 4
    assert states(made) == {"COMPLETE": 6, "FAIL": 2}
    assert run(tmp_path, near_3e_3, *given)[0].jobs == []


def test_failed_trials_do_not_end_a_study(study, tmp_path):
    def fails(job):
        return math.nan if job["model"] == "cnn" else 0.5

    # `hidden` is no key of the cnn: such a job does not even compose
    given = ("model=mlp,cnn,residual", "+model.hidden=[3],[4]", "hydra.sweeper.sampler=grid")
    launcher, made = run(tmp_path, fails, *given)
    assert len(launcher.jobs) == 6
    assert states(made) == {"COMPLETE": 4, "FAIL": 2}


def test_several_objectives_each_have_their_direction(study, tmp_path):
    given = ("sweep.objective=[final_val_accuracy,fit_seconds]", "model=mlp,linear,cnn", "hydra.sweeper.sampler=grid")
    scores = {"mlp": [0.9, 2.0], "linear": [0.8, 1.0], "cnn": [0.7, 3.0]}
    _, made = run(tmp_path, lambda job: scores[job["model"]], *given)
    assert [direction.name for direction in made.study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert {trial.params["model"] for trial in made.study.best_trials} == {"mlp", "linear"}


@pytest.mark.parametrize(
    ("first", "then", "says"),
    [
        ([RATE], [RATE, "sweep.objective=[final_val_loss]"], "study=s has the directions"),
        (["model=mlp,cnn"], ["model=mlp,linear"], "study=s searched another model"),
    ],
)
def test_a_study_of_something_else_is_refused(study, tmp_path, first, then, says):
    def search_s(axes):
        return run(tmp_path, lambda job: 0.5, *axes, "hydra.sweeper.study=s", "hydra.sweeper.n_trials=2")

    search_s(first)
    with pytest.raises(RequestError, match=says):
        search_s(then)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["hydra.sweeper.sampler=grid", RATE], "needs lists or ranges, but optimizer.learning_rate has an interval"),
        (["hydra.sweeper.sampler=cmaes", RATE, "sweep.objective=[fit_seconds,parameters]"], "cmaes has one objective"),
        (["hydra.sweeper.pruner=median", RATE, "sweep.seeds=2"], "it needs sweep.seeds=1"),
        (
            ["hydra.sweeper.pruner=median", RATE, "sweep.objective=[fit_seconds]"],
            "sweep.objective one of final_val_acc",
        ),
        (["hydra.sweeper.pruner=best", RATE], "must be one of null, median, hyperband, got 'best'"),
        (["seed=1,2", "sweep.seeds=2"], "seed cannot be searched too"),
    ],
)
def test_what_a_search_cannot_do_is_refused(study, tmp_path, given, says):
    with pytest.raises(RequestError, match=says):
        run(tmp_path, lambda job: 0.5, *given)


def test_a_run_in_another_process_is_pruned_and_the_study_knows(study, tmp_path):
    worse = 0.9

    def trains(job):
        """Five epochs at an accuracy that falls from trial to trial, as far as the pruner lets them go."""
        nonlocal worse
        worse -= 0.05
        (told,) = OverridesParser.create().parse_overrides([f"sweep.trial={job['sweep.trial']}"])
        log = SimpleNamespace(tags=tags.update)
        with optuna_search.pruning(SweepConfig(trial=TrialConfig(**told.value())))(log) as watch:
            lasted = next((epoch for epoch in range(1, 6) if watch(epoch, {"val_accuracy": worse}, "")), None)
        epochs.append(lasted)
        return worse

    epochs: list = []
    tags: dict = {}
    _, made = run(tmp_path, trains, RATE, "hydra.sweeper.pruner=median", "hydra.sweeper.n_trials=8")
    assert epochs == [None] * 5 + [1] * 3  # Optuna's median pruner watches five trials first
    assert states(made) == {"COMPLETE": 5, "PRUNED": 3}
    assert tags == {"pruned": "true"}


def test_a_journal_that_was_cut_anywhere_is_continued(tmp_path):
    """Optuna reads past half a line at the end, but appends to it and then cannot read the journal any more."""
    path = tmp_path / "optuna.log"

    def study():
        return optuna.create_study(
            storage=optuna_search.open_storage(f"journal:{path}"), study_name="s", load_if_exists=True
        )

    made = study()
    made.tell(made.ask(), 0.5)
    content = path.read_bytes()
    last = len(content) - len(content.splitlines()[-1])
    for end in (
        *range(last - 5, last + 5),
        *range(last + 5, len(content) - 5, 20),
        *range(len(content) - 5, len(content)),
    ):
        path.write_bytes(content[:end])
        made = study()
        made.tell(made.ask(), 0.25)
        assert study().trials[-1].value == 0.25
