"""Statistics over seeds: how good a setting is, and whether one is really better than another.

A sample maps seeds to a score. A handful of seeds decides the choice of methods. The t distribution gives intervals
and tests that hold what they promise at five seeds, and scores averaged over thousands of images are near enough to
normal for it. A sign-flip permutation of five pairs knows 2^5 outcomes and can never come below p = 0.0625, and a
bootstrap of five values is too narrow: both stand beside the t test as its witnesses, neither decides.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special, stats

LEVEL, ALPHA, POWER = 0.95, 0.05, 0.80
MAX_SEEDS = 1000  # beyond what anybody runs
ROUNDING = 1e-12  # as a share of the largest score: a smaller spread or difference is rounding
RESAMPLES = 9999


class Untestable(ValueError):
    """Two samples hold too little information for a test; the message is the reason."""


class Summary(NamedTuple):
    """A sample in figures. `std` and the interval of the mean are NaN for a single value."""

    n: int
    mean: float
    std: float
    low: float
    high: float
    smallest: float
    largest: float


class Difference(NamedTuple):
    """How far the first sample lies above the second.

    `n` counts pairs, or without pairs the seeds of the smaller sample. `p` is two-sided. `effect` is Hedges' g: the
    difference in units of the standard deviation over seeds. `spread` is the standard deviation of the gaps of
    pairs, or within the samples when there are no pairs. It is 0 and the interval NaN when all gaps are equal.
    """

    paired: bool
    n: int
    value: float
    low: float
    high: float
    p: float
    effect: float
    spread: float


def summarise(values: Sequence[float], bounds: tuple[float, float] = (-math.inf, math.inf)) -> Summary:
    """Mean, spread and the 95 % t interval of the mean, both of its ends cut to the bounds of the metric.

    Raises:
        ValueError: there are no values.
    """
    array = np.asarray(values, np.float64)
    if not array.size:
        raise ValueError("need at least one value")
    n, mean = len(array), float(array.mean())
    std = float(array.std(ddof=1)) if n > 1 else math.nan
    half = _quantile(n - 1) * std / math.sqrt(n) if n > 1 else math.nan
    low, high = (float(end) for end in np.clip((mean - half, mean + half), *bounds))
    return Summary(n, mean, std, low, high, float(array.min()), float(array.max()))


def difference(a: Mapping[int, float], b: Mapping[int, float]) -> Difference:
    """Test whether two samples differ in their mean: paired by seed when both have the same seeds, else Welch's test.

    Gaps of pairs that are all equal have no t. The count of their signs is then the test, and there is no interval.

    Raises:
        Untestable: a sample has fewer than two seeds or a score that is not finite, or both have no spread.
    """
    x, y = list(a.values()), list(b.values())
    if min(len(x), len(y)) < 2:
        raise Untestable(f"a test needs two seeds on each side, got {len(x)} and {len(y)}")
    if not all(map(math.isfinite, x + y)):
        raise Untestable("a score is not a finite number")
    (mean_x, var_x), (mean_y, var_y) = _moments(x), _moments(y)
    within, rounding = math.sqrt((var_x + var_y) / 2), ROUNDING * max(map(abs, x + y))
    if within <= rounding:
        raise Untestable("neither side varies with the seed, so the size of chance is unknown")
    n, paired = min(len(x), len(y)), a.keys() == b.keys()
    if paired:
        value, variance = _moments([a[seed] - b[seed] for seed in a])
        spread, error, freedom = math.sqrt(variance), math.sqrt(variance / n), n - 1.0
    else:
        spread, value, parts = within, mean_x - mean_y, (var_x / len(x), var_y / len(y))
        error = math.sqrt(sum(parts))
        freedom = sum(parts) ** 2 / (parts[0] ** 2 / (len(x) - 1) + parts[1] ** 2 / (len(y) - 1))  # Welch-Satterthwaite
    if abs(value) <= rounding:
        value = 0.0
    effect = hedges_g(value, within, len(x) + len(y) - 2)
    if spread <= rounding:
        p = 2.0 ** (1 - n) if value else 1.0
        return Difference(paired, n, value, math.nan, math.nan, p, effect, 0.0)
    p = float(2 * special.stdtr(freedom, -abs(value) / error))
    half = _quantile(freedom) * error
    return Difference(paired, n, value, value - half, value + half, p, effect, spread)


def _moments(values: Sequence[float]) -> tuple[float, float]:
    """Mean and variance; of a handful of values this is ten times as fast as NumPy."""
    mean = math.fsum(values) / len(values)
    return mean, math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


def pair(a: Mapping[int, float], b: Mapping[int, float]) -> np.ndarray:
    """The gaps a - b of the seeds that both have, float64 (n,), by rising seed."""
    return np.array([a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())])


def permutation(a: Mapping[int, float], b: Mapping[int, float]) -> float:
    """Two-sided p that the mean gap of pairs is zero, by flipping their signs: all ways up to 13 pairs, else a draw.

    Fisher, The Design of Experiments, 1935, section 21.
    """
    gaps = pair(a, b)
    # Gaps of equal size must tie exactly, or rounding would decide which arrangements count as extreme.
    gaps = np.round(gaps / max(np.abs(gaps).max(), 1e-300), 9)
    found = stats.permutation_test(
        (gaps,),
        lambda values, axis: np.round(values.mean(axis=axis), 9),
        permutation_type="samples",
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def bootstrap(a: Mapping[int, float], b: Mapping[int, float]) -> tuple[float, float]:
    """95 % percentile interval of the mean gap of pairs; of five normal pairs it covers 82 %, of twenty 92 %."""
    gaps = pair(a, b)
    draws = np.random.default_rng(0).choice(gaps, (RESAMPLES, len(gaps)))
    low, high = np.quantile(draws.mean(axis=1), ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)


def hedges_g(value: float, within: float, freedom: int) -> float:
    """A difference in units of the standard deviation within the samples, corrected for its bias in small ones.

    Hedges, Distribution theory for Glass's estimator of effect size, 1981.
    """
    if within == 0:
        return math.copysign(math.inf, value) if value else 0.0
    return value / within * (1 - 3 / (4 * freedom - 1))


def seeds_to_show(value: float, spread: float, paired: bool, alpha: float = ALPHA) -> int | None:
    """Seeds on each side that show a difference with a power of 80 %, by the noncentral t distribution.

    Args:
        value: the difference to be shown.
        spread: as in `Difference`.
        paired: whether seeds come in pairs.
        alpha: what the two-sided p has to fall below.

    Returns:
        The number, at least 2; None when it is above `MAX_SEEDS`.

    Raises:
        ValueError: the spread is 0, which tells nothing of how other seeds vary.
    """
    if spread == 0:
        raise ValueError("need scores that vary, got a spread of 0")
    if value == 0:
        return None
    n = np.arange(2, MAX_SEEDS + 1)
    freedom = n - 1 if paired else 2 * n - 2
    shift = abs(value) / spread * np.sqrt(n if paired else n / 2)
    # Beyond 30 the power is above 80 % at every n, and SciPy's series no longer converges.
    enough = stats.nct.sf(stats.t.ppf(1 - alpha / 2, freedom), freedom, np.minimum(shift, 30)) >= POWER
    return int(n[enough.argmax()]) if enough.any() else None


def holm(p: Sequence[float]) -> list[float]:
    """Adjust p values of tests made together, so that a false positive among them all stays below their level.

    Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    order = np.argsort(p, kind="stable")
    scaled = np.asarray(p, np.float64)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return [float(value) for value in adjusted]


