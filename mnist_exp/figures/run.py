"""Results as matplotlib figures.

Every function returns a `matplotlib.figure.Figure` of its own: nothing is registered with pyplot, so nothing
global changes and nothing needs closing. Colours are Okabe and Ito's, which the colour-blind can tell apart.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from mnist_exp import scores
from mnist_exp.figures.style import BLUE, GREY, VERMILLION

DPI = 110
FONT = 13  # points; can still be read at half size
LETTER = 0.54  # mean width of a letter, in font sizes
MAX_LARGE_CLASSES = 12  # of more, the matrix needs smaller letters
MAX_NUMBERED_CLASSES = 30  # of more, the numbers would not fit into the cells
MAX_NAMED_CLASSES = 50
MAX_MISTAKES = 25
MAX_CONFIGURATIONS = 40
MAX_LABEL = 60  # letters
FLOAT32_STEP = 1e-7  # next to 1


def curves(history: Mapping[str, Sequence[float]], *, title: str = "", validation: str = "validation") -> Figure:
    """Plots loss and accuracy by epoch and marks the epoch of the best validation accuracy.

    Args:
        history: Values per epoch, the first being epoch 1, of `train_loss`, `val_loss` (nats),
            `train_accuracy` and `val_accuracy` (0..1). Each may be missing, other keys are ignored.
            A value that is not finite leaves a gap; the loss panel tells where the first one is.
        title: Title of the figure.
        validation: What to call the validation curves: "test" if they come from the test set.
    """
    figure = Figure(figsize=(10, 4.5), dpi=DPI, layout=ConstrainedLayoutEngine(wspace=0.06))
    panels = figure.subplots(1, 2)
    losses, accuracies = (
        [np.asarray(history.get(f"{part}_{name}", ()), np.float64) * factor for part in ("train", "val")]
        for name, factor in (("loss", 1), ("accuracy", 100))
    )
    _draw_curves(panels[0], losses, validation)
    _draw_curves(panels[1], accuracies, validation)
    _scale_loss(panels[0], losses)
    _scale_accuracy(panels[1], np.concatenate(accuracies))
    if np.isfinite(accuracies[1]).any():
        best = int(np.nanargmax(accuracies[1]))
        text = f"best {validation} accuracy: {accuracies[1][best]:.2f} % in epoch {best + 1}"
        for axes in panels:
            axes.axvline(best + 1, color=GREY, linestyle=":", linewidth=1.5, zorder=0, label=text)
    handles, labels = panels[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=FONT)
    if title:
        figure.suptitle(title, fontsize=FONT + 2, parse_math=False)
    return figure


def confusion_matrix(confusion: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Plots which classes are taken for which.

    Cells hold counts, empty ones zero. Colour is the share of the row's images and leaves the diagonal out,
    which would otherwise outshine all errors. Above 30 classes there is colour only.

    Args:
        confusion: Integers (k, k), rows are true classes.
        class_names: The k names.

    Raises:
        ValueError: If the number of names is not k.
    """
    classes = len(confusion)
    if len(class_names) != classes:
        raise ValueError(f"need {classes} class names, got {len(class_names)}")
    present = confusion.sum(axis=1, keepdims=True)
    share = 100 * np.divide(confusion, present, out=np.zeros(confusion.shape), where=present > 0)
    errors = np.ma.masked_array(share, mask=np.eye(classes, dtype=bool))
    figure = Figure(figsize=(9, 7.6), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("0.85")  # what shows through on the diagonal
    # A perfect matrix still needs a scale: its own would be 0..0.
    top = float(errors.max()) if classes > 1 and errors.max() > 0 else 1.0
    image = axes.imshow(errors, cmap="Blues", vmin=0, vmax=top)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02)
    bar.set_label("errors, share of the true class (%)", fontsize=FONT)
    bar.ax.tick_params(labelsize=FONT - 2)
    bar.outline.set_visible(False)
    _name_classes(axes, class_names)
    if classes <= MAX_NUMBERED_CLASSES:
        _number_cells(axes, confusion, np.asarray(errors.filled(0)) > top / 2)
    return figure


