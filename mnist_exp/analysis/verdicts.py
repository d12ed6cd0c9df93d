"""Is one really better than the other? Tests of all pairs, corrected together, and their outcome in words."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mnist_exp.analysis import leaderboard, statistics
from mnist_exp.analysis.leaderboard import Row, Table
from mnist_exp.scores import bounds, higher_is_better

# Which test images a single run got right, bool (n,); None when its predictions cannot be had.
Right = Callable[[Row], np.ndarray | None]
Sample = dict[int, float]


class Verdict(NamedTuple):
    """The outcome for a pair, the better one first.

    `p_holm` counts the pairs of all rows, also of those without a verdict. NaN: it could not be computed.
    """

    first: str
    second: str
    test: str
    n: int
    difference: float  # first - second, in the metric's own unit
    low: float
    high: float
    effect: float
    p: float
    p_holm: float
    permutation: float | None
    bootstrap: tuple[float, float] | None
    words: str


class _Tested(NamedTuple):
    """Without a `p` the note says why there is none."""

    test: str
    n: int
    difference: float
    low: float = math.nan
    high: float = math.nan
    effect: float = math.nan
    p: float = math.nan
    spread: float = math.nan
    note: str = ""


class _Pair(NamedTuple):
    first: str
    second: str
    tested: _Tested
    x: Sample
    y: Sample


def of_rows(rows: Sequence[Row], metric: str, right: Right, top: int) -> list[Verdict]:
    """Test each pair of rows: over their seeds, or two single runs on their predictions.

    Returns:
        Verdicts on the pairs of the first `top` rows, corrected for the pairs of all.
    """
    answers = {row.label: right(row) for row in rows if len(row.runs) == 1}
    samples = [row.scores(metric) for row in rows]
    pairs, told = [], []
    for (i, a), (j, b) in itertools.combinations(enumerate(rows), 2):
        x, y = samples[i], samples[j]
        single = a.label in answers and b.label in answers
        tested = _single_tested(x, y, answers[a.label], answers[b.label]) if single else _tested(x, y, metric)
        pairs.append(_Pair(a.label, b.label, tested, x, y))
        told.append(j < top)
    return _judged(pairs, told, metric)


def along(table: Table, axis: str, metric: str) -> list[Verdict]:
    """Test each pair of a setting's values, over the other settings that both were tried with."""
    cells = leaderboard.along(table, axis, metric)
    every = {value: [score for seeds in found.values() for score in seeds.values()] for value, found in cells.items()}
    best_first = sorted(cells, key=lambda value: -_sign(metric) * sum(every[value]) / len(every[value]))
    pairs = []
    for a, b in itertools.combinations(best_first, 2):
        x, y, count = leaderboard.common(cells[a], cells[b])
        if _mean(x) * _sign(metric) < _mean(y) * _sign(metric):
            a, b, x, y = b, a, y, x
        tested = _tested(x, y, metric) if count else _Tested("none", 0, math.nan, note="nothing in common")
        if count > 1:
            notes = [tested.note, f"mean over {count} settings of the rest"]
            tested = tested._replace(note="; ".join(filter(None, notes)))
        pairs.append(_Pair(a, b, tested, x, y))
    return _judged(pairs, [True] * len(pairs), metric)


def points(metric: str, value: float) -> str:
    """A difference as text: accuracies in percentage points, the rest as it is."""
    if "accuracy" in metric:
        return f"{100 * value:{'.2f' if abs(value) >= 5e-4 else '.1g'}} points"
    return f"{value:.3g}"


def _tested(x: Sample, y: Sample, metric: str) -> _Tested:
    if min(len(x), len(y)) < 2:
        return _Tested("none", min(len(x), len(y)), _mean(x) - _mean(y), note="a test needs two seeds on each side")
    try:
        found = statistics.difference(x, y)
    except statistics.Untestable as error:
        return _Tested("none", min(len(x), len(y)), _mean(x) - _mean(y), note=str(error))
    least, most = bounds(metric)
    low, high = max(found.low, least - most), min(found.high, most - least)  # no two accuracies are further apart
    test = "Welch t" if not found.paired else "paired t" if found.spread else "sign flips"
    return _Tested(test, found.n, found.value, low, high, found.effect, found.p, found.spread)


