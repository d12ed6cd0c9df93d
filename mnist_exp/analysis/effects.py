"""Which settings mattered: the mean scores of each setting's values, its share of the variance, and a test."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mnist_exp.analysis import leaderboard, statistics
from mnist_exp.analysis.leaderboard import Table
from mnist_exp.scores import higher_is_better

COMBINATIONS = "combinations"  # what is sampled if each combination of settings has one seed


class Effect(NamedTuple):
    """How much a setting changes the scores.

    It is computed from the combinations of the other settings that occur with every value of this setting. `difference`
    is the mean score of the best value minus that of the worst, without its sign and in the metric's own unit. `share`
    is the part of the variance of all scores that the setting explains (eta squared, 0 to 1). NaN: not computed.
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
    """The effects of all settings that vary: the largest share first, those without a share last."""
    found = [_effect(table, key, metric) for key in _keys(table)]
    adjusted = iter(statistics.holm([effect.p for effect in found if not math.isnan(effect.p)]))
    corrected = [e if math.isnan(e.p) else e._replace(p_holm=next(adjusted)) for e in found]
    return sorted(corrected, key=lambda effect: math.inf if math.isnan(effect.share) else -effect.share)


def _keys(table: Table) -> Iterator[str]:
    """The settings that vary. If one setting determines another, only the first is returned."""
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
    if not shared:
        return Effect(key, leaderboard.ABSENT, leaderboard.ABSENT, math.nan, math.nan, 0, COMBINATIONS)
    seeds = sorted(set.intersection(*(leaderboard.complete_seeds(side, shared) for side in cells.values())))
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
