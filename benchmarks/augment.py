"""`python -m benchmarks.augment [--quick]`: an epoch with an augmentation against one without, side by side.

Each row trains both, one after the other, each in a process of its own, and compares the medians of the seconds between
the ends of two epochs. The rows are repeated in turns; the table has the smallest of each side's medians, because
another process can only add to them. It goes to standard output and to benchmarks/results/augment.md.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.speed import RESULTS, execute, machine_line, run_ours

BASE = ("data=mnist", "data.validation=test", "trainer.checkpoint=false")


class Work(NamedTuple):
    """A row: a model, an augmentation, and the most that an epoch may take with it."""

    model: str
    augment: str
    epochs: int
    times: float = float("inf")  # of the epoch without
    more: float = float("inf")  # seconds above the epoch without


WORKS = (
    Work("cnn", "affine", 4, times=1.15),
    Work("mlp", "affine", 10, times=2),
    Work("mlp", "elastic", 10, more=1.0),
    *(Work("mlp", name, 10) for name in ("shift", "crop", "cutout", "noise", "flip", "mixup", "cutmix")),
)


def epoch_seconds(folder: Path, model: str, augment: str, epochs: int) -> float:
    """Median of the seconds between the ends of two epochs of 60,000 images."""
    found = run_ours(folder, f"model={model}", f"augment={augment}", f"trainer.epochs={epochs}", *BASE)
    return statistics.median(np.diff([epoch["time"] for epoch in found]))


def row(work: Work, without: float, augmented: float) -> str:
    """A line of the table."""
    times, more = augmented / without, augmented - without
    bar = (
        f"<= {work.times:g} x"
        if work.times < float("inf")
        else f"<= {work.more:g} s"
        if work.more < float("inf")
        else ""
    )
    met = "" if not bar else "yes" if times <= work.times and more <= work.more else "**no**"
    cells = (
        f"`{work.model}`",
        f"`{work.augment}`",
        f"{without:.2f}",
        f"{augmented:.2f}",
        f"{times:.2f}",
        f"{more:+.2f}",
    )
    return f"| {' | '.join((*cells, bar, met))} |"


def main() -> None:
    """Measure every row and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only the rows that have a bar")
    parser.add_argument("--only", default="", help="rows whose model and augmentation contain this, as in mlp,affine")
    parser.add_argument("--repeats", type=int, default=2, help="turns, of which the fastest counts")
    settings = parser.parse_args()
    lines = [
        machine_line(),
        "",
        "| model | augment | without, s | with, s | times | more, s | bar | met |",
        "|---|---|--:|--:|--:|--:|---|---|",
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        execute(folder, "mnist_exp.train", "experiment=smoke")  # creates the database
        for work in WORKS:
            barred = min(work.times, work.more) < float("inf")
            if settings.only not in f"{work.model},{work.augment}" or (settings.quick and not barred):
                continue
            turns = [
                [epoch_seconds(folder, work.model, option, work.epochs) for option in ("none", work.augment)]
                for _ in range(settings.repeats)
            ]
            lines.append(row(work, *np.min(turns, axis=0)))
            print(lines[-1], turns, file=sys.stderr, flush=True)
    table = "\n".join(lines) + "\n"
    print(table)
    if not (settings.only or settings.quick):
        (RESULTS / "augment.md").write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
