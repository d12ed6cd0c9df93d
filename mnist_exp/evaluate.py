"""`python -m mnist_exp.evaluate RUN`: score finished runs, alone and as an ensemble. See docs/evaluating.md."""

import sys
from collections.abc import Sequence

from mnist_exp import commands, console
from mnist_exp.evaluation import run


def _evaluate(arguments: Sequence[str]) -> int:
    parser = commands.Parser(
        "evaluate",
        (commands.store_option(),),
        description="Scores finished runs on their own test images, or on other data, and records each as a run of "
        "kind evaluation. Several runs are scored as an ensemble, too.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run id, the beginning of a run id, or run name")
    parser.add_argument("--data", metavar="OPTION|FILE", help="an option of data, such as fashion_mnist, or a file")
    parser.add_argument(
        "--shifts", type=int, default=0, metavar="N", help="average over shifts of up to N pixels; default: 0"
    )
    parser.add_argument(
        "--log-model", action="store_true", help="log the ensemble of several runs as one model that MLflow can serve"
    )
    options = parser.parse_args(arguments)
    if options.log_model and (len(options.runs) < 2 or options.shifts):
        parser.error("--log-model needs several runs and no --shifts; each single run has its model already")
    if not 0 <= options.shifts <= run.MAX_SHIFT:
        parser.error(f"--shifts must be from 0 to {run.MAX_SHIFT} pixels, got {options.shifts}")
    uri, log_model = options.tracking_uri, options.log_model
    console.say(
        "\n".join(run.evaluate(options.runs, uri, data=options.data, shift=options.shifts, log_model=log_model))
    )
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    return commands.run(lambda: _evaluate(given), failed="the evaluation failed")


if __name__ == "__main__":
    sys.exit(main())
