"""Statistics against published examples, against SciPy, and by simulation against the rates that they claim."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats import multitest, power  # type: ignore[import-untyped]

from mnist_exp import scores
from mnist_exp.analysis import statistics

# Student's sleep data, 1908: hours gained by ten patients with two drugs. Figures: R's help of t.test.
SLEEP = [
    [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0],
    [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4],
]
# Darwin's maize, gaps in eighths of an inch. Fisher, The Design of Experiments, 1935: t = 2.148, and 1,726 of the
# 32,768 arrangements of signs are as extreme.
MAIZE = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]


def sample(values, first=0):
    return dict(enumerate(map(float, values), first))


def simulated(experiments, seeds, kind, seed=0):
    """Accuracies (experiments, seeds) around 0.97: normal, or binomial for 5,000 images."""
    random = np.random.default_rng(seed)
    skill = 0.97 + 0.002 * random.standard_normal((experiments, seeds))
    return skill if kind == "normal" else random.binomial(5000, skill) / 5000


def test_summary_of_a_sample():
    found = statistics.summarise([1.0, 2.0, 3.0, 4.0])
    assert found[:3] == (4, 2.5, pytest.approx(math.sqrt(5 / 3)))
    half = 3.182446 * math.sqrt(5 / 3) / 2  # the 97.5 % point of t with 3 degrees of freedom, from its tables
    assert (found.low, found.high) == pytest.approx((2.5 - half, 2.5 + half), rel=1e-6)
    assert found[5:] == (1.0, 4.0)


def test_summary_of_one_value_has_no_spread():
    found = statistics.summarise([0.5])
    assert (found.n, found.mean) == (1, 0.5)
    assert all(map(math.isnan, (found.std, found.low, found.high)))
    with pytest.raises(ValueError, match="at least one"):
        statistics.summarise([])


@pytest.mark.parametrize("kind", ["normal", "binomial"])
def test_the_interval_covers_95_percent(kind):
    found = [statistics.summarise(values) for values in simulated(2000, 5, kind)]
    assert 0.93 <= np.mean([row.low <= 0.97 <= row.high for row in found]) <= 0.97


@pytest.mark.parametrize("kind", ["normal", "binomial"])
@pytest.mark.parametrize("paired", [True, False], ids=["paired", "welch"])
def test_the_false_positive_rate_is_5_percent(kind, paired):
    pairs = zip(simulated(2500, 5, kind, 1), simulated(2500, 5, kind, 2), strict=True)
    found = [statistics.difference(sample(x), sample(y, 0 if paired else 5)) for x, y in pairs]
    assert {row.paired for row in found} == {paired}
    assert 0.035 <= np.mean([row.p < 0.05 for row in found]) <= 0.06
    assert 0.935 <= np.mean([row.low <= 0 <= row.high for row in found]) <= 0.965


def test_paired_difference_of_students_sleep_data():
    found = statistics.difference(sample(SLEEP[0]), sample(SLEEP[1]))
    assert found.p == pytest.approx(0.002833, abs=5e-7)
    assert found[2:5] == pytest.approx((-1.58, -2.4598858, -0.7001142))
    assert (found.paired, found.n) == (True, 10)


def test_unpaired_difference_of_students_sleep_data():
    found = statistics.difference(sample(SLEEP[0]), sample(SLEEP[1], 10))
    assert found.p == pytest.approx(0.07939, abs=5e-6)
    assert found[2:5] == pytest.approx((-1.58, -3.3654832, 0.2054832))
    assert (found.paired, found.n) == (False, 10)


def test_welch_agrees_with_scipy_for_unequal_sizes():
    x, y = SLEEP[0], SLEEP[1][:4]
    theirs = scipy_stats.ttest_ind(x, y, equal_var=False)
    ours = statistics.difference(sample(x), sample(y, 20))
    assert ours.p == pytest.approx(theirs.pvalue)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval()))
    assert ours.n == 4


def test_permutation_of_darwins_maize():
    nothing = sample([0] * 15)
    # 2^15 arrangements are more than are counted out: the draw is held to Fisher's count within its error.
    assert statistics.permutation(sample(MAIZE), nothing) == pytest.approx(1726 / 32768, abs=0.005)
    assert statistics.difference(sample(MAIZE), nothing).p == pytest.approx(0.0497, abs=5e-5)


def test_permutation_tries_all_combinations_of_few_pairs():
    # No gap of the sleep data is negative and one is zero: 2 signs of that times 2 extremes, of 1,024.
    assert statistics.permutation(sample(SLEEP[0]), sample(SLEEP[1])) == 4 / 1024
    assert statistics.permutation(sample([0.1, 0.2, 0.3, 0.4, 0.5]), sample([0] * 5)) == 2 / 32


def test_permutation_of_many_pairs_counts_the_given_signs_too():
    # Two of 2^40 arrangements are as extreme, so none of those that are drawn.
    assert statistics.permutation(sample(range(1, 41)), sample([0] * 40)) == 1 / (statistics.RESAMPLES + 1)


def test_bootstrap_interval_is_the_one_of_scipy():
    expected = scipy_stats.bootstrap((MAIZE,), np.mean, n_resamples=20_000, method="percentile", rng=1)
    error = np.std(MAIZE) / math.sqrt(len(MAIZE))
    found = statistics.bootstrap(sample(MAIZE), sample([0] * 15))
    assert found == pytest.approx(tuple(expected.confidence_interval), abs=0.08 * error)


def test_coverage_of_the_bootstrap_interval(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 999)
    for seeds, covers in ((5, 0.82), (20, 0.92)):
        zero = sample([0.97] * seeds)
        found = [statistics.bootstrap(sample(x), zero) for x in simulated(1000, seeds, "normal", 3)]
        assert np.mean([low <= 0 <= high for low, high in found]) == pytest.approx(covers, abs=0.025)


def test_hedges_g_of_a_textbook():
    # Borenstein et al., Introduction to Meta-Analysis, 2009, chapter 4: means 103 and 100, standard deviations 5.5
    # and 4.5, 50 in each group: d = 0.5970, g = 0.5924.
    within = math.sqrt((5.5**2 + 4.5**2) / 2)
    assert statistics.hedges_g(3.0, within, 98) == pytest.approx(0.5924, abs=5e-5)
    assert [statistics.hedges_g(v, 0.0, 8) for v in (0.0, -1.0)] == [0.0, -math.inf]


def test_hedges_g_of_samples_of_unequal_size():
    found = statistics.difference(sample([2, 4, 6]), sample([1, 2, 3, 4], first=10))
    # Means 4 and 2.5, variances 4 and 5/3, and 5 degrees of freedom.
    assert found.effect == pytest.approx(1.5 / math.sqrt((4 + 5 / 3) / 2) * (1 - 3 / 19))


@pytest.mark.parametrize(
    ("size", "paired", "seeds"),
    [(0.5, False, 64), (0.8, False, 26), (0.5, True, 34), (0.2, True, 199), (0.01, True, None), (50.0, True, 2)],
)
def test_seeds_to_show_of_published_tables(size, paired, seeds):
    """64 and 26 are from Cohen's table of 1988, 34 and 199 from G*Power."""
    assert statistics.seeds_to_show(-size * 3, 3.0, paired) == seeds


