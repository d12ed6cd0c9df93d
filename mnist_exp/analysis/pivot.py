"""Scores by two settings as a table for a paper: text, Markdown, LaTeX or CSV."""

import csv
import io
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from mnist_exp.analysis import export, leaderboard, statistics, verdicts
from mnist_exp.analysis.leaderboard import ABSENT, Board, Table
from mnist_exp.console import printable
from mnist_exp.errors import RequestError
from mnist_exp.scores import higher_is_better

DATA = "data"  # names the data set, which is no setting of a row


class Pivot(NamedTuple):
    """Cells such as `98.10 ± 0.20`; `bold` marks, in each column, the best and those not shown to differ from it."""

    header: list[str]
    rows: list[list[str]]
    bold: list[list[bool]]
    caption: str


def pivot(board: Board, rows: str, columns: str) -> Pivot:
    """The metric by the values of a setting `rows` and of a setting `columns`, which may be `data`.

    Raises:
        RequestError: there is no such setting, or the runs are on different data and `columns` is not `data`.
    """
    if not board.tables:
        raise RequestError("none of the chosen runs is finished, so there is nothing to tabulate")
    row_key = _key(board, rows, "--rows")
    parts = dict(_columns(board, columns))
    found = {name: leaderboard.along(table, row_key, board.metric) for name, table in parts.items()}
    cells = {name: _cells(cells, parts[name], row_key, board.metric) for name, cells in found.items()}
    values = list(dict.fromkeys(value for column in cells.values() for value in column))
    counts = sorted({n for column in cells.values() for _, n, _ in column.values()})
    tests = {v.test for table in parts.values() for v in verdicts.along(table, row_key, board.metric)} - {"none"}
    unit = " (%)" if "accuracy" in board.metric else ""
    caption = f"{board.metric.removeprefix('final_')}{unit} by {rows} and {columns}: mean ± half of the 95 % interval, "
    caption += f"n = {', '.join(map(str, counts))} {next(iter(parts.values())).sampled}. Bold: the best of a column"
    if tests:
        caption += (
            f" and those not shown to differ from it ({', '.join(sorted(tests))} test, Holm's correction for all "
        )
        caption += "pairs of the column, level 0.05)."
    else:
        caption += "; nothing is tested, because that needs two seeds in each cell."
    body = [[value, *(column.get(value, (ABSENT, 0, False))[0] for column in cells.values())] for value in values]
    bold = [[False, *(column.get(value, (ABSENT, 0, False))[2] for column in cells.values())] for value in values]
    return Pivot([rows, *cells], body, bold, caption)


def _key(board: Board, name: str, option: str) -> str:
    keys = {key for table in board.tables for row in table.rows for key in row.settings}
    found = sorted(keys & {name} or {key for key in keys if key.rpartition(".")[2] == name})
    if len(found) != 1:
        varying = sorted({key for table in board.tables for key in table.varying})
        raise RequestError(f"{option} must name one setting, got {name!r}; these vary: {', '.join(varying) or 'none'}")
    return found[0]


def _columns(board: Board, name: str) -> Iterator[tuple[str, Table]]:
    """For each column its name and the rows in it."""
    if name == DATA:
        names = [table.data for table in board.tables]
        for table in board.tables:
            alone = names.count(table.data) == 1
            yield table.data if alone else f"{table.data} {table.fingerprint[:6]} {table.sampled}", table
        return
    if len(board.tables) > 1:
        raise RequestError("--columns must be data if the runs are on different data; or choose runs with --filter")
    (table,), key = board.tables, _key(board, name, "--columns")
    for value in dict.fromkeys(row.settings.get(key, ABSENT) for row in table.rows):
        rows = [row for row in table.rows if row.settings.get(key, ABSENT) == value]
        yield value, table._replace(rows=rows, varying=[other for other in table.varying if other != key])


def _cells(
    found: dict[str, dict[tuple[str, ...], dict[int, float]]], table: Table, key: str, metric: str
) -> dict[str, tuple[str, int, bool]]:
    """Text, number of seeds and whether to print it bold, by value of a setting, in a column."""
    scale, digits = (100, 2) if "accuracy" in metric else (1, 4)
    samples = {value: list(leaderboard.common(cells, cells)[0].values()) for value, cells in found.items()}
    shown = {v: statistics.summarise(scores, overlap=table.rows[0].overlap) for v, scores in samples.items() if scores}
    if not shown:
        return {}
    best = (max if higher_is_better(metric) else min)(shown, key=lambda value: shown[value].mean)
    equal = {best}
    for v in verdicts.along(table, key, metric):
        if best in (v.first, v.second) and v.p_holm >= statistics.ALPHA:  # NaN if it is not tested
            equal |= {v.first, v.second}
    texts = {}
    for value, summary in shown.items():
        half = "" if math.isnan(summary.low) else f" ± {scale * (summary.high - summary.low) / 2:.{digits}f}"
        texts[value] = f"{scale * summary.mean:.{digits}f}{half}", summary.n, value in equal
    return texts


def render(table: Pivot, form: str) -> str:
    """The table as `text` (bold cells have a star), `markdown`, `latex` (with booktabs) or `csv` (without bold)."""
    if form == "csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(
            [[export.cell(c) for c in r] for r in [table.header, *table.rows]]
        )
        return text.getvalue()
    escape = {"markdown": _markdown, "latex": _latex, "text": printable}[form]
    mark = {"markdown": "**{}**", "latex": "\\textbf{{{}}}", "text": "{} *"}[form]
    header = [escape(cell) for cell in table.header]
    rows = [
        [mark.format(escape(cell)) if strong else escape(cell) for cell, strong in zip(row, bold, strict=True)]
        for row, bold in zip(table.rows, table.bold, strict=True)
    ]
    if form == "latex":
        body = [" & ".join(row) + r" \\" for row in rows]
        top = [r"\begin{table}", r"\centering", f"\\caption{{{_latex(table.caption)}}}"]
        top += [
            f"\\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
            r"\toprule",
            " & ".join(header) + r" \\",
            r"\midrule",
        ]
        return "\n".join([*top, *body, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"
    if form == "markdown":
        lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{_markdown(table.caption)}\n"
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    texts = ["  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in [header, *rows]]
    return "\n".join([*texts, "", table.caption.replace("Bold:", "A star marks")]) + "\n"


def _markdown(text: str) -> str:
    return re.sub(r"[\\`*_\[\]|#<>&]", r"\\\g<0>", printable(text))


def _latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
    return re.sub(r"[\\~^±&%$#_{}]", lambda found: special.get(found[0], "\\" + found[0]), printable(text))
