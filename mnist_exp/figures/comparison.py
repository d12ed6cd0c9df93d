"""The figures of a comparison, and figures as SVG that follows a page's light or dark colours.

The noise floor is the standard deviation over seeds, pooled over all settings. One more seed can reverse the order of
scores that are closer than that.
"""

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mnist_exp.figures import style
from mnist_exp.figures.axes import DPI, log_scale, new_figure, plain, shorten, whole_epochs
from mnist_exp.figures.style import BLUE, GREY, PALE, VERMILLION
from mnist_exp.scores import higher_is_better

COLORS = style.COLORS[:-1]  # without yellow
MARKERS = "osD^vPX"
FONT = 11
MAX_LABEL = 40  # letters
MAX_TICKS = 8  # up to this number of values, each has a tick
# In an SVG these colours become the report's CSS variables. Text in the cells of a heat map keeps its own colours.
THEMED = {"#000000": "currentColor"} | {style.LIGHT[name]: f"var(--{name})" for name in style.LIGHT if name != "ink"}
IN_CELL = ("#010101", "#fefefe")

End = tuple[float, str, str]  # where a line ends: its last value, its label and its colour


class Point(NamedTuple):
    """A row of the leaderboard in a plot: `mean` and `std` over seeds; `std` is NaN for one seed."""

    label: str
    x: float
    mean: float
    std: float


