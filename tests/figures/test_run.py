"""The figures of a run show the given numbers, also unusual ones."""

import gc
import io
import math
import weakref

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

from mnist_exp.data import Split
from mnist_exp.figures import run as plots

HISTORY = {
    "train_loss": [0.3, 0.2, 0.12, 0.09],
    "val_loss": [0.25, 0.15, 0.14, 0.16],
    "train_accuracy": [0.91, 0.94, 0.96, 0.97],
    "val_accuracy": [0.92, 0.955, 0.9625, 0.9625],
    "learning_rate": [0.001, 0.001, 0.0005, 0.0001],
}


@pytest.fixture(autouse=True)
def _nothing_global():
    yield
    assert pyplot.get_fignums() == []


def png(figure: Figure) -> bytes:
    """The figure as PNG; drawing also runs the layout."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def texts(figure: Figure) -> list[str]:
    """Captions, cells and titles, without tick labels."""
    placed = [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]
    return [text.get_text() for text in placed if text.get_text()]


def visible_ticks(axis) -> list[float]:
    low, high = axis.get_view_interval()
    return [tick for tick in axis.get_ticklocs() if low <= tick <= high]


def images(count: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 28, 28, channels), np.uint8)


def line_data(axes, label: str) -> tuple[list[float], list[float]]:
    (line,) = (line for line in axes.lines if line.get_label() == label)
    return list(line.get_xdata()), list(line.get_ydata())


def test_curves_show_the_history_in_nats_and_percent():
    loss, accuracy = plots.curves(HISTORY).axes
    assert line_data(loss, "training") == ([1, 2, 3, 4], HISTORY["train_loss"])
    assert line_data(loss, "validation") == ([1, 2, 3, 4], HISTORY["val_loss"])
    assert line_data(accuracy, "training")[1] == pytest.approx([91, 94, 96, 97])
    assert line_data(accuracy, "validation")[1] == pytest.approx([92, 95.5, 96.25, 96.25])
    assert loss.get_ylabel() == "cross-entropy loss (nats)"
    assert accuracy.get_ylabel() == "accuracy (%)"
    assert loss.get_xlabel() == accuracy.get_xlabel() == "epoch"


def test_curves_can_be_told_apart_without_colour():
    train, validated, _ = plots.curves(HISTORY).axes[0].lines
    assert train.get_linestyle() != validated.get_linestyle()
    assert train.get_marker() != validated.get_marker()
    assert validated.get_markerfacecolor() == "white"


def test_curves_mark_the_first_best_validation_epoch_in_both_panels():
    figure = plots.curves(HISTORY, title="run $\\no math$", validation="test")
    label = "best test accuracy: 96.25 % in epoch 3"
    for axes in figure.axes:
        assert line_data(axes, label)[0] == [3, 3]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["training", "test", label]
    assert figure.get_suptitle() == "run $\\no math$"
    png(figure)


@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 20, 100, 1000])
def test_epoch_ticks_are_whole_epochs_of_the_run(epochs):
    values = np.linspace(0.9, 0.5, epochs).tolist()
    figure = plots.curves(dict.fromkeys(HISTORY, values))
    assert len(png(figure)) < 200_000
    for axes in figure.axes:
        ticks = visible_ticks(axes.xaxis)
        assert 1 <= len(ticks) <= 10
        assert all(tick == int(tick) and 1 <= tick <= epochs for tick in ticks)
        assert axes.lines[0].get_marker() == "o"  # a line of one epoch would be invisible


def test_curves_of_a_run_without_validation():
    figure = plots.curves({key: values for key, values in HISTORY.items() if "train" in key})
    assert [len(axes.lines) for axes in figure.axes] == [1, 1]
    png(figure)


def test_curves_without_any_epoch():
    assert png(plots.curves({}))


def test_a_large_range_of_losses_is_logarithmic_with_plain_numbers():
    loss = plots.curves(HISTORY | {"train_loss": [0.5, 0.1, 0.02, 0.005]}).axes[0]
    assert loss.get_yscale() == "log"
    assert visible_ticks(loss.yaxis) == pytest.approx([0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5])
    assert loss.yaxis.get_major_formatter()(0.005, 0) == "0.005"
    assert plots.curves(HISTORY).axes[0].get_ylim()[0] == 0


def test_the_figure_of_a_diverged_run_names_the_epoch():
    nan = math.nan
    figure = plots.curves(
        {
            "train_loss": [2.3, 9e9, nan],
            "val_loss": [2.3, math.inf, nan],
            "train_accuracy": [0.1, 0.098, 0.098],
            "val_accuracy": [0.1, nan, 0.098],
        }
    )
    png(figure)
    loss, accuracy = figure.axes
    assert loss.get_title() == "loss is not finite in epoch 2"
    assert loss.get_xlim() == accuracy.get_xlim() == (0.5, 3.5)
    assert accuracy.lines[-1].get_label() == "best validation accuracy: 10.00 % in epoch 1"
    assert png(plots.curves({key: [nan] for key in HISTORY}))


def test_accuracy_axis_never_leaves_0_to_100_percent():
    for value in (1.0, 0.0):
        accuracy = plots.curves(dict.fromkeys(HISTORY, [value] * 3)).axes[1]
        low, high = accuracy.get_ylim()
        assert 0 <= low < high <= 100
        assert low <= 100 * value <= high


def test_confusion_shows_counts_error_rates_and_names():
    confusion = np.array([[90, 10, 0], [1, 199, 0], [0, 0, 0]])
    figure = plots.confusion_matrix(confusion, ["cat", "dog", "$\\no math$"])
    cells = ["90", "10", "1", "199", "0"]
    assert texts(figure) == [*cells, "error rate", "10.0 %", "0.5 %", "no images"]
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted label", "true label")
    assert [text.get_text() for text in axes.get_yticklabels()] == ["cat", "dog", "$\\no math$"]
    png(figure)


def test_confusion_colours_errors_by_their_share_of_the_row_without_the_diagonal():
    axes = plots.confusion_matrix(np.array([[90, 10], [1, 199]]), ["0", "1"]).axes[0]
    shares = axes.images[0].get_array()
    assert shares.mask.tolist() == [[True, False], [False, True]]
    assert shares.compressed().tolist() == pytest.approx([10, 0.5])
    assert axes.images[0].get_clim() == (0, 10)


@pytest.mark.parametrize("classes", [1, 2, 10, 30, 31, 40, 200])
def test_confusion_of_any_number_of_classes(classes):
    rows, columns = np.indices((classes, classes))
    confusion = ((rows + columns) % 3 == 0) + 99 * np.eye(classes, dtype=int)
    figure = plots.confusion_matrix(confusion, [f"class {i}" for i in range(classes)])
    assert len(png(figure)) < 200_000
    assert len(texts(figure)) == (np.count_nonzero(confusion) + classes + 1 if classes <= 30 else 0)
    assert len(visible_ticks(figure.axes[0].xaxis)) <= 50


def test_long_class_names_leave_room_for_the_matrix():
    figure = plots.confusion_matrix(np.eye(10, dtype=int), ["a name that goes on and on " * 5] * 10)
    png(figure)
    axes = figure.axes[0]
    assert axes.get_xticklabels()[0].get_text() == "a name that goes on…"
    assert axes.get_xticklabels()[0].get_rotation() == 90
    assert axes.bbox.height > figure.bbox.height / 2


def test_a_perfect_confusion_matrix_is_all_white():
    figure = plots.confusion_matrix(np.diag([5, 6]), ["0", "1"])
    assert texts(figure) == ["5", "6", "error rate", "0.0 %", "0.0 %"]
    assert figure.axes[0].images[0].get_clim() == (0, 1)
    png(figure)


def test_confusion_refuses_missing_names():
    with pytest.raises(ValueError, match="need 2 class names, got 1"):
        plots.confusion_matrix(np.eye(2, dtype=int), ["0"])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (8, 4), (10, 5), (11, 4), (25, 5), (100, 10)])
def test_samples_are_one_image_that_holds_all_of_them(count, columns, channels):
    pixels = images(count, channels)
    figure = plots.samples(pixels, np.arange(count), [str(i) for i in range(count)])
    png(figure)
    assert texts(figure) == [str(i) for i in range(count)]
    (image,) = figure.axes[0].images
    canvas = np.asarray(image.get_array())
    rows = math.ceil(count / columns)
    height, width = canvas.shape[0] // rows, canvas.shape[1] // columns
    # A tile ends with a margin of one pixel on the right and at the bottom (28 // 16).
    for place in (0, count - 1):
        bottom, right = (place // columns + 1) * height - 1, (place % columns + 1) * width - 1
        tile = canvas[bottom - 28 : bottom, right - 28 : right].reshape(28, 28, channels)
        np.testing.assert_array_equal(tile, pixels[place])


def test_a_caption_stands_above_its_image_and_within_the_figure():
    figure = plots.mistakes(images(25), np.zeros(25, int), np.tile([0.0, 9.0], (25, 1)), ["T-shirt/top", "Ankle boot"])
    png(figure)
    width, height = figure.bbox.width, figure.bbox.height
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert all(0 <= box.x0 < box.x1 <= width and 0 <= box.y0 < box.y1 <= height for box in boxes)
    assert not any(one.overlaps(other) for one in boxes for other in boxes if one is not other)


def test_augmented_images_stand_beside_their_originals_and_mixed_labels_are_named():
    before, shares = Split(images(2), np.array([1, 0])), np.array([[0.25, 0.75], [1.0, 0.0]], np.float32)
    plain = plots.augmented(before, Split(255 - before.images, before.labels), ("a", "b"))
    mixed = plots.augmented(before, Split(255 - before.images, shares), ("a", "b"))
    assert texts(plain) == ["b", "a"]
    assert texts(mixed) == ["0.75 of b\n0.25 of a", "1.00 of a\n0.00 of b"]
    canvas = np.asarray(plain.axes[0].images[0].get_array())
    pair = canvas[-31:-3, -62:-3].reshape(28, 59)  # two images, and 3 white pixels between and behind them
    np.testing.assert_array_equal(pair[:, :28], before.images[1, ..., 0])
    np.testing.assert_array_equal(pair[:, 31:], 255 - pair[:, :28])
    assert png(mixed)


def test_a_figure_without_samples_has_a_text():
    figure = plots.samples(images(0), np.zeros(0, int), "01")
    assert texts(figure) == ["no images"]
    assert png(figure)


def test_small_images_that_are_not_square():
    assert png(plots.samples(images(6)[:, :8, :20], np.arange(6), "012345"))


def test_mistakes_are_sorted_by_confidence():
    logits = np.log([[0.02, 0.98], [0.9, 0.1], [0.25, 0.75]])
    figure = plots.mistakes(images(3), np.array([0, 1, 1]), logits, ["Bag", "a name that goes on and on"])
    title = "mistakes: 2 of 3 images, most confident first"
    long = "a name that goes on…"
    assert texts(figure) == [title, f"true Bag\npredicted {long}\n(98.0 %)", f"true {long}\npredicted Bag\n(90.0 %)"]


def test_at_most_25_mistakes_are_shown_in_a_small_file():
    rng = np.random.default_rng(0)
    figure = plots.mistakes(images(1000), np.zeros(1000, int), rng.normal(size=(1000, 10)), "0123456789")
    assert len(figure.axes[0].texts) == 25
    assert len(png(figure)) < 200_000  # noise: nothing compresses worse


def test_a_figure_without_mistakes_has_a_text():
    figure = plots.mistakes(images(3), np.array([0, 1, 0]), np.eye(2)[[0, 1, 0]], "01")
    assert texts(figure) == ["no mistakes in 3 images"]
    assert png(figure)


def test_mistakes_of_a_diverged_model():
    assert png(plots.mistakes(images(3), np.array([0, 1, 1]), np.full((3, 2), np.nan), "01"))


def test_a_figure_is_freed_with_its_last_reference():
    figure = plots.curves(HISTORY)
    png(figure)
    gone = weakref.ref(figure)
    del figure
    gc.collect()
    assert gone() is None


def test_sweep_has_a_row_per_configuration_sorted_by_mean():
    scores = {"a": [0.90, 0.94], "b": [0.93], "c": [0.95, 0.97, 0.96]}
    (axes,) = plots.sweep(scores).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["c", "b", "a"]
    dots = [sorted(np.asarray(line.get_xdata())) for line in axes.lines if line.get_marker() == "o"]
    assert dots == [pytest.approx([95, 96, 97]), pytest.approx([93]), pytest.approx([90, 94])]
    assert [np.asarray(line.get_xdata())[0] for line in axes.lines if line.get_marker() == "|"] == pytest.approx(
        [96, 92]
    )


@pytest.mark.parametrize(
    ("accuracies", "ticks"),
    [([0.97, 0.98], None), ([0.1, 0.9, 0.98], [10, 50, 80, 90, 95, 98]), ([1.0, 0.1], None), ([], None)],
    ids=["alike", "far apart", "no error", "nothing"],
)
def test_sweep_spaces_accuracies_by_error_when_errors_differ_tenfold(accuracies, ticks):
    figure = plots.sweep({str(value): [value] for value in accuracies})
    assert len(png(figure)) > 1000
    (axes,) = figure.axes
    assert (axes.get_xscale() == "function") is (ticks is not None)
    if ticks is not None:
        assert list(axes.get_xticks()) == ticks
        low, high = axes.get_xlim()
        assert low < 10 < 98 < high


def test_sweep_shows_at_most_forty_configurations():
    (axes,) = plots.sweep({f"{n} " + "x" * 100: [n / 1000] for n in range(900)}).axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(labels) == 40
    assert max(map(len, labels)) == 60
    assert axes.get_title(loc="left") == "best 40 of 900 configurations"


@pytest.mark.parametrize("values", [[0.0, 0.0], [0.0, 1e-9, 0.5], [math.nan, math.inf], [0.1], []])
def test_differences_show_every_value_and_zero(values):
    names = ("train_loss", "val_loss", "train_accuracy", "val_accuracy")
    figure = plots.differences(dict.fromkeys(names, values), title="identical: a$b")
    (axes,) = figure.axes
    assert [list(line.get_ydata()) for line in axes.lines] == [pytest.approx(values, nan_ok=True)] * 4
    assert [line.get_label() for line in axes.lines] == list(names)
    low, high = axes.get_ylim()
    assert low == 0
    assert high > max([0, *filter(math.isfinite, values)])
    png(figure)
