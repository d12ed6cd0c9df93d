"""Selection of runs, and how they form rows and tables."""

import json
import math

import pytest

from mnist_exp.analysis import leaderboard
from mnist_exp.analysis.leaderboard import Choice
from mnist_exp.data import Subset
from mnist_exp.errors import RequestError
from tests.helpers.tracked_runs import ALL, METRIC, grid, run

# What runs of versions without these groups and keys did.
EARLIER = {"loss": "cross_entropy", "loss.label_smoothing": "0.0", "loss.class_weight": "None"}
EARLIER |= {"callbacks": "None", "scores": "None"} | {f"data.{key}": "None" for key in Subset._fields}


def tables(*records, choice=ALL, metric=METRIC):
    return leaderboard.board(records, choice, metric).tables


def test_runs_that_differ_only_in_seed_are_a_row():
    (table,) = tables(*(run(n, seed=n, accuracy=0.9 + n / 100) for n in range(3)), run(3, accuracy=0.5, model__width=7))
    best, other = table.rows
    assert best.scores(METRIC) == {0: 0.9, 1: 0.91, 2: 0.92}
    assert list(other.runs) == [(0, 0)]
    assert table.varying == ["model.width"]
    assert table.shared == {**EARLIER, "model": "mlp", "selection": "validation", "trainer.epochs": "3"}


def test_settings_of_only_one_model_do_not_vary():
    (table,) = tables(run(0, model__width=7), run(1, model___target_="mnist_exp.models.cnn", model__filters=[3]))
    assert table.varying == ["model"]
    assert (table.shared["model.width"], table.shared["model.filters"]) == ("7", "[3]")


def test_labels_are_the_settings_that_vary():
    (table,) = tables(run(0, optimizer__learning_rate=0.1, accuracy=0.8), run(1, optimizer__learning_rate=0.2))
    assert table.varying == ["optimizer.learning_rate"]
    assert [row.label for row in table.rows] == ["learning_rate=0.2", "learning_rate=0.1"]
    assert not table.named


def test_a_setting_that_some_rows_lack_varies_if_rows_differ_in_nothing_else():
    (table,) = tables(run(0), run(1, model__width=7), run(2, model__width=7, model__depth=2, model__other=2))
    assert table.varying == ["model.depth", "model.width"]
    assert {row.label for row in table.rows} == {"all", "width=7", "depth=2 width=7"}


def test_labels_are_names_if_each_row_has_its_own():
    (table,) = tables(run(0, model__width=1, name="wide"), run(1, model__width=2, name="narrow"))
    assert ({row.label for row in table.rows}, table.named) == ({"wide", "narrow"}, True)


def test_code_versions_and_hardware_are_settings():
    facts = '{"data": "f1", "source": "0123456789abcdef", "versions": {"tensorflow": "2.21"}, "threads": 2}'
    other = facts.replace("2.21", "2.22")
    (table,) = tables(run(0, tags={"identity.facts": facts}), run(1, 1, tags={"identity.facts": other}))
    assert table.varying == ["versions.tensorflow"]
    assert table.shared["source"] == "0123456789ab"
    two = [json.dumps({"processor": f"Some maker's processor {model}"}) for model in "ab"]
    (table,) = tables(*(run(n, n, tags={"identity.facts": text}) for n, text in enumerate(two)))
    assert table.varying == ["processor"]
    (table,) = tables(run(0, tags={"device": "cpu"}), run(1, 1, tags={"device": "gpu"}))
    assert table.varying == ["device"]


def test_the_tracking_store_and_the_data_path_are_no_settings():
    (table,) = tables(run(0, tracking__uri="a", data__path="x"), run(1, 1, tracking__uri="b", data__path="y"))
    assert len(table.rows) == 1


def test_runs_with_equal_threads_and_device_are_a_row_whatever_their_config_says():
    tags = {"threads": "2", "device": "cpu", "execution": "device_loop"}
    asked = (
        {"trainer__threads": "None", "trainer__devices": "auto"},
        {"trainer__threads": 2, "trainer__devices": "cpu"},
    )
    named = ({"execution": "resident"}, {})  # its name in earlier versions
    (table,) = tables(*(run(n, seed=n, tags={**tags, **named[n]}, **given) for n, given in enumerate(asked)))
    assert [row.scores(METRIC) for row in table.rows] == [{0: 0.9, 1: 0.9}]
    (table,) = tables(*(run(n, tags={**tags, "threads": str(n)}, trainer__threads="None") for n in (1, 2)))
    assert table.varying == ["threads"]


