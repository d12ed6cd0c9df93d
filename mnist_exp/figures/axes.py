"""The parts that all figures share: a figure of its own without pyplot, plain axes, ticks and short labels."""

from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from mnist_exp.console import printable
from mnist_exp.figures.style import GRID

DPI = 110
Grid = Literal["x", "y", "both", ""]
NUMBERS = FuncFormatter(lambda value, _: f"{value:g}" if value < 1e4 else f"{value:,.0f}")


def new_figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of `width` by `height` inches with axes side by side. pyplot does not hold it: nothing to close."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout=ConstrainedLayoutEngine(wspace=0.06))
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def plain(axes: Axes, font: float, x: str = "", y: str = "", *, grid: Grid = "both") -> None:
    """Label the axes in `font` points; draw a pale `grid` (x, y or both), or with "" neither grid nor frame."""
    axes.set_xlabel(x, fontsize=font, parse_math=False)
    axes.set_ylabel(y, fontsize=font, parse_math=False)
    axes.tick_params(labelsize=font - 1)
    if grid:
        axes.grid(axis=grid, color=GRID)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    else:
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)


def whole_epochs(axes: Axes) -> None:
    """Put the x ticks at whole epochs."""
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=(1, 2, 5, 10), integer=True, min_n_ticks=1))


def log_scale(axes: Axes, which: str) -> None:
    """Make the axis `which`, x or y, logarithmic, with plain numbers at its ticks."""
    axes.set(**{f"{which}scale": "log"})
    axis = {"x": axes.xaxis, "y": axes.yaxis}[which]
    low, high = axis.get_view_interval()
    ratio = high / max(low, 1e-12)
    locator = MaxNLocator(6) if ratio < 10 else LogLocator(subs=(1, 2, 5) if ratio < 1000 else (1,))
    axis.set_major_locator(locator)
    axis.set_major_formatter(NUMBERS)
    axis.set_minor_locator(NullLocator())


def shorten(text: str, letters: int) -> str:
    """The text with at most this many letters, the last of a shortened one being an ellipsis."""
    text = printable(text)
    return text if len(text) <= letters else text[: letters - 1] + "…"
