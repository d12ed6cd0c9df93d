"""Tests all pairs of rows for a difference, corrects their p values together, and states the outcomes in words."""

import itertools
import math
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np

from mnist_exp.analysis import leaderboard, statistics
from mnist_exp.analysis.leaderboard import LeaderboardRow, Table
from mnist_exp.scores import bounds, higher_is_better

# Returns for a single run which test images are right, bool (n,), or None if its predictions cannot be read.
Right = Callable[[LeaderboardRow], np.ndarray | None]
Sample = dict[int, float]
CORRECTED = "corrected t"  # the test over folds


class Verdict(NamedTuple):
    """The outcome for a pair of rows or values, the better one first.

    `n` and `effect` are as in `statistics.Difference`; `difference` and its 95 % interval are in the metric's own
    unit. `p_holm` is corrected for all pairs, also for those without a verdict. NaN: not computed.
    """

    first: str
    second: str
    test: str
    n: int
    difference: float  # first - second
    low: float = math.nan
    high: float = math.nan
    effect: float = math.nan
    p: float = math.nan
    p_holm: float = math.nan
    permutation: float | None = None
    bootstrap: tuple[float, float] | None = None
    words: str = ""
    detectable: float = math.nan  # the difference that this test detects with a power of 80 %


class _Pair(NamedTuple):
    """A pair before the correction. The verdict's `words` hold a note, or the reason why there is no p."""

    verdict: Verdict
    x: Sample
    y: Sample
    spread: float = math.nan


def of_rows(rows: Sequence[LeaderboardRow], metric: str, right: Right, top: int) -> list[Verdict]:
    """Tests each pair of rows over their seeds or folds, and each pair of single runs on their predictions.

    Returns:
        Verdicts on the pairs of the first `top` rows, corrected for the pairs of all rows.
    """
    answers = {row.label: right(row) for row in rows if len(row.runs) == 1}
    samples = [row.scores(metric) for row in rows]
    overlap = rows[0].overlap  # of all rows of a table

    def pair(i: int, j: int) -> _Pair:
        a, b = rows[i].label, rows[j].label
        if a in answers and b in answers:
            return _single_runs(a, b, samples[i], samples[j], answers[a], answers[b])
        return _over_runs(a, b, samples[i], samples[j], metric, overlap)

    shown = [pair(i, j) for i, j in itertools.combinations(range(len(rows[:top])), 2)]
    alike: dict[tuple[int, ...], list[int]] = {}  # rows with the same seeds; a table may have 500,000 pairs of them
    for number, sample in enumerate(samples):
        alike.setdefault(tuple(sorted(sample)), []).append(number)
    others = []
    for seeds, members in alike.items():
        scores = np.array([[samples[number][seed] for seed in seeds] for number in members])
        strangers = set(range(len(rows))).difference(members if len(seeds) > 1 else ())
        for place, number in enumerate(members):
            if number >= top:
                others += [pair(i, number).verdict.p for i in strangers if i < number]
                if len(seeds) > 1:
                    others += statistics.paired_p(scores[place], scores[:place], overlap).tolist()
    return _corrected(shown, metric, others)


def along(table: Table, axis: str, metric: str) -> list[Verdict]:
    """Tests each pair of a setting's values over the other settings that both values have in common."""
    cells = leaderboard.along(table, axis, metric)
    sign = 1 if higher_is_better(metric) else -1
    every = {value: [score for seeds in found.values() for score in seeds.values()] for value, found in cells.items()}
    pairs = []
    for a, b in itertools.combinations(sorted(cells, key=lambda value: -sign * _mean(every[value])), 2):
        x, y, count = leaderboard.common(cells[a], cells[b])
        if sign * _mean(x.values()) < sign * _mean(y.values()):
            a, b, x, y = b, a, y, x
        if not count:
            untested = Verdict(a, b, "none", 0, math.nan, words="these values have no other settings in common")
            pairs.append(_Pair(untested, x, y))
            continue
        pair = _over_runs(a, b, x, y, metric, table.rows[0].overlap)
        if count > 1:
            notes = [pair.verdict.words, f"mean over {count} combinations of the other settings"]
            pair = pair._replace(verdict=pair.verdict._replace(words="; ".join(filter(None, notes))))
        pairs.append(pair)
    return _corrected(pairs, metric)


def points(metric: str, value: float) -> str:
    """A difference as text: accuracies in percentage points, the rest as it is."""
    if "accuracy" in metric:
        return f"{100 * value:{'.2f' if abs(value) >= 5e-4 else '.1g'}} points"
    return f"{value:.3g}"


def interval(metric: str, low: float, high: float) -> str:
    """The interval of a difference as text, with as many decimals at both ends."""
    return f"{100 * low:z.2f} to {100 * high:z.2f} points" if "accuracy" in metric else f"{low:.3g} to {high:.3g}"


