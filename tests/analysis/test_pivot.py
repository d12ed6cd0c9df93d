"""A table of two settings for a paper."""

import pytest
from scipy import stats

from mnist_exp.analysis import leaderboard, pivot
from mnist_exp.errors import RequestError
from tests.helpers.tracked_runs import ALL, METRIC, run

SCORES = {
    ("a_b", 1): [0.97, 0.972, 0.968, 0.971],
    ("c", 1): [0.971, 0.968, 0.970, 0.969],
    ("a_b", 2): [0.90, 0.901, 0.902, 0.9],
    ("c", 2): [0.95, 0.951, 0.953, 0.95],
}


def board(seeds=4):
    records = [
        run(100 * n + s, s, value, model___target_=f"mnist_exp.models.{model}", x__y=y)
        for n, ((model, y), values) in enumerate(SCORES.items())
        for s, value in enumerate(values[:seeds])
    ]
    return leaderboard.board(records, ALL, METRIC)


def test_cells_have_the_interval_of_scipy_and_the_best_are_bold():
    found = pivot.pivot(board(), "model", "y")
    places = {(row[0], int(y)): (r, c) for r, row in enumerate(found.rows) for c, y in enumerate(found.header) if c}
    for (model, y), values in SCORES.items():
        r, c = places[f"mnist_exp.models.{model}", y]
        half = stats.t.ppf(0.975, 3) * stats.sem(values)
        assert found.rows[r][c] == f"{100 * sum(values) / 4:.2f} ± {100 * half:.2f}"
        assert found.bold[r][c] == ((model, y) != ("a_b", 2))  # with y=1 no difference is shown
    assert "n = 4 seeds" in found.caption
    assert "paired t test, Holm's correction" in found.caption
    latex = pivot.render(found, "latex")
    assert r"a\_b &" in latex
    assert latex.count(r"\textbf{") == 3
    assert pivot.render(found, "markdown").count("**") == 6
    assert pivot.render(found, "csv").splitlines()[0].startswith("model,")


def test_one_seed_is_not_tested():
    found = pivot.pivot(board(1), "model", "y")
    assert "nothing is tested" in found.caption
    assert sum(map(sum, found.bold)) == 2  # the best of each column


def test_an_unknown_setting_is_refused():
    with pytest.raises(RequestError, match=r"--rows must name one setting, got .z.; these vary: model, x\.y"):
        pivot.pivot(board(), "z", "data")
