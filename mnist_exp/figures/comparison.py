"""Comparisons as matplotlib figures, and figures as SVG that fits a light and a dark page.

As in `plots`, every function returns a `Figure` of its own. The noise floor is the standard deviation over seeds,
pooled over all settings: what lies closer together than that one more seed may turn around.
"""

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from mnist_exp.figures import style
from mnist_exp.figures.run import DPI
from mnist_exp.figures.style import BLUE, GREY, GRID, PALE, VERMILLION
from mnist_exp.scores import higher_is_better

COLORS = style.COLORS[:-1]  # without yellow
MARKERS = "osD^vPX"
FONT = 11
MAX_LABEL = 40  # letters
MAX_TICKS = 8  # of more values the axis chooses its own
# In an SVG these colours become the report's CSS variables. Text in the cells of a heat map keeps its own colours.
THEMED = {"#000000": "currentColor"} | {style.LIGHT[name]: f"var(--{name})" for name in style.LIGHT if name != "ink"}
IN_CELL = ("#010101", "#fefefe")


class Point(NamedTuple):
    """A row of the leaderboard in a plot; `mean` and `std` over seeds, `std` NaN for one seed."""

    label: str
    x: float
    mean: float
    std: float


def learning_curves(curves: Mapping[str, Sequence[Mapping[int, float]]], metric: str, noise: float) -> Figure:
    """Draws the mean over seeds by epoch with a band of one standard deviation; accuracies as errors.

    Errors and losses stand on a logarithmic axis: late in training all that matters lies close to the best.

    Args:
        curves: for each label, at most seven, a mapping from epoch to value for each seed.
        metric: its name, such as `val_accuracy`.
        noise: the noise floor, in the metric's unit; NaN when unknown.
    """
    figure, axes = _figure(7.5, 4.2)
    ends = []
    for color, marker, (label, seeds) in zip(COLORS, MARKERS, curves.items(), strict=False):
        epochs = sorted(set.intersection(*(set(seed) for seed in seeds)))
        values = _as_error(np.array([[seed[epoch] for epoch in epochs] for seed in seeds]), metric)
        mean = values.mean(axis=0)
        every = max(1, len(epochs) // 10)
        axes.plot(epochs, mean, color=color, marker=marker, markevery=every, markersize=5, linewidth=1.8)
        if len(seeds) > 1:
            std = values.std(axis=0, ddof=1)
            axes.fill_between(
                epochs, np.maximum(mean - std, mean / 3), mean + std, color=color, alpha=0.18, linewidth=0
            )
        ends.append((float(mean[-1]), label, color))
    _log_scale(axes.yaxis, axes, "y")
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch", fontsize=FONT)
    axes.set_ylabel(_error_name(metric), fontsize=FONT)
    if math.isfinite(noise) and ends:
        best = min(value for value, _, _ in ends)
        _noise_band(axes, best, noise * _scale(metric))
    _end_labels(axes, ends)
    return figure


def against(setting: str, lines: Mapping[str, Sequence[Point]], metric: str, noise: float) -> Figure:
    """Draws a score against a numeric setting, one line for each combination of the other settings.

    Args:
        setting: its name.
        lines: points by rising x, for each label; above seven labels the lines are grey, and their mean is blue.
        metric: the score's name.
        noise: as above.
    """
    figure, axes = _figure(7.5, 4.2)
    ends = (_grey_lines if len(lines) > len(COLORS) else _coloured_lines)(axes, lines, _scale(metric))
    points = [point for line in lines.values() for point in line]
    values = sorted({point.x for point in points})
    if log_spaced(values):
        _log_scale(axes.xaxis, axes, "x")
    if len(values) <= MAX_TICKS:
        axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.set_xlabel(setting, fontsize=FONT)
    axes.set_ylabel(_name(metric), fontsize=FONT)
    _noise_band(axes, _best(points, metric).mean * _scale(metric), noise * _scale(metric))
    _end_labels(axes, ends)
    return figure


def _coloured_lines(axes: Axes, lines: Mapping[str, Sequence[Point]], scale: float) -> list[tuple[float, str, str]]:
    """Draws each line with its standard deviations; returns where they end, unless there is but one."""
    ends = []
    for color, marker, (label, points) in zip(COLORS, MARKERS, lines.items(), strict=False):
        x, mean, std = (scale * np.array([point[part] for point in points]) for part in (1, 2, 3))
        bars = np.nan_to_num(std)
        axes.errorbar(x / scale, mean, bars, color=color, marker=marker, markersize=5, linewidth=1.8, capsize=3)
        ends.append((float(mean[-1]), label, color))
    return ends if len(ends) > 1 else []


def _grey_lines(axes: Axes, lines: Mapping[str, Sequence[Point]], scale: float) -> list[tuple[float, str, str]]:
    """Draws lines too many to tell apart, and their mean where they share values of x; returns where that ends."""
    for points in lines.values():
        axes.plot([p.x for p in points], [p.mean * scale for p in points], color=PALE, marker=".", linewidth=0.8)
    by_x: dict[float, list[float]] = {}
    for point in (point for points in lines.values() for point in points):
        by_x.setdefault(point.x, []).append(point.mean * scale)
    if max(map(len, by_x.values())) == 1:
        return []
    x = sorted(by_x)
    means = [float(np.mean(by_x[value])) for value in x]
    axes.plot(x, means, color=BLUE, marker="o", linewidth=2.2, zorder=5)
    return [(means[-1], f"mean of {len(lines)} settings", BLUE)]


def heat_map(x: str, y: str, cells: Mapping[tuple[float, float], float], metric: str, noise: float) -> Figure:
    """Draws a score over two numeric settings as coloured, numbered cells.

    Args:
        x: name of the setting along the bottom.
        y: name of the setting along the side.
        cells: scores by both values, means over whatever else varied.
        metric: the score's name.
        noise: as above; marked on the colour bar.
    """
    columns, rows = (sorted({key[axis] for key in cells}) for axis in (0, 1))
    values = np.array([[cells.get((c, r), math.nan) * _scale(metric) for c in columns] for r in rows])
    figure, axes = _figure(max(5.5, 0.75 * len(columns) + 2.5), max(3.2, 0.5 * len(rows) + 1.6))
    mesh = axes.pcolormesh(np.ma.masked_invalid(values), cmap="cividis", edgecolor="face")
    axes.set_xticks(np.arange(len(columns)) + 0.5, [f"{value:g}" for value in columns])
    axes.set_yticks(np.arange(len(rows)) + 0.5, [f"{value:g}" for value in rows])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    for row, column in np.ndindex(values.shape):
        if math.isfinite(values[row, column]):
            dark = int(values[row, column] < (low + high) / 2)
            text = f"{values[row, column]:{'.2f' if 'accuracy' in metric else '.3g'}}"
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=FONT - 2, color=IN_CELL[dark])
    axes.set_xlabel(x, fontsize=FONT)
    axes.set_ylabel(y, fontsize=FONT)
    axes.tick_params(length=0, labelsize=FONT - 1)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(mesh, ax=axes, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=FONT - 2)
    text = _name(metric)
    if math.isfinite(noise):
        middle, half = (low + high) / 2, noise * _scale(metric)
        bar.ax.errorbar([0.5], [middle], [half], color=VERMILLION, capsize=5, linewidth=2)
        text += f"; red: noise floor ±{half:.2g}"
    bar.set_label(text, fontsize=FONT - 1)
    return figure


