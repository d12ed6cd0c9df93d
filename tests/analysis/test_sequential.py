"""Group sequential decisions: against SciPy, and by simulation against the error rates and the power that they claim.

`python -m tests.analysis.test_sequential [EXPERIMENTS]` prints the rates of docs/deciding.md.
"""

import math
import sys

import numpy as np
import pytest
from scipy import stats

from mnist_exp.analysis import sequential
from mnist_exp.analysis.sequential import DIFFERENT, EQUAL, Look

METRIC = "final_val_accuracy"
KINDS = ("normal", "t with 5 df")
SHOWN, BOUNDED, UNDECIDED = (
    Look(5, "mlp", "linear", 0.0845, 0.0327, 0.1363, 0.01, DIFFERENT),
    Look(10, "mlp", "linear", 0.0002, -0.0003, 0.0007, 0.0005, EQUAL),
    Look(40, "mlp", "linear", 0.0005, -0.0012, 0.0022, 0.004, None),
)


def simulate(most, difference, smallest, kind, experiments=2000, seed=0):
    """Decides simulated experiments; figures are in standard deviations of the pairs' differences.

    Returns:
        The shares that show a difference and that bound it, the share of intervals that cover the true difference,
        and the mean number of seeds.
    """
    random = np.random.default_rng(seed)
    shape = (experiments, most)
    gaps = random.standard_normal(shape) if kind == "normal" else random.standard_t(5, shape) / math.sqrt(5 / 3)
    found = []
    for x in (gaps + difference).tolist():
        pairs = list(enumerate(x))

        def samples(n, pairs=pairs):
            return {"a": dict(pairs[:n]), "b": dict.fromkeys(range(n), 0.0)}

        *_, look = sequential.decide(samples, most, smallest)
        low, high = (look.low, look.high) if look.first == "a" else (-look.high, -look.low)
        found.append((look.outcome == DIFFERENT, look.outcome == EQUAL, low <= difference <= high, look.n))
    return np.mean(found, axis=0)


@pytest.mark.parametrize("kind", KINDS)
def test_false_positives_are_at_most_5_5_percent(kind):
    different, _, covered, seeds = simulate(20, 0.0, 1e-9, kind, 5000)
    assert different <= 0.055
    assert covered == 1 - different
    assert 19 < seeds <= 20


@pytest.mark.parametrize("kind", KINDS)
def test_the_promised_power_of_80_percent_is_at_least_78(kind):
    most = sequential.seeds_needed(1.0, 1.3)
    assert most == 19
    different, equal, covered, seeds = simulate(most, 1 / 1.3, 1 / 1.3, kind)
    assert 0.78 <= different <= 0.86
    assert equal <= 0.025  # says that the difference is below the smallest one, to which it is equal
    assert covered >= 0.945
    assert 11 < seeds < 15  # a single test needs 16


def test_a_difference_far_below_the_smallest_is_bounded_and_a_large_one_found_at_once():
    different, equal, covered, seeds = simulate(40, 0.0, 1.0, "normal", 500)
    assert different <= 0.055
    assert equal >= 0.94
    assert covered >= 0.945
    assert seeds < 25
    assert simulate(40, 5.0, 1.0, "normal", 500)[[0, 3]] == pytest.approx([1.0, 5.0], abs=0.1)


@pytest.mark.parametrize(("most", "looks"), [(2, [2]), (5, [5]), (6, [5, 6]), (20, [5, 10, 15, 20])])
def test_looks(most, looks):
    assert sequential.looks(most) == looks
    assert len(sequential.levels(most)) == len(looks)


def within(n, z, drift=0.0):
    """The probability that normal scores cross none of the first boundaries, by SciPy's multivariate normal."""
    n, z = np.array(n), np.array(z)
    covariance = np.sqrt(np.minimum.outer(n, n) / np.maximum.outer(n, n))
    mean = drift * np.sqrt(n)
    return stats.multivariate_normal(mean, covariance).cdf(z, lower_limit=-z, rng=np.random.default_rng(0))


def test_each_seed_spends_the_same_probability():
    n = sequential.looks(17)
    z = [stats.norm.isf(level / 2) for level in sequential.levels(17)]
    for count in (1, 2, 3, 4):
        spent = sequential.SPENT * n[count - 1] / 17
        assert 1 - within(n[:count], z[:count]) == pytest.approx(spent, abs=1e-4)