def test_only_the_newest_run_of_a_seed_counts():
    (table,) = tables(run(0, 5, 0.9), run(1, 5, 0.8), run(2, 6, 0.7))  # newest first
    (row,) = table.rows
    assert (row.scores(METRIC), row.repeats) == ({5: 0.9, 6: 0.7}, 1)


def test_an_interval_is_clipped_to_the_range_of_its_metric():
    (table,) = tables(run(0, 0, 0.2, metrics={"x_loss": 0.1}), run(1, 1, 0.9, metrics={"x_loss": 9.0}))
    found, loss = (table.rows[0].summary(metric) for metric in (METRIC, "x_loss"))
    assert (found.low, found.high) == (0.0, 1.0)
    assert (loss.low, loss.high) == (0.0, pytest.approx(4.55 + 12.7062 * 4.45, abs=1e-3))


def test_the_smallest_loss_ranks_first():
    records = [run(n, metrics={"final_val_loss": loss}, x__y=n) for n, loss in enumerate((0.3, 0.1, 0.2))]
    (table,) = tables(*records, metric="final_val_loss")
    assert [row.settings["x.y"] for row in table.rows] == ["1", "2", "0"]


def test_other_data_and_other_splits_have_a_table_each():
    split = {"data.fingerprint": "f2", "selection": "test"}
    found = tables(run(0), run(1, tags=split), run(2, tags={"data.fingerprint": "f3", "data.name": "digits"}))
    assert [(t.fingerprint, t.data, len(t.rows)) for t in found] == [
        ("f1", "mnist", 1),
        ("f2", "mnist", 1),
        ("f3", "digits", 1),
    ]


def test_runs_that_are_not_ranked_are_counted_by_reason():
    records = [
        run(0),
        run(1, deleted=True),
        run(2, status="FAILED"),
        run(3, status="KILLED"),
        run(4, status="RUNNING"),
        run(5, metrics={METRIC: math.nan}),
        run(6, seed="x"),
        run(7, tags={"kind": "reproduction"}),
        run(8, tags={"kind": "sweep"}),
        run(9, tags={"pruned": "true"}),
        run(10)._replace(tags={}, params={}, metrics={}),
    ]
    board = leaderboard.board(records, ALL, METRIC)
    assert [len(table.rows) for table in board.tables] == [1]
    assert board.left_out == {
        "deleted": 1,
        "failed": 1,
        "killed": 1,
        "running or cut off": 1,
        f"without {METRIC}": 1,
        "without a seed": 1,
        "reproduction": 1,
        "pruned by its search": 1,
        "not of this project": 1,
    }


def test_a_board_without_ranked_runs_has_no_tables():
    board = leaderboard.board([run(0, status="FAILED")], ALL, METRIC)
    assert (board.tables, board.left_out) == ([], {"failed": 1})
    assert leaderboard.board([], Choice(), METRIC).tables == []


def test_evaluations_of_the_test_set():
    """One per run, also if deleted; one per epoch if the run selects on the test set; none for a sweep's own run."""
    records = [
        run(0),
        run(1, deleted=True),
        run(2, tags={"kind": "reproduction", "data.fingerprint": "other split"}),
        run(3, tags={"kind": "sweep"}),
        run(4, tags={"selection": "test"}),  # three epochs
        run(5, tags={"data.name": "digits"}),
        run(6, status="FAILED")._replace(metrics={"val_accuracy": 0.1}),
    ]
    assert leaderboard.test_evaluations(records, "mnist") == 1 + 1 + 1 + (1 + 3)


class TestChoice:
    RECORDS = (
        run(0xA0, tags={"sweep": "s3"}, deleted=True),
        run(0xA1, tags={"sweep": "s2"}),
        run(0xB0, 1),
        run(0xB1, 2, tags={"sweep.s2": "0"}),
    )
    WHO = tuple(record.run_id[-2:] for record in RECORDS)

    def chosen(self, **choice):
        runs, description = leaderboard.choose(self.RECORDS, Choice(**choice))
        return [record.run_id[-2:] for record in runs], description

    def test_the_default_is_the_newest_sweep(self):
        assert self.chosen() == (["a1", "b1"], "sweep s2")  # which also used the result of an older run

    def test_everything_sweep_tag_and_ids(self):
        assert self.chosen(everything=True)[0] == list(self.WHO)
        assert self.chosen(sweep="s1")[0] == ["b0", "b1"]
        assert self.chosen(tags={"sweep": "s1"})[0] == ["b0", "b1"]
        assert self.chosen(ids=["0" * 30 + "a1", "0" * 30 + "b0"])[0] == ["a1", "b0"]

    def test_an_unknown_sweep_or_id_is_refused(self):
        with pytest.raises(RequestError, match=r"no sweep 's9'; the newest are: s3, s2, s1"):
            self.chosen(sweep="s9")
        with pytest.raises(RequestError, match="no run has an id that begins with 'f'"):
            self.chosen(ids=["f"])
        with pytest.raises(RequestError, match="4 runs have an id that begins with '0'"):
            self.chosen(ids=["0"])

    def test_without_any_sweep_the_default_is_all_runs(self):
        record = run(0)._replace(tags={"kind": "run"})
        assert leaderboard.choose([record], Choice()) == ([record], "all runs")


