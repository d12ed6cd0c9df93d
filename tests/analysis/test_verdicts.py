"""The sentence of a verdict follows from its numbers."""

import math

import numpy as np
import pytest

from mnist_exp.analysis import leaderboard, report, statistics, verdicts
from tests.helpers.tracked_runs import ALL, METRIC, grid, run


def table(scores, metric=METRIC):
    """A row for each list of scores, with seeds from 0."""
    records = [
        run(100 * n + s, s, name=f"row{n}", x__y=n, metrics={metric: value})
        for n, values in enumerate(scores)
        for s, value in enumerate(values)
    ]
    return leaderboard.board(records, ALL, metric).tables[0]


def judged(scores, right=lambda row: None, metric=METRIC, top=10):
    return verdicts.of_rows(table(scores, metric).rows, metric, right, top)


def test_a_difference_that_is_shown():
    (found,) = judged([[0.97, 0.971, 0.969, 0.97, 0.972], [0.96, 0.962, 0.961, 0.959, 0.961]])
    assert (found.first, found.second, found.test, found.n) == ("row0", "row1", "paired t", 5)
    assert found.p == found.p_holm < 0.001
    assert found.permutation == 2 / 32
    assert found.words == (
        f"row0 is higher by 0.98 points (95 % interval {100 * found.low:.2f} to {100 * found.high:.2f} points; "
        "p<0.0001, n=5)"
    )


def test_a_difference_that_is_not_shown_says_how_many_seeds_would():
    (found,) = judged([[0.97, 0.972, 0.968, 0.971, 0.969], [0.971, 0.968, 0.970, 0.969, 0.967]])
    gaps = np.array([-0.001, 0.004, -0.002, 0.002, 0.002])
    seeds = statistics.seeds_to_show(0.001, gaps.std(ddof=1), paired=True)
    assert found.words == f"no difference shown (p={found.p:.2g}, n=5; about {seeds} seeds would show 0.10 points)"


def test_more_pairs_need_a_smaller_p():
    near = [[0.97, 0.971, 0.969, 0.97, 0.972], [0.969, 0.969, 0.969, 0.969, 0.969]]
    (alone,) = judged(near)
    together = judged([*near, [0.5, 0.6, 0.5, 0.6, 0.5], [0.4, 0.5, 0.6, 0.5, 0.4]])
    assert len(together) == 6
    same = next(v for v in together if v.difference == pytest.approx(alone.difference))
    assert same.p == alone.p
    assert same.p_holm > alone.p_holm
    assert "for 6 pairs" in same.words


def test_the_number_of_rows_shown_changes_no_p():
    """The first rows were selected by the tested metric, so the correction counts the pairs of all rows."""
    scores = np.random.default_rng(1).normal(0.9, 0.01, (6, 4)).tolist()
    every = {(v.first, v.second): v for v in judged(scores)}
    assert len(every) == 15
    for verdict in judged(scores, top=3):
        assert verdict == every[verdict.first, verdict.second]
    assert len(judged(scores, top=3)) == 3
    p = [v.p for v in every.values()]
    assert [v.p_holm for v in every.values()] == pytest.approx(statistics.holm(p))


def test_the_correction_counts_single_runs_that_are_not_shown():
    answers = {f"row{n}": np.repeat([True, False], [95 - 5 * n, 5 + 5 * n]) for n in range(4)}
    scores = [[0.95], [0.9], [0.85], [0.8]]
    (found,) = judged(scores, lambda row: answers[row.label], top=2)
    assert (found.p, found.p_holm) == (2 / 2**5, 3 * 2 / 2**5)  # three pairs are as close, three are further apart
    assert "for 6 pairs" in found.words


@pytest.mark.parametrize("other", [0.8, 0.9])
def test_rows_that_do_not_vary_with_the_seed_are_not_tested(other):
    (found,) = judged([[0.9, 0.9], [other, other]])
    assert found.words == "not tested: neither side varies with the seed, so chance cannot be estimated"
    assert (found.test, found.permutation, found.bootstrap) == ("none", None, None)
    assert all(map(math.isnan, (found.p, found.p_holm, found.low, found.high, found.effect)))


def test_equal_differences_have_a_sign_test_and_no_interval():
    seeds = np.arange(7) / 1000
    (found,) = judged([list(0.91 + seeds), list(0.9 + seeds)])
    assert (found.test, found.p, found.bootstrap) == ("sign flips", 2 / 2**7, None)
    assert found.words == "row0 is higher by 1.00 points with every seed (p=0.016, n=7)"
    (found,) = judged([[0.91, 0.92], [0.90, 0.91]])
    assert found.words == "no difference shown (p=0.5, n=2)"


def test_the_interval_of_a_difference_is_clipped_to_the_metric():
    (found,) = judged([[0.1, 0.9], [0.2, 0.1]])
    assert (found.low, found.high) == (-1.0, 1.0)
    (found,) = judged([[0.1, 0.9], [0.2, 0.1]], metric="final_val_loss")
    assert found.low < -1 < 1 < found.high