def learning_curves(curves: Mapping[str, Sequence[Mapping[int, float]]], metric: str, noise: float) -> Figure:
    """The mean over seeds by epoch, with a band of one standard deviation, on a logarithmic axis.

    Accuracies are shown as errors, because the logarithm separates the small differences late in training.

    Args:
        curves: values by epoch of each seed, for each label; at most seven labels.
        metric: the name of the values, such as `val_accuracy`.
        noise: the noise floor, in the metric's unit; NaN if unknown.
    """
    figure, (axes,) = new_figure(7.5, 4.2)
    ends = []
    for color, marker, (label, seeds) in zip(COLORS, MARKERS, curves.items(), strict=False):
        epochs = sorted(set.intersection(*(set(seed) for seed in seeds)))
        values = np.array([[seed[epoch] for epoch in epochs] for seed in seeds])
        if "accuracy" in metric:
            values = np.maximum(100 * (1 - values), 1e-3)  # percent; zero has no logarithm
        mean = values.mean(axis=0)
        every = max(1, len(epochs) // 10)
        axes.plot(epochs, mean, color=color, marker=marker, markevery=every, markersize=5, linewidth=1.8)
        if len(seeds) > 1:
            std = values.std(axis=0, ddof=1)
            low = np.maximum(mean - std, mean / 3)
            axes.fill_between(epochs, low, mean + std, color=color, alpha=0.18, linewidth=0)
        ends.append((float(mean[-1]), label, color))
    plain(axes, FONT, "epoch", _error(metric))
    log_scale(axes, "y")
    whole_epochs(axes)
    if ends:
        _noise_band(axes, min(ends)[0], noise * _scale(metric))
    _end_labels(axes, ends)
    return figure


def against(setting: str, lines: Mapping[str, Sequence[Point]], metric: str, noise: float) -> Figure:
    """A score against a numeric setting, with one line for each combination of the other settings.

    Args:
        setting: its name.
        lines: points by rising x, for each label. More than seven lines are grey, and their mean is blue.
        metric: the score's name.
        noise: the noise floor, in the metric's unit; NaN if unknown.
    """
    figure, (axes,) = new_figure(7.5, 4.2)
    ends = (_grey_lines if len(lines) > len(COLORS) else _coloured_lines)(axes, lines, metric)
    points = [point for line in lines.values() for point in line]
    values = sorted({point.x for point in points})
    plain(axes, FONT, setting, _name(metric))
    if log_spaced(values):
        log_scale(axes, "x")
    if len(values) <= MAX_TICKS:
        axes.set_xticks(values, [f"{value:g}" for value in values])
    _noise_band(axes, _best(points, metric), noise * _scale(metric))
    _end_labels(axes, ends)
    return figure


def data_size(
    lines: Mapping[str, Sequence[Point]], laws: Mapping[str, Callable[[np.ndarray], Any]], metric: str
) -> Figure:
    """The error against the number of training images, both logarithmic, with the law fitted to each line.

    Args:
        lines: points by rising x for each label, at most seven: the number of images, mean and std of the error.
        laws: the error as a function of the number of images, for each label.
        metric: the score's name; accuracies are shown as errors in percent.
    """
    figure, (axes,) = new_figure(7.5, 4.2)
    ends = []
    for color, marker, (label, points) in zip(COLORS, MARKERS, lines.items(), strict=False):
        x, mean, bars = _arrays(points, metric)
        axes.errorbar(x, mean, np.minimum(bars, 0.9 * mean), color=color, marker=marker, linestyle="", capsize=3)
        images = np.geomspace(x[0], x[-1], 200)
        fitted = _scale(metric) * np.asarray(laws[label](images))
        axes.plot(images, fitted, color=color, linewidth=1.8)
        ends.append((float(fitted[-1]), label, color))
    plain(axes, FONT, "training images", _error(metric))
    log_scale(axes, "x")
    log_scale(axes, "y")
    if len(ends) > 1:
        _end_labels(axes, ends)
    return figure


def _coloured_lines(axes: Axes, lines: Mapping[str, Sequence[Point]], metric: str) -> list[End]:
    """Draws lines with a bar of one standard deviation at each point; a single line has no label."""
    ends = []
    for color, marker, (label, points) in zip(COLORS, MARKERS, lines.items(), strict=False):
        x, mean, bars = _arrays(points, metric)
        axes.errorbar(x, mean, bars, color=color, marker=marker, markersize=5, linewidth=1.8, capsize=3)
        ends.append((float(mean[-1]), label, color))
    return ends if len(ends) > 1 else []


def _grey_lines(axes: Axes, lines: Mapping[str, Sequence[Point]], metric: str) -> list[End]:
    """Draws lines in grey, and their mean over the lines that share values of x, if any do."""
    for points in lines.values():
        x, mean, _ = _arrays(points, metric)
        axes.plot(x, mean, color=PALE, marker=".", linewidth=0.8)
    x, mean, _ = _arrays([point for points in lines.values() for point in points], metric)
    values, counts = np.unique(x, return_counts=True)
    if counts.max() == 1:
        return []
    means = [float(mean[x == value].mean()) for value in values]
    axes.plot(values, means, color=BLUE, marker="o", linewidth=2.2, zorder=5)
    return [(means[-1], f"mean of {len(lines)} settings", BLUE)]


def heat_map(x: str, y: str, cells: Mapping[tuple[float, float], float], metric: str, noise: float) -> Figure:
    """A score over two numeric settings as coloured cells with numbers.

    Args:
        x: name of the setting along the bottom.
        y: name of the setting along the side.
        cells: scores by the values of both, means over all other settings that vary.
        metric: the score's name.
        noise: the noise floor, in the metric's unit; marked on the colour bar unless it is NaN.
    """
    columns, rows = (sorted({key[axis] for key in cells}) for axis in (0, 1))
    values = np.array([[cells.get((c, r), math.nan) * _scale(metric) for c in columns] for r in rows])
    figure, (axes,) = new_figure(max(5.5, 0.75 * len(columns) + 2.5), max(3.2, 0.5 * len(rows) + 1.6))
    mesh = axes.pcolormesh(np.ma.masked_invalid(values), cmap="cividis", edgecolor="face")
    plain(axes, FONT, x, y, grid="")
    axes.set_xticks(np.arange(len(columns)) + 0.5, [f"{value:g}" for value in columns])
    axes.set_yticks(np.arange(len(rows)) + 0.5, [f"{value:g}" for value in rows])
    middle = (float(np.nanmin(values)) + float(np.nanmax(values))) / 2
    for row, column in np.argwhere(np.isfinite(values)):
        text = f"{values[row, column]:{'.2f' if 'accuracy' in metric else '.3g'}}"
        color = IN_CELL[int(values[row, column] < middle)]
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=FONT - 2, color=color)
    bar = figure.colorbar(mesh, ax=axes, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=FONT - 2)
    text = _name(metric)
    if math.isfinite(noise):
        half = noise * _scale(metric)
        bar.ax.errorbar([0.5], [middle], [half], color=VERMILLION, capsize=5, linewidth=2)
        text += f"; red: noise floor ±{half:.2g}"
    bar.set_label(text, fontsize=FONT - 1)
    return figure


def pareto(panels: Mapping[str, Sequence[Point]], metric: str, noise: float) -> Figure:
    """A score against costs, with the Pareto front in blue and its points numbered and named.

    Args:
        panels: points whose x is the cost, for each cost's name.
        metric: the score's name.
        noise: the noise floor, in the metric's unit; NaN if unknown.
    """
    figure, all_axes = new_figure(5.2 * len(panels), 4.2, columns=len(panels))
    for axes, (cost, points) in zip(all_axes, panels.items(), strict=True):
        plain(axes, FONT, cost, _name(metric) if axes is all_axes[0] else "")
        costs, mean, _ = _arrays(points, metric)
        axes.plot(costs, mean, ".", color=PALE)
        front = pareto_front(points, metric)
        x, y, bars = _arrays(front, metric)
        axes.errorbar(x, y, bars, marker="o", color=BLUE, linewidth=1, capsize=3)
        _noise_band(axes, _best(points, metric), noise * _scale(metric))
        if costs.min() > 0 and costs.max() > 3 * costs.min():
            log_scale(axes, "x")
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.ticklabel_format(axis="x", style="plain", useOffset=False)
        for number, spot in enumerate(zip(x, y, strict=True), 1):
            axes.annotate(str(number), spot, (5, 5), textcoords="offset points", fontsize=FONT - 1, color=BLUE)
        names = "\n".join(f"{number} {shorten(point.label, MAX_LABEL)}" for number, point in enumerate(front, 1))
        axes.set_title(names, loc="left", fontsize=FONT - 1, color=BLUE, parse_math=False)
    return figure


