"""The pictures of a comparison. Each table has those for which its runs have the data."""

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from mnist_exp import data, scores, tracking
from mnist_exp.analysis import predictions, sizes, statistics
from mnist_exp.analysis.leaderboard import LeaderboardRow, Table, setting_labels, short_labels, short_names
from mnist_exp.analysis.predictions import Predictions
from mnist_exp.analysis.report import Picture, Text
from mnist_exp.config import current_params
from mnist_exp.figures import comparison as charts
from mnist_exp.figures import run as plots
from mnist_exp.figures.axes import shorten
from mnist_exp.figures.comparison import Point

MAX_LINES, MAX_SEEDS = 6, 10  # of a figure with curves, because each curve is read from the store
MAX_IMAGES = 20
MIN_IMAGES = 10  # of a confidence bin; the accuracy of fewer images is noise
MAX_CELLS = 20  # along a side of a heat map
SOURCES: dict[str, Callable[..., data.Dataset]] = {
    f"mnist_exp.data.{source.__name__}": source
    for source in (
        *(data.mnist, data.fashion_mnist, data.kmnist, data.emnist, data.cifar10, data.cifar100),
        *(data.mnist5k, data.digits, data.file),
    )
}


def of_table(uri: str, table: Table, metric: str) -> Iterator[Picture | Text]:
    """Learning curves, scores against settings and costs, calibration, and test images; or why they are missing.

    Raises:
        StoreError: the store cannot be read.
    """
    noise = statistics.pooled_std([list(row.scores(metric).values()) for row in table.rows])
    best = dict(zip(_labels(table, table.rows[:MAX_LINES]), table.rows, strict=False))
    yield from _curves(uri, best, metric, noise)
    yield from _settings(table, metric, noise)
    yield from _sizes(table, metric)
    yield from _costs(table, metric, noise)
    predicted = {label: runs for label, row in best.items() if (runs := _predictions(uri, row))}
    if predicted:
        yield from _calibration(predicted)
        yield from _images(table, predicted)
    else:
        place = tracking.place_of_artifacts(uri, next(iter(table.rows[0].runs.values())).run_id)
        yield Text(
            f"No pictures of predictions, because no {predictions.FILE} could be read. One was expected in {place}."
        )


def _labels(table: Table, rows: Sequence[LeaderboardRow]) -> list[str]:
    """The names of the rows in the table, or if a plot has no room for one of them, shorter ones for all."""
    labels = [row.label for row in rows]
    return labels if max(map(len, labels)) <= charts.MAX_LABEL else short_labels(table, rows)


def _picture(figure: plots.Figure, caption: str, *, on_white: bool = False) -> Picture:
    return Picture(charts.to_svg(figure), caption, on_white)


def _curves(uri: str, rows: Mapping[str, LeaderboardRow], metric: str, noise: float) -> Iterator[Picture]:
    name = metric.removeprefix("final_")
    curves = {}
    for label, row in rows.items():
        seeds = [tracking.curve(uri, run.run_id, name) for run in itertools.islice(row.runs.values(), MAX_SEEDS)]
        if all(len(seed) > 1 for seed in seeds):
            curves[label] = seeds
    if curves:
        caption = (
            "Learning curves: mean over the runs of a row, with a band of one standard deviation. The noise floor is "
            "that over the seeds of all rows, around the best score."
        )
        yield _picture(charts.learning_curves(curves, name, noise), caption)