def test_the_inflation_gives_normal_scores_a_power_of_80_percent():
    n = sequential.looks(20)
    z = [stats.norm.isf(level / 2) for level in sequential.levels(20)]
    single = stats.norm.isf(0.025) + stats.norm.isf(0.2)
    drift = single * math.sqrt(sequential._inflation(20) / 20)
    assert 1 - within(n, z, drift) == pytest.approx(0.8, abs=1e-4)


def test_seeds_needed():
    assert sequential.seeds_needed(0.5, 1.0) == 41  # 34 for a single test, by G*Power
    assert sequential.seeds_needed(50.0, 1.0) == 3
    assert sequential.seeds_needed(0.01, 1.0) is None


def test_a_look_agrees_with_scipy():
    x, y = [0.97, 0.98, 0.975, 0.99, 0.96], [0.96, 0.975, 0.97, 0.97, 0.955]
    theirs = stats.ttest_rel(x, y)
    samples = {"y": dict(enumerate(y)), "x": dict(enumerate(x))}
    look = sequential.judge(samples, 0.01, 1.0)
    interval = theirs.confidence_interval(0.99)
    assert look[:6] == (5, "x", "y", pytest.approx(0.009), pytest.approx(interval.low), pytest.approx(interval.high))
    assert look.spread == pytest.approx(np.std(np.subtract(x, y), ddof=1))
    assert look.outcome == EQUAL  # p = 0.033 is above the level, and 0.022 below the smallest difference
    assert sequential.judge(samples, theirs.pvalue + 1e-9, 1.0).outcome == DIFFERENT
    assert sequential.judge(samples, 0.01, interval.high - 1e-9).outcome is None


def test_equal_differences_are_tested_by_their_signs_and_bound_nothing():
    x = {seed: 0.9 + seed / 100 for seed in range(10)}
    same, higher = dict(x), {seed: score + 0.01 for seed, score in x.items()}
    look = sequential.judge({"x": x, "same": same}, 0.01, 0.5)
    assert (look.value, look.spread, look.outcome) == (0.0, 0.0, None)
    assert math.isnan(look.low)
    assert sequential.judge({"x": x, "higher": higher}, 0.01, 0.5).outcome == DIFFERENT  # p = 2 / 2^10
    assert sequential.judge({"x": x, "higher": higher}, 0.001, 0.5).outcome is None
    assert sequential.progress(look, METRIC, 0.001) == (
        "after 10 seeds: x is higher by 0 points (unknown, because all seeds differ equally)\n"
        "  not decided yet; more than 1,000 seeds to show 0.10 points at this spread"
    )


def test_verdicts_in_words():
    assert sequential.verdict(SHOWN, METRIC, 0.001, 40) == (
        "mlp is better than linear, as is shown after 5 of at most 40 seeds: final_val_accuracy of mlp is higher by "
        "8.45 points (95 % interval, adjusted for the looks: 3.27 to 13.63 points)."
    )
    assert sequential.verdict(BOUNDED, METRIC, 0.001, 40) == (
        "mlp and linear differ by less than 0.10 points, as is shown after 10 of at most 40 seeds: final_val_accuracy "
        "of mlp is higher by 0.02 points (95 % interval, adjusted for the looks: -0.03 to 0.07 points)."
    )
    assert sequential.verdict(UNDECIDED, METRIC, 0.001, 40) == (
        "Not decided between mlp and linear after 40 of at most 40 seeds: final_val_accuracy of mlp is higher by 0.05 "
        "points (95 % interval, adjusted for the looks: -0.12 to 0.22 points). This shows no difference, and does not "
        "bound it below 0.10 points. To show 0.10 points with a power of 80 % takes about 158 seeds at this spread."
    )


def test_the_better_of_two_losses_is_the_lower_one():
    assert sequential.verdict(SHOWN, "val_loss", 0.1, 40).startswith("linear is better than mlp, as is shown after 5")
    assert sequential.progress(UNDECIDED, "val_loss", 0.1).startswith("after 40 seeds: linear is lower by 0.0005 (-0")


def main():
    experiments = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    print("| most seeds | differences | true difference | smallest | shown | bounded | seeds used |")
    print("|--:|---|--:|--:|--:|--:|--:|")
    rows = [(kind, spread) for kind in KINDS for spread in (1.0, 2.0)]
    for number, (kind, spread) in enumerate(rows):
        most = sequential.seeds_needed(1.0, spread)
        for true in (0.0, 1.0, 3.0):
            shown, bounded, _, seeds = simulate(most, true / spread, 1 / spread, kind, experiments, number)
            cells = (most, kind, true / spread, 1 / spread, f"{shown:.1%}", f"{bounded:.1%}", f"{seeds:.1f}")
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
