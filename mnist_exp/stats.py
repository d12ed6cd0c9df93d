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
from scipy import stats

LEVEL, ALPHA, POWER = 0.95, 0.05, 0.80
MAX_SEEDS = 1000  # beyond what anybody runs
RESAMPLES = 9999


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
    pairs, or within the samples when there are no pairs.
    """

    paired: bool
    n: int
    value: float
    low: float
    high: float
    p: float
    effect: float
    spread: float


def summarise(values: Sequence[float]) -> Summary:
    """Mean, spread and the 95 % t interval of the mean.

    Raises:
        ValueError: there are no values.
    """
    array = np.asarray(values, np.float64)
    if not array.size:
        raise ValueError("need at least one value")
    n, mean = len(array), float(array.mean())
    std = float(array.std(ddof=1)) if n > 1 else math.nan
    half = _quantile(n - 1) * std / math.sqrt(n) if n > 1 else math.nan
    return Summary(n, mean, std, mean - half, mean + half, float(array.min()), float(array.max()))


def difference(a: Mapping[int, float], b: Mapping[int, float]) -> Difference:
    """Test whether two samples differ in their mean: paired by seed when both have the same seeds, else Welch's test.

    Raises:
        ValueError: a sample has fewer than two seeds.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"need at least two seeds on each side, got {len(a)} and {len(b)}")
    x, y = np.array(list(a.values())), np.array(list(b.values()))
    within = math.sqrt((x.var(ddof=1) + y.var(ddof=1)) / 2)
    paired = a.keys() == b.keys()
    if paired:
        gaps = pair(a, b)
        value, spread, freedom = float(gaps.mean()), float(gaps.std(ddof=1)), len(gaps) - 1.0
        error = spread / math.sqrt(len(gaps))
    else:
        spread, parts = within, np.array([x.var(ddof=1) / len(x), y.var(ddof=1) / len(y)])
        value, error = float(x.mean() - y.mean()), math.sqrt(parts.sum())
        # Welch-Satterthwaite; without any spread the smaller sample's.
        square = (parts**2 / (len(x) - 1, len(y) - 1)).sum()
        freedom = float(parts.sum() ** 2 / square) if square else min(len(x), len(y)) - 1.0
    if error < 1e-12:  # equal gaps: t is infinite or 0/0, and only the count of signs is evidence
        p = permutation(a, b) if paired and abs(value) > 1e-12 else float(abs(value) < 1e-12)
    else:
        p = float(2 * stats.t.sf(abs(value) / error, freedom))
    half = _quantile(freedom) * error
    effect = hedges_g(value, within, len(x) + len(y) - 2)
    return Difference(paired, min(len(x), len(y)), value, value - half, value + half, p, effect, spread)


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
    """
    if value == 0:
        return None
    if spread == 0:
        return 2
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
    only_a, only_b = int((a_right & ~b_right).sum()), int((~a_right & b_right).sum())
    if only_a + only_b == 0:
        return 0, 0, 1.0
    return only_a, only_b, float(stats.binomtest(only_a, only_a + only_b).pvalue)


def pooled_std(samples: Sequence[Sequence[float]]) -> float:
    """Standard deviation over seeds, pooled over settings; NaN when none has two seeds."""
    several = [np.asarray(sample, np.float64) for sample in samples if len(sample) > 1]
    if not several:
        return math.nan
    squares = sum(float(((sample - sample.mean()) ** 2).sum()) for sample in several)
    return math.sqrt(squares / sum(len(sample) - 1 for sample in several))


def _quantile(freedom: float) -> float:
    return float(stats.t.ppf((1 + LEVEL) / 2, freedom))
