"""Decides between two settings while their seeds are added in batches: a group sequential test of paired differences.

A test at the 5 % level that is repeated after each batch would find a difference in far more than 5 % of the
experiments without one. So each look at the scores spends a part of the 5 %: Lan and DeMets, Discrete sequential
boundaries for clinical trials, Biometrika 70, 1983, https://doi.org/10.1093/biomet/70.3.659. Their third rule spends
the same on each seed. It finds large differences nearly as early as Pocock's rule and loses less power. The rule of
O'Brien and Fleming would find none at the first looks: after 5 of 40 seeds it asks for |t| > 119.

The boundaries are those of normal scores, by the recursive integration of Armitage, McPherson and Rowe (1969). Each
becomes the two-sided level of a t test, because the spread is estimated from few seeds: the significance level
approach of Jennison and Turnbull, Group Sequential Methods with Applications to Clinical Trials, 2000, section 3.8.
Intervals are repeated confidence intervals, chapter 9 there: with a probability of 95 % all of them cover the
difference, whenever the experiment ends. `python -m benchmarks.decide` measures the error rates; docs/deciding.md has
them.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

from mnist_exp.analysis import statistics
from mnist_exp.analysis.statistics import ALPHA, POWER
from mnist_exp.analysis.verdicts import points
from mnist_exp.scores import higher_is_better

BATCH = 5  # seeds between two looks
# The looks spend this and not 5 %, because the significance level approach errs more often than normal scores would:
# with 5.4 % instead of 5 % for 15 to 40 seeds. With 4.6 % the simulated rate is 4.8 to 5.0 % for 7 to 200 seeds.
SPENT = 0.046
DIFFERENT, EQUAL = "different", "equal"
Samples = Mapping[str, Mapping[int, float]]  # scores by seed of two settings
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(200)


class Look(NamedTuple):
    """The result after `n` seeds: the means' difference, `first` minus `second`, and its repeated interval.

    `spread` is the standard deviation of the pairs' differences. If it is 0, the interval is NaN. `outcome` is
    DIFFERENT if a difference is shown, EQUAL if it is bounded below the smallest one of interest, else None.
    """

    n: int
    first: str  # the setting with the higher mean
    second: str
    value: float
    low: float
    high: float
    spread: float
    outcome: str | None


def decide(samples: Callable[[int], Samples], most: int, smallest: float) -> Iterator[Look]:
    """Yields the looks at two settings, until one decides or all seeds are used.

    Args:
        samples: returns the scores of the first n seeds of both settings.
        most: number of seeds of each setting at most.
        smallest: smallest difference of interest.

    Raises:
        Untestable: chance cannot be estimated from the scores.
    """
    planned = looks(most)
    for n, level in zip(planned, levels(most), strict=True):
        look = judge(samples(n), level, smallest)
        yield look
        if look.outcome is not None:
            return


def judge(samples: Samples, level: float, smallest: float) -> Look:
    """The result of one look, with a t test at this two-sided level.

    Raises:
        Untestable: as for `statistics.difference`.
    """
    (first, x), (second, y) = sorted(samples.items(), key=lambda item: -sum(item[1].values()))
    found = statistics.difference(x, y)
    half = float(special.stdtrit(found.n - 1, 1 - level / 2)) * found.spread / math.sqrt(found.n)
    if not found.spread:  # t is undefined
        half = math.nan
    outcome = DIFFERENT if found.p <= level else EQUAL if found.value + half < smallest else None
    return Look(found.n, first, second, found.value, found.value - half, found.value + half, found.spread, outcome)


def looks(most: int) -> list[int]:
    """Numbers of seeds after which the scores are tested."""
    return [*range(BATCH, most, BATCH), most]


@functools.cache
def levels(most: int) -> list[float]:
    """Two-sided levels of the t tests, one for each look; together they err with a probability of 5 %."""
    return [float(2 * special.ndtr(-z)) for z in _boundaries(most)]


@functools.cache
def seeds_needed(difference: float, spread: float) -> int | None:
    """The value of `most` with which a difference is shown with a power of 80 %; None above `MAX_SEEDS`.

    It is the number of seeds of a single test, multiplied by the inflation factor of Jennison and Turnbull, section
    2.3: the ratio of the two numbers for normal scores of known spread.
    """
    single = statistics.seeds_to_show(difference, spread, paired=True)
    if single is None:
        return None
    most = single
    for _ in range(2):  # the factor depends on the number of looks, and so on the result
        most = math.ceil(single * _inflation(min(most, 200)))  # above, it grows by less than 1 %
    return most


class _Walk(NamedTuple):
    """The sum of n scores with variance 1 that has crossed no boundary: points, and their probabilities."""

    n: int
    points: np.ndarray
    weights: np.ndarray

    def crosses(self, n: int, z: float, drift: float = 0.0) -> float:
        """The probability that the sum of n scores, divided by the root of n, is beyond -z or z."""
        edge, step, mean = z * math.sqrt(n), math.sqrt(n - self.n), self.points + drift * (n - self.n)
        return float(self.weights @ (special.ndtr((mean - edge) / step) + special.ndtr((-edge - mean) / step)))

    def go_on(self, n: int, z: float, drift: float = 0.0) -> "_Walk":
        """The sum of n scores that is within -z and z."""
        edge, step, mean = z * math.sqrt(n), math.sqrt(n - self.n), self.points + drift * (n - self.n)
        points = _NODES * edge
        density = np.exp(-(((points[:, None] - mean) / step) ** 2) / 2) / (step * math.sqrt(2 * math.pi))
        return _Walk(n, points, _WEIGHTS * edge * (density @ self.weights))


_START = _Walk(0, np.zeros(1), np.ones(1))


@functools.cache
def _boundaries(most: int) -> list[float]:
    """The z that a normal score without drift crosses with the probability that each look may spend."""
    walk, found = _START, []
    for n in looks(most):
        spent = SPENT * (n - walk.n) / most
        z = optimize.brentq(lambda z, walk=walk, n=n, spent=spent: walk.crosses(n, z) - spent, 0, 10)
        walk = walk.go_on(n, z)
        found.append(z)
    return found


def _power(most: int, drift: float) -> float:
    """The probability that scores with this drift cross a boundary."""
    walk, power = _START, 0.0
    for n, z in zip(looks(most), _boundaries(most), strict=True):
        power += walk.crosses(n, z, drift)
        walk = walk.go_on(n, z, drift)
    return power


@functools.cache
def _inflation(most: int) -> float:
    single = float(special.ndtri(1 - ALPHA / 2) + special.ndtri(POWER))
    repeated = optimize.brentq(lambda shift: _power(most, shift / math.sqrt(most)) - POWER, single - 0.1, 2 * single)
    return (repeated / single) ** 2


def progress(look: Look, metric: str, smallest: float) -> str:
    """A look that has not decided, in two lines."""
    better, word = (look.first, "higher") if higher_is_better(metric) else (look.second, "lower")
    lead = f"{better} is {word} by {points(metric, look.value)} ({_interval(look, metric)})"
    needed = f"{_seeds(look, smallest)} to show {points(metric, smallest)} at this spread"
    return f"after {look.n} seeds: {lead}\n  not decided yet; {needed}"


def verdict(look: Look, metric: str, smallest: float, most: int) -> str:
    """The last look in words."""
    better, other, word = look.first, look.second, "higher"
    if not higher_is_better(metric):
        better, other, word = other, better, "lower"
    size, bound, seeds = points(metric, look.value), points(metric, smallest), f"after {look.n} of at most {most} seeds"
    interval = f"95 % interval, adjusted for the looks: {_interval(look, metric)}"
    evidence = f"{metric} of {better} is {word} by {size} ({interval})"
    if look.outcome == DIFFERENT:
        return f"{better} is better than {other}, as is shown {seeds}: {evidence}."
    if look.outcome == EQUAL:
        return f"{better} and {other} differ by less than {bound}, as is shown {seeds}: {evidence}."
    return (
        f"Not decided between {better} and {other} {seeds}: {evidence}. This shows no difference, and does not bound "
        f"it below {bound}. To show {bound} with a power of 80 % takes {_seeds(look, smallest)} at this spread."
    )


def _interval(look: Look, metric: str) -> str:
    """The repeated interval; it begins below 0 where the other setting may be the better one."""
    if math.isnan(look.low):
        return "unknown, because all seeds differ equally"
    return f"{points(metric, look.low).removesuffix(' points')} to {points(metric, look.high)}"


def _seeds(look: Look, smallest: float) -> str:
    needed = seeds_needed(smallest, look.spread) if look.spread else None
    return f"about {needed} seeds" if needed else f"more than {statistics.MAX_SEEDS:,} seeds"
