"""Ranks runs. Runs that differ only in seed or fold form a row; rows on the same data and split form a table."""

import functools
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from mnist_exp.analysis import statistics
from mnist_exp.config import (
    RENAMED_EXECUTIONS,
    STAND_INS,
    by_group,
    changes_result,
    closest_option,
    current_params,
    flatten,
)
from mnist_exp.errors import RequestError
from mnist_exp.scores import bounds, higher_is_better
from mnist_exp.tracking import RunInfo

SETTING_TAGS = ("selection", "device", "threads", "execution", "execution.xla")
GROUPS = ("model", "optimizer", "schedule", "augment")  # a label shows their options without the key
ABSENT = "-"
_changes_result = functools.cache(changes_result)  # asked for each param of each run


class Choice(NamedTuple):
    """Which runs to compare. An empty field excludes no run. `ids` are prefixes of run ids."""

    sweep: str | None = None
    tags: Mapping[str, str] = {}
    ids: Sequence[str] = ()
    everything: bool = False  # if no other field is set: all runs instead of the newest sweep


class LeaderboardRow(NamedTuple):
    """Finished runs that differ only in seed or fold."""

    label: str
    settings: dict[str, str]
    runs: dict[tuple[int, int], RunInfo]  # by seed and fold (0 without folds), the newest of each
    repeats: int  # number of older runs of the same seeds and folds, which are not counted

    @property
    def overlap(self) -> float:
        """Validation images divided by training images if the row consists of folds, else 0; see `statistics`."""
        folds = self.settings.get("data.folds", "None")
        return 1 / (int(folds) - 1) if folds.isdecimal() and int(folds) > 1 else 0.0

    def scores(self, metric: str) -> dict[int, float]:
        """The metric by seed, or by fold as the mean over seeds, for the runs that have a finite one."""
        found: dict[int, list[float]] = defaultdict(list)
        for (seed, fold), run in self.runs.items():
            value = run.metrics.get(metric, math.nan)
            if math.isfinite(value):
                found[fold if self.overlap else seed].append(value)
        return {number: sum(values) / len(values) for number, values in found.items()}

    def summary(self, metric: str) -> statistics.Summary | None:
        """Mean, spread and interval of the metric; None when no run has it."""
        scores = self.scores(metric)
        return statistics.summarise(list(scores.values()), bounds(metric), self.overlap) if scores else None


class Table(NamedTuple):
    """Rows that are scored on the same images, or on the same folds of them, best first."""

    data: str
    fingerprint: str  # of the whole data set: rows may train on a part of it
    rows: list[LeaderboardRow]
    named: bool  # whether labels are names of runs; otherwise they are the settings that vary
    varying: list[str]  # settings in which rows differ
    shared: dict[str, str]  # settings that are equal in all rows that have them
    test_evaluations: int  # how often the experiment has scored these test images

    @property
    def sampled(self) -> str:
        """`folds` if the runs of a row differ in their fold, else `seeds`."""
        return "folds" if self.rows[0].overlap else "seeds"


class Board(NamedTuple):
    """The chosen runs, ranked by `metric`."""

    chosen: str
    metric: str
    tables: list[Table]
    left_out: dict[str, int]  # number of chosen runs that are not ranked, by reason