def pareto(panels: Mapping[str, Sequence[Point]], metric: str, noise: float) -> Figure:
    """Draws a score against what it costs; what nothing beats in both is joined and named.

    Args:
        panels: points, for each cost's name.
        metric: the score's name.
        noise: as above.
    """
    figure = Figure(figsize=(5.2 * len(panels), 4.2), dpi=DPI, layout="constrained")
    for number, (axes, (cost, points)) in enumerate(
        zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True)
    ):
        front = pareto_front(points, metric)
        _plain(axes)
        axes.plot([p.x for p in points], [p.mean * _scale(metric) for p in points], ".", color=PALE)
        bars = [0.0 if math.isnan(p.std) else p.std * _scale(metric) for p in front]
        axes.errorbar(
            [p.x for p in front],
            [p.mean * _scale(metric) for p in front],
            bars,
            marker="o",
            color=BLUE,
            linewidth=1,
            capsize=3,
        )
        best = _best(points, metric)
        _noise_band(axes, best.mean * _scale(metric), noise * _scale(metric))
        if min(point.x for point in points) > 0 and max(p.x for p in points) > 3 * min(p.x for p in points):
            _log_scale(axes.xaxis, axes, "x")
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.ticklabel_format(axis="x", style="plain", useOffset=False)
        for place, point in enumerate(front, 1):
            spot = point.x, point.mean * _scale(metric)
            axes.annotate(str(place), spot, (5, 5), textcoords="offset points", fontsize=FONT - 1, color=BLUE)
        key = "\n".join(f"{place} {_cut(point.label)}" for place, point in enumerate(front, 1))
        axes.set_title(key, loc="left", fontsize=FONT - 1, color=BLUE, parse_math=False)
        axes.set_xlabel(cost, fontsize=FONT)
        if number == 0:
            axes.set_ylabel(_name(metric), fontsize=FONT)
    return figure


