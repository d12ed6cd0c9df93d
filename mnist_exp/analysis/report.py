"""Builds the document of a comparison: headings, paragraphs, tables and pictures."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from mnist_exp.analysis import effects, leaderboard, sizes, statistics, verdicts
from mnist_exp.analysis.effects import COMBINATIONS, Effect
from mnist_exp.analysis.leaderboard import ABSENT, Board, LeaderboardRow, Table, short_names
from mnist_exp.analysis.verdicts import Verdict
from mnist_exp.errors import RequestError
from mnist_exp.scores import higher_is_better

GENERALISES = {
    "seeds": "The tests generalise to other seeds on the same images, not to other images.",
    "folds": "Folds are not independent, because their training images overlap. Tests and intervals are corrected for "
    "that after Nadeau and Bengio (2003). They generalise to other images of the same kind.",
}
UNSEEDED = ("none", "McNemar")  # outcomes that are not tests over seeds
MAX_NAMES = 3  # that a sentence lists


class Heading(NamedTuple):
    """A title within the document; a table's section begins with one of level 2."""

    text: str
    level: int = 3


class Text(NamedTuple):
    """A paragraph."""

    text: str


class Grid(NamedTuple):
    """A table; columns from `numbers` on are aligned to the right. The last ones matter least."""

    header: list[str]
    rows: list[list[str]]
    numbers: int


class Picture(NamedTuple):
    """A figure as SVG with a description. Only the HTML report shows it."""

    svg: str
    caption: str
    on_white: bool = False  # white background on a dark page too


Block = Heading | Text | Grid | Picture


class Compared(NamedTuple):
    """A table with the verdicts on its first rows, and on the values of `axis` unless that is empty."""

    table: Table
    verdicts: list[Verdict]
    axis: str
    along: list[Verdict]
    effects: list[Effect]
    pictures: list[Picture | Text]


def examine(
    board: Board, axis: str | None, top: int, right: verdicts.Right, *, every_setting: bool = False
) -> list[Compared]:
    """Tests the pairs of rows of each table, and the values of `axis` in each table in which it varies.

    With `every_setting` it tests the effect of each setting too.

    Only the verdicts of the first `top` rows are kept. The correction counts the pairs of all rows, because the first
    rows were selected by their scores.

    Raises:
        RequestError: the axis varies in no table, or no setting does.
    """
    found, refused = [], []
    for table in board.tables:
        pairs = verdicts.of_rows(table.rows, board.metric, right, top)
        key, along = "", list[Verdict]()
        if axis is not None:
            try:
                key = leaderboard.resolve_axis(table, axis)
                along = verdicts.along(table, key, board.metric)
            except RequestError as error:
                refused.append(error)
        effect = effects.of_table(table, board.metric) if every_setting else []
        found.append(Compared(table, pairs, key, along, effect, []))
    if refused and len(refused) == len(found):
        raise refused[0]
    if every_setting and not any(part.effects for part in found):
        raise RequestError("--effects needs runs that differ in a setting, not only in the seed")
    return found


def blocks(board: Board, compared: Sequence[Compared], top: int, *, all_pairs: bool = False) -> Iterator[Block]:
    """The document of a comparison.

    Args:
        board: the chosen runs.
        compared: the tables of the board.
        top: the number of rows to list of each table.
        all_pairs: whether to list all pairs of these rows, not only those with the first row.
    """
    runs = sum(len(row.runs) + row.repeats for table in board.tables for row in table.rows)
    yield Text(f"{board.chosen}: {_count(runs, 'run')} in {_count(sum(len(t.rows) for t in board.tables), 'row')}")
    if board.left_out:
        yield Text("not ranked: " + ", ".join(f"{count} {reason}" for reason, count in sorted(board.left_out.items())))
    if len(board.tables) > 1:
        yield Text("These runs are on different data or splits. Each has its own table, and ranks hold within a table.")
    for part in compared:
        yield from _table(part, board.metric, top, all_pairs)