@pytest.mark.parametrize("size", [0.6, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0])
def test_seeds_to_show_of_few_seeds_are_those_of_statsmodels(size):
    solved = power.TTestIndPower().solve_power(size, power=statistics.POWER, alpha=0.05)
    assert statistics.seeds_to_show(size, 1.0, paired=False) == math.ceil(solved)


def test_seeds_to_show_reach_the_power():
    n = statistics.seeds_to_show(0.002, 0.002, paired=True)
    gaps = np.random.default_rng(0).normal(0.002, 0.002, (3000, n))
    shown = np.mean(scipy_stats.ttest_1samp(gaps, 0, axis=1).pvalue < 0.05)
    assert 0.78 <= shown <= 0.85  # at least the 80 % asked for, and no seed too many
    assert statistics.seeds_to_show(0.0, 1.0, True) is None
    with pytest.raises(ValueError, match="spread of 0"):
        statistics.seeds_to_show(1.0, 0.0, True)


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 6])
@pytest.mark.parametrize("n", [2, 5, 20])
def test_holm_power_and_seeds_agree_with_statsmodels(n, alpha):
    paired = power.TTestPower().solve_power(nobs=n, alpha=alpha, power=0.8)
    assert statistics.detectable(n, 0.5, True, alpha) == pytest.approx(paired / 2, rel=1e-3)
    if n > 2:  # the solver of statsmodels fails for the independent test of two values
        independent = power.TTestIndPower().solve_power(nobs1=n, alpha=alpha, power=0.8)
        assert statistics.detectable(n, 0.5, False, alpha) == pytest.approx(independent / 2, rel=1e-3)
        assert statistics.seeds_to_show(statistics.detectable(n, 0.5, True, alpha) * 1.001, 0.5, True, alpha) == n
    p = np.random.default_rng(n).uniform(0, 0.2, n)
    assert statistics.holm(list(p)) == pytest.approx(multitest.multipletests(p, method="holm")[1])


def test_holm_of_a_textbook():
    # The worked example of Holm's method that R's p.adjust and Wikipedia give.
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_holm_keeps_the_family_wise_error_rate():
    scores = np.random.default_rng(4).standard_normal((600, 4, 5))
    wrong = 0
    for rows in scores:
        p = [statistics.difference(sample(rows[i]), sample(rows[j])).p for i in range(4) for j in range(i)]
        wrong += min(statistics.holm(p)) < 0.05
    assert wrong / len(scores) <= 0.06


