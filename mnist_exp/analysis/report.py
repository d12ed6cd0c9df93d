"""Builds the document of a comparison: headings, paragraphs, tables and pictures."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from mnist_exp.analysis import leaderboard, sizes, statistics, verdicts
from mnist_exp.analysis.leaderboard import ABSENT, Board, LeaderboardRow, Table, short_names
from mnist_exp.analysis.verdicts import Verdict
from mnist_exp.errors import RequestError
from mnist_exp.scores import higher_is_better

GENERALISES = {
    "seeds": "The tests generalise to other seeds on the same images, not to other images.",
    "folds": "Folds are not independent, because their training images overlap. Tests and intervals are corrected for "
    "that after Nadeau and Bengio (2003). They generalise to other images of the same kind.",
}
MAX_PAIRS = 15  # if there are more, the document lists only the pairs with the best row


class Heading(NamedTuple):
    """A title within the document; a table's section begins with one of level 2."""

    text: str
    level: int = 3


class Text(NamedTuple):
    """A paragraph."""

    text: str


class Grid(NamedTuple):
    """A table; columns from `numbers` on are aligned to the right."""

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
    pictures: list[Picture | Text]


def examine(board: Board, axis: str | None, top: int, right: verdicts.Right) -> list[Compared]:
    """Tests the pairs of rows of each table, and the values of `axis` in each table in which it varies.

    Only the verdicts of the first `top` rows are kept. The correction counts the pairs of all rows, because the first
    rows were selected by their scores.

    Raises:
        RequestError: the axis varies in no table.
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
        found.append(Compared(table, pairs, key, along, []))
    if refused and len(refused) == len(found):
        raise refused[0]
    return found


def blocks(board: Board, compared: Sequence[Compared], top: int) -> Iterator[Block]:
    """The document of a comparison.

    Args:
        board: the chosen runs.
        compared: the tables of the board.
        top: the number of rows to list of each table.
    """
    runs = sum(len(row.runs) + row.repeats for table in board.tables for row in table.rows)
    yield Text(f"{board.chosen}: {_count(runs, 'run')} in {_count(sum(len(t.rows) for t in board.tables), 'row')}")
    if board.left_out:
        yield Text("not ranked: " + ", ".join(f"{count} {reason}" for reason, count in sorted(board.left_out.items())))
    if len(board.tables) > 1:
        yield Text("These runs are on different data or splits. Each has its own table, and ranks hold within a table.")
    for part in compared:
        yield from _table(part, board.metric, top)


def _table(part: Compared, metric: str, top: int) -> Iterator[Block]:
    table = part.table
    on_test = table.rows[0].settings.get("selection") == "test"
    yield Heading(f"{table.data}, by {metric}{' (SELECTED ON TEST)' if on_test else ''}", 2)
    leader = [v for v in part.verdicts if table.rows[0].label in (v.first, v.second)]
    yield from (Text(f"{v.first} vs {v.second}: {v.words}.") for v in leader)
    yield _leaderboard(table, metric, top)
    if len(table.rows) > top:
        yield Text(f"{len(table.rows) - top} more rows. The best of many rows is partly luck.")
    repeats = sum(row.repeats for row in table.rows)
    if repeats:
        same = "seed and fold" if table.sampled == "folds" else "seed"
        yield Text(f"{_count(repeats, 'older run')} not counted, because a newer run has the same {same}")
    yield Text(_test_note(table, on_test))
    if part.verdicts:
        yield Heading("Differences between rows")
        yield Text(GENERALISES[table.sampled])
        yield from _verdicts(part.verdicts, metric, told=leader)
    if part.axis:
        yield Heading(f"Values of {part.axis}")
        yield from _verdicts(part.along, metric)
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
    text = f"This experiment has evaluated the test images of {table.data} {table.test_evaluations:,} times"
    if on_test:
        return f"{text}. These runs did so after every epoch and selected on them: their scores are too optimistic."
    return f"{text}. If you choose by test scores, you need new test images to evaluate the choice."


def _leaderboard(table: Table, metric: str, top: int) -> Grid:
    scale, unit = _unit(metric)
    short = short_names(table.varying)
    columns = table.varying if table.named else []  # otherwise the labels contain them
    header = ["#", "row", *(short[key] for key in columns)]
    header += [metric.removeprefix("final_") + unit, "95 % interval", "std", table.sampled]
    header += ["best", "worst", f"test{unit}"]
    rows = []
    for rank, row in enumerate(table.rows[:top], 1):
        found = row.summary(metric)
        assert found is not None
        best, worst = found.largest, found.smallest
        if not higher_is_better(metric):
            best, worst = worst, best
        tested = row.summary(metric.replace("final_val", "test"))
        interval = _span(found.low, found.high, scale)
        figures = [_number(found.mean, scale), interval, _number(found.std, scale), str(found.n)]
        figures += [_number(best, scale), _number(worst, scale), _mean_std(tested, scale)]
        settings = [row.settings.get(key, ABSENT) for key in columns]
        rows.append([str(rank), row.label, *settings, *figures])
    return Grid(header, rows, 2 + len(columns))


def _verdicts(found: Sequence[Verdict], metric: str, told: Sequence[Verdict] = ()) -> Iterator[Block]:
    shown = found if len(found) <= MAX_PAIRS else [v for v in found if v.first == found[0].first]
    scale, unit = _unit(metric)
    header = ["first", "second", f"difference{unit}", "95 % interval", "g", "test", "n", "p"]
    header += ["p (Holm)", "permutation p", "bootstrap interval"]
    rows = []
    for v in shown:
        spans = [_span(v.low, v.high, scale), f"{v.effect:.1f}" if math.isfinite(v.effect) else ABSENT]
        checks = [_p(v.permutation), _span(*v.bootstrap, scale) if v.bootstrap else ABSENT]
        figures = [_number(v.difference, scale, signed=True), *spans, v.test, str(v.n), _p(v.p), _p(v.p_holm)]
        rows.append([v.first, v.second, *figures, *checks])
    yield Grid(header, rows, 2)
    if len(shown) < len(found):
        yield Text(f"{len(shown)} of the {len(found)} pairs of these rows; --format json lists all")
    yield from (Text(f"{v.first} vs {v.second}: {v.words}.") for v in shown if v not in told)
    few = [v.n for v in shown if v.test == "paired t" and 2 / 2**v.n > statistics.ALPHA]
    if few:
        least = 2 / 2 ** min(few)
        yield Text(f"With {min(few)} pairs a permutation test cannot reach a p below {least:.2g}; the t test decides.")


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
    return format(value * scale, f"{'+' if signed else ''}{'.2f' if scale == 100 else '.4g'}")


def _span(low: float, high: float, scale: float) -> str:
    return ABSENT if math.isnan(low) else f"{_number(low, scale)} to {_number(high, scale)}"


def _mean_std(found: statistics.Summary | None, scale: float) -> str:
    if found is None:
        return ABSENT
    spread = "" if math.isnan(found.std) else f" ± {_number(found.std, scale)}"
    return _number(found.mean, scale) + spread


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