def samples(images: np.ndarray, labels: np.ndarray, predictions: np.ndarray | None = None) -> Figure:
    """Shows images under their labels, and where a prediction differs, what it was.

    Args:
        images: uint8 (n, h, w, c), c being 1 (grey) or 3 (RGB).
        labels: True classes (n,).
        predictions: Predicted classes (n,).
    """
    if predictions is None:
        return tiles(images, [str(label) for label in labels])
    pairs = list(zip(labels, predictions, strict=True))
    captions = [str(label) if label == said else f"true {label}, said {said}" for label, said in pairs]
    return tiles(images, captions, [label != said for label, said in pairs])


def mistakes(images: np.ndarray, labels: np.ndarray, logits: np.ndarray) -> Figure:
    """Shows the up to 25 wrong predictions the model was surest of, with their probabilities.

    Args:
        images: uint8 (n, h, w, c), c being 1 (grey) or 3 (RGB).
        labels: True classes (n,).
        logits: Floats (n, k).
    """
    predictions = logits.argmax(axis=1)
    chosen = scores.most_confident_mistakes(logits, labels, MAX_MISTAKES)
    confidence = scores.softmax(logits[chosen]).max(axis=1)
    captions = [
        f"true {label}, said {said}\n({100 * probability:.1f} %)"
        for label, said, probability in zip(labels[chosen], predictions[chosen], confidence, strict=True)
    ]
    wrong = int((predictions != labels).sum())
    title = f"mistakes: {wrong:,} of {len(labels):,} images, most confident first"
    return tiles(images[chosen], captions, title=title if wrong else f"no mistakes in {len(labels):,} images")


def sweep(scores: Mapping[str, Sequence[float]]) -> Figure:
    """Plots validation accuracies: a row for each configuration, best mean first, with a dot for each of its runs.

    Args:
        scores: Accuracies (0..1) of the runs, of different seeds, by what sets their configuration apart.
    """
    means = {name: 100 * float(np.mean(values)) for name, values in scores.items()}
    names = sorted(means, key=lambda name: -means[name])[:MAX_CONFIGURATIONS]
    figure = Figure(figsize=(10, 1.6 + 0.32 * len(names)), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for row, name in enumerate(names):
        values = 100 * np.asarray(scores[name])
        axes.plot(values, [row] * len(values), "o", color=BLUE, markersize=7, alpha=0.6, clip_on=False)
        if len(values) > 1:
            axes.plot([means[name]], [row], "|", color="black", markersize=16, markeredgewidth=2)
    labels = [name if len(name) <= MAX_LABEL else "…" + name[1 - MAX_LABEL :] for name in names]
    axes.set_yticks(range(len(names)), labels, fontsize=FONT - 2, parse_math=False)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="both", color="0.9")
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    _scale_by_error(axes, 100 * np.asarray([value for name in names for value in scores[name]]))
    several = any(len(scores[name]) > 1 for name in names)
    notes = ["best first"] + ["a dot a run, a bar at the mean"] * several
    if len(names) < len(scores):
        notes[0] = f"best {len(names)} of {len(scores)} configurations"
    axes.set_title(", ".join(notes), fontsize=FONT, loc="left")
    axes.set_xlabel("validation accuracy (%)", fontsize=FONT)
    return figure


def _scale_by_error(axes: Axes, values: np.ndarray) -> None:
    """Spaces accuracies (%) by the logarithm of the error if errors differ tenfold: else the best would be one dot."""
    error = 100 - values
    if len(values) and error.min() > 0 and error.max() > 10 * error.min():
        axes.set_xscale(
            "function", functions=(lambda x: -np.log(np.maximum(100 - x, 1e-3)), lambda y: 100 - np.exp(-y))
        )
        shown = [100 - error for error in (90, 50, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)]
        axes.set_xlim(100 - 1.1 * error.max(), 100 - error.min() / 1.1)
        axes.set_xticks([x for x in shown if 100 - x < 1.1 * error.max() and 100 - x > error.min() / 1.1])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.tick_params(axis="x", labelsize=FONT - 1)


