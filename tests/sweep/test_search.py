"""Searches: how a space is read and drawn from, and what is launched. No model is trained here."""

import sys

import pytest
from hydra import compose, initialize_config_dir

from mnist_exp.config import CONF_DIR
from mnist_exp.errors import RequestError
from mnist_exp.sweep import search
from mnist_exp.sweep.search import Axis
from tests.helpers.searches import RATE, near_3e_3, run


@pytest.fixture
def parser():
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        compose("train")
        yield


@pytest.mark.parametrize(
    ("override", "axis"),
    [
        ("a=1,x", Axis("a", ("1", "x"))),
        ("a=choice([64],[64,64])", Axis("a", ("[64]", "[64,64]"))),
        ("+a=null,0.1", Axis("+a", ("null", "0.1"))),
        ("a=range(1,4)", Axis("a", ("1", "2", "3"), 1, 3, 1)),
        ("a=range(0,1,0.25)", Axis("a", ("0.0", "0.25", "0.5", "0.75"), 0.0, 0.75, 0.25)),
        ("a=range(4,1,-1)", Axis("a", ("2", "3", "4"), 2, 4, 1)),
        ("a=interval(0,1)", Axis("a", (), 0.0, 1.0)),
        ("a=int(interval(1,9))", Axis("a", (), 1, 9)),
        ("a=tag(log,interval(1e-4,1))", Axis("a", (), 1e-4, 1.0, log=True)),
        ("a=tag(log,int(interval(1,512)))", Axis("a", (), 1, 512, log=True)),
        ("optimizer=glob(adam*)", Axis("optimizer", ("adam", "adamax", "adamw"))),
    ],
)
def test_an_axis_is_written_as_in_any_multirun(parser, override, axis):
    assert search.space([override, "b=3"]) == (["b=3"], [axis])
    assert type(search.space([override])[1][0].low) is type(axis.low)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["a=1"], "at least one key with several values"),
        (["a=interval(1,0)"], "the interval must rise"),
        (["a=tag(log,interval(0,1))"], "the interval must rise from above 0"),
        (["a=tag(x,interval(0,1))"], "the only tag of a search is log"),
        (["a=tag(log,choice(1,2))"], "the only tag of a search is log, for an interval"),
        (["model=glob(zzz*)"], r"matches no option and no value"),
        (["a=range(3,3)"], r"matches no option and no value"),
    ],
)
def test_an_axis_that_cannot_be_searched_is_refused(parser, overrides, says):
    with pytest.raises(RequestError, match=says):
        search.space(overrides)


def test_of_two_values_for_a_key_the_later_counts(parser):
    assert search.space(["a=1,2", "b=1,2", "a=3"]) == (["a=3"], [Axis("b", ("1", "2"))])


def test_points_lie_evenly_on_an_axis():
    shares = [i / 8 for i in range(8)]
    assert [Axis("a", ("x", "y")).draw(share) for share in shares] == ["x"] * 4 + ["y"] * 4
    assert [Axis("a", (), 1, 4).draw(share) for share in shares] == ["1", "1", "2", "2", "3", "3", "4", "4"]
    assert [float(Axis("a", (), 0.0, 4.0).draw(share)) for share in shares] == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]
    assert float(Axis("a", (), 1e-4, 1e-2, log=True).draw(0.5)) == pytest.approx(1e-3)
    assert [Axis("a", (), 1, 3, log=True).draw(share) for share in (0, 0.5, 0.999)] == ["1", "1", "3"]


def test_the_ends_of_every_axis_stand_for_the_space(tmp_path):
    _, made = run(
        tmp_path, lambda job: 0.0, "model=mlp,linear", RATE, "seed=3", "hydra.sweeper.n_trials=1", sweeper="random"
    )
    assert made.probes() == [
        ["seed=3", "sweep.id=s", "model=mlp", "optimizer.learning_rate=0.0001"],
        ["seed=3", "sweep.id=s", "model=linear", "optimizer.learning_rate=0.0001"],
        ["seed=3", "sweep.id=s", "model=mlp", "optimizer.learning_rate=0.1"],
    ]


def test_random_search_needs_no_optuna_and_repeats_itself(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    given = (RATE, "model=mlp,linear", "hydra.sweeper.n_trials=5", "hydra.sweeper.n_jobs=2")
    first, again = (run(tmp_path, near_3e_3, *given, sweeper="random")[0] for _ in range(2))
    assert list(map(len, first.batches)) == [2, 2, 1]
    assert first.jobs == again.jobs
    assert len({job["optimizer.learning_rate"] for job in first.jobs}) == 5
    assert "trial 5/5  " in capsys.readouterr().err


def test_each_trial_averages_over_seeds(tmp_path):
    scores = {"4": 0.1, "5": 0.2, "6": 0.6}
    given = ("model=mlp,linear", "seed=4", "sweep.seeds=3", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2")
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search.RandomSearch, "tell", lambda self, trial, values: told.append(values))
        launcher, _ = run(tmp_path, lambda job: scores[job["seed"]], *given, sweeper="random")
    assert [job["seed"] for job in launcher.jobs] == ["4", "5", "6"] * 2
    assert [len(batch) for batch in launcher.batches] == [6]
    assert told == [[pytest.approx(0.3)]] * 2
