"""Terminal output: progress, one line per run, the table of a sweep, next steps, errors.

On a terminal a line of a table fits into the width, because long names lose their middle, and sentences are wrapped
between words. A pipe or a file gets every line whole.
"""

import functools
import io
import math
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import textwrap
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mnist_exp.errors import EXIT_TERMINATED, interruption
from mnist_exp.redact import redact

MAX_LINES, MAX_LETTERS = 20, 2000  # limits of `complain`, because a stranger's config may have 6,000 mistakes
ID_LETTERS = 8  # of a run's id that are shown: commands find a run by the beginning of its id
DONE = ("FINISHED", "SKIPPED")  # of the status of a job: it has a result
CELL_SECONDS, CELL_WIDTH = 0.2, 100  # between two pictures of a bar in a notebook, and its columns
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
    error: str = ""  # why the run failed, in one line


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
    """The progress of one run: a bar on a terminal or in a notebook, else one line per epoch."""

    position = ""  # of the run among those of its sweep, such as `2/4 `; set where the sweep starts a job
    cell: Any = None  # what a notebook shows of the bar; later pictures of the bar replace it
    drawn = 0.0  # when a notebook got the last picture

    def __init__(self, name: str, epochs: int) -> None:
        self.name, self.epochs, self.validated = name, epochs, ""
        self.console = Console(stderr=True, highlight=False)
        # markup=False, because Rich would read a name such as [red] as a style.
        columns = (TextColumn("{task.description}", markup=False), BarColumn(12), TextColumn("{task.fields[text]}"))
        self.bar = Progress(
            *columns,
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        title = self.position + _cut(name, 58 + len(self.position), sys.stderr)  # the other columns take up to 58
        self.task = self.bar.add_task(title, total=float(epochs), text="compiling")

    def __enter__(self) -> "RunProgress":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def within_epoch(self, epochs: float, metrics: Mapping[str, float]) -> None:
        """Moves the bar to `epochs`, which may be a fraction."""
        accuracy = self.validated or f"accuracy {metrics['accuracy']:.2%}"  # of the training, in the first epoch
        self.bar.update(self.task, completed=epochs, text=f"epoch {math.ceil(epochs)}/{self.epochs} {accuracy}")
        if self.console.is_jupyter and time.monotonic() > self.drawn + CELL_SECONDS:
            self._draw_in_notebook()

    def epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Shows the validation accuracy after a finished epoch, counted from 1."""
        self.validated = f"val_accuracy {metrics['val_accuracy']:.2%}"
        if self.console.is_jupyter:
            self.bar.update(self.task, completed=epoch, text=f"epoch {epoch}/{self.epochs} {self.validated}")
            self._draw_in_notebook()
        elif not self.console.is_terminal:
            line = f"  epoch {epoch}/{self.epochs}  loss {metrics['train_loss']:.4f}  {self.validated}"
            line += f"  {metrics['epoch_seconds']:.2f} s"
            say(_cut(self.name, len(line), sys.stderr) + line, sys.stderr)

    def _draw_in_notebook(self) -> None:
        """Draws the bar without Rich's own way, which needs the package ipywidgets and leaves nothing in the file."""
        from IPython.display import display

        picture = Console(file=io.StringIO(), width=CELL_WIDTH, force_jupyter=False)
        picture.print(self.bar.get_renderable())
        content = {"text/plain": picture.file.getvalue().rstrip()}  # type: ignore[attr-defined]
        if self.cell is None:
            self.cell = display(content, raw=True, display_id=True)
        else:
            self.cell.update(content, raw=True)
        self.drawn = time.monotonic()


def run_line(name: str, metrics: Mapping[str, float], outcome: str) -> None:
    """Prints the accuracies of a run that has a result, and `outcome`: its time, or that it was reused."""
    line = (
        f"  val_accuracy {metrics['final_val_accuracy']:.2%}  test_accuracy {metrics['test_accuracy']:.2%}  {outcome}"
    )
    say(_cut(name, len(line), sys.stdout) + line)


def sweep_table(title: str, rows: Sequence[SummaryRow]) -> None:
    """Prints the runs of a sweep, in the given order, to standard output, and below them why some failed.

    Where names are equal, the overrides stand in their place.
    """
    table = [("val_accuracy", "test_accuracy", "training (s)", "run id")]
    for row in rows:
        validation, test, seconds = figures(row)
        validation = validation if row.status in DONE else outcome(row)
        table.append((validation, test, "reused" if row.status == "SKIPPED" else seconds, row.run_id[:ID_LETTERS]))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    results = ["".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True)) for cells in table]
    labels = [row.name for row in rows]
    if len({*labels}) < len(rows):  # a name of the user's own
        labels = [shortened(row.swept) or row.name for row in rows]
    names = [_cut(name, len(results[0]), sys.stdout) for name in ("run", *labels)]
    room = max(map(cell_len, names))
    styles = ["bold", *({"FINISHED": "", "SKIPPED": "dim", "NOT RUN": "dim"}.get(row.status, "red") for row in rows)]
    console = Console(highlight=False, markup=False)
    say(title)
    for name, result, style in zip(names, results, styles, strict=True):
        console.print((name + " " * (room - cell_len(name)) + result).rstrip(), style=style, soft_wrap=True)
    for label, row in zip(labels, rows, strict=True):
        if row.error:
            tell(f"{label} failed: {row.error}")