def _over_runs(first: str, second: str, x: Sample, y: Sample, metric: str, overlap: float) -> _Pair:
    """A test over seeds, or over folds if there is an overlap."""
    untested = Verdict(first, second, "none", min(len(x), len(y)), _mean(x.values()) - _mean(y.values()))
    if min(len(x), len(y)) < 2:
        units = "folds" if overlap else "seeds"
        return _Pair(untested._replace(words=f"a test needs at least two {units} on each side"), x, y)
    try:
        found = statistics.difference(x, y, overlap)
    except statistics.Untestable as error:
        return _Pair(untested._replace(words=str(error)), x, y)
    least, most = bounds(metric)
    low, high = max(found.low, least - most), min(found.high, most - least)  # two accuracies differ by at most 1
    paired = CORRECTED if overlap else "paired t"
    test = "Welch t" if not found.paired else paired if found.spread else "sign flips"
    verdict = Verdict(first, second, test, found.n, found.value, low, high, found.effect, found.p)
    return _Pair(verdict, x, y, found.spread)


def _single_runs(
    first: str, second: str, x: Sample, y: Sample, x_right: np.ndarray | None, y_right: np.ndarray | None
) -> _Pair:
    found = Verdict(first, second, "none", 1, _mean(x.values()) - _mean(y.values()))
    if x_right is None or y_right is None or x_right.shape != y_right.shape:
        return _Pair(found._replace(words="one seed each, and their test predictions cannot be compared"), x, y)
    only_x, only_y, p = statistics.mcnemar(x_right, y_right)
    note = f"of {len(x_right):,} test images, {only_x} are right in the first run only, {only_y} in the second only"
    return _Pair(found._replace(test="McNemar", p=p, words=note), x, y)


def _corrected(pairs: Sequence[_Pair], metric: str, others: Sequence[float] = ()) -> list[Verdict]:
    """Corrects the tests of the pairs together with the p values of others; returns the verdicts on the pairs."""
    tests = [p for p in (*(pair.verdict.p for pair in pairs), *others) if not math.isnan(p)]
    adjusted = iter(statistics.holm(tests))
    found = []
    for pair in pairs:
        verdict = pair.verdict
        if not math.isnan(verdict.p):
            verdict = verdict._replace(p_holm=next(adjusted))
        if verdict.test == "paired t":
            verdict = verdict._replace(
                permutation=statistics.permutation(pair.x, pair.y), bootstrap=statistics.bootstrap(pair.x, pair.y)
            )
        if verdict.test in ("paired t", "Welch t"):
            alpha = statistics.ALPHA / len(tests)
            least = statistics.detectable(verdict.n, pair.spread, verdict.test == "paired t", alpha)
            verdict = verdict._replace(detectable=least)
        found.append(verdict._replace(words=_words(verdict, pair.spread, len(tests), metric)))
    return found


def _words(v: Verdict, spread: float, tests: int, metric: str) -> str:
    """The verdict as a sentence: the outcome, the evidence, and the note in `words`."""
    if math.isnan(v.p_holm):
        return f"not tested: {v.words}"
    note = f"; {v.words}" if v.words else ""
    corrected = f", {_p(v.p_holm)} for {tests:,} pairs" if tests > 1 else ""
    if v.test == "McNemar":
        shown = "these two runs differ" if v.p_holm < statistics.ALPHA else "no difference shown between these two runs"
        return f"{shown} on the test images ({_p(v.p)}{corrected}; not a test over seeds){note}"
    evidence = f"{_p(v.p)}{corrected}, n={v.n}"
    size = points(metric, abs(v.difference))
    if v.p_holm < statistics.ALPHA:
        shown = f"{v.first} is {'higher' if higher_is_better(metric) else 'lower'} by {size}"
        if math.isnan(v.low):
            return f"{shown} with every seed ({evidence}){note}"
        low, high = sorted((abs(v.low), abs(v.high)))
        between = f"95 % interval {interval(metric, low, high)}"
        return f"{shown} ({between}; {evidence}){note}"
    if not v.difference or not spread or v.test == CORRECTED:  # more folds are other training sets, not more runs
        return f"no difference shown ({evidence}){note}"
    # The other pairs' p values with more seeds are unknown, so this pair has to pass Holm's strictest level.
    seeds = statistics.seeds_to_show(v.difference, spread, v.test == "paired t", statistics.ALPHA / tests)
    many = f"about {seeds:,} seeds" if seeds is not None else f"not even {statistics.MAX_SEEDS:,} seeds"
    return f"no difference shown ({evidence}; {many} would show {size}){note}"


def _p(p: float) -> str:
    return "p<0.0001" if p < 0.0001 else f"p={p:.2g}"


def _mean(values: Collection[float]) -> float:
    return sum(values) / len(values) if values else math.nan
