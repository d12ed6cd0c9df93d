"""The figures of one run and of a sweep. Each function returns a figure that nothing else refers to."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mnist_exp import scores
from mnist_exp.data import Split
from mnist_exp.figures.axes import DPI, NUMBERS, log_scale, new_figure, plain, shorten, whole_epochs
from mnist_exp.figures.style import BLUE, GREY, VERMILLION

FONT = 13  # points; can still be read at half size
LETTER = 0.54  # mean width of a letter, in font sizes
MAX_LARGE_CLASSES = 12  # a larger confusion matrix has smaller letters
MAX_NUMBERED_CLASSES = 30  # a larger one has no numbers, because they do not fit into its cells
MAX_NAMED_CLASSES = 50
MAX_MISTAKES = 25
MAX_CLASS_NAME = 20  # letters; longer names would leave no room for the confusion matrix
MAX_CONFIGURATIONS = 40
MAX_LABEL = 60  # letters
FLOAT32_STEP = 1e-7  # between 1 and the next float32
ERRORS = (90, 50, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)  # at the ticks of an axis spaced by the error, in %


def curves(history: Mapping[str, Sequence[float]], *, title: str = "", validation: str = "validation") -> Figure:
    """Loss and accuracy by epoch, with a mark at the epoch of the best validation accuracy.

    Args:
        history: values by epoch, from epoch 1, of `train_loss`, `val_loss` (nats), `train_accuracy` and
            `val_accuracy` (0..1). Any of them may be missing; other keys are ignored. A value that is not finite
            leaves a gap.
        title: title of the figure.
        validation: name of the validation curves: "test" if they come from the test set.
    """
    figure, panels = new_figure(10, 4.5, columns=2)
    losses, accuracies = (
        [np.asarray(history.get(f"{part}_{name}", ()), np.float64) * factor for part in ("train", "val")]
        for name, factor in (("loss", 1), ("accuracy", 100))
    )
    _draw_curves(panels[0], losses, "cross-entropy loss (nats)", validation)
    _draw_curves(panels[1], accuracies, "accuracy (%)", validation)
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


def lr_range(rates: Sequence[float], losses: Sequence[float], suggestion: float, *, title: str = "") -> Figure:
    """A range test: training loss against learning rate, with a mark at the rate that it suggests.

    Args:
        rates: learning rates, above 0.
        losses: the loss at each. What lies far above the first one is cut off.
        suggestion: a learning rate.
        title: title of the figure.
    """
    figure, (axes,) = new_figure(8, 4.5)
    axes.plot(rates, losses, color=BLUE)
    axes.axvline(suggestion, color=GREY, linestyle=":", linewidth=1.5, label=f"suggested: {suggestion:.2g}")
    plain(axes, FONT, "learning rate", "training loss")
    log_scale(axes, "x")
    finite = [loss for loss in losses if math.isfinite(loss)]
    axes.set_ylim(0.9 * min(finite), 1.1 * min(max(finite), 1.5 * finite[0]))
    axes.legend(frameon=False, fontsize=FONT)
    axes.set_title(title, fontsize=FONT + 2, parse_math=False)
    return figure


def confusion_matrix(confusion: np.ndarray, class_names: Sequence[str]) -> Figure:
    """A confusion matrix with counts in its cells and the error rate of each class beside it.

    The colour is the share of the class in percent, without the diagonal, which is far larger than any error. With
    more than 30 classes there are colours only.

    Args:
        confusion: integers (k, k); rows are true classes, columns predicted ones.
        class_names: the k names.

    Raises:
        ValueError: the number of names is not k.
    """
    classes = len(confusion)
    if len(class_names) != classes:
        raise ValueError(f"need {classes} class names, got {len(class_names)}")
    images = confusion.sum(axis=1, keepdims=True)
    share = 100 * np.divide(confusion, images, out=np.zeros(confusion.shape), where=images > 0)
    errors = np.ma.masked_array(share, mask=np.eye(classes, dtype=bool))
    figure, (axes,) = new_figure(9, 7.6)
    axes.set_facecolor("0.85")  # the colour of the masked diagonal
    # Without any error the colours would span 0 to 0.
    top = float(errors.max()) if classes > 1 and errors.max() > 0 else 1.0
    bar = figure.colorbar(axes.imshow(errors, cmap="Blues", vmin=0, vmax=top), ax=axes, shrink=0.8, pad=0.02)
    bar.set_label("errors, share of the true class (%)", fontsize=FONT)
    bar.ax.tick_params(labelsize=FONT - 2)
    bar.outline.set_visible(False)
    plain(axes, FONT, "predicted label", "true label", grid="")
    _name_classes(axes, class_names)
    if classes <= MAX_NUMBERED_CLASSES:
        _number_cells(axes, confusion, np.asarray(errors.filled(0)) > top / 2)
    return figure


def samples(images: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Images with the names of their classes.

    Args:
        images: uint8 (n, h, w, c) with c = 1 (grey) or 3 (RGB).
        labels: true classes (n,).
        class_names: the k names.
    """
    return tiles(images, [shorten(class_names[label], MAX_CLASS_NAME) for label in labels])


