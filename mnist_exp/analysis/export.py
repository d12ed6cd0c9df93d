"""The numbers of a comparison as CSV or JSON."""

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any

from mnist_exp.analysis.effects import Effect
from mnist_exp.analysis.leaderboard import ABSENT, Board, LeaderboardRow, Table
from mnist_exp.analysis.report import Compared
from mnist_exp.analysis.verdicts import Verdict


def as_csv(compared: Sequence[Compared], metric: str) -> str:
    """A line for each row of every table, with a column for each setting that varies in any table."""
    keys = list(dict.fromkeys(key for part in compared for key in part.table.varying))
    lines = [_record(part.table, rank, row, metric) for part in compared for rank, row in enumerate(part.table.rows, 1)]
    text = io.StringIO()
    fixed = [key for key in (lines[0] if lines else {}) if key != "settings"]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*fixed, *keys])
    for line in lines:
        values = [line[key] for key in fixed] + [line["settings"].get(key, "") for key in keys]
        writer.writerow([cell(value) for value in values])
    return text.getvalue()


def cell(value: Any) -> Any:
    """A list as one text, and a text that a spreadsheet would run as a formula in quotes: names come from the store."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) and value != ABSENT:
        return "'" + value
    return value


def _record(table: Table, rank: int, row: LeaderboardRow, metric: str) -> dict[str, Any]:
    found = row.summary(metric)
    assert found is not None
    tested = row.summary(metric.replace("final_val", "test"))
    times = {name: row.summary(name) for name in ("fit_seconds", "images_per_second", "parameters")}
    return {
        "data": table.data,
        "fingerprint": table.fingerprint,
        "rank": rank,
        "row": row.label,
        "seeds": list(dict.fromkeys(seed for seed, _ in row.runs)),
        "folds": sorted({fold for _, fold in row.runs}) if row.overlap else [],
        **{f"{metric}_{name}": _finite(getattr(found, name)) for name in ("mean", "std", "low", "high")},
        "smallest": found.smallest,
        "largest": found.largest,
        "test_mean": None if tested is None else tested.mean,
        "test_std": None if tested is None else _finite(tested.std),
        **{name: None if time is None else time.mean for name, time in times.items()},
        "runs": [run.run_id for run in row.runs.values()],
        "settings": {key: row.settings[key] for key in table.varying if key in row.settings},
    }


def as_json(board: Board, compared: Sequence[Compared]) -> str:
    """The whole comparison as JSON: accuracies in 0..1, null for a missing number."""
    tables = [
        {
            "data": part.table.data,
            "fingerprint": part.table.fingerprint,
            "selection": part.table.rows[0].settings.get("selection"),
            "test_looks": part.table.test_evaluations,
            "shared": part.table.shared,
            "rows": [_record(part.table, rank, row, board.metric) for rank, row in enumerate(part.table.rows, 1)],
            "pairs": [_fields(v) for v in part.verdicts],
            "along": {"axis": part.axis, "pairs": [_fields(v) for v in part.along]} if part.axis else None,
            "effects": [_fields(effect) for effect in part.effects],
        }
        for part in compared
    ]
    whole = {"chosen": board.chosen, "metric": board.metric, "left_out": board.left_out, "tables": tables}
    return json.dumps(whole, indent=2) + "\n"


def _fields(verdict: Verdict | Effect) -> dict[str, Any]:
    return {key: _finite(value) if isinstance(value, float) else value for key, value in verdict._asdict().items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