def reliability(curves: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Figure:
    """Draws accuracy against confidence; on the diagonal a model is as right as it is sure.

    Args:
        curves: for each label, at most seven: mean confidence, accuracy (both 0..1) and number of images by interval.
    """
    figure, axes = _figure(7.5, 4.6)
    axes.plot([0, 100], [0, 100], color=GREY, linestyle=":", linewidth=1.5)
    ends = []
    for color, marker, (label, (confidence, accuracy, count)) in zip(COLORS, MARKERS, curves.items(), strict=False):
        axes.plot(100 * confidence, 100 * accuracy, color=color, linewidth=1.2)
        size = 8 + 60 * np.sqrt(count / count.sum())
        axes.scatter(100 * confidence, 100 * accuracy, size, color=color, marker=marker)
        ends.append((float(100 * accuracy[-1]), label, color))
    axes.set_xlabel("confidence (%)", fontsize=FONT)
    axes.set_ylabel("accuracy on the test images (%)", fontsize=FONT)
    _end_labels(axes, ends)
    return figure


def pareto_front(points: Sequence[Point], metric: str) -> list[Point]:
    """The points that no other one beats in score at no higher cost, by rising cost."""
    front: list[Point] = []
    sign = -1 if higher_is_better(metric) else 1
    for point in sorted(points, key=lambda point: (point.x, sign * point.mean)):
        if not front or sign * point.mean < sign * front[-1].mean:
            front.append(point)
    return front


def log_spaced(values: Sequence[float]) -> bool:
    """Whether rising numbers lie more evenly by their ratios than by their differences, over at least a decade."""
    if len(values) < 3 or values[0] <= 0 or values[-1] < 10 * values[0]:
        return False
    steps, ratios = np.diff(values), np.diff(np.log(values))
    return bool(ratios.std() / ratios.mean() < steps.std() / steps.mean())


def to_svg(figure: Figure) -> str:
    """The figure as an `<svg>` element whose black, white and greys are the page's; text stays text."""
    text = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mnist_exp"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has it: text stays text
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return re.sub("|".join(THEMED), lambda found: THEMED[found[0]], svg)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    _plain(axes)
    return figure, axes


def _plain(axes: Axes) -> None:
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=FONT - 1)


def _scale(metric: str) -> float:
    return 100.0 if "accuracy" in metric else 1.0


def _name(metric: str) -> str:
    return f"{metric.removeprefix('final_')}{' (%)' if 'accuracy' in metric else ''}"


def _error_name(metric: str) -> str:
    return f"{metric.replace('accuracy', 'error')} (%)" if "accuracy" in metric else metric


def _as_error(values: np.ndarray, metric: str) -> np.ndarray:
    """Percent wrong, at least one image in a hundred thousand, for the logarithm."""
    return np.maximum(100 * (1 - values), 1e-3) if "accuracy" in metric else values


def _best(points: Sequence[Point], metric: str) -> Point:
    return (max if higher_is_better(metric) else min)(points, key=lambda point: point.mean)


def _log_scale(ticks: mpl.axis.Axis, axes: Axes, which: str) -> None:
    """A logarithmic axis with a few ticks a decade, as plain numbers; at decades alone where these are many."""
    few = (1, 2, 5) if which == "x" else (1, 2, 3, 5)
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    low, high = ticks.get_view_interval()
    ticks.set_major_locator(LogLocator(subs=few if high < 500 * max(low, 1e-12) else (1,)))
    ticks.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value < 1e4 else f"{value:,.0f}"))
    ticks.set_minor_locator(NullLocator())


def _noise_band(axes: Axes, best: float, noise: float) -> None:
    """Shades what lies within the noise floor of the best score."""
    if math.isfinite(noise) and noise > 0:
        low = max(best - noise, best / 3) if axes.get_yscale() == "log" else best - noise
        axes.axhspan(low, best + noise, color=GREY, alpha=0.13, linewidth=0, zorder=0)
        text = f"noise floor ±{noise:.2g}"
        axes.text(0.01, low, text, transform=axes.get_yaxis_transform(), fontsize=FONT - 3, color=GREY, va="bottom")


def _end_labels(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Writes each line's label beside its right end, moved apart where they would overlap, none above the axes."""
    gap, taken, places = 1.25 * FONT * DPI / 72 / axes.get_window_extent().height, -math.inf, []
    ends = sorted(ends)
    for value, _, _ in ends:
        place = axes.transAxes.inverted().transform(axes.transData.transform((1, value)))[1]
        taken = max(place, taken + gap)
        places.append(taken)
    for number, (_, label, color) in enumerate(ends):
        axes.annotate(
            _cut(label),
            (1.01, min(places[number], 1 - gap * (len(ends) - 1 - number))),
            xycoords="axes fraction",
            va="center",
            fontsize=FONT - 1,
            color=color,
            parse_math=False,
            annotation_clip=False,
        )


def _cut(label: str) -> str:
    label = "".join(letter if letter.isprintable() else " " for letter in label)
    return label if len(label) <= MAX_LABEL else label[: MAX_LABEL - 1] + "…"
