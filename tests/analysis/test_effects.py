"""Which settings mattered."""

import math

import numpy as np
import pytest
from scipy import stats

from mnist_exp.analysis import effects, leaderboard, statistics
from tests.helpers.tracked_runs import ALL, METRIC, run

RNG = np.random.default_rng(0)


def table(scores):
    """Scores by (a, b, seed)."""
    records = [
        run(number, seed, score, x__a=str(a), x__b=str(b))
        for number, ((a, b, seed), score) in enumerate(scores.items())
    ]
    (found,) = leaderboard.board(records, ALL, METRIC).tables
    return found


def grid(values_of_a, values_of_b, seeds, big):
    return {
        (a, b, seed): 0.9 + big * a + float(RNG.normal(0, 0.001))
        for a in range(values_of_a)
        for b in range(values_of_b)
        for seed in range(seeds)
    }


def test_with_two_values_the_test_is_scipys_paired_t_of_the_means_over_the_other_settings():
    scores = grid(2, 3, 5, 0.001)
    a, b = effects.of_table(table(scores), METRIC)
    means = [[np.mean([scores[a, b, seed] for b in range(3)]) for seed in range(5)] for a in range(2)]
    assert (a.setting, a.n, a.sampled) == ("x.a", 5, "seeds")
    assert a.p == pytest.approx(stats.ttest_rel(*means).pvalue)
    assert a.difference == pytest.approx(abs(np.mean(means[1]) - np.mean(means[0])))
    assert [a.p_holm, b.p_holm] == pytest.approx(statistics.holm([a.p, b.p]))


def test_the_test_of_three_values_is_that_of_nested_linear_models():
    found = RNG.normal(size=(6, 3)) + np.arange(6)[:, None] + 0.4 * np.arange(3)
    blocks, values = np.repeat(np.eye(6), 3, axis=0), np.tile(np.eye(3), (6, 1))

    def residual(design):
        fitted = design @ np.linalg.lstsq(design, found.ravel(), rcond=None)[0]
        return ((found.ravel() - fitted) ** 2).sum()

    smaller, larger = residual(blocks), residual(np.hstack([blocks, values]))
    assert statistics.blocks_p(found) == pytest.approx(stats.f.sf((smaller - larger) / 2 / (larger / 10), 2, 10))


def test_a_grid_of_one_seed_is_tested_over_its_combinations_and_the_shares_add_up():
    scores = grid(3, 4, 1, 0.01)
    a, b = effects.of_table(table(scores), METRIC)
    assert (a.setting, a.best, a.worst, a.n, a.sampled) == ("x.a", "2", "0", 4, "combinations")
    assert a.p < 1e-4 < b.p
    array = np.array(list(scores.values())).reshape(3, 4)
    rest = array - array.mean(0) - array.mean(1, keepdims=True) + array.mean()
    assert a.share + b.share + (rest**2).sum() / ((array - array.mean()) ** 2).sum() == pytest.approx(1)


def test_the_false_positive_rate_is_the_level():
    p = [statistics.blocks_p(RNG.normal(size=(5, 4))) for _ in range(4000)]
    assert 0.04 < np.mean(np.array(p) < 0.05) < 0.06


def test_what_another_setting_determines_is_not_listed():
    scores = {(a, a, seed): score for (a, _, seed), score in grid(3, 1, 3, 0.01).items()}
    assert [effect.setting for effect in effects.of_table(table(scores), METRIC)] == ["x.a"]


def test_without_chance_or_common_combinations_nothing_is_tested():
    (alone,) = effects.of_table(table({(0, 0, 0): 0.9, (1, 0, 0): 0.8}), METRIC)
    assert (math.isnan(alone.p), alone.difference) == (True, pytest.approx(0.1))
    random = {(0, 0, 0): 0.9, (1, 1, 0): 0.8, (2, 0, 0): 0.7}
    assert all(math.isnan(effect.p) for effect in effects.of_table(table(random), METRIC))
    assert math.isnan(statistics.blocks_p(np.array([[0.9, 0.8], [0.9, 0.8]])))