def test_every_untested_pair_has_a_reason():
    one_seed = [run(n, 0, x__y=n, metrics={METRIC: 0.9 - n / 10}) for n in range(2)]
    (board_table,) = leaderboard.board(one_seed, ALL, METRIC).tables
    (found,) = verdicts.along(board_table, "x.y", METRIC)
    assert found.words == "not tested: a test needs at least two seeds on each side"
    flat = [run(10 * n + s, s, x__y=n, metrics={METRIC: 0.9 - n / 10}) for n in range(2) for s in range(2)]
    (board_table,) = leaderboard.board(flat, ALL, METRIC).tables
    (found,) = verdicts.along(board_table, "x.y", METRIC)
    assert found.words == "not tested: neither side varies with the seed, so chance cannot be estimated"
    once = [record for record in grid() if record.params["seed"] == "0"]
    (board_table,) = leaderboard.board(once, ALL, METRIC).tables
    (found,) = verdicts.along(board_table, "optimizer", METRIC)
    assert (
        found.words
        == "not tested: a test needs at least two seeds on each side; mean over 2 combinations of the other settings"
    )


def test_a_smaller_loss_is_better():
    (found,) = judged([[0.1, 0.11, 0.12], [0.3, 0.31, 0.33]], metric="final_val_loss")
    assert found.first == "row0"
    assert found.difference == pytest.approx(-0.61 / 3)
    assert found.words.startswith("row0 is lower by 0.203 (95 % interval ")


def test_one_seed_on_one_side_is_not_tested():
    (found,) = judged([[0.9], [0.8, 0.81]])
    assert (found.test, found.words) == ("none", "not tested: a test needs at least two seeds on each side")
    assert math.isnan(found.p)


def test_two_single_runs_are_tested_on_their_predictions():
    answers = {"row0": np.repeat([True, False], [95, 5]), "row1": np.repeat([True, False], [85, 15])}
    (found,) = judged([[0.95], [0.85]], lambda row: answers[row.label])
    assert (found.test, found.p) == ("McNemar", 2 / 2**10)
    assert found.words.startswith("these two runs differ on the test images (p=0.002;")
    assert found.words.endswith("of 100 test images, 10 are right in the first run only, 0 in the second only")
    (found,) = judged([[0.95], [0.85]])
    assert found.words == "not tested: one seed each, and their test predictions cannot be compared"


def test_along_an_axis():
    (board_table,) = leaderboard.board(grid(), ALL, METRIC).tables
    (found,) = verdicts.along(board_table, "optimizer", METRIC)
    assert (found.first, found.second, found.n) == ("adam", "rmsprop", 2)
    assert found.difference == pytest.approx(0.1)
    assert found.words.endswith("mean over 2 combinations of the other settings")


def test_values_without_common_settings_are_not_tested():
    records = [
        run(n, s, x__y=n, x__z=n if other else 0, w__w=w)
        for n in range(2)
        for s, w, other in ((0, n, False), (1, n + 5, True))
    ]
    (found,) = verdicts.along(leaderboard.board(records, ALL, METRIC).tables[0], "x.y", METRIC)
    assert found.words == "not tested: these values have no other settings in common"


def test_folds_have_a_corrected_test_and_none_that_takes_them_for_independent():
    def folds(number, model, accuracies):
        return [
            run(10 * number + n, 0, accuracy, data__folds=5, data__fold=n, name=model, model__width=number)
            for n, accuracy in enumerate(accuracies)
        ]

    records = folds(1, "a", (0.90, 0.92, 0.91, 0.93, 0.94)) + folds(2, "b", (0.89, 0.90, 0.90, 0.91, 0.92))
    board = leaderboard.board(records, ALL, METRIC)
    (found,) = verdicts.of_rows(board.tables[0].rows, METRIC, lambda row: None, 10)
    assert (found.test, found.n, found.permutation, found.bootstrap) == ("corrected t", 5, None, None)
    assert found.p == pytest.approx(0.01211, abs=5e-6)
    assert found.words == "a is higher by 1.60 points (95 % interval 0.58 to 2.62 points; p=0.012, n=5)"
    (along,) = verdicts.along(board.tables[0], "model.width", METRIC)
    assert along.p == found.p
    records = folds(1, "a", (0.90, 0.92, 0.91, 0.93, 0.94)) + folds(2, "b", (0.92, 0.90, 0.90, 0.91, 0.94))
    (found,) = verdicts.of_rows(leaderboard.board(records, ALL, METRIC).tables[0].rows, METRIC, lambda row: None, 10)
    assert found.words.startswith("no difference shown (p=")
    assert found.words.endswith(", n=5)")  # no number of seeds
    text = "\n".join(
        str(block) for block in report.blocks(board, report.examine(board, None, 10, lambda row: None), 10)
    )
    assert "Folds are not independent" in text
    assert "'folds'" in text