def differences(distances: Mapping[str, Sequence[float]], *, title: str = "") -> Figure:
    """Plots how far metrics of a run made again are from what they were, by epoch, on a logarithmic axis with a zero.

    Args:
        distances: Values of at least 0 per epoch, the first being epoch 1, by metric; gaps where not finite.
        title: Title of the figure.
    """
    figure = Figure(figsize=(8, 4.5), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    styles = ((BLUE, "-", "o"), (BLUE, "--", "s"), (VERMILLION, "-", "o"), (VERMILLION, "--", "s"))
    for (name, values), (color, line, marker) in zip(distances.items(), styles, strict=False):
        epochs = range(1, len(values) + 1)
        every = max(1, len(values) // 20)
        axes.plot(epochs, values, line, marker=marker, markevery=every, color=color, label=name, clip_on=False)
    axes.set_yscale("symlog", linthresh=FLOAT32_STEP)
    largest = max((value for values in distances.values() for value in values if math.isfinite(value)), default=0.0)
    axes.set_ylim(0, max(10 * FLOAT32_STEP, 2 * largest))
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=(1, 2, 5, 10), integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch", fontsize=FONT)
    axes.set_ylabel("difference now - then, absolute", fontsize=FONT)
    axes.tick_params(labelsize=FONT - 1)
    axes.grid(axis="y", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=FONT, parse_math=False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=FONT)
    return figure


def _draw_curves(axes: Axes, curves: Sequence[np.ndarray], validation: str) -> None:
    """Draws training and validation, told apart by line and marker too, over an axis of whole epochs."""
    epochs = max(1, *map(len, curves))
    styles = (("training", BLUE, "-", "o", BLUE), (validation, VERMILLION, "--", "s", "white"))
    for values, (label, color, line, marker, fill) in zip(curves, styles, strict=True):
        if len(values):
            axes.plot(
                range(1, len(values) + 1),
                values,
                linestyle=line,
                marker=marker,
                markevery=max(1, epochs // 20),  # single points stay visible, many do not clutter
                color=color,
                markerfacecolor=fill,
                label=label,
                linewidth=2,
                markersize=7,
                clip_on=False,  # whole markers also at 100 %, where the frame is
            )
    axes.set_xlim(0.5, epochs + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=(1, 2, 5, 10), integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch", fontsize=FONT)
    axes.tick_params(labelsize=FONT - 1)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _scale_loss(axes: Axes, losses: Sequence[np.ndarray]) -> None:
    """Takes a logarithmic axis if the loss changes more than tenfold, and reports a loss that diverged."""
    axes.set_ylabel("cross-entropy loss (nats)", fontsize=FONT)
    values = np.concatenate(losses)
    finite = values[np.isfinite(values)]
    if len(finite) and finite.min() > 0 and finite.max() > 10 * finite.min():
        axes.set_yscale("log")
        few = finite.max() < 1e3 * finite.min()  # decades alone would leave too few ticks
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.minorticks_off()
    else:
        axes.set_ylim(bottom=0)
    diverged = [int(epoch) + 1 for curve in losses for epoch in np.flatnonzero(~np.isfinite(curve))]
    if diverged:
        axes.set_title(f"loss is not finite in epoch {min(diverged)}", fontsize=FONT, color=VERMILLION)


def _scale_accuracy(axes: Axes, values: np.ndarray) -> None:
    """Fits the axis to the values without going beyond 0 and 100 %, also when they are all the same."""
    axes.set_ylabel("accuracy (%)", fontsize=FONT)
    finite = values[np.isfinite(values)]
    if len(finite):
        margin = max(0.06 * np.ptp(finite), 0.25)
        axes.set_ylim(max(finite.min() - margin, 0), min(finite.max() + margin, 100))


def _name_classes(axes: Axes, class_names: Sequence[str]) -> None:
    """Names rows and columns, every n-th of very many; below narrow columns the names stand upright."""
    classes = len(class_names)
    size = FONT if classes <= MAX_LARGE_CLASSES else 10 if classes <= MAX_NUMBERED_CLASSES else 8
    ticks = range(0, classes, -(-classes // MAX_NAMED_CLASSES))
    # Names longer than 20 letters would leave no room for the matrix.
    names = [name if len(name) <= 20 else name[:19] + "…" for name in (class_names[tick] for tick in ticks)]
    upright = LETTER * size * max(map(len, names)) * len(names) > 450  # points, most of the matrix' width
    axes.set_xticks(ticks, names, rotation=90 if upright else 0, fontsize=size, parse_math=False)
    axes.set_yticks(ticks, names, fontsize=size, parse_math=False)
    axes.set_xlabel("predicted label", fontsize=FONT)
    axes.set_ylabel("true label", fontsize=FONT)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _number_cells(axes: Axes, confusion: np.ndarray, dark: np.ndarray) -> None:
    """Writes the counts into the cells, white on `dark` ones, and each row's error rate beside it."""
    classes = len(confusion)
    size = FONT if classes <= MAX_LARGE_CLASSES else 8
    for row, column in np.ndindex(classes, classes):
        count = confusion[row, column]
        if count or row == column:
            color = "white" if dark[row, column] else "black"
            axes.text(column, row, f"{count}", ha="center", va="center", fontsize=size, color=color)
    recall = scores.per_class(confusion)["recall"]
    beside: dict[str, Any] = {"textcoords": "offset points", "fontsize": size, "color": GREY}
    axes.annotate("error rate", (1, 1), (6, 5), xycoords="axes fraction", **beside)
    for row, images in enumerate(confusion.sum(axis=1)):
        rate = f"{100 * (1 - recall[row]):.1f} %" if images else "no images"
        axes.annotate(rate, (1, row), (6, 0), xycoords=axes.get_yaxis_transform(), va="center", **beside)


def tiles(images: np.ndarray, captions: Sequence[str], wrong: Sequence[bool] = (), title: str = "") -> Figure:
    """Draws images as a grid with captions.

    Args:
        images: uint8 (n, h, w, c), c being 1 (grey) or 3 (RGB).
        captions: n texts, all of as many lines as the first.
        wrong: Whose captions are in colour.
        title: Title of the figure; what it says when there are no images.
    """
    if not captions:
        figure = Figure(figsize=(6, 1.2), dpi=DPI)
        figure.text(0.5, 0.5, title or "no images", ha="center", va="center", fontsize=FONT)
        return figure
    columns = _columns(len(images))
    height, width = images.shape[1:3]
    pixels_per_inch = max(height, width) / min(1.5, 10 / columns)
    lines = captions[0].split("\n")
    longest = max(len(line) for caption in captions for line in caption.split("\n"))
    size = min(FONT, 72 * width / pixels_per_inch / (LETTER * longest))
    top = math.ceil((0.4 + 1.2 * len(lines)) * size / 72 * pixels_per_inch)
    gap = max(1, width // 16)
    canvas = _grid(np.pad(images, ((0, 0), (top, gap), (gap, gap), (0, 0)), constant_values=255), columns)

    grid_height, grid_width = (side / pixels_per_inch for side in canvas.shape[:2])
    paper_width = max(grid_width, LETTER * FONT / 72 * len(title))
    paper_height = grid_height + (0.4 if title else 0)
    share = grid_width / paper_width
    figure = Figure(figsize=(paper_width, paper_height), dpi=DPI)
    axes = figure.add_axes(((1 - share) / 2, 0, share, grid_height / paper_height))
    axes.imshow(canvas, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.axis("off")
    for place, caption in enumerate(captions):
        row, column = divmod(place, columns)
        axes.text(
            (column + 0.5) * (width + 2 * gap) - 0.5,
            row * (height + top + gap) + top - 0.5 - 0.2 * size / 72 * pixels_per_inch,
            caption,
            ha="center",
            va="bottom",
            fontsize=size,
            color=VERMILLION if wrong and wrong[place] else "black",
        )
    figure.text(0.5, 1 - 0.1 / paper_height, title, ha="center", va="top", fontsize=FONT)
    return figure


def _columns(count: int) -> int:
    """Columns of a grid at least as wide as high, with the fewest empty places."""
    square = math.isqrt(count - 1) + 1
    return min(range(square, 2 * square + 1), key=lambda columns: (-count % columns, columns))


def _grid(tiles: np.ndarray, columns: int) -> np.ndarray:
    """Joins tiles (n, h, w, c) to one image: drawing an Axes for each would take many times as long."""
    count, height, width, channels = tiles.shape
    rows = -(-count // columns)
    filled = np.full((rows * columns, height, width, channels), 255, np.uint8)
    filled[:count] = tiles
    grid = filled.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return grid.reshape(rows * height, columns * width, channels)
