"""Verdicts on numbers, and every factor by its name."""

import copy
import json
import math
from typing import Any

import pytest

from mnist_exp.reproduction import verdict
from mnist_exp.reproduction.record import Record
from mnist_exp.reproduction.verdict import DIFFERENT, EQUAL, IDENTICAL, compare, compare_factors, judge

EPOCH: dict[str, float | str] = {
    "weights": "a" * 64,
    "train_loss": 0.5,
    "val_loss": 0.25,
    "train_accuracy": 0.9,
    "val_accuracy": 0.95,
}
END: dict[str, float | str] = {"test_loss": 0.3, "test_accuracy": 0.94, "parameters": 100.0, "fit_seconds": 3.0}
ENVIRONMENT: dict[str, Any] = {
    "python": "3.11.7",
    "packages": {"keras": "3.15.1", "numpy": "2.4.6"},
    "hardware": {"cpu": "AMD EPYC", "machine": "x86_64", "cores": 2, "pid": 1},
    "variables": {},
    "source": {"models.py": "1" * 64, "run.py": "2" * 64, "code/mine.py": "5" * 64},
    "facts": {"data": "d" * 64, "threads": 2, "device": "cpu", "keras_config": {"floatx": "float32"}},
    "config": {"seed": "0", "model.hidden": "[128]", "name": "x", "trainer.threads": "None"},
}
TAGS = {"execution": "resident", "execution.xla": "True", "threads": "2"}


def record(rows=None, environment=ENVIRONMENT, tags=TAGS):
    rows = {1: EPOCH, 2: EPOCH, 0: END} if rows is None else rows
    lines = "".join(json.dumps({"step": step, **row}) + "\n" for step, row in rows.items())
    files = {"config.yaml": b"", "metrics.jsonl": lines.encode(), "environment.json": json.dumps(environment).encode()}
    return Record("run", None, None, files, tags)


def test_the_same_is_identical_whatever_time_it_took():
    now = record({1: {**EPOCH, "epoch_seconds": 9.0, "time": 3.0}, 2: EPOCH, 0: {**END, "fit_seconds": 8.0}})
    report = judge(record(), now, 2)
    assert report.verdict == IDENTICAL
    assert report.first is None
    assert [compared.epoch for compared in report.epochs] == [1, 2, 0]
    assert list(report.lines()) == ["identical: 2 epochs and the final scores compared"]
    assert (report.factors, report.unrecorded) == ([], [])


def test_a_part_is_compared_without_the_end():
    report = judge(record(), record({1: EPOCH}), 1)
    assert report.verdict == IDENTICAL
    assert list(report.lines()) == ["identical: 1 epoch compared"]


@pytest.mark.parametrize(
    ("metric", "now", "expected"),
    [
        ("val_loss", 0.25 * (1 + 2e-16 * 2), EQUAL),
        ("val_loss", 0.25 * 1.0099, EQUAL),
        ("val_loss", 0.25 * 1.0101, DIFFERENT),
        ("train_loss", math.nan, DIFFERENT),
        ("train_loss", math.inf, DIFFERENT),
        ("val_accuracy", 0.9549, EQUAL),
        ("val_accuracy", 0.9551, DIFFERENT),
        ("weights", "b" * 64, EQUAL),
    ],
)
def test_the_tolerance(metric, now, expected):
    report = judge(record(), record({1: EPOCH, 2: {**EPOCH, metric: now}, 0: END}), 2)
    assert report.verdict == expected
    assert report.first is not None
    assert report.first.epoch == 2
    json.dumps(report.to_json(), allow_nan=False)


def test_a_number_that_is_none_then_and_now_is_the_same():
    rows = {1: {**EPOCH, "train_loss": math.nan}}
    assert judge(record(rows), record(rows), 1).verdict == IDENTICAL


def test_other_parameters_or_an_epoch_less_are_different():
    assert judge(record(), record({1: EPOCH, 2: EPOCH, 0: {**END, "parameters": 101.0}}), 2).verdict == DIFFERENT
    assert judge(record(), record({1: EPOCH, 0: END}), 2).verdict == DIFFERENT


def test_without_digests_of_the_weights_nothing_is_called_identical():
    bare = {key: value for key, value in EPOCH.items() if key != "weights"}
    report = judge(record({1: bare}), record({1: EPOCH}), 1)
    assert report.verdict == EQUAL
    assert "no digest of the weights is recorded" in str(report.first)


def test_the_first_difference_says_where_and_how_much():
    compared = compare(3, EPOCH, {**EPOCH, "val_loss": 0.3, "train_loss": 0.5001})
    assert str(compared) == "epoch 3: val_loss 0.25 then, 0.3 now (0.2); train_loss 0.5 then, 0.5001 now (0.0002)"
    assert str(compare(0, END, {**END, "test_loss": 0.6})) == "the end of the run: test_loss 0.3 then, 0.6 now (1)"
    assert str(compare(1, EPOCH, {**EPOCH, "weights": "b"})) == "epoch 1: the weights, not the metrics"


