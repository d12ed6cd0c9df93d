"""Documents that show one run, and the differences of two."""

import difflib
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mnist_exp import tracking
from mnist_exp.analysis import predictions, statistics
from mnist_exp.analysis.leaderboard import ABSENT, flatten_json, settings, whole_data
from mnist_exp.analysis.report import Block, Grid, Heading, Text
from mnist_exp.config import by_group, changes_result, current_params, option_defaults
from mnist_exp.tracking import RunInfo

BLOCKS = "▁▂▃▄▅▆▇█"
CURVES = ("train_loss", "val_loss", "train_accuracy", "val_accuracy", "learning_rate", "epoch_seconds")
MAX_SPARKS = 60  # characters of a curve
MAX_DIFF = 60  # lines
MAIN = (
    *("model", "optimizer", "optimizer.learning_rate", "schedule", "loss", "augment"),
    *("trainer.batch_size", "trainer.epochs", "seed"),
)
DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{28,52}\b")  # 40 to 64 digits, of which 12 are shown
HIDDEN = ("overrides", "identity", "execution.why", "process", "sweep.")  # prefixes of tags that are not shown


def sparkline(values: Sequence[float]) -> str:
    """A curve in one line of text, scaled from its lowest to its highest value, with gaps where not finite.

    >>> sparkline([0.0, 1.0, float("nan"), 0.5])
    '▁█ ▅'
    """
    if len(values) > MAX_SPARKS:
        values = [values[round(n * (len(values) - 1) / (MAX_SPARKS - 1))] for n in range(MAX_SPARKS)]
    finite = [value for value in values if math.isfinite(value)]
    low, span = min(finite, default=0.0), max(finite, default=0.0) - min(finite, default=0.0)
    steps = len(BLOCKS) - 1
    return "".join(
        BLOCKS[math.floor((value - low) / (span or 1.0) * steps + 0.5)] if math.isfinite(value) else " "
        for value in values
    )


def show(uri: str, run: RunInfo) -> Iterator[Block]:
    """A run: its tags, changed settings, curves, final metrics and artifacts, and the command to train it again."""
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.start_time))
    state = run.status.lower() + (", deleted" if run.deleted else "")
    yield Heading(f"{run.name}: {state}, {when}")
    yield Text(f"run {run.run_id} in {uri}")
    chosen = {**settings(run), "seed": run.params.get("seed", "0")}
    yield Text("settings: " + ", ".join(f"{key}={chosen[key]}" for key in MAIN if chosen.get(key, "None") != "None"))
    yield Text("changed from the defaults: " + (", ".join(unlike_defaults(current_params(run.params))) or "nothing"))
    curves = {name: tracking.curve(uri, run.run_id, name) for name in CURVES if name in run.metrics}
    rows = [
        [name, sparkline(list(points.values())), *(f"{points[epoch]:.4g}" for epoch in (min(points), max(points)))]
        for name, points in curves.items()
        if points
    ]
    if rows:
        yield Grid(["curve", f"{max(map(len, curves.values()))} epochs", "first", "last"], rows, 2)
    final = sorted(run.metrics.keys() - set(CURVES))
    if final:
        yield Grid(["metric", "value"], [[name, f"{run.metrics[name]:,.6g}"] for name in final], 1)
    yield Text("artifacts: " + (", ".join(tracking.artifact_names(uri, run.run_id)) or "none"))
    tags = [f"{key}={value}" for key, value in sorted(run.tags.items()) if not key.startswith(HIDDEN)]
    yield Text("tags: " + DIGEST.sub(r"\1", ", ".join(tags)))
    yield Text(f"train again: python -m mnist_exp.reproduce {run.run_id}")


def unlike_defaults(params: Mapping[str, str]) -> list[str]:
    """Settings as `key=value`: the options that are not the default, and the keys that differ from their option."""
    found = []
    # Earlier versions logged None for no augmentation. Lists of options have no defaults.
    groups = {
        key.removesuffix("._target_") for key, text in params.items() if key.endswith("._target_") and text != "None"
    }
    groups |= {"trainer"}
    nodes = by_group(params)
    for group in sorted(groups):
        given = nodes[group]
        option, defaults = option_defaults(group, given)
        if option is not None:
            found.append(f"{group}={option}")
        found += [f"{group}.{key}={text}" for key, text in given.items() if defaults.get(key, "None") != text]
    return [f"seed={params['seed']}", *found] if params.get("seed", "0") != "0" else found


