"""Searches: how a space is read and drawn from, what a study keeps, what is launched. No model is trained here."""

import math
import sys
import warnings
from collections import Counter
from types import SimpleNamespace

import optuna
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from mnist_exp.config import CONF_DIR, SweepConfig, TrialConfig
from mnist_exp.errors import RequestError
from mnist_exp.sweep import search
from mnist_exp.sweep.search import Axis

RATE = "optimizer.learning_rate=tag(log,interval(1e-4,1e-1))"


class Launcher:
    """Stands in for training: `scores` gives the objective of a job from its overrides, as a dict."""

    def __init__(self, scores):
        self.scores, self.batches = scores, []

    @property
    def jobs(self):
        return [job for batch in self.batches for job in batch]

    def launch(self, jobs, first):
        assert first == len(self.jobs)
        self.batches.append([dict(override.split("=", 1) for override in job) for job in jobs])
        return [JobReturn(status=JobStatus.COMPLETED, _return_value=self.scores(job)) for job in self.batches[-1]]


def run(folder, scores, *overrides, sweeper="optuna", plots=False):
    """What was launched for `train -m hydra/sweeper=... OVERRIDES` with these scores, and the search."""
    settings = [o for o in overrides if o.startswith(("hydra.", "sweep.", "seed=4"))]
    axes = [o for o in overrides if not o.startswith("hydra.")]
    if sweeper == "optuna":
        settings.append(f"hydra.sweeper.storage=journal:{folder / 'optuna.log'}")
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = compose("train", [f"hydra/sweeper={sweeper}", *settings], return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        node = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
        made = {"random": search.Random, "optuna": search.Optuna}[sweeper](
            **{k: v for k, v in node.items() if k != "_target_"}
        )
        made.multirun, made.loader = config, GlobalHydra.instance().config_loader()
        made.launcher, made.folder = Launcher(scores), folder
        if not plots:
            made._plot = lambda *given: None  # they take a second
        try:
            made.sweep([*axes, "sweep.id=s"])
        except KeyboardInterrupt:
            made.launcher.interrupted = True
    return made.launcher, made


def near_3e_3(job):
    return -abs(math.log10(float(job["optimizer.learning_rate"])) + 2.5)


def states(made):
    return Counter(trial.state.name for trial in made.study.get_trials())


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
        ("optimizer=glob(ada*)", Axis("optimizer", ("adagrad", "adam", "adamw"))),
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
        (["a=tag(x,interval(0,1))"], "the one tag a search knows is log"),
        (["a=tag(log,choice(1,2))"], "the one tag a search knows is log, of an interval"),
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
        patch.setattr(search.Random, "tell", lambda self, trial, values: told.append(values))
        launcher, _ = run(tmp_path, lambda job: scores[job["seed"]], *given, sweeper="random")
    assert [job["seed"] for job in launcher.jobs] == ["4", "5", "6"] * 2
    assert [len(batch) for batch in launcher.batches] == [6]
    assert told == [[pytest.approx(0.3)]] * 2


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
        ([RATE], [RATE, "sweep.objective=[final_val_loss]"], "study=s is to"),
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
        with search.pruning(SweepConfig(trial=TrialConfig(**told.value())))(log) as watch:
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
        return optuna.create_study(storage=search._storage(f"journal:{path}"), study_name="s", load_if_exists=True)

    made = study()
    made.tell(made.ask(), 0.5)
    content = path.read_bytes()
    for end in range(len(content) - len(content.splitlines()[-1]) - 5, len(content)):
        path.write_bytes(content[:end])
        made = study()
        made.tell(made.ask(), 0.25)
        assert study().trials[-1].value == 0.25