def changed(path, value):
    environment, tags = copy.deepcopy(ENVIRONMENT), dict(TAGS)
    *folders, key = path
    place: dict[str, Any] = tags if folders == ["tags"] else environment
    for folder in [] if place is tags else folders:
        place = place[folder]
    place[key] = value
    return record(environment=environment, tags=tags)


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        (("config", "seed"), "1", "config seed: 0 then, 1 now"),
        (("config", "model.hidden"), "[64]", "config model.hidden: [128] then, [64] now"),
        (("facts", "data"), "e" * 64, "data: dddddddddddd… then, eeeeeeeeeeee… now"),
        (("source", "models.py"), "3" * 64, "package source: models.py"),
        (("source", "new.py"), "3" * 64, "package source: new.py"),
        (("packages", "keras"), "3.16", "version of keras: 3.15.1 then, 3.16 now"),
        (("packages", "optuna"), "4", "version of optuna: unset then, 4 now"),
        (("python",), "3.12", "version of python: 3.11.7 then, 3.12 now"),
        (("tags", "threads"), "1", "threads: 2 then, 1 now"),
        (("facts", "device"), "gpu", "device: cpu then, gpu now"),
        (("tags", "execution"), "keras", "execution: device_loop then, keras now"),
        (("tags", "execution.xla"), "False", "execution.xla: True then, False now"),
        (("variables", "XLA_FLAGS"), "--x", "variable XLA_FLAGS: unset then, --x now"),
        (("hardware", "cores"), 1, "hardware cores: 2 then, 1 now"),
        (("hardware", "cpu"), "Intel", "hardware cpu: AMD EPYC then, Intel now"),
        (("source", "code/mine.py"), "3" * 64, "user module code/mine.py: 555555555555… then, 333333333333… now"),
        (("facts", "keras_config"), {"floatx": "float64"}, "Keras setting floatx: float32 then, float64 now"),
        (("hardware", "cpu"), "\x1b]0;x\x07", r"hardware cpu: AMD EPYC then, \x1b]0;x\x07 now"),
    ],
)
def test_each_factor_is_named(path, value, line):
    assert list(verdict.factor_lines(*compare_factors(record(), changed(path, value)))) == [f"  differs: {line}"]


@pytest.mark.parametrize(
    "path",
    [
        *(("config", "name"), ("config", "trainer.threads"), ("config", "trainer.later"), ("hardware", "pid")),
        *(("hardware", "instructions"), ("source", "code/later.py")),  # which an earlier version did not record
    ],
)
def test_what_cannot_change_a_result_is_no_factor(path):
    assert compare_factors(record(), changed(path, "other")) == ([], [])


def test_the_earlier_name_of_the_device_loop_is_no_factor():
    now = record(tags={**TAGS, "execution": "device_loop"})
    assert compare_factors(record(), now) == ([], [])


def test_what_is_not_recorded_is_said():
    factors, unrecorded = compare_factors(record(environment={}, tags={}), record())
    assert factors == []
    assert {"config", "data", "package source", "threads", "execution"} <= set(unrecorded)
    (line,) = verdict.factor_lines(factors, unrecorded)
    assert line.startswith("  cannot be compared: config, data, package source, version of, threads")


def test_a_record_of_an_earlier_version_is_unknown_and_not_different():
    then = copy.deepcopy(ENVIRONMENT)
    then["source"] = {"models.py": "1" * 64, "run.py": "2" * 64, "mine": "4" * 64}
    del then["facts"]["keras_config"]
    assert compare_factors(record(environment=then), record()) == ([], ["user module", "Keras setting"])


@pytest.mark.parametrize("name", ["models.py", "code/mine.py"])
def test_a_file_in_which_only_comments_changed_is_no_factor(name):
    then, now = copy.deepcopy(ENVIRONMENT), copy.deepcopy(ENVIRONMENT)
    now["source"][name] = "3" * 64
    then["source_trees"] = {name: "6" * 64}
    assert len(compare_factors(record(environment=then), record(environment=now))[0]) == 1  # no tree was recorded
    now["source_trees"] = {name: "7" * 64}
    assert len(compare_factors(record(environment=then), record(environment=now))[0]) == 1
    now["source_trees"] = {name: "6" * 64}
    assert compare_factors(record(environment=then), record(environment=now)) == ([], [])


@pytest.mark.parametrize("value", [3, "text", [], {"a": {"b": 1}}, None])
def test_an_environment_of_any_shape_is_read(value):
    odd = dict.fromkeys(ENVIRONMENT, value)
    compare_factors(record(environment=odd, tags={}), record())
    verdict.known(record(environment=odd, tags={}))
    assert verdict.known(record()) == {"threads": "2", "device": "cpu"}