def _single_tested(x: Sample, y: Sample, x_right: np.ndarray | None, y_right: np.ndarray | None) -> _Tested:
    value = _mean(x) - _mean(y)
    if x_right is None or y_right is None or x_right.shape != y_right.shape:
        return _Tested("none", 1, value, note="one seed each, and no predictions to test them on")
    only_x, only_y, p = statistics.mcnemar(x_right, y_right)
    note = f"of {len(x_right):,} test images only the first got {only_x} right, only the second {only_y}"
    return _Tested("McNemar", 1, value, p=p, note=note)


def _judged(pairs: Sequence[_Pair], told: Sequence[bool], metric: str) -> list[Verdict]:
    """Correct the tests of all pairs together; verdicts on those that are told."""
    tests = [pair.tested.p for pair in pairs if not math.isnan(pair.tested.p)]
    adjusted = iter(statistics.holm(tests))
    found = []
    for pair, wanted in zip(pairs, told, strict=True):
        tested = pair.tested
        p_holm = math.nan if math.isnan(tested.p) else next(adjusted)
        if not wanted:
            continue
        paired = tested.test == "paired t"
        verdict = Verdict(
            pair.first,
            pair.second,
            tested.test,
            tested.n,
            tested.difference,
            tested.low,
            tested.high,
            tested.effect,
            tested.p,
            p_holm,
            statistics.permutation(pair.x, pair.y) if paired else None,
            statistics.bootstrap(pair.x, pair.y) if paired else None,
            _words(pair.first, tested, p_holm, len(tests), metric),
        )
        found.append(verdict)
    return found


def _words(first: str, tested: _Tested, p_holm: float, tests: int, metric: str) -> str:
    note = f"; {tested.note}" if tested.note else ""
    if math.isnan(p_holm):
        return f"not tested: {tested.note}"
    corrected = f", {_p(p_holm)} for {tests:,} pairs" if tests > 1 else ""
    if tested.test == "McNemar":
        shown = "these two runs differ" if p_holm < statistics.ALPHA else "no difference shown between these two runs"
        return f"{shown} on the test images ({_p(tested.p)}{corrected}; one seed each says nothing of others){note}"
    evidence = f"{_p(tested.p)}{corrected}, n={tested.n}"
    if p_holm < statistics.ALPHA:
        better = "higher" if higher_is_better(metric) else "lower"
        shown = f"{first} is {better} by {points(metric, abs(tested.difference))}"
        if math.isnan(tested.low):
            return f"{shown} with every seed ({evidence}){note}"
        low, high = sorted((abs(tested.low), abs(tested.high)))
        between = f"95 % interval {points(metric, low).removesuffix(' points')} to {points(metric, high)}"
        return f"{shown} ({between}; {evidence}){note}"
    if not tested.difference or not tested.spread:
        return f"no difference shown ({evidence}){note}"
    # Before the other pairs are known the strictest share of the level is what a pair can count on.
    alpha = statistics.ALPHA / tests
    seeds = statistics.seeds_to_show(tested.difference, tested.spread, tested.test == "paired t", alpha)
    many = f"about {seeds:,} seeds" if seeds is not None else f"not even {statistics.MAX_SEEDS:,} seeds"
    return f"no difference shown ({evidence}; {many} would show {points(metric, abs(tested.difference))}){note}"


def _p(p: float) -> str:
    return "p<0.0001" if p < 0.0001 else f"p={p:.2g}"


def _mean(sample: Sample) -> float:
    return sum(sample.values()) / len(sample) if sample else math.nan


def _sign(metric: str) -> int:
    return 1 if higher_is_better(metric) else -1