def _table(part: Compared, metric: str, top: int, all_pairs: bool) -> Iterator[Block]:
    table = part.table
    on_test = table.rows[0].settings.get("selection") == "test"
    yield Heading(f"{table.data}, by {metric}{' (SELECTED ON TEST)' if on_test else ''}", 2)
    yield Text(_headline(part, metric))
    yield Text(_test_note(table, on_test))
    yield _leaderboard(table, metric, top)
    if len(table.rows) > top:
        yield Text(f"{len(table.rows) - top} more rows. The best of many rows is partly luck.")
    repeats = sum(row.repeats for row in table.rows)
    if repeats:
        same = "seed and fold" if table.sampled == "folds" else "seed"
        yield Text(f"{_count(repeats, 'older run')} not counted, because a newer run has the same {same}")
    yield from _pairs(part, metric, all_pairs)
    if part.axis:
        yield Heading(f"Values of {part.axis}")
        yield from _verdicts(part.along, metric, explained=any(v.test not in UNSEEDED for v in part.verdicts))
        yield from (Text(f"{v.first} vs {v.second}: {v.words}.") for v in part.along)
    yield from _effects(part.effects, metric)
    yield from _sizes(table, metric)
    times = _times(table, top)
    if times.rows:
        yield Heading("Time")
        yield times
        yield Text(
            f"Means over {table.sampled}. s to N %: seconds until the validation accuracy reached N %, without/with "
            "compilation."
        )
    if part.pictures:
        yield Heading("Pictures")
        yield from part.pictures
    yield Heading("Equal in all rows")
    yield Text(f"data fingerprint {table.fingerprint[:12]}, {_settings(table.shared)}")


def _test_note(table: Table, on_test: bool) -> str:
    text = f"The test images of {table.data} were evaluated {table.test_evaluations:,} times in this experiment"
    if on_test:
        return f"{text}. These runs did so after every epoch and selected on them: their scores are too optimistic."
    return (
        f"{text}. Choose by validation scores: if you choose by test scores, you need new test images to evaluate the "
        "choice."
    )


def _leaderboard(table: Table, metric: str, top: int) -> Grid:
    scale, unit = _unit(metric)
    short = short_names(table.varying)
    # A label that is made of the settings shows all of them. A run's name shows those that it was named after.
    columns = [key for key in table.varying if table.named and not _named_after(table.rows[:top], key)]
    header = ["#", "row", *(short[key] for key in columns)]
    header += [metric.removeprefix("final_") + unit, "95 % interval", table.sampled]
    header += [f"test{unit}", "std", "best", "worst"]
    rows = []
    for rank, row in enumerate(table.rows[:top], 1):
        found = row.summary(metric)
        assert found is not None
        best, worst = found.largest, found.smallest
        if not higher_is_better(metric):
            best, worst = worst, best
        tested = row.summary(metric.replace("final_val", "test"))
        interval = _span(found.low, found.high, scale)
        figures = [
            _number(found.mean, scale),
            interval,
            str(found.n),
            _number(tested.mean, scale) if tested else ABSENT,
        ]
        figures += [_number(value, scale) for value in (found.std, best, worst)]
        settings = [row.settings.get(key, ABSENT) for key in columns]
        rows.append([str(rank), row.label, *settings, *figures])
    return Grid(header, rows, 2 + len(columns))


def _named_after(rows: Sequence[LeaderboardRow], key: str) -> bool:
    """Whether the rows' names contain their values of a setting, as `mlp-adam` contains `adam`."""
    values = [re.escape(row.settings.get(key, ABSENT)) for row in rows]
    return all(re.search(rf"\b{value}\b", row.label) for value, row in zip(values, rows, strict=True))


def _pairs(part: Compared, metric: str, all_pairs: bool) -> Iterator[Block]:
    """The pairs with the first row, or all pairs of the rows."""
    shown = part.verdicts if all_pairs else _of_leader(part)
    if not shown:
        return
    rows = "rows" if all_pairs else f"{part.table.rows[0].label} and the others"
    yield Heading(f"Differences between {rows}")
    yield from _verdicts(shown, metric, with_first=all_pairs)
    if len(shown) < len(part.verdicts):
        yield Text(f"--all-pairs lists the other {_count(len(part.verdicts) - len(shown), 'pair')} of these rows.")
    if any(v.test not in UNSEEDED for v in shown):
        yield Text(GENERALISES[part.table.sampled])


def _verdicts(
    found: Sequence[Verdict], metric: str, *, with_first: bool = True, explained: bool = False
) -> Iterator[Block]:
    """The outcomes as a table, and what they mean, unless an earlier table has `explained` it."""
    scale, _ = _unit(metric)
    header = ["first"] * with_first + ["second" if with_first else "row"]
    header += ["difference" + (" (points)" if scale == 100 else ""), "95 % interval", "p (Holm)", "outcome"]
    header += ["test", "n", "p", "g"]
    rows = []
    for v in found:
        outcome = _outcome(v, "models differ" if v.test == "McNemar" else "shown")
        figures = [_number(v.difference, scale, signed=True), _span(v.low, v.high, scale), _p(v.p_holm), outcome]
        effect = f"{v.effect:.1f}" if math.isfinite(v.effect) else ABSENT
        rows.append([*[v.first] * with_first, v.second, *figures, v.test, str(v.n), _p(v.p), effect])
    yield Grid(header, rows, 1 + with_first)
    if any(v.test == "McNemar" for v in found):
        yield Text(
            "One seed has no interval. p is that of McNemar's test of two trained models on the test images, corrected "
            "for all pairs of rows. It says nothing about other seeds."
        )
    if not explained and any(v.test not in UNSEEDED for v in found):
        yield Text(
            "A difference is shown if p (Holm), which is corrected for all pairs that were compared, is below 0.05. "
            "The interval is not corrected, so it can exclude 0 where the difference is not shown. A larger difference "
            "can be less certain than a smaller one if the rows' seeds differ more. p is not corrected, and g is the "
            "size of the effect in standard deviations (Hedges)."
        )


