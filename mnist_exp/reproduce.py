"""`python -m mnist_exp.reproduce RUN`: train a run again from its record and say whether the result is the same.

Exit codes: 0 identical, or (without --strict) equal within tolerance; 1 different, or the run failed; 2 it could not be
tried; 130 Ctrl-C and 143 SIGTERM.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from mnist_exp import console
from mnist_exp.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_SENSELESS, RequestError, RunError
from mnist_exp.reproduction.record import from_store, write_capsule
from mnist_exp.reproduction.replay import reproduce
from mnist_exp.sweep.startup import import_tensorflow
from mnist_exp.training.checkpoint import digest


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{message}; {self.prog} --help says what there is")


def _arguments(given: Sequence[str]) -> argparse.Namespace:
    parser = _Parser("python -m mnist_exp.reproduce", description=__doc__.partition("\n\n")[0].partition(": ")[2])
    parser.epilog = "To pack a run into one file: python -m mnist_exp.reproduce capsule RUN out.zip"
    parser.add_argument("run", help="run id, the beginning of one, run name, a downloaded config.yaml, or a capsule")
    parser.add_argument("--tracking-uri", help="where runs are; default: MLFLOW_TRACKING_URI, else ./mlflow.db")
    parser.add_argument("--epochs", type=int, metavar="N", help="check the first N epochs only")
    parser.add_argument("--strict", action="store_true", help="exit with 1 unless the result is identical")
    parser.add_argument("--dry-run", action="store_true", help="say what differs between then and now, train nothing")
    parser.add_argument("--checkout", type=Path, metavar="DIR", help="restore the run's code into DIR, train nothing")
    parser.add_argument("--trust", action="store_true", help="let the config call what is not this package's or Keras'")
    return parser.parse_args(given)


def _capsule(given: Sequence[str]) -> int:
    """Pack a run into one file."""
    parser = _Parser("python -m mnist_exp.reproduce capsule", description="Pack a run into one zip.")
    parser.add_argument("run", help="run id, the beginning of one, or run name")
    parser.add_argument("out", type=Path, help="the zip to write")
    parser.add_argument("--tracking-uri", help="where runs are; default: MLFLOW_TRACKING_URI, else ./mlflow.db")
    arguments = parser.parse_args(given)
    if arguments.out.suffix != ".zip":
        raise RequestError(f"a capsule's name must end in .zip, got {arguments.out}")
    record = from_store(arguments.run, arguments.tracking_uri)
    from mnist_exp import tracking

    import_tensorflow()
    from mnist_exp.models import saved_weights

    with tempfile.TemporaryDirectory() as scratch:
        folder = tracking.download(arguments.tracking_uri, str(record.run_id), "saved_model", Path(scratch))
        weights = saved_weights(folder)
    write_capsule(record, weights, arguments.out)
    epochs = [step for step, row in record.rows().items() if row.get("weights") == digest(weights)]
    said = f"those after epoch {epochs[0]}" if epochs else "those of no epoch: averaged at the end"
    console.say(f"{arguments.out}: {record.source}, {len(weights)} weights ({said})")
    return 0


def main() -> None:
    """The command."""
    given, code = sys.argv[1:], EXIT_SENSELESS
    try:
        with console.interruptible():
            code = _capsule(given[1:]) if given[:1] == ["capsule"] else reproduce(_arguments(given))
    except RequestError as error:
        console.complain(str(error))
    except (RunError, OSError) as error:
        console.complain(f"the reproduction failed: {error}")
        code = EXIT_FAILED
    except KeyboardInterrupt:
        console.complain("interrupted; a reproduction that was under way is recorded as KILLED")
        code = EXIT_INTERRUPTED
    sys.exit(code)


if __name__ == "__main__":
    main()
