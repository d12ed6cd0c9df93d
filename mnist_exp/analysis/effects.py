"""Which settings mattered: for each one the means of its values, its share of the variance, and a test."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mnist_exp.analysis import leaderboard, statistics
from mnist_exp.analysis.leaderboard import Table
from mnist_exp.scores import higher_is_better

COMBINATIONS = "combinations"  # what is sampled if each combination of settings has one seed


class Effect(NamedTuple):
    """The effect of a setting, over the combinations of the other settings that all of its values have.

    `difference` is that of the best and the worst value's means, in the metric's own unit. `share` of the variance of
    all scores is eta squared, from 0 to 1; the rest belongs to other settings, their interplay and the seeds. NaN: not
    computed.
    """

    setting: str
    best: str
    worst: str
    difference: float
    share: float
    n: int  # number of seeds, folds or combinations
    sampled: str  # which of the three
    p: float = math.nan
    p_holm: float = math.nan  # corrected for all settings of the table


def of_table(table: Table, metric: str) -> list[Effect]:
    """The effects of all settings that vary, the largest share first, those that cannot be computed last."""
    found = [_effect(table, key, metric) for key in _keys(table)]
    tested = [effect for effect in found if not math.isnan(effect.p)]
    adjusted = dict(zip((e.setting for e in tested), statistics.holm([e.p for e in tested]), strict=True))
    found = [effect._replace(p_holm=adjusted.get(effect.setting, math.nan)) for effect in found]
    return sorted(found, key=lambda effect: math.inf if math.isnan(effect.share) else -effect.share)


def _keys(table: Table) -> Iterator[str]:
    """The settings that vary, without those that another one determines."""
    determined: set[str] = set()
    free = {key: set(leaderboard.independent(table, key)) for key in table.varying}
    for key in sorted(table.varying, key=lambda key: (len(free[key]), key)):
        if key not in determined:
            determined |= set(table.varying) - free[key]
            yield key


def _effect(table: Table, key: str, metric: str) -> Effect:
    cells = leaderboard.along(table, key, metric)
    values = list(cells)
    shared = [cell for cell in cells[values[0]] if all(cell in found for found in cells.values())]
    seeds = (
        sorted(set.intersection(*(set(cells[value][cell]) for value in values for cell in shared))) if shared else []
    )
    if not shared:
        return Effect(key, leaderboard.ABSENT, leaderboard.ABSENT, math.nan, math.nan, 0, COMBINATIONS)
    if seeds:
        scores = np.array([[[cells[v][cell][seed] for cell in shared] for seed in seeds] for v in values])
    else:  # each row has seeds of its own
        scores = np.array([[[np.mean(list(cells[v][cell].values())) for cell in shared]] for v in values])
    over_seeds = len(seeds) > 1
    blocks = scores.mean(axis=2) if over_seeds else scores.mean(axis=1)  # (values, seeds) or (values, combinations)
    means = scores.mean(axis=(1, 2))
    total = float(((scores - scores.mean()) ** 2).sum())
    explained = float(((means - scores.mean()) ** 2).sum()) * scores[0].size
    low, high = (values[place] for place in (int(means.argmin()), int(means.argmax())))
    best, worst = (high, low) if higher_is_better(metric) else (low, high)
    sampled = table.sampled if over_seeds else COMBINATIONS
    p = statistics.blocks_p(blocks.T, table.rows[0].overlap if over_seeds else 0.0)
    share = explained / total if total > 0 else math.nan
    return Effect(key, best, worst, float(np.ptp(means)), share, blocks.shape[1], sampled, p)