def _settings(table: Table, metric: str, noise: float) -> Iterator[Picture]:
    """A figure for each numeric setting with three values or more, and a heat map for each two of them."""
    short = short_names(table.varying)
    numeric = [key for key in table.varying if len(_numbers(table.rows, key)) > 2]
    for key in numeric:
        lines = _lines(table, key, metric)
        # Single points, which also differ in other settings, show nothing about this one.
        if len(lines) < len(table.rows) or len(lines) > len(charts.COLORS):
            yield _picture(charts.against(short[key], lines, metric, noise), f"By {key}.")
    for x, y in itertools.combinations(numeric, 2):
        cells: dict[tuple[float, float], list[float]] = {}
        for row in table.rows:
            place = float(row.settings[x]), float(row.settings[y])
            cells.setdefault(place, []).append(_mean(row, metric))
        sizes = [len(_numbers(table.rows, key)) for key in (x, y)]
        if 2 * len(cells) < sizes[0] * sizes[1] or max(sizes) > MAX_CELLS:
            continue  # values drawn at random do not form a grid
        means = {place: float(np.mean(values)) for place, values in cells.items()}
        rest = "" if len(means) == len(table.rows) else ", means over the other settings"
        yield _picture(charts.heat_map(short[x], short[y], means, metric, noise), f"By {x} and {y}{rest}.")


def _numbers(rows: Sequence[LeaderboardRow], key: str) -> set[float]:
    """The values of a setting; empty unless all are numbers."""
    try:
        values = {float(row.settings[key]) for row in rows}
    except (KeyError, ValueError):
        return set()
    return values if all(map(math.isfinite, values)) else set()


def _lines(table: Table, key: str, metric: str) -> dict[str, list[Point]]:
    """The rows as points by rising values of a setting, with a line for each combination of the other settings."""
    others = [other for other in table.varying if other != key]
    labels = setting_labels([row.settings for row in table.rows], others)
    label_of = dict(zip((row.label for row in table.rows), labels, strict=True))
    lines: dict[str, list[Point]] = {}
    for row in sorted(table.rows, key=lambda row: float(row.settings[key])):
        lines.setdefault(label_of[row.label], []).append(_point(row, float(row.settings[key]), metric))
    return lines


def _sizes(table: Table, metric: str) -> Iterator[Picture]:
    """The error against the number of training images."""
    curves = list(sizes.curves(table, metric))[: len(charts.COLORS)]
    if curves:
        lines = {
            curve.label: [
                Point(curve.label, *each) for each in zip(curve.images, curve.errors, curve.stds, strict=True)
            ]
            for curve in curves
        }
        figure = charts.data_size(lines, {curve.label: curve.law.at for curve in curves}, metric)
        caption = (
            "Error against the number of training images. Lines: the fitted power laws. Bars: one standard deviation."
        )
        yield _picture(figure, caption)


def _costs(table: Table, metric: str, noise: float) -> Iterator[Picture]:
    panels = {}
    for name, cost in (("seconds of training", "fit_seconds"), ("parameters", "parameters")):
        costs = [(row, row.summary(cost)) for row in table.rows]
        points = [_point(row, found.mean, metric) for row, found in costs if found is not None]
        front = charts.pareto_front(points, metric)
        on_front = [row for row in table.rows if any(row.label == point.label for point in front)]
        brief = dict(zip([row.label for row in on_front], _labels(table, on_front), strict=True))
        points = [point._replace(label=brief.get(point.label, point.label)) for point in points]
        costs_of = [point.x for point in points]
        if max(costs_of, default=0.0) > 1.05 * min(costs_of, default=0.0):  # less is no difference in cost
            panels[name] = points
    if panels:
        caption = (
            "Score against cost. On the blue Pareto front are the rows for which no other row has a better score at no "
            "higher cost. Bars: one standard deviation."
        )
        yield _picture(charts.pareto(panels, metric, noise), caption)


def _point(row: LeaderboardRow, x: float, metric: str) -> Point:
    found = row.summary(metric)
    assert found is not None
    return Point(row.label, x, found.mean, found.std)


def _mean(row: LeaderboardRow, metric: str) -> float:
    return _point(row, 0.0, metric).mean


def _predictions(uri: str, row: LeaderboardRow) -> list[Predictions]:
    found = (predictions.load(uri, run.run_id) for run in itertools.islice(row.runs.values(), MAX_SEEDS))
    return [run for run in found if run is not None and np.isfinite(run.logits).all()]


