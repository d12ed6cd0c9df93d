"""Output for people: progress, one line a run, a sweep's table, errors. Plain text if the output is not a terminal."""

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

from mnist_exp.errors import EXIT_TERMINATED
from mnist_exp.redact import redact

MAX_LINES, MAX_LETTERS = 20, 2000  # that `complain` prints: a stranger's config may have 6,000 mistakes
SAME_SECONDS = 1.0  # in which further Ctrl-C are ignored


class SummaryRow(NamedTuple):
    """One job in a sweep's table; accuracies in 0..1, seconds of training."""

    job: int
    name: str
    status: str  # MLflow's, or SKIPPED (an earlier run has the result), or NOT RUN
    swept: str  # its overrides that other jobs of the sweep do not have
    val_accuracy: float | None
    test_accuracy: float | None
    seconds: float | None
    run_id: str  # empty if it was not run


@contextmanager
def quiet_stderr(doing: str) -> Iterator[None]:
    """Hold back the standard error of native libraries while they start, and show it only if that fails.

    It is the file descriptor that is redirected, because oneDNN's line obeys no log level. A terminal shows `doing`.
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
    """The progress of one run: a bar on a terminal, else a line an epoch."""

    def __init__(self, name: str, epochs: int) -> None:
        self.name, self.epochs = name, epochs
        self.console = Console(stderr=True, highlight=False)
        # markup=False: a name such as [red] is not Rich's markup.
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
        """Move the bar to `epochs`, which may be a fraction."""
        text = f"epoch {math.ceil(epochs)}/{self.epochs} loss {metrics['loss']:.4f} accuracy {metrics['accuracy']:.2%}"
        self.bar.update(self.task, completed=epochs, text=text)

    def epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Print a finished epoch, counted from 1, unless there is a bar."""
        text = (
            f"epoch {epoch}/{self.epochs}  loss {metrics['train_loss']:.4f}  accuracy {metrics['train_accuracy']:.2%}"
            f"  val_accuracy {metrics['val_accuracy']:.2%}"
        )
        if not self.console.is_terminal:
            say(f"{self.name}  {text}  {metrics['epoch_seconds']:.2f} s", sys.stderr)


def continued_line(name: str, epochs: int, run_id: str) -> str:
    """The line for a resumed run."""
    return f"{name}  continues run {run_id}, which was interrupted after {epochs} epochs (shown again)"


def summary_line(name: str, metrics: Mapping[str, float], epochs: int, execution: str, run_id: str) -> str:
    """The line for a finished run."""
    return (
        f"{name}  val_accuracy {metrics['final_val_accuracy']:.2%}  test_accuracy {metrics['test_accuracy']:.2%}"
        f"  {epochs} epochs in {metrics['fit_seconds']:.1f} s ({execution})  run {run_id}"
    )


def skipped_line(name: str, metrics: Mapping[str, float], run_id: str) -> str:
    """The line for a job that takes the result of an earlier run."""
    shares = f"val_accuracy {metrics['final_val_accuracy']:.2%}  test_accuracy {metrics['test_accuracy']:.2%}"
    return f"{name}  {shares}  skipped: finished before  run {run_id}"


def again_line(name: str, run_id: str, difference: str) -> str:
    """The line for a job that is trained although a finished run has the same config."""
    return f"{name}  trained again: run {run_id} has the same config but {difference}"


def sweep_table(title: str, rows: Sequence[SummaryRow]) -> None:
    """Print the runs of a sweep, in the order given, to standard output."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:  # unwrapped, one line a run, for grep
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
    """The row's numbers as text; a dash for a missing one."""
    shares = ("-" if share is None else f"{share:.2%}" for share in (row.val_accuracy, row.test_accuracy))
    return (*shares, "-" if row.seconds is None else f"{row.seconds:.1f}")  # type: ignore[return-value]


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn SIGTERM and Ctrl-C into exceptions while a command works. Afterwards Ctrl-C is ignored, so runs can close.

    Further Ctrl-C within `SAME_SECONDS` are ignored, because parents such as make pass on the terminal's signal.
    """
    last = -math.inf

    def interrupt(*_: object) -> None:
        nonlocal last
        now = time.monotonic()
        if now > last + SAME_SECONDS:
            last = now
            raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminate)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # a shell sets that for background processes
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def terminate(*_: object) -> NoReturn:
    """Handle SIGTERM by `SystemExit`, so that context managers close what is open."""
    sys.exit(EXIT_TERMINATED)


def printable(text: str) -> str:
    """The text in one line, with control characters and line breaks escaped, so that a terminal does not obey them.

    Names, tags and files may come from a store or an archive that a stranger wrote.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def say(text: str, file: IO[str] | None = None) -> None:
    """Print lines, with control characters escaped, by default to standard output."""
    print("\n".join(map(printable, text.split("\n"))), file=file or sys.stdout, flush=True)


def complain(message: str) -> None:
    """Print the mistakes of a user to standard error, one a line, at most `MAX_LINES`."""
    lines = message.splitlines()
    for line in lines[:MAX_LINES]:
        # Cut before, because redaction takes time, and after, so that no cut hides the end of a secret.
        say(f"error: {redact(line[: 2 * MAX_LETTERS])[:MAX_LETTERS]}", sys.stderr)
    if len(lines) > MAX_LINES:
        say(f"error: ... and {len(lines) - MAX_LINES:,} more", sys.stderr)


@functools.cache
def warn(message: str) -> None:
    """Print a warning in one line to standard error, once a process."""
    say(f"warning: {redact(' '.join(message.split()))}", sys.stderr)


def print_traceback(error: BaseException) -> None:
    """Print the traceback of a bug to standard error."""
    say(redact("".join(traceback.format_exception(error))).rstrip("\n"), sys.stderr)


def warn_no_mnist(used: str) -> None:
    """Warn that data=auto found other data than MNIST."""
    Console(stderr=True, highlight=False).print(
        f"[bold black on yellow] NOT MNIST: neither is it on this machine nor can it be downloaded: data={used} [/]\n"
        "Put mnist.npz into a folder and name that in MNIST_EXP_DATA, or say data=mnist to insist on it.",
    )