def counted(both, only_a, only_b, neither):
    a = np.repeat([True, True, False, False], [both, only_a, only_b, neither])
    b = np.repeat([True, False, True, False], [both, only_a, only_b, neither])
    return a, b


def test_mcnemar_of_a_textbook():
    # Agresti, Categorical Data Analysis, 1990: approval of the Prime Minister; chi-square 17.36 with one degree.
    only_a, only_b, p = statistics.mcnemar(*counted(794, 150, 86, 570))
    assert (only_a, only_b) == (150, 86)
    exact = 2 * sum(math.comb(236, k) for k in range(87)) / 2**236
    assert p == pytest.approx(exact, rel=1e-9)
    assert p == pytest.approx(scipy_stats.chi2.sf(17.36, 1), rel=0.3)  # an approximation this far out


def test_mcnemar_of_runs_that_differ_on_few_images():
    assert statistics.mcnemar(*counted(9, 0, 0, 1)) == (0, 0, 1.0)
    assert statistics.mcnemar(*counted(9, 1, 0, 0)) == (1, 0, 1.0)
    assert statistics.mcnemar(*counted(0, 8, 0, 0)) == (8, 0, 2 / 2**8)
    with pytest.raises(ValueError, match="same images"):
        statistics.mcnemar(np.ones(3, bool), np.ones(2, bool))


@pytest.mark.parametrize("other", [0.9, 0.8, 0.1])
@pytest.mark.parametrize("first", [0, 5], ids=["paired", "welch"])
def test_two_samples_without_spread_are_not_tested(other, first):
    for scale in (1e-9, 1.0, 1e9):  # rounding leaves three times 0.1 a spread of 1e-17
        with pytest.raises(statistics.Untestable, match="neither side varies with the seed"):
            statistics.difference(sample([0.9 * scale] * 3), sample([other * scale] * 3, first))


@pytest.mark.filterwarnings("ignore:Precision loss:RuntimeWarning")  # SciPy's, of the flat sample
def test_one_sample_without_spread_is_tested():
    flat, x = [0.8, 0.8, 0.8], [0.9, 0.91, 0.93]
    paired, welch = statistics.difference(sample(x), sample(flat)), statistics.difference(sample(x), sample(flat, 5))
    assert paired.p == pytest.approx(scipy_stats.ttest_rel(x, flat).pvalue)
    assert welch.p == pytest.approx(scipy_stats.ttest_ind(x, flat, equal_var=False).pvalue)


def test_equal_differences_are_tested_by_their_signs():
    found = statistics.difference(sample([0.9, 0.8, 0.7, 0.6]), sample([0.8, 0.7, 0.6, 0.5]))
    assert (found.p, found.spread, found.value) == (2 / 2**4, 0.0, pytest.approx(0.1))
    assert found.p == statistics.permutation(sample([0.9, 0.8, 0.7, 0.6]), sample([0.8, 0.7, 0.6, 0.5]))
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    same = statistics.difference(sample([0.9, 0.8]), sample([0.9, 0.8]))
    assert (same.p, same.value, same.effect) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_not_finite_are_not_tested(value):
    with pytest.raises(statistics.Untestable, match="not a finite number"):
        statistics.difference(sample([0.9, value]), sample([0.8, 0.7]))


def test_random_samples_agree_with_scipy():
    random = np.random.default_rng(7)
    for n, m in [(2, 2), (2, 5), (3, 3), (10, 4), (20, 20)]:
        x, y = random.normal(0.97, 0.002, n), random.normal(0.96, 0.02, m)
        theirs = scipy_stats.ttest_ind(x, y, equal_var=False)
        ours = statistics.difference(sample(x), sample(y, 50))
        assert ours.p == pytest.approx(theirs.pvalue)
        assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval()))
        if n == m:
            theirs, ours = scipy_stats.ttest_rel(x, y), statistics.difference(sample(x), sample(y))
            assert ours.p == pytest.approx(theirs.pvalue)
            assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval()))
    for only_a, only_b in [(0, 1), (3, 3), (2, 9), (40, 60), (0, 30)]:
        _, _, p = statistics.mcnemar(*counted(10, only_a, only_b, 10))
        assert p == pytest.approx(scipy_stats.binomtest(only_a, only_a + only_b).pvalue)


def test_an_interval_is_clipped_to_the_bounds_of_the_metric():
    found = statistics.summarise([0.34, 0.36, 0.5], (0.0, 1.0))
    whole = statistics.summarise([0.34, 0.36, 0.5])
    assert (found.low, found.high) == (whole.low, whole.high)
    found = statistics.summarise([0.2, 0.5], (0.0, 1.0))
    assert (found.low, found.high) == (0.0, 1.0)
    assert math.isnan(statistics.summarise([0.2], (0.0, 1.0)).low)
    assert [scores.bounds(name) for name in ("val_accuracy", "test_calibration_error", "val_loss")] == [
        (0.0, 1.0),
        (0.0, 1.0),
        (0.0, math.inf),
    ]