def mcnemar(a_right: np.ndarray, b_right: np.ndarray) -> tuple[int, int, float]:
    """McNemar's exact test of two classifiers on the same images.

    Args:
        a_right: booleans (n,): which images the first one got right.
        b_right: likewise, of the second.

    Returns:
        Images that only the first got right, only the second, and the two-sided p.

    Raises:
        ValueError: the two are not of one length.
    """
    if a_right.shape != b_right.shape:
        raise ValueError(f"need the same images on both sides, got {len(a_right)} and {len(b_right)}")
    only_a, only_b = int(np.count_nonzero(a_right & ~b_right)), int(np.count_nonzero(~a_right & b_right))
    # Twice a tail of the binomial distribution; 1 when the two are right on the same images.
    return only_a, only_b, min(1.0, 2 * float(special.bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


def pooled_std(samples: Sequence[Sequence[float]]) -> float:
    """Standard deviation over seeds, pooled over settings; NaN when none has two seeds."""
    several = [np.asarray(sample, np.float64) for sample in samples if len(sample) > 1]
    if not several:
        return math.nan
    squares = sum(float(((sample - sample.mean()) ** 2).sum()) for sample in several)
    return math.sqrt(squares / sum(len(sample) - 1 for sample in several))


def _quantile(freedom: float) -> float:
    return float(special.stdtrit(freedom, (1 + LEVEL) / 2))
