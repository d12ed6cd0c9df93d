"""What the commands share: their list, `--version`, the option for the tracking store, one-line errors, exit codes."""

import argparse
import textwrap
from collections.abc import Callable
from typing import Any, NoReturn

import mnist_exp
from mnist_exp import console
from mnist_exp.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_INVALID, RequestError, RunError

COMMANDS = {
    "train": "train one run, or with -m a sweep of runs",
    "compare": "compare tracked runs over their seeds, show one run, or the differences of two",
    "reproduce": "train a run again from its record and say whether the result is the same",
    "relocate": "after a project folder was moved, correct the artifact locations in its tracking store",
}
MANUAL = "The manual is the folder docs/ of the project. It begins with docs/index.md."


class Parser(argparse.ArgumentParser):
    """Parser of one command, or of the package: raises a mistake as a `RequestError` that takes one line."""

    def __init__(self, command: str | None, parents: tuple[argparse.ArgumentParser, ...] = (), **options: Any) -> None:
        title = "other commands:" if command else "commands, each with --help:"
        listed = [f"  python -m mnist_exp.{name:<10} {does}" for name, does in COMMANDS.items() if name != command]
        before = [options.pop("epilog"), ""] if "epilog" in options else []
        description = textwrap.fill(options.pop("description"), 100)  # the formatter leaves both texts as they are
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
        """Raise the mistake instead of printing the usage, which takes several lines."""
        raise RequestError(f"{message}; {self.prog} --help lists the arguments")


def version() -> str:
    """The line that `--version` prints."""
    return f"mnist_exp {mnist_exp.__version__}"


def store_option() -> argparse.ArgumentParser:
    """Parent parser with `--tracking-uri`."""
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument(
        "--tracking-uri", metavar="URI", help="the tracking store; default: MLFLOW_TRACKING_URI, else ./mlflow.db"
    )
    return parent


def run(command: Callable[[], int], *, failed: str = "failed", interrupted: str | None = None) -> int:
    """Run the work of a command; returns its exit code.

    Args:
        command: returns an exit code; its errors of a user are printed here, each in a line.
        failed: begins the line for an error that is not a mistake in the arguments, such as a full disk.
        interrupted: printed after Ctrl-C.
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