def _calibration(predicted: Mapping[str, list[Predictions]]) -> Iterator[Picture]:
    curves, errors = {}, []
    for label, runs in predicted.items():
        logits, labels = (np.concatenate(parts) for parts in zip(*runs, strict=True))
        confidence, accuracy, count = scores.reliability(logits, labels)
        enough = count >= MIN_IMAGES
        if enough.any():
            curves[label] = confidence[enough], accuracy[enough], count[enough]
            errors.append(f"{label} {100 * np.mean([scores.calibration_error(*run) for run in runs]):.2f}")
    if curves:
        caption = (
            f"Calibration on the test images, all seeds together, in bins of at least {MIN_IMAGES} images. Larger "
            "markers are larger bins. "
            f"Expected calibration error in points, mean over runs: {', '.join(errors)}."
        )
        yield _picture(charts.reliability(curves), caption)


def _images(table: Table, predicted: Mapping[str, list[Predictions]]) -> Iterator[Picture | Text]:
    runs = [run for found in predicted.values() for run in found]
    if any(run.labels.shape != runs[0].labels.shape or (run.labels != runs[0].labels).any() for run in runs):
        return
    labels = runs[0].labels
    dataset = _dataset(table, labels)
    if dataset is None:
        yield Text("No pictures of test images, because the data set of these runs was not found on this machine.")
        return
    images, names = dataset.test.images, [shorten(name, plots.MAX_CLASS_NAME) for name in dataset.class_names]
    hard, share = predictions.hardest(runs, MAX_IMAGES)
    votes = np.array([run.logits.argmax(axis=1) for run in runs])
    captions = []
    for place, wrong in zip(hard, share, strict=True):
        mistaken = votes[:, place][votes[:, place] != labels[place]]
        captions.append(f"{names[labels[place]]}, not {names[np.bincount(mistaken).argmax()]}\n{wrong:.0%} wrong")
    caption = (
        f"Test images that most of these {len(runs)} runs classify wrongly: the true class, the most frequent wrong "
        "one, and the share of wrong runs."
    )
    yield _picture(plots.tiles(images[hard], captions), caption, on_white=True)
    if len(predicted) > 1:
        (a, first), (b, second), *_ = ((label, found[0]) for label, found in predicted.items())
        places = predictions.disagreements(first, second, MAX_IMAGES)
        answers = [run.logits[places].argmax(axis=1) for run in (first, second)]
        captions = [
            f"{names[true]}\n{names[x]} or {names[y]}" for true, x, y in zip(labels[places], *answers, strict=True)
        ]
        caption = (
            f"Test images for which a run of {a} (first answer) and a run of {b} (second answer) predict different "
            "classes, one of them the true one; the most confident first."
        )
        yield _picture(plots.tiles(images[places], captions), caption, on_white=True)


def _dataset(table: Table, labels: np.ndarray) -> data.Dataset | None:
    """The data set of the runs with these test labels; None if this machine has none with their fingerprint."""
    run = next(iter(table.rows[0].runs.values()))
    params = current_params(run.params)
    source = SOURCES.get(params.get("data._target_", ""))
    keys = ("path", "split", "validation", "split_seed")
    given = {key: text for key in keys if (text := params.get(f"data.{key}", "None")) != "None"}
    texts = {key: given.pop(key) for key in ("path", "split") if key in given}
    try:
        numbers = {key: text if text == "test" else json.loads(text) for key, text in given.items()}
        found = source(**texts, **numbers) if source is not None else None
    except (data.DataError, ValueError, TypeError):  # for example a config of another version
        return None
    # A subset has the test images of the whole data set.
    fingerprint = run.tags.get("data.base", table.fingerprint)
    if found is None or found.fingerprint != fingerprint or not np.array_equal(found.test.labels, labels):
        return None
    return found
