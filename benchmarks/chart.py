"""The benchmarks' plots."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from mnist_exp.figures.style import BLUE, VERMILLION


def ratios(rows: Sequence[tuple[str, float, bool]]) -> Figure:
    """Bars with the speed of each row relative to the plain script."""
    figure = Figure(figsize=(9, 0.5 * len(rows) + 1.2), dpi=100, layout="constrained")
    axes = figure.subplots()
    names, values, met = zip(*rows[::-1], strict=True)
    bars = axes.barh([name.replace("`", "") for name in names], values, color=[BLUE if m else VERMILLION for m in met])
    axes.bar_label(bars, [f"{value:.1f}" for value in values], padding=3)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("times faster than the plain script (1: as fast; orange: goal missed)")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def scaling(panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> Figure:
    """Images per second against each of several quantities, both logarithmic."""
    figure = Figure(figsize=(4 * len(panels), 3.6), dpi=100, layout="constrained")
    rates = [digit * 10**power for power in (4, 5) for digit in (1, 2, 5)]
    for axes, (label, lines) in zip(figure.subplots(1, len(panels), sharey=True), panels.items(), strict=True):
        for (name, points), color, marker in zip(lines.items(), (BLUE, VERMILLION), "os", strict=False):
            axes.loglog(*zip(*points, strict=True), marker=marker, color=color, label=name)
        axes.set_xlabel(label)
        axes.set_xticks([x for x, _ in points], [f"{x:,}" for x, _ in points])
        axes.set_yticks(rates, [f"{rate:,}" for rate in rates])
        axes.minorticks_off()
        axes.grid(visible=True, which="major", alpha=0.3)
    figure.axes[0].set_ylabel("training images / s")
    figure.axes[0].legend(frameon=False)
    return figure