def board(records: Sequence[RunInfo], choice: Choice, metric: str, matching: set[str] | None = None) -> Board:
    """Ranks the chosen runs of an experiment.

    Args:
        records: all runs of the experiment, newest first.
        choice: selects the runs to compare.
        metric: ranks the rows; it must not be a test metric.
        matching: ids of the runs that match a filter; None without a filter.

    Raises:
        RequestError: a chosen run or sweep does not exist, the metric is a test metric, or no chosen run has it.
    """
    if metric.startswith("test_"):
        raise RequestError(
            f"--metric must not be a test metric, because the test set would become a validation set; got {metric!r}"
        )
    chosen, description = choose(records, choice)
    if matching is not None:
        chosen, description = [run for run in chosen if run.run_id in matching], f"{description}, filtered"
    reasons = [_unfit(run, metric) for run in chosen]
    ranked = [run for run, reason in zip(chosen, reasons, strict=True) if reason is None]
    if not ranked and any(run.tags.get("kind") == "run" and run.status == "FINISHED" for run in chosen):
        known = sorted({name for run in chosen for name in run.metrics if not name.startswith("test_")})
        raise RequestError(f"no chosen run has the metric {metric!r}; their metrics are: {', '.join(known) or 'none'}")
    by_data: dict[tuple[str, str, str], list[RunInfo]] = defaultdict(list)
    for run in ranked:
        folds = run.params.get("data.folds", "None")
        by_data[whole_data(run), folds, run.tags.get("selection", "validation")].append(run)
    tables = [_table(runs, metric, records) for runs in by_data.values()]
    return Board(description, metric, tables, dict(Counter(filter(None, reasons))))


def whole_data(run: RunInfo) -> str:
    """The fingerprint of the whole data set, of which the run may have used a part. Earlier versions used all of it."""
    return run.tags.get("data.base") or run.tags.get("data.fingerprint", "unknown")


def choose(records: Sequence[RunInfo], choice: Choice) -> tuple[list[RunInfo], str]:
    """The runs that a choice selects, and a description of the choice."""
    runs, description = list(records), []
    for start in choice.ids:
        find(records, start)
    if choice.ids:
        runs = [run for run in runs if run.run_id.startswith(tuple(choice.ids))]
        description.append("runs " + ", ".join(choice.ids))
    for key, value in choice.tags.items():
        runs = [run for run in runs if run.tags.get(key) == value]
        description.append(f"{key}={value}")
    sweep = choice.sweep
    if sweep is None and not description and not choice.everything:
        sweep = next((run.tags["sweep"] for run in records if "sweep" in run.tags and not run.deleted), None)
    if sweep is not None:
        if not any(in_sweep(run, sweep) for run in records):
            known = list(dict.fromkeys(run.tags["sweep"] for run in records if "sweep" in run.tags))
            raise RequestError(f"there is no sweep {sweep!r}; the newest are: {', '.join(known[:5]) or 'none'}")
        runs = [run for run in runs if in_sweep(run, sweep)]
        description.append(f"sweep {sweep}")
    return runs, ", ".join(description) or "all runs"


def in_sweep(run: RunInfo, sweep: str) -> bool:
    """Whether a sweep trained the run or reused its result."""
    return run.tags.get("sweep") == sweep or f"sweep.{sweep}" in run.tags


def find(records: Iterable[RunInfo], start: str) -> RunInfo:
    """Finds a run by id prefix.

    Raises:
        RequestError: no run, or more than one, has this prefix.
    """
    found = [run for run in records if run.run_id.startswith(start)]
    if len(found) != 1:
        which = "no run has" if not found else f"{len(found)} runs have"
        raise RequestError(f"{which} an id that begins with {start!r}; name a run by its id or a prefix of it")
    return found[0]


def _unfit(run: RunInfo, metric: str) -> str | None:
    """Why a run is not ranked. None: it is ranked. Empty: it only represents a sweep."""
    kind = run.tags.get("kind")
    if kind == "sweep":
        return ""
    if run.deleted:
        return "deleted"
    if kind != "run":
        return kind or "not of this project"
    if run.status != "FINISHED":
        return {"RUNNING": "running or cut off"}.get(run.status, run.status.lower())
    if run.tags.get("pruned") == "true":
        return "pruned by its search"
    if not run.params.get("seed", "").isdecimal():
        return "without a seed"
    return None if math.isfinite(run.metrics.get(metric, math.nan)) else f"without {metric}"