def shortened(overrides: str) -> str:
    """Overrides for a table: keys without their group, numbers of more than five digits with four.

    >>> shortened("optimizer.learning_rate=0.008144886973076106 seed=3")
    'learning_rate=0.008145 seed=3'
    """
    text = re.sub(r"[^\s=]+\.(?=\w+=)", "", overrides)
    return re.sub(r"(?<==)0?\.\d{6,}(?= |$)", lambda found: f"{float(found[0]):.4g}", text)


def outcome(row: SummaryRow) -> str:
    """A row's status in plain words."""
    return {"FINISHED": "trained", "SKIPPED": "reused", "KILLED": "interrupted"}.get(row.status, row.status.lower())


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
    """Prints lines with control characters escaped, by default to standard output.

    A closed pipe, as behind `| head`, ends no run: this and all later text goes nowhere.
    """
    file = file or sys.stdout
    try:
        print("\n".join(map(printable, text.split("\n"))), file=file, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


def tell(text: str, file: IO[str] | None = None) -> None:
    """Prints a sentence, by default to standard output; a terminal shows it wrapped between words."""
    width = columns(file or sys.stdout)
    if width is not None:
        text = textwrap.fill(
            printable(text), width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
    say(text, file)


def columns(file: IO[str]) -> int | None:
    """Columns of the terminal that a stream writes to; None for a pipe or a file."""
    return shutil.get_terminal_size().columns if file.isatty() else None


def _cut(name: str, taken: int, file: IO[str]) -> str:
    """A name in one line; without its middle on a terminal that has too little room beside the `taken` columns."""
    name, width = printable(name), columns(file)
    if width is None or cell_len(name) <= width - taken:
        return name
    half = max(width - taken - 1, 12) // 2
    return f"{name[:half]}…{name[-half:]}"


def command(module: str, *arguments: str) -> str:
    """A command of the Python that runs this process, as a user can paste it."""
    return redact(shlex.join([sys.orig_argv[0], "-m", module, *arguments]))


def this_command() -> str:
    """The command that started this process, as a user can paste it."""
    script = Path(sys.argv[0]).name if sys.orig_argv[1:2] == sys.argv[:1] else None
    return redact(shlex.join(sys.orig_argv if script is None else [script, *sys.orig_argv[2:]]))


def complain(message: str) -> None:
    """Prints the mistakes of a user to standard error, one per line, at most `MAX_LINES`."""
    lines = message.splitlines()
    for line in lines[:MAX_LINES]:
        # Cut before redaction to bound its time, and again after it, because a cut secret might not be recognised.
        tell(f"error: {redact(line[: 2 * MAX_LETTERS])[:MAX_LETTERS]}", sys.stderr)
    if len(lines) > MAX_LINES:
        say(f"error: ... and {len(lines) - MAX_LINES:,} more", sys.stderr)


@functools.cache
def warn(message: str) -> None:
    """Prints a warning in one line to standard error, once in a process."""
    tell(f"warning: {redact(' '.join(message.split()))}", sys.stderr)


def print_traceback(error: BaseException) -> None:
    """Prints the traceback of a bug to standard error."""
    say(redact("".join(traceback.format_exception(error))).rstrip("\n"), sys.stderr)


@functools.cache
def warn_no_mnist(used: str) -> None:
    """Warn, once in a process, that data=auto found only a part of MNIST."""
    Console(stderr=True, highlight=False).print(
        f"[bold black on yellow] MNIST is not here and cannot be downloaded: {used} is used instead [/]\n"
        "That is a part of MNIST. For all of it, put mnist.npz into a folder, and name\n"
        "the folder in the environment variable MNIST_EXP_DATA.",
        soft_wrap=True,
    )
