"""The document of one run."""

from mnist_exp.analysis import inspect


def test_sparklines():
    assert inspect.sparkline([0.0, 1.0, float("nan"), 0.5]) == "▁█ ▅"
    assert inspect.sparkline([3.0, 3.0]) == "▁▁"
    assert inspect.sparkline([]) == ""
    long = inspect.sparkline(list(range(1000)))
    assert (len(long), long[0], long[-1]) == (60, "▁", "█")
