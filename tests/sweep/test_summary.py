"""A sweep's own run: its table, how it is closed and abandoned; `test_train` runs whole sweeps."""

import sys
from types import SimpleNamespace

import mlflow
import pytest

from mnist_exp import console, tracking
from mnist_exp.config import SweepConfig
from mnist_exp.figures.style import run_color
from mnist_exp.sweep import jobs, summary
from tests.helpers.commands import runs
from tests.helpers.stored_runs import finished as run


def test_the_table_says_what_each_job_came_to():
    config = SimpleNamespace(name="x", seed=0, data={}, sweep=SweepConfig())
    under_way = summary.Sweep("A", None, [jobs.Job(config, f"seed={n}") for n in range(6)])
    found = {
        0: run(accuracy=0.7),
        1: run(sweep_id="before", jobs="1", accuracy=0.8),
        2: run(status="FAILED", jobs="2", accuracy=0),
        3: run(jobs="0 3", accuracy=0.7),
        4: run(status="KILLED", jobs="4", accuracy=0),
    }
    rows = [summary._row(under_way, number, found.get(number)) for number in range(6)]
    assert [row.status for row in rows] == ["FINISHED", "SKIPPED", "FAILED", "SKIPPED", "KILLED", "NOT RUN"]
    assert rows[5] == console.SummaryRow(5, "x-s0", "NOT RUN", "seed=5", None, None, None, "")
    assert [row.job for row in sorted(rows, key=summary._rank)] == [1, 0, 3, 2, 4, 5]
    assert summary._counts(rows) == {"finished": 1, "skipped": 2, "failed": 2, "not_run": 1}


def test_a_run_that_was_made_alone_or_by_another_version_is_a_row_of_the_table():
    config = SimpleNamespace(name="x", seed=0, data={}, sweep=SweepConfig())
    under_way = summary.Sweep("A", None, [jobs.Job(config, "seed=0")], frozenset(["model"]))
    alone = run()
    for key in ("sweep", "overrides"):
        alone.tags.pop(key, None)
    alone.metrics.clear()
    assert summary._row(under_way, 0, alone) == console.SummaryRow(
        0, "x-s0", "SKIPPED", "seed=0", None, None, None, "id of x-s0"
    )


@pytest.fixture
def under_way(tmp_path, with_store):
    """A sweep of two jobs whose own run has begun, and the statuses of all that its store holds."""
    store = tracking.open_store(f"sqlite:///{with_store(tmp_path)}/mlflow.db", "mnist_exp")
    two = [
        jobs.Job(SimpleNamespace(name="x", seed=seed, data={}, sweep=SweepConfig()), f"seed={seed}")
        for seed in range(2)
    ]
    return summary.open_sweep(two, store), lambda: runs(tmp_path)


def joined(opened, name, number, *, longer=False, **metrics):
    """Add a finished run of an earlier command that job `number` takes the result of."""
    client = mlflow.MlflowClient(opened.store.uri)
    made = client.create_run(opened.store.experiment_id, run_name=name, tags={"kind": "run"}).info.run_id
    for key, value in metrics.items():
        client.log_metric(made, key, value)
    client.set_terminated(made, "FINISHED")
    tracking.join_sweep(
        opened.store,
        tracking.find_run(opened.store.uri, made),
        opened.id,
        number,
        f"x-lr=1-s{number}" if longer else name,
        run_color(number),
    )


def test_a_reused_run_gets_the_name_and_the_colour_of_its_job_and_keeps_its_earlier_name(under_way):
    opened, statuses = under_way
    for number in range(2):
        joined(opened, f"x-s{number}", number, longer=number == 1)
    assert statuses() == {"x-s0": "FINISHED", "x-lr=1-s1": "FINISHED", "sweep": "RUNNING"}
    uri = opened.store.uri
    assert tracking.find_run(uri, "x-lr=1-s1") == tracking.find_run(uri, "x-s1")
    client = mlflow.MlflowClient(uri)
    found = [client.get_run(tracking.find_run(uri, name).run_id) for name in ("x-s0", "x-s1")]
    assert [run.data.tags["mlflow.runColor"] for run in found] == ["#0072b2", "#d55e00"]
    summary.abandon_sweep("KILLED")