def _effects(found: Sequence[Effect], metric: str) -> Iterator[Block]:
    if not found:
        return
    scale, _ = _unit(metric)
    header = ["setting", "best", "worst", "difference" + (" (points)" if scale == 100 else ""), "share (%)"]
    rows = []
    for e in found:
        figures = [_number(e.difference, scale), _number(e.share, 100), _p(e.p_holm), _outcome(e), f"{e.n} {e.sampled}"]
        rows.append([e.setting, e.best, e.worst, *figures])
    yield Heading("What mattered")
    yield Grid([*header, "p (Holm)", "outcome", "n"], rows, 3)
    yield Text(
        "The means of a setting's values are taken over the combinations of the other settings that all of its values "
        "have. The difference is that of the best and the worst value. The share is the part of the variance of all "
        "scores that the setting explains; the rest is due to the seeds and to interplay between settings. p (Holm) is "
        "that of an F test of equal means, corrected for all settings."
    )
    if any(e.sampled == COMBINATIONS for e in found):
        yield Text("With one seed the test is over the combinations, so it says nothing about other seeds.")


def _outcome(v: Verdict | Effect, shown: str = "shown") -> str:
    if math.isnan(v.p):
        return "not tested"
    return shown if v.p_holm < statistics.ALPHA else "not shown"


def _of_leader(part: Compared) -> list[Verdict]:
    return [v for v in part.verdicts if v.first == part.table.rows[0].label]


def _headline(part: Compared, metric: str) -> str:
    """Who leads, by how much, what is shown and what is not, and how many seeds would settle it."""
    table, name = part.table, metric.removeprefix("final_")
    (scale, unit), leader = _unit(metric), table.rows[0]
    found = leader.summary(metric)
    assert found is not None
    per_cent = " %" if unit else ""
    mean = f"{name} {_number(found.mean, scale)}{per_cent}"
    mean += f" (mean of {found.n} {table.sampled})" if found.n > 1 else f" (one {table.sampled.removesuffix('s')})"
    if len(table.rows) == 1:
        return f"{leader.label}: {mean}. There is no other row to compare it with."
    against = _of_leader(part)
    if not against:
        return f"{leader.label} leads with {mean}. --top 1 shows no row to compare it with."
    second = against[0]
    ahead = "equal to" if not second.difference else f"{verdicts.points(metric, abs(second.difference))} "
    ahead += "" if not second.difference else "above" if higher_is_better(metric) else "below"
    text = f"{leader.label} leads with {mean}, {ahead} {second.second}"
    if not math.isnan(second.low):
        low, high = (second.low, second.high) if second.difference > 0 else (-second.high, -second.low)
        text += f" (95 % interval of the difference {verdicts.interval(metric, low, high)})"
    sentences = [text]
    seeds = [v for v in against if v.test not in UNSEEDED]
    shown = [v for v in seeds if v.p_holm < statistics.ALPHA]
    if shown:
        sentences.append(f"Shown: it is better than {_names(shown, against, 'each')}")
    unclear = [v for v in seeds if v not in shown]
    if unclear:
        sentences.append(f"Not shown: that it is better than {_names(unclear, against)}")
        sentences.append(_power(unclear[0], metric))
    sentences += _untested([v for v in against if v not in seeds], against, table.sampled)
    return ". ".join(filter(None, sentences)) + "."


def _power(v: Verdict, metric: str) -> str:
    """What the test of a pair could have shown, and how many seeds would show its difference."""
    if v.test == verdicts.CORRECTED:
        return "How many runs would show it is not estimated, because folds are not independent"
    if math.isnan(v.detectable):
        return ""
    needed = v.words.partition("; ")[2].partition(")")[0]
    least = verdicts.points(metric, v.detectable)
    now = f"With {v.n} seeds in each row the test finds a true difference of {least} in 80 % of cases"
    return f"{now}; {needed}" if needed else now