def settings(run: RunInfo) -> dict[str, str]:
    """All config values and environment factors that can change a run's result, except its seed, fold and data."""
    found, logged = {}, current_params(run.params)
    nodes = by_group(logged)
    left_out = {"seed"} | ({"data.fold"} if logged["data.folds"] != "None" else set())
    for key, value in logged.items():
        if _changes_result(key) and key not in left_out:
            group, _, name = key.partition(".")
            if name == "_target_":  # the option that a user types; a target of the user's own stays as it is
                found[group] = closest_option(group, frozenset(nodes[group].items())) or value
            else:
                found[key] = value
    tags = {key: run.tags[key] for key in SETTING_TAGS if key in run.tags}
    found |= {key: RENAMED_EXECUTIONS.get(value, value) for key, value in tags.items()}
    if "identity.facts" in run.tags:
        return found | _software(run.tags["identity.facts"])
    return found | {key: run.tags[key] for key in ("code.commit", "code.dirty") if key in run.tags}


@functools.cache
def _software(factors: str) -> dict[str, str]:
    """Source digest, versions and other environment factors, from the tag `identity.facts`."""
    found = flatten_json(factors).items()
    # `SETTING_TAGS` holds the other factors, and each data set has a table of its own.
    return {key: text[:12] if key == "source" else text for key, text in found if key not in STAND_INS.values()}


def flatten_json(text: str) -> dict[str, str]:
    """The values of a JSON object as text, under keys such as `versions.keras`; empty for any other text."""
    try:
        tree = json.loads(text)
        flat = flatten(tree) if isinstance(tree, dict) else {}
    except (ValueError, RecursionError):
        return {}
    return {key: str(value) for key, value in flat.items() if value != {}}


def test_evaluations(records: Iterable[RunInfo], data: str) -> int:
    """How often runs have evaluated the test images of a data set, including deleted and failed runs.

    Every run evaluates them once, at its end. A run that selects on them also does so after each epoch.
    """
    count = 0
    for run in records:
        if run.tags.get("data.name") == data and run.tags.get("kind") != "sweep":
            count += "test_accuracy" in run.metrics
            if run.tags.get("selection") == "test" and "val_accuracy" in run.metrics:
                epochs = run.params.get("trainer.epochs", "")
                count += int(epochs) if epochs.isdecimal() else 1
    return count


def _table(runs: Sequence[RunInfo], metric: str, records: Iterable[RunInfo]) -> Table:
    groups: dict[frozenset[tuple[str, str]], list[RunInfo]] = defaultdict(list)
    for run in runs:
        groups[frozenset(settings(run).items())].append(run)
    rows = [dict(key) for key in groups]
    varying, shared = _split(rows)
    found = []
    names = _names(list(groups.values()))
    labels = names or setting_labels(rows, varying)
    for label, row, members in zip(labels, rows, groups.values(), strict=True):
        ordered = {_seed_and_fold(run): run for run in reversed(members)}  # oldest first: the newest run stays
        ordered = dict(sorted(ordered.items()))
        found.append(LeaderboardRow(label, row, ordered, len(members) - len(ordered)))

    def rank(row: LeaderboardRow) -> float:
        scores = row.scores(metric).values()
        return sum(scores) / len(scores) * (-1 if higher_is_better(metric) else 1)

    found.sort(key=rank)
    tags = runs[0].tags
    data = tags.get("data.name", "unknown data")
    return Table(data, whole_data(runs[0]), found, bool(names), varying, shared, test_evaluations(records, data))


def _seed_and_fold(run: RunInfo) -> tuple[int, int]:
    fold = run.params.get("data.fold", "")
    return int(run.params["seed"]), int(fold) if fold.isdecimal() else 0


def _split(rows: Sequence[Mapping[str, str]]) -> tuple[list[str], dict[str, str]]:
    """The settings that vary between rows, and those that are equal in all rows that have them.

    Some rows lack a setting, such as a width that only one model has. It counts as equal if the other rows agree on
    it, unless two rows differ in nothing else.
    """
    keys = sorted({key for row in rows for key in row}, key=lambda key: ("." in key, key))
    values = {key: {row[key] for row in rows if key in row} for key in keys}
    varying = [key for key in keys if len(values[key]) > 1]
    for key in keys:
        if _distinct(rows, varying) == len(rows):
            break
        if _distinct(rows, [*varying, key]) > _distinct(rows, varying):
            varying = sorted([*varying, key], key=keys.index)
    return varying, {key: next(iter(values[key])) for key in keys if key not in varying}


