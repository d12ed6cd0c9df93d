"""The figures of a comparison show the given numbers on suitable axes."""

import re

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.text import Annotation

from mnist_exp.figures import comparison as charts
from mnist_exp.figures import style
from mnist_exp.figures.comparison import Point

NAN = float("nan")


@pytest.fixture(autouse=True)
def _nothing_global():
    before = pyplot.get_fignums()  # another library's plots may be open
    yield
    assert pyplot.get_fignums() == before


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_learning_curves_are_mean_errors_with_a_band():
    curves = {"a": [{1: 0.90, 2: 0.96}, {1: 0.94, 2: 0.98}], "b": [{1: 0.5, 2: 0.6}]}
    (axes,) = charts.learning_curves(curves, "val_accuracy", 0.005).axes
    assert list(axes.lines[0].get_xdata()) == [1, 2]
    assert list(axes.lines[0].get_ydata()) == pytest.approx([8, 3])
    assert axes.get_yscale() == "log"
    assert axes.get_ylabel() == "error: 100 - val_accuracy (%)"
    edges = axes.collections[0].get_datalim(axes.transData)  # one standard deviation: 2 and 1 times the root of 2
    assert (edges.y0, edges.y1) == pytest.approx((3 - np.sqrt(2), 8 + 2 * np.sqrt(2)))
    assert len(axes.collections) == 1  # one seed has no band
    assert texts(axes) == ["noise floor ±0.5", "a", "b"]


def test_a_log_axis_of_less_than_a_decade_has_several_ticks():
    (axes,) = charts.learning_curves({"a": [{1: 0.81, 2: 0.86, 3: 0.92}]}, "val_accuracy", NAN).axes
    low, high = axes.get_ylim()
    assert [tick for tick in axes.get_yticks() if low <= tick <= high] == [10, 12.5, 15, 17.5]


def test_learning_curves_stop_where_a_seed_stopped():
    (axes,) = charts.learning_curves({"a": [{1: 0.9, 2: 0.95}, {1: 0.9}]}, "val_accuracy", NAN).axes
    assert list(axes.lines[0].get_xdata()) == [1]
    assert texts(axes) == ["a"]


@pytest.mark.parametrize(
    ("values", "log"),
    [
        ([1e-4, 1e-3, 1e-2], True),
        ([16, 32, 64, 128, 256], True),
        ([10, 40, 70, 100], False),
        ([1, 2, 4], False),  # not a decade
        ([0, 0.1, 1, 10], False),
        ([1, 100], False),
    ],
)
def test_log_axes_are_for_log_spaced_values(values, log):
    assert charts.log_spaced(values) is log
    points = [Point("a", x, 0.9, 0.01) for x in values]
    (axes,) = charts.against("rate", {"a": points}, "val_accuracy", 0.01).axes
    assert axes.get_xscale() == ("log" if log else "linear")


def test_many_lines_are_grey_and_have_a_mean():
    lines = {str(n): [Point(str(n), x, n / 10, NAN) for x in (1.0, 2.0, 3.0)] for n in range(9)}
    (axes,) = charts.against("width", lines, "final_val_accuracy", NAN).axes
    assert list(axes.lines[-1].get_ydata()) == pytest.approx([40, 40, 40])
    assert texts(axes) == ["mean of 9 settings"]


def test_heat_map_has_a_number_in_each_cell():
    cells = {(1.0, 10.0): 0.91, (2.0, 10.0): 0.92, (1.0, 20.0): 0.93}
    axes, bar = charts.heat_map("width", "rate", cells, "val_accuracy", 0.001).axes
    assert texts(axes) == ["91.00", "92.00", "93.00"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["10", "20"]
    assert bar.get_ylabel() == "val_accuracy (%); red: noise floor ±0.1"


def test_pareto_front():
    points = [Point(name, x, y, NAN) for name, x, y in (("a", 1, 0.5), ("b", 2, 0.9), ("c", 3, 0.8), ("d", 2, 0.7))]
    assert [point.label for point in charts.pareto_front(points, "val_accuracy")] == ["a", "b"]
    losses = [point._replace(mean=1 - point.mean) for point in points]
    assert [point.label for point in charts.pareto_front(losses, "val_loss")] == ["a", "b"]
    (axes,) = charts.pareto({"seconds": points}, "val_accuracy", 0.01).axes
    assert axes.get_title(loc="left") == "1 a\n2 b"


def test_reliability_plots_percentages():
    given = np.array([0.5, 0.9]), np.array([0.4, 0.8]), np.array([10, 90])
    (axes,) = charts.reliability({"a": given}).axes
    assert list(axes.lines[1].get_xdata()) == [50, 90]
    assert list(axes.lines[1].get_ydata()) == [40, 80]


def test_labels_do_not_overlap():
    curves = {str(n): [{1: 0.9, 2: 0.95 + n / 1e5}] for n in range(6)}
    (axes,) = charts.learning_curves(curves, "val_accuracy", NAN).axes
    heights = sorted(text.xy[1] for text in axes.texts if isinstance(text, Annotation))
    assert len(heights) == len(axes.texts)
    assert np.diff(heights).min() > 0.03


def test_svg_takes_the_colours_of_the_page_and_escapes_names():
    evil = "<script>alert(1)</script> $x$"
    svg = charts.to_svg(charts.learning_curves({evil: [{1: 0.9, 2: 0.95}]}, "val_accuracy", 0.01))
    assert svg.startswith("<svg")
    assert "<script" not in svg
    assert "&lt;script&gt;alert(1)&lt;/script&gt; $x$" in svg
    assert not re.search("#(000000|ffffff|0072b2|e5e5e5)", svg)
    assert "var(--grid)" in svg
    assert charts.to_svg(charts.learning_curves({evil: [{1: 0.9, 2: 0.95}]}, "val_accuracy", 0.01)) == svg


def test_errors_by_the_number_of_training_images_and_their_law():
    points = [Point("a", 100, 0.2, 0.01), Point("a", 10_000, 0.02, NAN)]
    (axes,) = charts.data_size({"a": points}, {"a": lambda images: 2 * images**-0.5}, "final_val_accuracy").axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("training images", "error: 100 - val_accuracy (%)")
    marks, law = axes.lines[0], axes.lines[-1]
    assert np.asarray(marks.get_ydata()).tolist() == [20, 2]
    assert np.asarray(law.get_ydata())[[0, -1]] == pytest.approx([20, 2])


def test_a_thousand_runs_of_a_sweep_have_different_colours():
    colors = [style.run_color(number) for number in range(1000)]
    assert colors[:8] == list(style.COLORS)
    assert len(set(colors)) == 1000
    assert all(re.fullmatch("#[0-9a-f]{6}", color) for color in colors)
