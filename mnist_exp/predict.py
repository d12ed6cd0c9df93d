"""`python -m mnist_exp.predict RUN IMAGES OUT`: what a run's model says of images. See docs/evaluating.md."""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from mnist_exp import commands, console
from mnist_exp.errors import RequestError
from mnist_exp.evaluation import run


def _predict(arguments: Sequence[str]) -> int:
    parser = commands.Parser(
        "predict",
        (commands.store_option(),),
        description="Writes a CSV file with a row for each image: its name, the most probable class, and the "
        "probability of every class.",
    )
    parser.add_argument("run", metavar="RUN", help="run id, the beginning of a run id, or run name")
    parser.add_argument("images", metavar="IMAGES", help="a folder of image files, or an .npz file with one array")
    parser.add_argument("out", type=Path, metavar="OUT", help="the CSV file to write")
    options = parser.parse_args(arguments)
    names, classes, probabilities = run.predict_images(options.run, options.tracking_uri, options.images)
    try:
        with options.out.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["image", "label", *classes])
            for name, row in zip(names, probabilities, strict=True):
                table.writerow([name, classes[row.argmax()], *(f"{value:.6g}" for value in row)])
    except OSError as error:
        raise RequestError(f"{options.out} cannot be written: {error.strerror}") from error
    console.say(f"{options.out}: {len(names):,} images of {len(classes)} classes")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    return commands.run(lambda: _predict(given), failed="the prediction failed")


if __name__ == "__main__":
    sys.exit(main())
