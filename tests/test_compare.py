"""The command `compare` on a store with ranked runs and with runs of each kind that is not ranked."""

import csv
import io
import json
import os
import subprocess
import sys
from html.parser import HTMLParser

import mlflow
import numpy as np
import pytest
from mlflow.entities import Metric, Param, RunTag

from mnist_exp import compare, console, data, tracking
from mnist_exp.analysis import inspect
from tests.helpers import tracked_runs
from tests.helpers.commands import environment

TAGS = {**tracked_runs.TAGS, "data.fingerprint": data.digits().fingerprint}
EVIL = "<script>alert(1)</script>"
RATES = (0.01, 0.05)
SEEDS = range(3)


class Filled:
    """A folder whose store holds two rows of three seeds each, called `names`, and eight runs that are not ranked."""

    def __init__(self, folder):
        self.folder = folder
        self.client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
        self.labels = data.digits().test.labels
        self.names = {0.01: "slow", 0.05: EVIL}
        self.ids = {(rate, seed): self.good(rate, seed) for rate in RATES for seed in SEEDS}
        self.bad()

    def log(self, name, tags, params=(), metrics=(), status="FINISHED", artifacts=None):
        run = self.client.create_run("1", run_name=name, tags=tags).info.run_id
        stamped = [Metric(key, value, 1, step) for key, value, step in metrics]
        given = [Param(key, str(value)) for key, value in dict(params).items()]
        self.client.log_batch(run, stamped, given, [RunTag("device", "cpu")])
        if artifacts:
            self.client.log_artifacts(run, str(artifacts))
        if status:
            self.client.set_terminated(run, status)
        return run

    def good(self, rate, seed):
        random = np.random.default_rng(seed)
        logits = 4 * np.eye(10)[self.labels] + random.standard_normal((len(self.labels), 10)) * (2 + 5 * rate)
        artifacts = self.folder / f"artifacts-{rate}-{seed}"
        artifacts.mkdir()
        np.savez_compressed(artifacts / "predictions.npz", logits=logits.astype(np.float32), labels=self.labels)
        (artifacts / "code.diff").write_text(f"+rate {rate}\n")
        (artifacts / "environment.json").write_text(json.dumps({"python": "3.11", "hardware": {"pid": seed}}))
        accuracy = 0.9 + rate + seed / 1000 + seed**2 * rate / 1000
        metrics = [("val_accuracy", accuracy - 0.1 / epoch, epoch) for epoch in (1, 2, 3)]
        final = {"final_val_accuracy": accuracy, "test_accuracy": accuracy - 0.01, "fit_seconds": 9.0, "parameters": 7}
        metrics += [(key, value, 0) for key, value in (final | {"seconds_to_97": 3.0, "compile_seconds": 1.0}).items()]
        params = {"name": self.names[rate], "seed": seed, "trainer.epochs": 3, "optimizer.learning_rate": rate}
        params |= {"optimizer._target_": "keras.optimizers.Adam", "data._target_": "mnist_exp.data.digits"}
        return self.log(self.names[rate], TAGS, params, metrics, artifacts=artifacts)

    def bad(self):
        params = {"seed": 9, "name": "slow"}
        self.client.delete_run(self.log("gone", TAGS, params, [("test_accuracy", 0.5, 0)]))
        self.log("failed", TAGS, params, [("val_accuracy", 0.1, 1)], status="FAILED")
        self.log("half", TAGS, params, status=None)
        self.log("half", TAGS, status="KILLED")
        self.log("empty", {"kind": "run", "sweep": "s1"})
        self.log("foreign", {"sweep": "s1"}, {"lr": 1}, [("accuracy", 0.99, 0)])
        self.log("again", {**TAGS, "kind": "reproduction"}, params, [("final_val_accuracy", 0.99, 0)])
        self.log("sweep-s1", {"kind": "sweep", "sweep": "s1"}, (), [("test_accuracy", 0.99, 0)])


@pytest.fixture(scope="module")
def filled(tmp_path_factory, with_store):
    before = os.environ.pop("MLFLOW_TRACKING_URI", None)
    yield Filled(with_store(tmp_path_factory.mktemp("compare")))
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # MLflow leaves it there
    if before is not None:
        os.environ["MLFLOW_TRACKING_URI"] = before


