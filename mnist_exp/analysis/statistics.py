"""Statistics over seeds: the mean score of a setting, and tests of the difference between two settings.

A sample maps seeds to scores. The methods are chosen for about five seeds. Intervals and tests by the t distribution
are accurate there, because scores averaged over thousands of images are close to normal. A permutation test of five
pairs has 2^5 outcomes and never gives p below 0.0625, and a bootstrap interval of five values is too narrow. Both are
shown beside the t test as a check; the t test decides.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special  # scipy.stats has all tests, but takes 0.5 s to import

LEVEL, ALPHA, POWER = 0.95, 0.05, 0.80
MAX_SEEDS = 1000  # `seeds_to_show` tries no more
ROUNDING = 1e-12  # of the largest score; smaller spreads and differences are rounding errors
RESAMPLES = 9999


class Untestable(ValueError):
    """Two samples cannot be tested; the message says why."""


class Summary(NamedTuple):
    """Statistics of a sample; `std` and the interval `low` to `high` of the mean are NaN for a single value."""

    n: int
    mean: float
    std: float
    low: float
    high: float
    smallest: float
    largest: float


class Difference(NamedTuple):
    """The difference of two means, first minus second.

    `n` is the number of pairs, or of the seeds in the smaller sample if unpaired. `p` is two-sided. `effect` is
    Hedges' g. `spread` is the standard deviation of the pairs' differences, or within the samples if unpaired. If all
    differences are equal, `spread` is 0 and the interval NaN.
    """

    paired: bool
    n: int
    value: float
    low: float
    high: float
    p: float
    effect: float
    spread: float


def summarise(
    values: Sequence[float], bounds: tuple[float, float] = (-math.inf, math.inf), overlap: float = 0.0
) -> Summary:
    """Mean, spread and the 95 % t interval of the mean, clipped to the bounds of the metric.

    Args:
        values: scores of independent runs, or of folds.
        bounds: least and largest possible score.
        overlap: 0 for independent runs. For folds the number of validation images divided by that of training images:
            scores of folds are correlated, because their training images overlap. The variance of their mean is
            estimated as std² (1 / n + overlap) instead of std² / n. Nadeau and Bengio, Inference for the
            Generalization Error, Machine Learning 52, 2003, https://doi.org/10.1023/A:1024068626366.

    Raises:
        ValueError: there are no values.
    """
    array = np.asarray(values, np.float64)
    if not array.size:
        raise ValueError("need at least one value")
    n, mean = len(array), float(array.mean())
    std = float(array.std(ddof=1)) if n > 1 else math.nan
    half = _quantile(n - 1) * std * math.sqrt(1 / n + overlap) if n > 1 else math.nan
    low, high = (float(end) for end in np.clip((mean - half, mean + half), *bounds))
    return Summary(n, mean, std, low, high, float(array.min()), float(array.max()))


def difference(a: Mapping[int, float], b: Mapping[int, float], overlap: float = 0.0) -> Difference:
    """Tests whether two samples differ in their mean: paired by seed if both have the same seeds, else Welch's test.

    With an `overlap` as in `summarise` the samples map folds to scores, and the test is the corrected resampled t test
    of Nadeau and Bengio. It has no replacement when all folds differ by the same amount.

    If all pairs differ by the same amount, t is undefined, and a sign test without an interval replaces it. The tests
    are written out because SciPy's paired test takes 0.8 ms and this one 0.04 ms: 200 rows have 19,900 pairs.

    Raises:
        Untestable: a sample has fewer than two seeds or a score that is not finite, both have no spread, or the folds
            of the samples are not the same.
    """
    _check_samples(a, b, overlap)
    x, y = list(a.values()), list(b.values())
    (mean_x, var_x), (mean_y, var_y) = _moments(x), _moments(y)
    within, rounding = math.sqrt((var_x + var_y) / 2), ROUNDING * max(map(abs, x + y))
    if within <= rounding:
        raise Untestable("neither side varies with the seed, so chance cannot be estimated")
    n, paired = min(len(x), len(y)), a.keys() == b.keys()
    if paired:
        value, variance = _moments([a[seed] - b[seed] for seed in a])
        spread, error, freedom = math.sqrt(variance), math.sqrt(variance * (1 / n + overlap)), n - 1.0
    else:
        spread, value, parts = within, mean_x - mean_y, (var_x / len(x), var_y / len(y))
        error = math.sqrt(sum(parts))
        freedom = sum(parts) ** 2 / (parts[0] ** 2 / (len(x) - 1) + parts[1] ** 2 / (len(y) - 1))  # Welch-Satterthwaite
    if abs(value) <= rounding:
        value = 0.0
    effect = hedges_g(value, within, len(x) + len(y) - 2)
    if spread <= rounding:
        if overlap:
            raise Untestable("all folds differ by the same amount, so chance cannot be estimated")
        p = 2.0 ** (1 - n) if value else 1.0
        return Difference(paired, n, value, math.nan, math.nan, p, effect, 0.0)
    p = float(2 * special.stdtr(freedom, -abs(value) / error))
    half = _quantile(freedom) * error
    return Difference(paired, n, value, value - half, value + half, p, effect, spread)


def paired_p(x: np.ndarray, others: np.ndarray, overlap: float = 0.0) -> np.ndarray:
    """The p values of `difference` between a sample and each of many; 499,500 pairs take 1 s, one by one 25 s.

    Args:
        x: scores by seed or fold, float64 (n,).
        others: samples with the same seeds or folds, float64 (m, n).
        overlap: as in `summarise`.

    Returns:
        float64 (m,); NaN for a pair that cannot be tested.
    """
    n, differences = len(x), x - others
    rounding = ROUNDING * np.maximum(np.abs(x).max(), np.abs(others).max(axis=1))
    within = np.sqrt((x.var(ddof=1) + others.var(axis=1, ddof=1)) / 2)
    value, spread = np.abs(differences.mean(axis=1)), differences.std(axis=1, ddof=1)
    constant = spread <= rounding
    p = 2 * special.stdtr(n - 1.0, -value / (np.where(constant, 1.0, spread) * math.sqrt(1 / n + overlap)))
    p[value <= rounding] = 1.0
    p[constant & (value > rounding)] = 2.0 ** (1 - n)
    p[(within <= rounding) | (constant & (overlap > 0))] = math.nan
    return np.asarray(p)


def blocks_p(scores: np.ndarray, overlap: float = 0.0) -> float:
    """The p value of an F test: do several values of a setting have equal mean scores?

    It is the analysis of variance of randomised blocks (R. A. Fisher, The Design of Experiments, 1935). With two values
    it is the paired test of `difference`.

    Args:
        scores: a row for each seed, fold or combination of other settings, a column for each value, float64 (n, k).
        overlap: of folds, as in `summarise`.

    Returns:
        p; NaN if there are fewer than two rows, or no chance variation.
    """
    n, k = scores.shape
    if n < 2 or not np.isfinite(scores).all():
        return math.nan
    rest = scores - scores.mean(axis=0) - scores.mean(axis=1, keepdims=True) + scores.mean()
    noise = float((rest**2).sum()) / (n - 1)
    if noise <= k * (ROUNDING * np.abs(scores).max()) ** 2:
        return math.nan
    between = n * float(((scores.mean(axis=0) - scores.mean()) ** 2).sum())
    return float(special.fdtrc(k - 1, (k - 1) * (n - 1), between / noise / (1 + n * overlap)))


def _check_samples(a: Mapping[int, float], b: Mapping[int, float], overlap: float) -> None:
    if min(len(a), len(b)) < 2:
        units = "folds" if overlap else "seeds"
        raise Untestable(f"a test needs at least two {units} on each side, got {len(a)} and {len(b)}")
    if overlap and a.keys() != b.keys():
        raise Untestable(f"a test over folds needs the same folds on both sides, got {sorted(a)} and {sorted(b)}")
    if not all(map(math.isfinite, (*a.values(), *b.values()))):
        raise Untestable("a score is not a finite number")


def _moments(values: Sequence[float]) -> tuple[float, float]:
    """Mean and variance; ten times as fast as NumPy for a few values."""
    mean = math.fsum(values) / len(values)
    return mean, math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


def pair(a: Mapping[int, float], b: Mapping[int, float]) -> np.ndarray:
    """The differences a - b of the common seeds, float64 (n,), in the order of seeds."""
    return np.array([a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())])


def permutation(a: Mapping[int, float], b: Mapping[int, float]) -> float:
    """Two-sided p of a permutation test that flips signs: all combinations up to 13 pairs, else random ones.

    Fisher, The Design of Experiments, 1935, section 21.
    """
    gaps = pair(a, b)
    # Equal differences must tie exactly, or rounding errors would decide which combinations count as extreme.
    gaps = np.round(gaps / max(np.abs(gaps).max(), 1e-300), 9)
    count = len(gaps)
    if exact := 2**count <= RESAMPLES:
        signs = 1 - 2 * (np.arange(2**count)[:, None] >> np.arange(count) & 1)
    else:
        signs = np.random.default_rng(0).choice((-1, 1), (RESAMPLES, count))
    extreme = int((np.abs(np.round(signs @ gaps / count, 9)) >= np.abs(np.round(gaps.mean(), 9))).sum())
    return extreme / 2**count if exact else (extreme + 1) / (RESAMPLES + 1)


def bootstrap(a: Mapping[int, float], b: Mapping[int, float]) -> tuple[float, float]:
    """95 % percentile interval of the mean difference. It covers 82 % for five normal pairs, 92 % for twenty."""
    gaps = pair(a, b)
    draws = np.random.default_rng(0).choice(gaps, (RESAMPLES, len(gaps)))
    low, high = np.quantile(draws.mean(axis=1), ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)


def hedges_g(value: float, within: float, freedom: int) -> float:
    """A difference in units of the standard deviation within the samples, corrected for small-sample bias.

    Hedges, Distribution theory for Glass's estimator of effect size, 1981.
    """
    if within == 0:
        return math.copysign(math.inf, value) if value else 0.0
    return value / within * (1 - 3 / (4 * freedom - 1))


def seeds_to_show(value: float, spread: float, paired: bool, alpha: float = ALPHA) -> int | None:
    """The number of seeds that detect a difference with a power of 80 %, by the noncentral t distribution.

    Args:
        value: the difference to detect.
        spread: as in `Difference`.
        paired: whether seeds come in pairs.
        alpha: level of the two-sided test.

    Returns:
        Seeds on each side, at least 2; None above `MAX_SEEDS`.

    Raises:
        ValueError: the spread is 0.
    """
    if spread == 0:
        raise ValueError("need scores that vary, got a spread of 0")
    if value == 0:
        return None
    n = np.arange(2, MAX_SEEDS + 1)
    freedom = n - 1 if paired else 2 * n - 2
    shift = abs(value) / spread * np.sqrt(n if paired else n / 2)
    # Above 30 the power exceeds 80 % for every n, and SciPy's series does not converge.
    critical = special.stdtrit(freedom, 1 - alpha / 2)
    enough = special.nctdtr(freedom, np.minimum(shift, 30), critical) <= 1 - POWER
    return int(n[enough.argmax()]) if enough.any() else None


def detectable(n: int, spread: float, paired: bool, alpha: float = ALPHA) -> float:
    """The difference that `n` seeds on each side detect with a power of 80 %; arguments as in `seeds_to_show`."""
    freedom = n - 1 if paired else 2 * n - 2
    shift = special.nctdtrinc(freedom, 1 - POWER, special.stdtrit(freedom, 1 - alpha / 2))
    return float(shift * spread / math.sqrt(n if paired else n / 2))


def holm(p: Sequence[float]) -> list[float]:
    """Adjusts p values so that the probability of any false positive among the tests stays below the level.

    Holm, A simple sequentially rejective multiple test procedure, 1979. SciPy has no function for it.
    """
    order = np.argsort(p, kind="stable")
    scaled = np.asarray(p, np.float64)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return [float(value) for value in adjusted]


def mcnemar(a_right: np.ndarray, b_right: np.ndarray) -> tuple[int, int, float]:
    """McNemar's exact test of two classifiers on the same images.

    Args:
        a_right: bool (n,), which images the first classifier got right.
        b_right: bool (n,), likewise for the second.

    Returns:
        Images that only the first got right, only the second, and the two-sided p.

    Raises:
        ValueError: the lengths differ.
    """
    if a_right.shape != b_right.shape:
        raise ValueError(f"need the same images on both sides, got {len(a_right)} and {len(b_right)}")
    only_a, only_b = int(np.count_nonzero(a_right & ~b_right)), int(np.count_nonzero(~a_right & b_right))
    # `scipy.stats.binomtest` gives the same p in 1.4 ms, this line in 0.02 ms; 200 single runs make 19,900 pairs.
    return only_a, only_b, min(1.0, 2 * float(special.bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


class PowerLaw(NamedTuple):
    """error = limit + scale * n ** -exponent, for n training images."""

    limit: float
    scale: float
    exponent: float

    def at(self, images: float | np.ndarray) -> float | np.ndarray:
        """The error for a number of training images."""
        return self.limit + self.scale * images**-self.exponent


def power_law(images: Sequence[float], errors: Sequence[float]) -> PowerLaw:
    """Fits the power law of Cortes et al., Learning Curves: Asymptotic Values and Rate of Convergence, NIPS 1993.

    Minimises the sum of squared relative residuals (fit / error - 1)², because errors span decades, with limit and
    scale of at least 0 and an exponent from 0.01 to 3. For a given exponent this is a linear problem.

    Args:
        images: numbers of training images, at least four different ones.
        errors: the mean error of each, above 0.
    """
    from scipy import optimize  # 0.2 s to import, and few comparisons have sizes

    n, e = np.asarray(images, np.float64), np.asarray(errors, np.float64)
    smallest = n.min()  # keeps the columns of the linear problem near 1

    def linear(exponent: float) -> tuple[np.ndarray, float]:
        columns = np.stack([1 / e, (n / smallest) ** -exponent / e], axis=1)
        return optimize.nnls(columns, np.ones_like(e))

    tried = np.linspace(0.01, 3, 300)
    best = int(np.argmin([linear(exponent)[1] for exponent in tried]))
    around = tried[max(best - 1, 0)], tried[min(best + 1, len(tried) - 1)]
    exponent = float(optimize.minimize_scalar(lambda x: linear(x)[1], bounds=around, options={"xatol": 1e-6}).x)
    limit, scale = linear(exponent)[0]
    return PowerLaw(float(limit), float(scale * smallest**exponent), exponent)


def pooled_std(samples: Sequence[Sequence[float]]) -> float:
    """Standard deviation over seeds, pooled over settings; NaN if no setting has two seeds."""
    several = [np.asarray(sample, np.float64) for sample in samples if len(sample) > 1]
    if not several:
        return math.nan
    squares = sum(float(((sample - sample.mean()) ** 2).sum()) for sample in several)
    return math.sqrt(squares / sum(len(sample) - 1 for sample in several))


def _quantile(freedom: float) -> float:
    return float(special.stdtrit(freedom, (1 + LEVEL) / 2))