def reliability(curves: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Figure:
    """A reliability diagram: accuracy against confidence. A calibrated model is on the diagonal.

    Args:
        curves: mean confidence and accuracy (both 0..1) and number of images of each confidence bin, for each label;
            at most seven labels.
    """
    figure, (axes,) = new_figure(7.5, 4.6)
    plain(axes, FONT, "confidence (%)", "accuracy on the test images (%)")
    axes.plot([0, 100], [0, 100], color=GREY, linestyle=":", linewidth=1.5)
    ends = []
    for color, marker, (label, (confidence, accuracy, count)) in zip(COLORS, MARKERS, curves.items(), strict=False):
        axes.plot(100 * confidence, 100 * accuracy, color=color, linewidth=1.2)
        size = 8 + 60 * np.sqrt(count / count.sum())
        axes.scatter(100 * confidence, 100 * accuracy, size, color=color, marker=marker)
        ends.append((float(100 * accuracy[-1]), label, color))
    _end_labels(axes, ends)
    return figure


def pareto_front(points: Sequence[Point], metric: str) -> list[Point]:
    """The points for which no other point has a better score at no higher cost, by rising cost."""
    front: list[Point] = []
    sign = -1 if higher_is_better(metric) else 1
    for point in sorted(points, key=lambda point: (point.x, sign * point.mean)):
        if not front or sign * point.mean < sign * front[-1].mean:
            front.append(point)
    return front


def log_spaced(values: Sequence[float]) -> bool:
    """Whether rising numbers span at least a decade and their ratios vary less than their differences."""
    if len(values) < 3 or values[0] <= 0 or values[-1] < 10 * values[0]:
        return False
    steps, ratios = np.diff(values), np.diff(np.log(values))
    return bool(ratios.std() / ratios.mean() < steps.std() / steps.mean())


def to_svg(figure: Figure) -> str:
    """The figure as an `<svg>` element in the page's colours (`THEMED`), with its text as text."""
    text = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mnist_exp"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has other fonts
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return re.sub("|".join(THEMED), lambda found: THEMED[found[0]], svg)


def _arrays(points: Sequence[Point], metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, mean and standard deviation of the points, float64 (n,), as drawn: in percent, and 0 for one seed."""
    x, mean, std = np.array([point[1:] for point in points], np.float64).T
    return x, mean * _scale(metric), np.nan_to_num(std) * _scale(metric)


def _scale(metric: str) -> float:
    return 100.0 if "accuracy" in metric else 1.0


def _error(metric: str) -> str:
    name = metric.removeprefix("final_")
    return f"error: 100 - {name} (%)" if "accuracy" in name else name


def _name(metric: str) -> str:
    return f"{metric.removeprefix('final_')}{' (%)' if 'accuracy' in metric else ''}"


def _best(points: Sequence[Point], metric: str) -> float:
    best = (max if higher_is_better(metric) else min)(point.mean for point in points)
    return best * _scale(metric)


def _noise_band(axes: Axes, best: float, noise: float) -> None:
    """Shades the scores within the noise floor of the best one."""
    if math.isfinite(noise) and noise > 0:
        low = max(best - noise, best / 3) if axes.get_yscale() == "log" else best - noise
        axes.axhspan(low, best + noise, color=GREY, alpha=0.13, linewidth=0, zorder=0)
        text = f"noise floor ±{noise:.2g}"
        axes.text(0.01, low, text, transform=axes.get_yaxis_transform(), fontsize=FONT - 3, color=GREY, va="bottom")


def _end_labels(axes: Axes, ends: Sequence[End]) -> None:
    """Writes each line's label beside its right end. Labels do not overlap, and none is above the axes."""
    gap, taken, heights = 1.25 * FONT * DPI / 72 / axes.get_window_extent().height, -math.inf, []
    ends = sorted(ends)
    for value, _, _ in ends:
        taken = max(axes.transAxes.inverted().transform(axes.transData.transform((1, value)))[1], taken + gap)
        heights.append(taken)
    for place, (height, (_, label, color)) in enumerate(zip(heights, ends, strict=True)):
        axes.annotate(
            shorten(label, MAX_LABEL),
            (1.01, min(height, 1 - gap * (len(ends) - 1 - place))),
            xycoords="axes fraction",
            va="center",
            fontsize=FONT - 1,
            color=color,
            parse_math=False,
            annotation_clip=False,
        )