def test_one_seed_is_not_tested():
    with pytest.raises(ValueError, match="at least two seeds on each side, got 1 and 5"):
        statistics.difference({0: 0.9}, sample(range(5)))


def test_pooled_std():
    assert statistics.pooled_std([[1.0, 3.0], [5.0, 5.0, 5.0], [9.0]]) == pytest.approx(math.sqrt(2 / 3))
    assert math.isnan(statistics.pooled_std([[1.0], [2.0]]))


def test_the_corrected_resampled_t_test_by_hand():
    """Nadeau and Bengio, 2003: five folds, so that a fifth validates and the variance factor is 1/5 + 1/4."""
    first = dict(enumerate((0.90, 0.92, 0.91, 0.93, 0.94)))
    second = dict(enumerate((0.89, 0.90, 0.90, 0.91, 0.92)))
    # The differences 0.01, 0.02, 0.01, 0.02, 0.02 have the mean 0.016 and the variance 3e-5.
    error = math.sqrt(3e-5 * (1 / 5 + 1 / 4))
    t = 0.016 / error
    assert t == pytest.approx(4.3546, abs=5e-5)
    square = 1 + t**2 / 4  # the t distribution with four degrees of freedom has a closed form
    p = 1 - 0.75 * t / math.sqrt(square) * (1 - t**2 / square / 12)
    found = statistics.difference(first, second, overlap=1 / 4)
    assert (found.paired, found.n) == (True, 5)
    assert found.value == pytest.approx(0.016)
    assert found.p == pytest.approx(p) == pytest.approx(0.01211, abs=5e-6)
    assert (found.low, found.high) == pytest.approx((0.016 - 2.776445 * error, 0.016 + 2.776445 * error))
    assert found.p > statistics.difference(first, second).p
    # Mean 0.92, variance 2.5e-4.
    row = statistics.summarise(list(first.values()), overlap=1 / 4)
    assert (row.high - row.mean) == pytest.approx(2.776445 * math.sqrt(2.5e-4 * 0.45))
    assert row.std == pytest.approx(math.sqrt(2.5e-4))


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        ({0: 0.8, 1: 0.9}, "a test over folds needs the same folds on both sides, got [0, 1, 2] and [0, 1]"),
        ({0: 0.8}, "a test needs at least two folds on each side, got 3 and 1"),
        ({0: 0.8, 1: 0.82, 2: 0.81}, "all folds differ by the same amount, so chance cannot be estimated"),
    ],
)
def test_folds_that_cannot_be_tested(second, reason):
    with pytest.raises(statistics.Untestable) as error:
        statistics.difference({0: 0.9, 1: 0.92, 2: 0.91}, second, overlap=1 / 4)
    assert str(error.value) == reason


@pytest.mark.parametrize("law", [(0.0, 2.0, 0.5), (0.012, 1.3, 0.62), (0.3, 900.0, 1.7), (0.02, 0.4, 0.08)])
def test_a_power_law_is_recovered(law):
    limit, scale, exponent = law
    images = [100, 300, 1000, 3000, 10_000, 30_000, 55_000]
    found = statistics.power_law(images, [limit + scale * n**-exponent for n in images])
    assert (found.limit, found.scale, found.exponent) == pytest.approx(law, rel=2e-3, abs=1e-5)
    assert found.at(200) == pytest.approx(limit + scale * 200**-exponent, rel=1e-4)


def test_a_power_law_of_errors_that_do_not_fall_is_their_constant():
    found = statistics.power_law([1, 10, 100, 1000], [0.2, 0.2, 0.2, 0.2])
    assert found.at(np.array([5.0, 5000.0])) == pytest.approx([0.2, 0.2])


@pytest.mark.parametrize("overlap", [0.0, 0.25])
def test_p_of_many_pairs_is_that_of_each(overlap):
    random = np.random.default_rng(0)
    x = random.normal(0.9, 0.01, 5)
    others = np.array([*random.normal(0.9, 0.01, (20, 5)), x, x + 0.01, np.full(5, 0.5)])
    for first in (x, np.full(5, 0.7)):
        expected = []
        for other in others:
            try:
                pair = (dict(enumerate(first.tolist())), dict(enumerate(other.tolist())))
                expected.append(statistics.difference(*pair, overlap).p)
            except statistics.Untestable:
                expected.append(np.nan)
        found = statistics.paired_p(first, others, overlap)
        np.testing.assert_allclose(found, expected, rtol=1e-9)
