"""Terminal output: progress, one line per run, the table of a sweep, errors. Plain text if it is not a terminal."""

import functools
import math
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, NamedTuple, NoReturn

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mnist_exp.errors import EXIT_TERMINATED, interruption
from mnist_exp.redact import redact

MAX_LINES, MAX_LETTERS = 20, 2000  # limits of `complain`, because a stranger's config may have 6,000 mistakes
SAME_SECONDS = 1.0  # a second Ctrl-C within this time is ignored


class SummaryRow(NamedTuple):
    """One job in the table of a sweep; accuracies in 0..1, seconds of training."""

    job: int
    name: str
    status: str  # as in MLflow, or SKIPPED (an earlier run has the result), or NOT RUN
    swept: str  # overrides in which it differs from other jobs
    val_accuracy: float | None
    test_accuracy: float | None
    seconds: float | None
    run_id: str  # empty without a run


@contextmanager
def quiet_stderr(doing: str) -> Iterator[None]:
    """Holds back the standard error of native libraries while they start, and shows it only if that fails.

    The file descriptor is redirected, because no log level silences oneDNN. A terminal shows `doing` meanwhile.
    """
    sys.stderr.flush()
    real = os.dup(2)
    live = os.isatty(real) and os.environ.get("TTY_COMPATIBLE") != "0"  # as Rich decides
    if live:
        os.write(real, f"{doing} ...".encode())
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except Exception:
            held.seek(0)
            os.write(real, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(real, 2)
            if live:
                os.write(real, b"\r\x1b[2K")  # back to the start of the line, and erase it
            os.close(real)


class RunProgress:
    """The progress of one run: a bar on a terminal, else one line per epoch."""

    def __init__(self, name: str, epochs: int) -> None:
        self.name, self.epochs = name, epochs
        self.console = Console(stderr=True, highlight=False)
        # markup=False, because Rich would read a name such as [red] as a style.
        columns = (TextColumn("{task.description}", markup=False), BarColumn(12), TextColumn("{task.fields[text]}"))
        self.bar = Progress(
            *columns,
            TimeRemainingColumn(compact=True),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task(printable(name), total=float(epochs), text="compiling")

    def __enter__(self) -> "RunProgress":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def within_epoch(self, epochs: float, metrics: Mapping[str, float]) -> None:
        """Moves the bar to `epochs`, which may be a fraction."""
        text = f"epoch {math.ceil(epochs)}/{self.epochs} loss {metrics['loss']:.4f} accuracy {metrics['accuracy']:.2%}"
        self.bar.update(self.task, completed=epochs, text=text)

    def epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Prints a finished epoch, counted from 1, unless there is a bar."""
        text = (
            f"epoch {epoch}/{self.epochs}  loss {metrics['train_loss']:.4f}  accuracy {metrics['train_accuracy']:.2%}"
            f"  val_accuracy {metrics['val_accuracy']:.2%}"
        )
        if not self.console.is_terminal:
            say(f"{self.name}  {text}  {metrics['epoch_seconds']:.2f} s", sys.stderr)


def continued_line(name: str, epochs: int, run_id: str) -> str:
    """The line for a resumed run."""
    return f"{name}  continues run {run_id}, which was interrupted after {epochs} epochs (they are printed again)"


def summary_line(name: str, metrics: Mapping[str, float], epochs: int, execution: str, run_id: str) -> str:
    """The line for a finished run."""
    return (
        f"{name}  val_accuracy {metrics['final_val_accuracy']:.2%}  test_accuracy {metrics['test_accuracy']:.2%}"
        f"  {epochs} epochs in {metrics['fit_seconds']:.1f} s ({execution})  run {run_id}"
    )


def skipped_line(name: str, metrics: Mapping[str, float], run_id: str) -> str:
    """The line for a job whose result is taken from an earlier run."""
    shares = f"val_accuracy {metrics['final_val_accuracy']:.2%}  test_accuracy {metrics['test_accuracy']:.2%}"
    return f"{name}  {shares}  skipped: finished before  run {run_id}"


def again_line(name: str, run_id: str, difference: str) -> str:
    """The line for a job that is trained although a finished run has the same config."""
    return f"{name}  trained again: run {run_id} has the same config but {difference}"


def sweep_table(title: str, rows: Sequence[SummaryRow]) -> None:
    """Prints the runs of a sweep, in the given order, to standard output."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:  # one line per run without wrapping, so that grep finds whole runs
        say(title)
        for row in rows:
            say("  ".join((row.name, row.status, printable(row.swept), *figures(row), row.run_id)))
        return
    table = Table(title=printable(title), title_justify="left")
    for column in ("run", "status", "swept"):
        table.add_column(column, overflow="fold")
    for column in ("val", "test", "seconds"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("run id", no_wrap=True)
    for row in rows:
        style = {"FINISHED": "", "SKIPPED": "dim", "NOT RUN": "dim"}.get(row.status, "red")
        texts = map(printable, (row.name, row.status, row.swept))
        table.add_row(*texts, *figures(row), row.run_id[:8], style=style)
    console.print(table)


def figures(row: SummaryRow) -> tuple[str, str, str]:
    """The numbers of a row as text, with a dash for a missing one."""
    shares = ("-" if share is None else f"{share:.2%}" for share in (row.val_accuracy, row.test_accuracy))
    return (*shares, "-" if row.seconds is None else f"{row.seconds:.1f}")  # type: ignore[return-value]


@contextmanager
def interruptible() -> Iterator[None]:
    """Turns SIGTERM and Ctrl-C into exceptions. Ctrl-C is ignored afterwards, so that runs can close.

    A second Ctrl-C within `SAME_SECONDS` is ignored, because parents such as make send the terminal's signal again.
    """
    last = -math.inf

    def interrupt(*_: object) -> None:
        nonlocal last
        now = time.monotonic()
        if now > last + SAME_SECONDS:
            last = now
            raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminate)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as a shell sets it for background processes
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except Exception as error:
        if (stop := interruption(error)) is not None:
            raise stop from None
        raise
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def terminate(*_: object) -> NoReturn:
    """Handles SIGTERM by `SystemExit`, so that context managers close runs and files."""
    sys.exit(EXIT_TERMINATED)


def printable(text: str) -> str:
    """The text in one line, with control characters and line breaks escaped.

    A stranger may have written the names, tags and files of a store or an archive, and a terminal would obey them.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def say(text: str, file: IO[str] | None = None) -> None:
    """Prints lines with control characters escaped, by default to standard output."""
    print("\n".join(map(printable, text.split("\n"))), file=file or sys.stdout, flush=True)


def complain(message: str) -> None:
    """Prints the mistakes of a user to standard error, one per line, at most `MAX_LINES`."""
    lines = message.splitlines()
    for line in lines[:MAX_LINES]:
        # Cut before redaction to bound its time, and again after it, because a cut secret might not be recognised.
        say(f"error: {redact(line[: 2 * MAX_LETTERS])[:MAX_LETTERS]}", sys.stderr)
    if len(lines) > MAX_LINES:
        say(f"error: ... and {len(lines) - MAX_LINES:,} more", sys.stderr)


@functools.cache
def warn(message: str) -> None:
    """Prints a warning in one line to standard error, once in a process."""
    say(f"warning: {redact(' '.join(message.split()))}", sys.stderr)


def print_traceback(error: BaseException) -> None:
    """Prints the traceback of a bug to standard error."""
    say(redact("".join(traceback.format_exception(error))).rstrip("\n"), sys.stderr)


@functools.cache
def warn_no_mnist(used: str) -> None:
    """Warn, once in a process, that data=auto found only a part of MNIST."""
    Console(stderr=True, highlight=False).print(
        f"[bold black on yellow] MNIST is neither on this machine nor can it be downloaded: data={used} [/]\n"
        "That is a part of it. For all of it, put mnist.npz into a folder and name that in MNIST_EXP_DATA.",
    )