@pytest.fixture
def said(filled, monkeypatch, capsys):
    """Runs the command in the store's folder; returns its exit code, output and errors."""
    monkeypatch.chdir(filled.folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def command(*arguments):
        code = compare.main(arguments)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return command


def test_a_table_of_the_ranked_runs_and_a_count_of_the_others(said):
    code, out, err = said()
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "sweep s1: 6 runs in 2 rows"
    assert lines[1] == (
        "not ranked: 1 deleted, 1 failed, 1 killed, 1 not of this project, 1 reproduction, 1 running or cut off, 1"
    )
    assert lines[2] == "without a seed"
    told = " ".join(lines)
    assert f"{EVIL} leads with val_accuracy 95.11 % (mean of 3 seeds), 4.01 points above slow (95 % interval of" in told
    assert "Shown: it is better than slow." in told
    table = [line.split() for line in lines if line[:2] in ("1 ", "2 ")]
    # Accuracies 0.95, 0.95105, 0.9522 and 0.91, 0.91101, 0.91204.
    assert table[0][1:4] == [EVIL, "0.05", "95.11"]
    assert table[1][1:4] == ["slow", "0.01", "91.10"]
    assert table[1][4:12] == ["90.85", "to", "91.36", "3", "90.10", "0.10", "91.20", "91.00"]
    assert "test images of mnist were evaluated 7 times" in told  # six ranked runs and the deleted one


def test_a_terminal_of_80_columns_has_no_wrapped_row(said, monkeypatch):
    monkeypatch.setattr(console, "columns", lambda file: 80)
    for arguments in ([], ["--all-pairs", "--by", "learning_rate"]):
        out = said(*arguments)[1]
        assert max(map(len, out.splitlines())) <= 80
        assert "80 columns have no room for:" in out


def test_json_has_every_number(said, filled):
    found = json.loads(said("--format", "json", "--by", "learning_rate", "--effects")[1])
    (table,) = found["tables"]
    first = table["rows"][0]
    assert first["final_val_accuracy_mean"] == pytest.approx((0.95 + 0.95105 + 0.9522) / 3)
    assert first["runs"] == [filled.ids[0.05, seed] for seed in SEEDS]
    assert first["settings"] == {"optimizer.learning_rate": "0.05"}
    (pair,) = table["pairs"]
    (effect,) = table["effects"]
    assert (effect["setting"], effect["best"]) == ("optimizer.learning_rate", "0.05")
    assert (effect["p"], effect["difference"]) == pytest.approx((pair["p"], pair["difference"]))
    (along,) = table["along"]["pairs"]
    assert (pair["test"], pair["n"], pair["difference"]) == ("paired t", 3, pytest.approx(0.0400667, rel=1e-5))
    assert (along["first"], along["second"], along["p"]) == ("0.05", "0.01", pair["p"])
    assert found["left_out"]["failed"] == 1


def test_csv_and_markdown(said):
    rows = list(csv.DictReader(io.StringIO(said("--format", "csv")[1])))
    assert [row["row"] for row in rows] == [EVIL, "slow"]
    assert [row["optimizer.learning_rate"] for row in rows] == ["0.05", "0.01"]
    markdown = said("--format", "markdown")[1]
    assert EVIL not in markdown
    assert "| 1 | &lt;script&gt;alert(1)&lt;/script&gt; | 0.05 | 95.11 |" in markdown


def test_runs_are_chosen_by_filter_id_and_tag(said, filled):
    assert said("--filter", "params.seed = '1'")[1].startswith("all runs, filtered: 2 runs in 2 rows\n")
    one, other = filled.ids[0.05, 0], filled.ids[0.01, 2]
    out = said("--run", one[:12], "--run", other[:12])[1]
    assert "McNemar" in out
    assert said("--tag", "device=gpu")[1].startswith("device=gpu: 0 runs in 0 rows")
    assert said("--experiment", "mnist_exp")[1].startswith("all runs: 6 runs")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sweep", "x"], "there is no sweep 'x'; the newest are: s1"),
        (["--experiment", "x"], "has no experiment 'x'; it has: Default, mnist_exp"),
        (["--filter", "x y"], "'x y' is not a filter string of MLflow: Invalid clause"),
        (["--uri", "sqlite:///none.db"], "there is no file "),
        (["--by", "seed"], "--by must name one setting that varies, got 'seed'; these vary: optimizer.learning_rate"),
        (["--metric", "test_accuracy"], "--metric must not be a test metric"),
        (["--rows", "x", "--columns", "y", "--effects"], "make one table; --effects belongs to a comparison without"),
        (["--rows", "x", "--columns", "y", "--html", "f"], "make one table; --html belongs to a comparison without"),
        (["--effects", "--format", "csv"], "--effects needs --format text, markdown or json"),
        (["--top", "0"], "--top must be a whole number, at least 1, got 0"),
        (["--tag", "x"], "--tag must be of the form KEY=VALUE, got 'x'"),
        (["show"], "the command must be `show RUN`, `diff RUN RUN` or none, got 'show'"),
        (["show", "zz"], "there is no run 'zz' in sqlite:///"),
        (["diff", "a", "b", "--format", "csv"], "--format of diff must be text or markdown, got csv"),
        (["--colour"], "unrecognized arguments: --colour"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_invalid_argument_gets_one_line(said, arguments, message):
    code, out, err = said(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert message in err


def test_show_is_one_run_on_one_screen(said, filled):
    code, out, _ = said("show", filled.ids[0.01, 2][:10])
    assert code == 0
    assert "changed from the defaults: seed=2, data=digits, optimizer.learning_rate=0.01, trainer.epochs=3" in out
    (curve,) = (line.split() for line in out.splitlines() if line.startswith("val_accuracy"))
    assert curve == ["val_accuracy", "▁▆█", "0.812", "0.8787"]
    assert "artifacts: code.diff, environment.json, predictions.npz" in out
    assert f"mnist_exp.reproduce {filled.ids[0.01, 2]}" in out
    assert len(out.splitlines()) < 40


@pytest.mark.slow
def test_a_closed_pipe_is_no_error(filled):
    command = f"{sys.executable} -m mnist_exp.compare --format json | head -c 1"
    done = subprocess.run(
        command, shell=True, cwd=filled.folder, env=environment(filled.folder), capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("{", "")


def test_show_of_an_empty_run(said, filled):
    (empty,) = (run for run in filled.client.search_runs(["1"]) if run.info.run_name == "empty")
    code, out, _ = said("show", empty.info.run_id)
    assert code == 0
    assert "artifacts: none" in out


def test_diff_lists_the_differences_of_two_runs(said, filled):
    code, out, _ = said("diff", filled.ids[0.01, 0], filled.ids[0.05, 1])
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert ["seed", "0", "1"] in rows
    assert ["optimizer.learning_rate", "0.01", "0.05"] in rows
    assert "environment: the same" in out  # although their process ids differ
    assert "data: the same" in out
    assert {"-+rate 0.01", "++rate 0.05"} <= set(out.splitlines())
    assert ["final_val_accuracy", "0.91", "0.95105", "+0.0411"] in rows
    assert "McNemar" in out


class Page(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self.captions = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, text):
        self.text.append(text)
        if self.elements[-1][0] == "figcaption" and text.strip():
            self.captions.append(text.strip())


def test_the_report_has_one_script_of_its_own_and_no_links(said, filled):
    code, _, err = said("--html", "report.html")
    assert code == 0
    assert err.startswith("report.html: ")
    text = (filled.folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    tags = {tag for tag, _ in page.elements}
    assert {"table", "figure", "svg", "style"} <= tags
    assert not tags & {"link", "iframe", "object", "img"}
    assert [attributes for tag, attributes in page.elements if tag == "script"] == [{}]  # ours, which names no file
    assert EVIL in page.text
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/"))
    assert "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    assert len(text) < 300_000
    # Both rows cost the same, and one setting of two values has no chart of its own.
    assert [text.split()[0] for text in page.captions] == ["Learning", "Calibration", "Test", "Test"]
    assert page.captions[2].startswith("Test images that most of these 6 runs classify wrongly")


def test_a_report_that_cannot_be_written(said):
    code, _, err = said("--html", "nowhere/report.html")
    assert (code, err) == (2, "error: --html nowhere/report.html cannot be written: No such file or directory\n")


def test_runs_on_other_images_are_not_paired(filled):
    uri = f"sqlite:///{filled.folder / 'mlflow.db'}"
    first, second = (tracking.find_run(uri, filled.ids[rate, 0]) for rate in RATES)
    assert "McNemar" in inspect._mcnemar(uri, first, second)
    other = second._replace(tags={**second.tags, "data.fingerprint": "another"})
    assert inspect._mcnemar(uri, first, other).startswith(
        "test predictions: not tested, because the runs are on different"
    )


def test_curves_are_read_by_epoch(filled):
    found = tracking.curve(f"sqlite:///{filled.folder / 'mlflow.db'}", filled.ids[0.01, 0], "val_accuracy")
    assert found == pytest.approx({1: 0.81, 2: 0.86, 3: 0.91 - 0.1 / 3})


@pytest.mark.slow
def test_tensorflow_is_not_imported(filled):
    check = (
        "import sys; from mnist_exp import compare; code = compare.main(['--html', 'light.html']); "
        "sys.exit(code or 10 * bool({'tensorflow', 'keras', 'jax'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=filled.folder, env=environment(filled.folder), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