def test_a_test_metric_is_refused():
    with pytest.raises(RequestError, match="--metric must not be a test metric"):
        tables(run(0), metric="test_accuracy")


def test_the_error_for_an_unknown_metric_lists_the_metrics():
    with pytest.raises(RequestError, match="'speed'; their metrics are: final_val_accuracy, val_accuracy"):
        tables(run(0), metric="speed")


def test_along_an_axis_the_other_settings_are_equal():
    (table,) = tables(*grid())
    assert table.varying == ["optimizer", "model.width", "optimizer.learning_rate"]
    cells = leaderboard.along(table, "optimizer", METRIC)
    assert {name: set(found) for name, found in cells.items()} == {
        "adam": {("1",), ("2",)},
        "rmsprop": {("1",), ("2",)},
    }
    adam, sgd, count = leaderboard.common(cells["adam"], cells["rmsprop"])
    assert count == 2
    assert adam == pytest.approx({0: 0.615, 1: 0.616})  # mean of both widths; seed 2 lacks one
    assert sgd == pytest.approx({0: 0.515, 1: 0.516})


def test_values_without_common_settings_have_no_common_scores():
    assert leaderboard.common({("a",): {0: 0.1}}, {("b",): {0: 0.1}}) == ({}, {}, 0)


def test_an_axis_is_named_in_full_or_without_its_group():
    (table,) = tables(*grid())
    assert leaderboard.resolve_axis(table, "width") == "model.width"
    assert leaderboard.resolve_axis(table, "optimizer") == "optimizer"
    with pytest.raises(RequestError, match=r"got 'trainer.epochs'; these vary: optimizer, model.width"):
        leaderboard.resolve_axis(table, "trainer.epochs")


def fold(number, fold, accuracy, seed=0, **settings):
    """A run on one of five folds. Each fold has other validation images, and so a fingerprint of its own."""
    tags = {"data.base": "whole", "data.fingerprint": f"fold {fold}"}
    return run(number, seed, accuracy, tags=tags, data__folds=5, data__fold=fold, **settings)


def test_folds_form_a_row_with_a_corrected_interval():
    accuracies = (0.90, 0.92, 0.91, 0.93, 0.94)
    (table,) = tables(*(fold(n, n, accuracy) for n, accuracy in enumerate(accuracies)))
    (row,) = table.rows
    assert row.scores(METRIC) == dict(enumerate(accuracies))
    assert (row.overlap, table.sampled, table.fingerprint) == (0.25, "folds", "whole")
    assert table.shared["data.folds"] == "5"
    assert "data.fold" not in row.settings
    assert row.summary(METRIC).high == pytest.approx(0.92 + 2.776445 * math.sqrt(2.5e-4 * 0.45))


def test_folds_of_several_seeds_are_their_means_and_have_a_table_of_their_own():
    folds = [fold(10 * seed + n, n, 0.8 + n / 100 + seed / 10, seed) for n in range(5) for seed in (0, 1)]
    whole = run(99, accuracy=0.5, tags={"data.base": "whole", "data.fingerprint": "whole"})
    both = tables(*folds, whole)
    assert [len(table.rows) for table in both] == [1, 1]
    assert both[0].rows[0].scores(METRIC) == pytest.approx({n: 0.85 + n / 100 for n in range(5)})
    assert len(both[0].rows[0].runs) == 10
    assert both[1].sampled == "seeds"


def test_parts_of_a_data_set_are_rows_of_one_table():
    parts = [
        run(
            n,
            accuracy=0.5 + n / 10,
            tags={"data.base": "f1", "data.fingerprint": f"part {n}"},
            data__train_size=100 * n,
        )
        for n in (1, 2)
    ]
    (table,) = tables(*parts, run(3))  # that of an earlier version has the fingerprint alone
    assert [row.label for row in table.rows] == ["train_size=None", "train_size=200", "train_size=100"]