def _distinct(rows: Sequence[Mapping[str, str]], keys: Sequence[str]) -> int:
    return len({tuple(row.get(key) for key in keys) for row in rows})


def _names(groups: Sequence[Sequence[RunInfo]]) -> list[str]:
    """The config's `name` for each row; empty unless every row has one name that no other row has."""
    names = [{run.params.get("name", "") for run in group} for group in groups]
    distinct = len(set.union(*names)) == len(groups) and all(len(name) == 1 for name in names)
    return [name.pop() for name in names] if distinct and {""} not in names else []


def setting_labels(rows: Sequence[Mapping[str, str]], varying: Sequence[str]) -> list[str]:
    """A label for each row: its values of the settings `varying`."""
    short = short_names(varying)
    return [
        " ".join(row[key] if key in GROUPS else f"{short[key]}={row[key]}" for key in varying if key in row) or "all"
        for row in rows
    ]


def short_labels(table: Table, rows: Sequence[LeaderboardRow]) -> list[str]:
    """Labels that distinguish these rows from each other, but not from other rows."""
    if table.named:
        return [row.label for row in rows]
    settings = [row.settings for row in rows]
    return setting_labels(settings, _split(settings)[0])


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Maps each key to its last part, or to itself where two keys share the last part."""
    last = Counter(key.rpartition(".")[2] for key in keys)
    return {key: key.rpartition(".")[2] if last[key.rpartition(".")[2]] == 1 else key for key in keys}


def resolve_axis(table: Table, axis: str) -> str:
    """Finds the varying setting with this name, in full or without its group.

    Raises:
        RequestError: no setting with this name varies, or several do.
    """
    found = [key for key in table.varying if axis == key] or [
        key for key in table.varying if key.rpartition(".")[2] == axis
    ]
    if len(found) != 1:
        varying = ", ".join(table.varying) or "none"
        raise RequestError(f"--by must name one setting that varies, got {axis!r}; these vary: {varying}")
    return found[0]


def along(table: Table, axis: str, metric: str) -> dict[str, dict[tuple[str, ...], dict[int, float]]]:
    """Scores by value of a setting, then by the values of the settings that are independent of it, then by seed."""
    others = independent(table, axis)
    cells: dict[str, dict[tuple[str, ...], dict[int, float]]] = defaultdict(dict)
    for row in table.rows:
        cell = tuple(row.settings.get(key, ABSENT) for key in others)
        cells[row.settings.get(axis, ABSENT)][cell] = row.scores(metric)
    return dict(cells)


def independent(table: Table, axis: str) -> list[str]:
    """The varying settings that `axis` does not determine, as an optimizer determines its default learning rate."""
    others = []
    for key in table.varying:
        of_value: dict[str, set[str]] = defaultdict(set)
        for row in table.rows:
            of_value[row.settings.get(axis, ABSENT)].add(row.settings.get(key, ABSENT))
        if any(len(found) > 1 for found in of_value.values()):
            others.append(key)
    return others


def common(
    a: Mapping[tuple[str, ...], Mapping[int, float]], b: Mapping[tuple[str, ...], Mapping[int, float]]
) -> tuple[dict[int, float], dict[int, float], int]:
    """Mean scores by seed over the settings that both values have in common, and the number of these settings.

    A seed counts only if it was run with all of these settings, because means over different settings differ.
    """
    cells = [cell for cell in a if cell in b]

    def means(side: Mapping[tuple[str, ...], Mapping[int, float]]) -> dict[int, float]:
        seeds = sorted(complete_seeds(side, cells))
        return {seed: sum(side[cell][seed] for cell in cells) / len(cells) for seed in seeds}

    return means(a), means(b), len(cells)


def complete_seeds(side: Mapping[tuple[str, ...], Mapping[int, float]], cells: Sequence[tuple[str, ...]]) -> set[int]:
    """The seeds that were run with all of these settings."""
    return set.intersection(*(set(side[cell]) for cell in cells)) if cells else set()
