"""The error against the number of training images, with a fitted power law, where `data.train_size` varies."""

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from mnist_exp.analysis import leaderboard, statistics
from mnist_exp.analysis.leaderboard import LeaderboardRow, Table
from mnist_exp.analysis.statistics import PowerLaw
from mnist_exp.scores import bounds, higher_is_better

AXIS = "data.train_size"
MIN_SIZES = 4  # one more than the power law has parameters


class Curve(NamedTuple):
    """Rows that differ only in the number of training images, by rising number."""

    label: str
    images: list[int]
    errors: list[float]  # means; 1 - score if a higher score is better
    stds: list[float]  # NaN for a single run
    law: PowerLaw


def curves(table: Table, metric: str) -> Iterator[Curve]:
    """A curve for each combination of the settings that do not depend on the size, if four sizes or more have a score.

    A curve with an error of 0 is left out, because the fit minimises relative residuals.
    """
    higher = higher_is_better(metric)
    if AXIS not in table.varying or (higher and math.isinf(bounds(metric)[1])):
        return
    settings = [row.settings for row in table.rows]
    lines: dict[str, dict[int, LeaderboardRow]] = defaultdict(dict)
    labels = leaderboard.setting_labels(settings, leaderboard.independent(table, AXIS))
    for label, row in zip(labels, table.rows, strict=True):
        images = next(iter(row.runs.values())).tags.get("data.train_images", "")  # earlier versions did not record it
        if images.isdecimal():
            lines[label][int(images)] = row
    for label, rows in lines.items():
        found = {images: row.summary(metric) for images, row in sorted(rows.items())}
        sizes, summaries = list(found), [summary for summary in found.values() if summary is not None]
        errors = [1 - summary.mean if higher else summary.mean for summary in summaries]
        if len(errors) == len(sizes) >= MIN_SIZES and min(errors) > 0:
            yield Curve(label, sizes, errors, [s.std for s in summaries], statistics.power_law(sizes, errors))