def augmented(before: Split, after: Split, class_names: Sequence[str]) -> Figure:
    """Training images, each beside the same image after the augmentation.

    Args:
        before: uint8 images (n, h, w, c) with c = 1 (grey) or 3 (RGB), integer labels (n,).
        after: augmented images, and their labels. Mixed labels (n, k) are shares of the k classes.
        class_names: the k names.
    """
    height, width, channels = before.images.shape[1:]
    gap = np.full((len(before.images), height, max(1, width // 8), channels), 255, np.uint8)
    names = [shorten(name, MAX_CLASS_NAME) for name in class_names]
    captions = [names[label] for label in before.labels]
    if after.labels.ndim == 2:
        captions = [
            "\n".join(f"{shares[c]:.2f} of {names[c]}" for c in np.argsort(-shares)[:2]) for shares in after.labels
        ]
    return tiles(np.concatenate([before.images, gap, after.images], axis=2), captions)


def mistakes(images: np.ndarray, labels: np.ndarray, logits: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Up to 25 images with a wrong prediction and its probability, the most confident prediction first.

    Args:
        images: uint8 (n, h, w, c) with c = 1 (grey) or 3 (RGB).
        labels: true classes (n,).
        logits: floats (n, k).
        class_names: the k names.
    """
    names = [shorten(name, MAX_CLASS_NAME) for name in class_names]
    between = ", " if max(map(len, names)) <= 3 else "\n"  # digits fit into one line
    predictions = logits.argmax(axis=1)
    chosen = scores.most_confident_mistakes(logits, labels, MAX_MISTAKES)
    confidence = scores.softmax(logits[chosen]).max(axis=1)
    captions = [
        f"true {names[true]}{between}predicted {names[predicted]}\n({100 * probability:.1f} %)"
        for true, predicted, probability in zip(labels[chosen], predictions[chosen], confidence, strict=True)
    ]
    wrong = int((predictions != labels).sum())
    title = f"mistakes: {wrong:,} of {len(labels):,} images, most confident first"
    return tiles(images[chosen], captions, title=title if wrong else f"no mistakes in {len(labels):,} images")


def sweep(scores: Mapping[str, Sequence[float]]) -> Figure:
    """Validation accuracies: a row for each configuration, the best mean first, with a dot for each run.

    Args:
        scores: accuracies (0..1) of the runs, one for each seed, by the label of their configuration.
    """
    means = {name: 100 * float(np.mean(values)) for name, values in scores.items()}
    names = sorted(means, key=lambda name: -means[name])[:MAX_CONFIGURATIONS]
    figure, (axes,) = new_figure(10, 1.6 + 0.32 * len(names))
    for row, name in enumerate(names):
        values = 100 * np.asarray(scores[name])
        axes.plot(values, [row] * len(values), "o", color=BLUE, markersize=7, alpha=0.6, clip_on=False)
        if len(values) > 1:
            axes.plot([means[name]], [row], "|", color="black", markersize=16, markeredgewidth=2)
    plain(axes, FONT, "validation accuracy (%)")
    labels = [name if len(name) <= MAX_LABEL else "…" + name[1 - MAX_LABEL :] for name in names]
    axes.set_yticks(range(len(names)), labels, fontsize=FONT - 2, parse_math=False)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    _scale_by_error(axes, 100 * np.asarray([value for name in names for value in scores[name]]))
    title = "best first" if len(names) == len(scores) else f"best {len(names)} of {len(scores)} configurations"
    if any(len(scores[name]) > 1 for name in names):
        title += ", one dot per run, a bar at the mean"
    axes.set_title(title, fontsize=FONT, loc="left")
    return figure


def _scale_by_error(axes: Axes, values: np.ndarray) -> None:
    """Spaces accuracies (%) by the logarithm of the error if errors differ tenfold: else the best would overlap."""
    error = 100 - values
    if len(values) and error.min() > 0 and error.max() > 10 * error.min():
        axes.set_xscale(
            "function", functions=(lambda x: -np.log(np.maximum(100 - x, 1e-3)), lambda y: 100 - np.exp(-y))
        )
        high, low = 1.1 * error.max(), error.min() / 1.1
        axes.set_xlim(100 - high, 100 - low)
        axes.set_xticks([100 - tick for tick in ERRORS if low < tick < high])
        axes.xaxis.set_major_formatter(NUMBERS)


def differences(distances: Mapping[str, Sequence[float]], *, title: str = "") -> Figure:
    """Differences between a reproduced run and the original by epoch, on a logarithmic axis that includes zero.

    Args:
        distances: absolute differences by epoch, from epoch 1, for each metric; gaps where not finite.
        title: title of the figure.
    """
    figure, (axes,) = new_figure(8, 4.5)
    styles = ((BLUE, "-", "o"), (BLUE, "--", "s"), (VERMILLION, "-", "o"), (VERMILLION, "--", "s"))
    for (name, values), (color, line, marker) in zip(distances.items(), styles, strict=False):
        every = max(1, len(values) // 20)
        epochs = range(1, len(values) + 1)
        axes.plot(epochs, values, line, marker=marker, markevery=every, color=color, label=name, clip_on=False)
    axes.set_yscale("symlog", linthresh=FLOAT32_STEP)
    largest = max((value for values in distances.values() for value in values if math.isfinite(value)), default=0.0)
    axes.set_ylim(0, max(10 * FLOAT32_STEP, 2 * largest))
    plain(axes, FONT, "epoch", "absolute difference", grid="y")
    whole_epochs(axes)
    axes.set_title(title, fontsize=FONT, parse_math=False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=FONT)
    return figure


def _draw_curves(axes: Axes, curves: Sequence[np.ndarray], name: str, validation: str) -> None:
    """Draws the training and the validation curve, which differ in colour, line and marker."""
    epochs = max(1, *map(len, curves))
    styles = (("training", BLUE, "-", "o", BLUE), (validation, VERMILLION, "--", "s", "white"))
    for values, (label, color, line, marker, fill) in zip(curves, styles, strict=True):
        if len(values):
            axes.plot(
                range(1, len(values) + 1),
                values,
                linestyle=line,
                marker=marker,
                markevery=max(1, epochs // 20),  # a single point needs a marker, and many markers hide the line
                color=color,
                markerfacecolor=fill,
                label=label,
                linewidth=2,
                markersize=7,
                clip_on=False,  # shows whole markers at 100 %, on the frame
            )
    plain(axes, FONT, "epoch", name, grid="y")
    axes.set_xlim(0.5, epochs + 0.5)
    whole_epochs(axes)


def _scale_loss(axes: Axes, losses: Sequence[np.ndarray]) -> None:
    """Makes the axis logarithmic if the loss changes more than tenfold, and names the epoch in which it diverged."""
    values = np.concatenate(losses)
    finite = values[np.isfinite(values)]
    if len(finite) and finite.min() > 0 and finite.max() > 10 * finite.min():
        log_scale(axes, "y")
    else:
        axes.set_ylim(bottom=0)
    diverged = [int(epoch) + 1 for curve in losses for epoch in np.flatnonzero(~np.isfinite(curve))]
    if diverged:
        axes.set_title(f"loss is not finite in epoch {min(diverged)}", fontsize=FONT, color=VERMILLION)


def _scale_accuracy(axes: Axes, values: np.ndarray) -> None:
    """Fits the axis to the values, within 0 and 100 %, even if all values are equal."""
    finite = values[np.isfinite(values)]
    if len(finite):
        margin = max(0.06 * np.ptp(finite), 0.25)
        axes.set_ylim(max(finite.min() - margin, 0), min(finite.max() + margin, 100))


def _name_classes(axes: Axes, class_names: Sequence[str]) -> None:
    """Names rows and columns. Of more than 50 classes some are not named; names too wide for a column are turned."""
    classes = len(class_names)
    size = FONT if classes <= MAX_LARGE_CLASSES else 10 if classes <= MAX_NUMBERED_CLASSES else 8
    ticks = range(0, classes, -(-classes // MAX_NAMED_CLASSES))
    names = [shorten(class_names[tick], MAX_CLASS_NAME) for tick in ticks]
    turned = LETTER * size * max(map(len, names)) * len(names) > 450  # points: most of the matrix' width
    axes.set_xticks(ticks, names, rotation=90 if turned else 0, fontsize=size, parse_math=False)
    axes.set_yticks(ticks, names, fontsize=size, parse_math=False)


def _number_cells(axes: Axes, confusion: np.ndarray, dark: np.ndarray) -> None:
    """Writes counts into the cells, in white where `dark` (bool (k, k)), and the error rate beside each row."""
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


def tiles(images: np.ndarray, captions: Sequence[str], title: str = "") -> Figure:
    """Images in a grid, each with a caption above it.

    Args:
        images: uint8 (n, h, w, c) with c = 1 (grey) or 3 (RGB).
        captions: n texts with equal numbers of lines.
        title: title of the figure, or its only text if there are no images.
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
            parse_math=False,
        )
    figure.text(0.5, 1 - 0.1 / paper_height, title, ha="center", va="top", fontsize=FONT)
    return figure


def _columns(count: int) -> int:
    """The number of columns of a grid at least as wide as high that leaves the fewest places empty."""
    square = math.isqrt(count - 1) + 1
    return min(range(square, 2 * square + 1), key=lambda columns: (-count % columns, columns))


def _grid(tiles: np.ndarray, columns: int) -> np.ndarray:
    """Joins tiles (n, h, w, c) to one image, because axes for each image would take many times as long to draw."""
    count, height, width, channels = tiles.shape
    rows = -(-count // columns)
    filled = np.full((rows * columns, height, width, channels), 255, np.uint8)
    filled[:count] = tiles
    grid = filled.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return grid.reshape(rows * height, columns * width, channels)
