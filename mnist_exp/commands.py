"""Parts that all commands share: their list, `--version`, `--tracking-uri`, one-line errors and exit codes."""

import argparse
import textwrap
from collections.abc import Callable
from typing import Any, NoReturn

import mnist_exp
from mnist_exp import console
from mnist_exp.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_INVALID, RequestError, RunError

COMMANDS = {
    "train": "train one run, or with -m a sweep of runs",
    "compare": "compare tracked runs over their seeds, show one run, or show the differences of two",
    "decide": "train two settings with more and more seeds, until it is decided which is better",
    "evaluate": "score finished runs on their test images or on other data, alone and as an ensemble",
    "predict": "write the class and the probabilities that a run's model predicts for images",
    "reproduce": "train a run again from its record and check whether the result is the same",
    "sync": "send records of runs that the tracking store did not accept",
    "relocate": "after a project folder was moved, correct the artifact locations in its tracking store",
}
MANUAL = "The manual is the folder docs/ of the project. It begins with docs/index.md."


class Parser(argparse.ArgumentParser):
    """Parser of one command, or of the package if `command` is None. A mistake raises a `RequestError`."""

    def __init__(self, command: str | None, parents: tuple[argparse.ArgumentParser, ...] = (), **options: Any) -> None:
        title = "other commands:" if command else "commands, each with --help:"
        listed = [f"  python -m mnist_exp.{name:<10} {does}" for name, does in COMMANDS.items() if name != command]
        before = [options.pop("epilog"), ""] if "epilog" in options else []
        description = textwrap.fill(options.pop("description"), 100)  # the raw formatter does not wrap
        super().__init__(
            description=description,
            prog=f"python -m mnist_exp.{command}" if command else "python -m mnist_exp",
            parents=parents,
            epilog="\n".join([*before, title, *listed, "", MANUAL]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,
        )
        self.add_argument("--version", action="version", version=version())

    def error(self, message: str) -> NoReturn:
        """Raises the mistake; argparse would print several lines of usage."""
        raise RequestError(f"{message}; {self.prog} --help lists the arguments")


def version() -> str:
    """The line that `--version` prints."""
    return f"mnist_exp {mnist_exp.__version__}"


def store_option() -> argparse.ArgumentParser:
    """A parent parser with `--tracking-uri`."""
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument(
        "--tracking-uri", metavar="URI", help="the tracking store; default: MLFLOW_TRACKING_URI, else ./mlflow.db"
    )
    return parent


def run(command: Callable[[], int], *, failed: str = "failed", interrupted: str | None = None) -> int:
    """Runs a command, prints its expected errors in one line each, and returns its exit code.

    Args:
        command: does the work and returns an exit code.
        failed: the start of the line for an error that is no mistake in the arguments, such as a full disk.
        interrupted: the line to print after Ctrl-C.
    """
    try:
        return command()
    except RequestError as error:
        console.complain(str(error))
        return EXIT_INVALID
    except (RunError, OSError) as error:
        console.complain(f"{failed}: {error}")
        return EXIT_FAILED
    except KeyboardInterrupt:
        if interrupted is not None:
            console.complain(interrupted)
        return EXIT_INTERRUPTED
