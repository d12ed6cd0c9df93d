"""`python -m mnist_exp.reproduce RUN`: train a run again from its record and check whether the result is the same.

Exit codes: 0 identical, or equal within tolerance without --strict; 1 different, or the run failed; 2 invalid request;
130 Ctrl-C; 143 SIGTERM.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from mnist_exp import commands, console
from mnist_exp.errors import EXIT_FAILED, RequestError
from mnist_exp.reproduction import replay, verdict

ARCHIVE = ("archive", "capsule")  # the second is the name in earlier versions
RUN = "run id, the beginning of a run id, or run name"


def _reproduce(given: Sequence[str]) -> int:
    parser = commands.Parser(
        "reproduce",
        (commands.store_option(),),
        description=commands.COMMANDS["reproduce"].capitalize() + ".",
        epilog="To pack a run into one file: python -m mnist_exp.reproduce archive RUN out.zip",
    )
    parser.add_argument("run", help=f"{RUN}, a downloaded config.yaml, or an archive (.zip)")
    parser.add_argument("--epochs", type=int, metavar="N", help="train and compare the first N epochs only")
    parser.add_argument("--strict", action="store_true", help="exit with 1 unless the result is identical")
    parser.add_argument(
        "--dry-run", action="store_true", help="list the differences between then and now; train nothing"
    )
    parser.add_argument("--checkout", type=Path, metavar="DIR", help="restore the run's code into DIR; train nothing")
    parser.add_argument(
        "--trust", action="store_true", help="let the config call any code, not only that of this package and of Keras"
    )
    arguments = parser.parse_args(given)
    then, own = replay.find(arguments.run, arguments.tracking_uri)
    trusted = arguments.trust or own
    if arguments.checkout is not None:
        replay.restore_code(then, arguments.checkout)
    elif arguments.dry_run:
        replay.dry_run(then, trusted=trusted)
    else:
        report = replay.train_again(then, arguments.epochs, arguments.tracking_uri, trusted=trusted)
        console.say("\n".join(report.lines()))
        accepted = {verdict.IDENTICAL} if arguments.strict else {verdict.IDENTICAL, verdict.EQUAL}
        return 0 if report.verdict in accepted else EXIT_FAILED
    return 0


def _archive(given: Sequence[str]) -> int:
    parser = commands.Parser("reproduce", (commands.store_option(),), description="Pack a run into one zip.")
    parser.prog += " archive"
    parser.add_argument("run", help=RUN)
    parser.add_argument("out", type=Path, help="the zip to write")
    arguments = parser.parse_args(given)
    if arguments.out.suffix != ".zip":
        raise RequestError(f"an archive's name must end in .zip, got {arguments.out}")
    console.say(replay.pack(arguments.run, arguments.tracking_uri, arguments.out))
    return 0


def main() -> None:
    """Runs the command and exits with its code."""
    given = sys.argv[1:]

    def command() -> int:
        with console.interruptible():
            return _archive(given[1:]) if given[:1] and given[0] in ARCHIVE else _reproduce(given)

    interrupted = "interrupted; a reproduction that had begun is recorded as KILLED"
    sys.exit(commands.run(command, failed="the reproduction failed", interrupted=interrupted))


if __name__ == "__main__":
    main()
