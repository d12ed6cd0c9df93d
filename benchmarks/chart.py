"""The benchmarks' plots."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

BLUE, ORANGE = "#0072B2", "#D55E00"  # Okabe and Ito, distinguishable to colour-blind readers


def ratios(rows: Sequence[tuple[str, float, bool]]) -> Figure:
    """Bars of how many times faster each work is than its peer."""
    figure = Figure(figsize=(9, 0.5 * len(rows) + 1.2), dpi=100, layout="constrained")
    axes = figure.subplots()
    names, values, met = zip(*rows[::-1], strict=True)
    bars = axes.barh([name.replace("`", "") for name in names], values, color=[BLUE if m else ORANGE for m in met])
    axes.bar_label(bars, [f"{value:.1f}" for value in values], padding=3)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("times faster than the plain script (1: as fast; orange: below its bar)")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def scaling(panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> Figure:
    """A panel for each x axis: lines of images a second against it, both logarithmic."""
    figure = Figure(figsize=(4 * len(panels), 3.6), dpi=100, layout="constrained")
    rates = [digit * 10**power for power in (4, 5) for digit in (1, 2, 5)]
    for axes, (label, lines) in zip(figure.subplots(1, len(panels), sharey=True), panels.items(), strict=True):
        for (name, points), color, marker in zip(lines.items(), (BLUE, ORANGE), "os", strict=False):
            axes.loglog(*zip(*points, strict=True), marker=marker, color=color, label=name)
        axes.set_xlabel(label)
        axes.set_xticks([x for x, _ in points], [f"{x:,}" for x, _ in points])
        axes.set_yticks(rates, [f"{rate:,}" for rate in rates])
        axes.minorticks_off()
        axes.grid(visible=True, which="major", alpha=0.3)
    figure.axes[0].set_ylabel("training images / s")
    figure.axes[0].legend(frameon=False)
    return figure