def _untested(rest: Sequence[Verdict], against: Sequence[Verdict], units: str) -> list[str]:
    """What is not tested over seeds, and why."""
    sentences = []
    single = [v for v in rest if v.test == "McNemar"]
    if single:
        differ = [v for v in single if v.p_holm < statistics.ALPHA]
        which = _names(single, against)
        sentences.append(f"Not shown: that it is better than {which}, because one seed may be luck")
        here = f"differ from those of {_names(differ, against, 'each')}" if differ else "do not differ from any of them"
        sentences.append(f"On the test images, the answers of this one trained model {here} (McNemar's test)")
    for reason in dict.fromkeys(v.words for v in rest if v.test == "none"):
        alike = [v for v in rest if v.words == reason]
        sentences.append(f"Not tested: {_names(alike, against)}, because {reason.removeprefix('not tested: ')}")
    if units == "seeds" and rest and rest[0].n < 2:
        sentences.append(
            "For a test over seeds, add 'seed=range(5)' to the command of the sweep; it trains only what is new"
        )
    return sentences


def _names(some: Sequence[Verdict], against: Sequence[Verdict], every: str = "any") -> str:
    """The rows with which the leader was compared, as a list in words."""
    if len(some) == len(against):
        return some[0].second if len(some) == 1 else f"{every} of the other {len(some)} rows"
    more = f" and {len(some) - MAX_NAMES} more" if len(some) > MAX_NAMES else ""
    return ", ".join(v.second for v in some[:MAX_NAMES]) + more


def _sizes(table: Table, metric: str) -> Iterator[Block]:
    """Power laws of the error against the number of training images."""
    curves = list(sizes.curves(table, metric))
    if not curves:
        return
    scale, unit = _unit(metric)
    rows = []
    for curve in curves:
        most = curve.images[-1]
        law = [_number(curve.law.limit, scale), f"{scale * curve.law.scale:.3g}", f"{curve.law.exponent:.2f}"]
        span = f"{curve.images[0]:,} to {most:,}"
        rows.append([curve.label, span, *law, f"{_number(float(curve.law.at(2 * most)), scale)} at {2 * most:,}"])
    yield Heading("Number of training images")
    yield Grid(["row", "images", f"a{unit}", f"b{unit}", "c", f"predicted error{unit}"], rows, 1)
    yield Text(
        "Fit of error = a + b n^-c to the means, for n training images, by least squares of relative residuals. a is "
        "the error that more images do not remove; a few sizes determine it poorly."
    )


def _times(table: Table, top: int) -> Grid:
    reached = [p for p in (97, 98, 99) if any(row.scores(f"seconds_to_{p}") for row in table.rows[:top])]
    header = ["row", *(f"s to {percent} %" for percent in reached), "s in total", "images/s", "parameters"]
    rows = []
    for row in table.rows[:top]:
        cells = [row.label, *(_seconds_to(row, percent) for percent in reached)]
        for metric, form in (("fit_seconds", ",.1f"), ("images_per_second", ",.0f"), ("parameters", ",.0f")):
            found = row.summary(metric)
            cells.append(ABSENT if found is None else format(found.mean, form))
        rows.append(cells)
    return Grid(header, rows if any(set(cells[1:]) != {ABSENT} for cells in rows) else [], 1)


def _seconds_to(row: LeaderboardRow, percent: int) -> str:
    seconds = row.scores(f"seconds_to_{percent}")
    if not seconds:
        return "never"
    compiling = row.scores("compile_seconds")
    without = sum(seconds.values()) / len(seconds)
    with_it = sum(seconds[seed] + compiling.get(seed, 0.0) for seed in seconds) / len(seconds)
    some = f" ({len(seconds)} of {len(row.runs)})" if len(seconds) < len(row.runs) else ""
    return f"{without:.1f}/{with_it:.1f}{some}"


def _unit(metric: str) -> tuple[float, str]:
    return (100.0, " (%)") if "accuracy" in metric else (1.0, "")


def _number(value: float, scale: float, *, signed: bool = False) -> str:
    if not math.isfinite(value):
        return ABSENT
    return format(value * scale, f"{'+' if signed else ''}z{'.2f' if scale == 100 else '.4g'}")


def _span(low: float, high: float, scale: float) -> str:
    return ABSENT if math.isnan(low) else f"{_number(low, scale)} to {_number(high, scale)}"


def _p(p: float | None) -> str:
    if p is None or math.isnan(p):
        return ABSENT
    return "<0.0001" if p < 0.0001 else f"{p:.2g}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _settings(settings: Mapping[str, str]) -> str:
    """The settings in one line, without those that are null; the versions of libraries are counted."""
    libraries = sum(key.startswith("versions.") for key in settings)
    shown = [f"{key}={text}" for key, text in settings.items() if text != "None" and not key.startswith("versions.")]
    return ", ".join(shown + [f"versions of {libraries} libraries"] * bool(libraries)) or "nothing"