@pytest.mark.parametrize("metrics", [{"final_val_accuracy": 0.9, "test_accuracy": 0.8}, {}], ids=["whole", "bare"])
def test_a_sweep_of_runs_that_were_made_alone_is_closed(under_way, capsys, metrics):
    opened, statuses = under_way
    for number in range(2):
        joined(opened, f"x-s{number}", number, **metrics)
    assert summary.close_sweep(opened, "FINISHED")
    assert statuses() == {"x-s0": "FINISHED", "x-s1": "FINISHED", "sweep": "FINISHED"}
    assert ": 2 reused\n" in capsys.readouterr().out


@pytest.mark.parametrize("error", [KeyError("a bug"), KeyboardInterrupt()], ids=["bug", "Ctrl-C"])
@pytest.mark.parametrize(("status", "left"), [("FINISHED", "FAILED"), ("KILLED", "KILLED")])
def test_whatever_goes_wrong_with_the_summary_the_sweep_does_not_look_alive(
    under_way, monkeypatch, error, status, left
):
    opened, statuses = under_way

    def fail(*_):
        raise error

    monkeypatch.setattr(console, "sweep_table", fail)
    with pytest.raises(type(error)):
        summary.close_sweep(opened, status)
    assert statuses() == {"sweep": left}
    assert not summary.abandon_sweep("KILLED")  # it is closed


def test_a_store_that_is_gone_when_a_sweep_is_abandoned_is_said_in_a_line(under_way, monkeypatch, capsys):
    def gone(*_):
        raise tracking.StoreError("tracking.uri=x cannot be used: gone")

    for name in ("end_dead_runs", "end_sweep"):
        monkeypatch.setattr(tracking, name, gone)
    assert summary.abandon_sweep("KILLED")
    assert capsys.readouterr().err == "error: tracking.uri=x cannot be used: gone\n"


@pytest.mark.parametrize("elsewhere", [False, True], ids=["default store", "another store"])
def test_next_steps_are_commands_that_find_the_run(elsewhere, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "mnist_exp.train"])
    uri = f"sqlite:///{tmp_path}/{'other' if elsewhere else 'mlflow'}.db"
    store = tracking.Store(uri, "mine" if elsewhere else "mnist_exp", "7")
    summary.print_next_steps(store, "98f5427a" * 4, "A")
    where = f" --tracking-uri {uri}" if elsewhere else ""
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("  python")] == [
        f"  python -m mnist_exp.compare --sweep A{' --experiment mine' if elsewhere else ''}{where}",
        f"  python -m mnist_exp.compare show 98f5427a{where}",
        f"  python -m mnist_exp.reproduce 98f5427a{where}",
        f"  python -m mlflow ui{f' --backend-store-uri {uri}' if elsewhere else ''}",
    ]
    assert lines[-1] == f"  then open {store.ui_link('A')}"
    summary.print_next_steps(store, "98f5427a" * 4)
    lines = capsys.readouterr().out.splitlines()
    charts = f"/#/experiments/7/runs/{'98f5427a' * 4}/model-metrics?workflowType=machine_learning"
    assert lines[-1] == f"  then open http://127.0.0.1:5000{charts}"
    assert "compare --sweep" not in "".join(lines)


@pytest.mark.parametrize(
    ("second", "advised"), [({"seed": 0}, True), ({"seed": 1}, False), ({"seed": 0, "data": {"fold": 1}}, False)]
)
def test_more_seeds_are_advised_where_nothing_shows_the_noise(second, advised, under_way, tmp_path, capsys):
    opened, _ = under_way
    first = {"name": "x", "seed": 0, "data": {"fold": 0} if "data" in second else {}, "sweep": SweepConfig()}
    jobs_of = [jobs.Job(SimpleNamespace(**{**first, **given}), "") for given in ({}, second)]
    joined(opened, "a", 0)
    joined(opened, "b", 1)
    assert summary._summarize(opened._replace(jobs=jobs_of), "FINISHED", None)
    assert (summary.ONE_SEED in capsys.readouterr().out) == advised