def diff(uri: str, a: RunInfo, b: RunInfo) -> Iterator[Block]:
    """The differences of two runs in configuration, code, data, environment and results."""
    yield Heading(f"{a.name} ({a.run_id[:8]}) and {b.name} ({b.run_id[:8]})")
    before, after = current_params(a.params), current_params(b.params)
    keys = sorted(key for key in before | after if changes_result(key))
    yield from _differing("configuration", before, after, keys)
    yield from _code(uri, a, b)
    yield from _differing("data", a.tags, b.tags, ["data.name", "data.fingerprint", "selection"])
    first, second = _environment(uri, a), _environment(uri, b)
    yield from _differing("environment", first, second, sorted(first.keys() | second.keys()))
    names = sorted(a.metrics.keys() | b.metrics.keys())
    rows = [[name, *_values(a.metrics.get(name), b.metrics.get(name))] for name in names]
    if rows:
        yield Heading("results")
        yield Grid(["metric", a.run_id[:8], b.run_id[:8], "second - first"], rows, 1)
    yield Text(_mcnemar(uri, a, b))


def _differing(title: str, a: Mapping[str, str], b: Mapping[str, str], keys: Sequence[str]) -> Iterator[Block]:
    rows = [[key, a.get(key, ABSENT), b.get(key, ABSENT)] for key in keys if a.get(key) != b.get(key)]
    if rows:
        yield Heading(title)
        yield Grid([title, "first", "second"], rows, 3)
    else:
        yield Text(f"{title}: {'the same' if any(key in a for key in keys) else 'not recorded by either run'}")


def _code(uri: str, a: RunInfo, b: RunInfo) -> Iterator[Block]:
    yield from _differing("code", a.tags, b.tags, ["code.commit", "code.dirty"])
    first, second = (_file(uri, run, "code.diff").splitlines() for run in (a, b))
    lines = list(difflib.unified_diff(first, second, "first/code.diff", "second/code.diff", lineterm="", n=1))
    if lines:
        yield Text(f"the uncommitted changes differ in {len(lines)} lines, at most {MAX_DIFF} of them shown:")
        yield Grid(["difference of code.diff"], [[line] for line in lines[:MAX_DIFF]], 1)


def _file(uri: str, run: RunInfo, name: str) -> str:
    return tracking.read_files(uri, run.run_id, [name]).get(name, b"").decode("utf-8", "replace")


def _environment(uri: str, run: RunInfo) -> dict[str, str]:
    flat = flatten_json(_file(uri, run, "environment.json"))
    flat.pop("hardware.pid", None)  # differs in every process
    return flat


def _values(a: float | None, b: float | None) -> list[str]:
    """Two values of a metric and their difference as text; a dash for a missing one."""
    values = [ABSENT if value is None else f"{value:,.6g}" for value in (a, b)]
    return [*values, ABSENT if a is None or b is None else f"{b - a:+.3g}"]


def _mcnemar(uri: str, a: RunInfo, b: RunInfo) -> str:
    sides = [predictions.load(uri, run.run_id) for run in (a, b)]
    if sides[0] is None or sides[1] is None:
        return "test predictions: not tested, because one of the runs has none"
    same_data = whole_data(a) == whole_data(b)  # other images may have equal labels
    if not same_data or not np.array_equal(sides[0].labels, sides[1].labels):
        return "test predictions: not tested, because the runs are on different data or splits"
    only_a, only_b, p = statistics.mcnemar(sides[0].right, sides[1].right)
    shown = "these runs differ" if p < statistics.ALPHA else "no difference shown"
    images = f"{len(sides[0].labels):,} test images"
    return (
        f"of {images}, {only_a} are right in the first run only, {only_b} in the second only: {shown} "
        f"(McNemar's exact test, p={p:.2g}; not a test over seeds)"
    )
