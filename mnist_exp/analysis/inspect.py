"""One run on one screen, and what is different between two."""

import difflib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mnist_exp import tracking
from mnist_exp.analysis import predictions, statistics
from mnist_exp.analysis.leaderboard import SHORT_NAMES
from mnist_exp.analysis.report import Block, Grid, Heading, Text
from mnist_exp.config import changes_result, option_defaults
from mnist_exp.tracking import RunInfo

BLOCKS = "▁▂▃▄▅▆▇█"
CURVES = ("train_loss", "val_loss", "train_accuracy", "val_accuracy", "learning_rate", "epoch_seconds")
MAX_SPARKS = 60  # letters of a curve
MAX_DIFF = 60  # lines of a difference of code
UNTOLD = ("overrides", "identity", "execution.why", "process", "sweep.")  # beginnings of tags for the machinery


def sparkline(values: Sequence[float]) -> str:
    """A curve in one line of text, from its lowest to its highest value; a gap where there is none.

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
    """A run: what it was, how it went, what it left, how to train it again."""
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.start_time))
    state = run.status.lower() + (", deleted" if run.deleted else "")
    yield Heading(f"{run.name}: {state}, {when}")
    yield Text(f"run {run.run_id} in {uri}")
    tags = [f"{key}={value}" for key, value in sorted(run.tags.items()) if not key.startswith(UNTOLD)]
    yield Text("tags: " + ", ".join(tags))
    yield Text("unlike the defaults: " + (", ".join(unlike_defaults(run.params)) or "nothing"))
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
    yield Text(f"train it again: python -m mnist_exp.reproduce {run.run_id}")


def unlike_defaults(params: Mapping[str, str]) -> list[str]:
    """Settings that a person chose, as `key=value`: the options that are not the default's, and their changed keys."""
    found = []
    # Of `augment`, earlier versions logged that there was none. Lists of options have no defaults.
    groups = {
        key.removesuffix("._target_") for key, text in params.items() if key.endswith("._target_") and text != "None"
    }
    groups |= {"trainer"}
    for group in sorted(groups):
        given = {key.partition(".")[2]: text for key, text in params.items() if key.startswith(f"{group}.")}
        option, defaults = option_defaults(group, given)
        if option is not None:
            found.append(f"{group}={option}")
        found += [f"{group}.{key}={text}" for key, text in given.items() if defaults.get(key) != text]
    return [f"seed={params['seed']}", *found] if params.get("seed", "0") != "0" else found


def diff(uri: str, a: RunInfo, b: RunInfo) -> Iterator[Block]:
    """Two runs: where their configuration, code, data, environment and results differ."""
    yield Heading(f"{a.name} ({a.run_id[:8]}) and {b.name} ({b.run_id[:8]})")
    keys = sorted(key for key in a.params.keys() | b.params.keys() if changes_result(key) and key not in SHORT_NAMES)
    yield from _differing("configuration", a.params, b.params, keys)
    yield from _code(uri, a, b)
    yield from _differing("data", a.tags, b.tags, ["data.name", "data.fingerprint", "selection"])
    first, second = _environment(uri, a), _environment(uri, b)
    yield from _differing("environment", first, second, sorted(first.keys() | second.keys()))
    names = sorted(a.metrics.keys() | b.metrics.keys())
    rows = [[name, *(_figure(run.metrics, name) for run in (a, b)), _change(a, b, name)] for name in names]
    if rows:
        yield Heading("results")
        yield Grid(["metric", a.run_id[:8], b.run_id[:8], "second - first"], rows, 1)
    yield Text(_mcnemar(uri, a, b))


def _differing(what: str, a: Mapping[str, str], b: Mapping[str, str], keys: Sequence[str]) -> Iterator[Block]:
    rows = [[key, a.get(key, "-"), b.get(key, "-")] for key in keys if a.get(key) != b.get(key)]
    if rows:
        yield Heading(what)
        yield Grid([what, "first", "second"], rows, 3)
    else:
        yield Text(f"{what}: the same" if any(key in a for key in keys) else f"{what}: neither run says")


def _code(uri: str, a: RunInfo, b: RunInfo) -> Iterator[Block]:
    yield from _differing("code", a.tags, b.tags, ["code.commit", "code.dirty"])
    changes = [_file(uri, run, "code.diff") for run in (a, b)]
    first, second = (change.decode("utf-8", "replace").splitlines() for change in changes)
    lines = list(difflib.unified_diff(first, second, "first/code.diff", "second/code.diff", lineterm="", n=1))
    if lines:
        yield Text(f"their uncommitted changes differ in {len(lines)} lines, of which the first {MAX_DIFF}:")
        yield Grid(["difference of code.diff"], [[line] for line in lines[:MAX_DIFF]], 1)


def _file(uri: str, run: RunInfo, name: str) -> bytes:
    return tracking.read_files(uri, run.run_id, [name]).get(name, b"")


def _environment(uri: str, run: RunInfo) -> dict[str, str]:
    try:
        tree = json.loads(_file(uri, run, "environment.json") or b"{}")
    except ValueError:
        tree = {}
    flat: dict[str, str] = {}
    for key, value in tree.items() if isinstance(tree, dict) else ():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": str(entry) for name, entry in value.items()}
        else:
            flat[key] = str(value)
    flat.pop("hardware.pid", None)
    return flat


def _figure(metrics: Mapping[str, float], name: str) -> str:
    return f"{metrics[name]:,.6g}" if name in metrics else "-"


def _change(a: RunInfo, b: RunInfo, name: str) -> str:
    return f"{b.metrics[name] - a.metrics[name]:+.3g}" if name in a.metrics and name in b.metrics else "-"


def _mcnemar(uri: str, a: RunInfo, b: RunInfo) -> str:
    sides = [predictions.load(uri, run.run_id) for run in (a, b)]
    if sides[0] is None or sides[1] is None:
        return "test predictions: not at hand for both, so no test of their difference"
    same_data = a.tags.get("data.fingerprint") == b.tags.get("data.fingerprint")  # equal labels are no equal images
    if not same_data or not np.array_equal(sides[0].labels, sides[1].labels):
        return "test predictions: on different data or splits, so no test of their difference"
    only_a, only_b, p = statistics.mcnemar(sides[0].right, sides[1].right)
    shown = "the two runs differ" if p < statistics.ALPHA else "no difference shown"
    return (
        f"of {len(sides[0].labels):,} test images only the first got {only_a} right, only the second {only_b}: {shown} "
        f"(McNemar's exact test, p={p:.2g}); one seed each says nothing of other seeds"
    )
