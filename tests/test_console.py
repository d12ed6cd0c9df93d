"""Texts that a terminal shows, some of them written by strangers."""

import importlib
import io
import os
import sys

import pytest
from rich.console import Console

from mnist_exp import console
from tests.helpers.interrupts import hidden

EVIL = "\x1b]0;owned\x07\x9b31m\r\u202e\nforged"
SHOWN = r"\x1b]0;owned\x07\x9b31m\r\u202e\nforged"


def test_control_characters_are_escaped(capsys):
    assert console.printable(EVIL) == SHOWN
    assert console.printable("größe 漢字 é") == "größe 漢字 é"
    assert console.printable("\udcff") == r"\udcff"  # from a name that is not UTF-8
    console.say(f"first\n{EVIL}")
    console.complain(EVIL)
    console.warn(EVIL)
    said = capsys.readouterr()
    assert said.out == "first\n" + SHOWN.replace(r"\n", "\n") + "\n"
    assert all(line.isprintable() for line in (said.out + said.err).splitlines())


def test_a_closed_pipe_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        for _ in range(2):
            console.say("x" * 100, pipe)


def test_a_ctrl_c_that_a_library_hides_behind_an_error_ends_the_command(monkeypatch):
    monkeypatch.setattr(console.signal, "signal", lambda *_: None)
    with pytest.raises(KeyboardInterrupt), console.interruptible():
        hidden()
    train = importlib.import_module("mnist_exp.train")  # `mnist_exp.train` is a function
    monkeypatch.setattr(train, "check", lambda _: hidden())
    with pytest.raises(KeyboardInterrupt):
        train.job.__wrapped__(None)


def test_at_most_twenty_mistakes_are_printed(capsys):
    console.complain("\n".join(f"mistake {number} {'x' * 20000}" for number in range(6000)))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 21
    assert max(map(len, lines)) < 2100
    assert lines[-1] == "error: ... and 5,980 more"


def test_a_warning_is_printed_once(capsys):
    for _ in range(3):
        console.warn("said once\nin one line")
    assert capsys.readouterr().err == "warning: said once in one line\n"


@pytest.fixture
def screen(monkeypatch):
    """Collects the output of Rich on a terminal."""
    drawn = io.StringIO()
    monkeypatch.setattr(
        console, "Console", lambda **keys: Console(**{**keys, "file": drawn, "force_terminal": True, "width": 200})
    )
    return drawn


@pytest.fixture
def narrow(monkeypatch):
    """A terminal of 66 columns, on which Rich draws no bars, as for a worker process."""
    monkeypatch.setattr(console, "columns", lambda file: 66)


ROWS = [
    console.SummaryRow(1, "mlp adam s0", "FINISHED", "seed=0", 0.9754, 0.9767, 25.21, "98f5427a" * 4),
    console.SummaryRow(0, "a name of 35 letters with a seed s1", "SKIPPED", "seed=1", 0.9, 0.89, 1.0, "d260a0fc" * 4),
    console.SummaryRow(
        2, "漢字 s2", "FAILED", "seed=2", None, None, None, "8807262d" * 4, "Diverged: train_loss is nan"
    ),
    console.SummaryRow(3, "x s3", "NOT RUN", "seed=3", None, None, None, ""),
]


def test_a_row_of_the_table_fits_into_the_terminal(narrow, capsys):
    console.sweep_table("sweep A: 2 of 4", ROWS)
    assert capsys.readouterr().out.splitlines() == [
        "sweep A: 2 of 4",
        "run            val_accuracy  test_accuracy  training (s)    run id",
        "mlp adam s0          97.54%         97.67%          25.2  98f5427a",
        "a name…eed s1        90.00%         89.00%        reused  d260a0fc",
        "漢字 s2              failed              -             -  8807262d",
        "x s3                not run              -             -",
        "漢字 s2 failed: Diverged: train_loss is nan",
    ]


def test_a_pipe_gets_whole_names_and_rows_of_one_name_their_overrides(capsys):
    console.sweep_table("sweep A", ROWS[1:2])
    rates = ("optimizer.learning_rate=0.008144886973076106 seed=0", "optimizer.learning_rate=0.01 seed=0")
    console.sweep_table("sweep B", [row._replace(name="x", swept=text) for row, text in zip(ROWS, rates, strict=False)])
    lines = capsys.readouterr().out.splitlines()
    names = [lines[n].partition("  ")[0] for n in (2, 5, 6)]
    assert names == [
        "a name of 35 letters with a seed s1",
        "learning_rate=0.008145 seed=0",
        "learning_rate=0.01 seed=0",
    ]


def test_lines_of_runs_and_epochs_fit_into_the_terminal(narrow, capsys):
    console.run_line("n" * 50, {"final_val_accuracy": 0.97041, "test_accuracy": 0.5}, "14.1 s")
    assert capsys.readouterr().out == "nnnnnnn…nnnnnnn  val_accuracy 97.04%  test_accuracy 50.00%  14.1 s\n"
    progress = console.RunProgress("n" * 50, 10)
    progress.epoch(10, {"train_loss": 0.01234, "val_accuracy": 0.9708, "epoch_seconds": 1.0})
    assert capsys.readouterr().err == "nnnnnn…nnnnnn  epoch 10/10  loss 0.0123  val_accuracy 97.08%  1.00 s\n"


def test_sentences_are_wrapped_on_a_terminal_only(monkeypatch, capsys, request):
    text = "a warning of more than seventy letters that names https://example.com/a/long/address/that/stays/whole"
    console.tell(text)
    assert capsys.readouterr().out == f"{text}\n"
    request.getfixturevalue("narrow")
    console.tell(text)
    assert capsys.readouterr().out.splitlines() == [
        "a warning of more than seventy letters that names",
        "  https://example.com/a/long/address/that/stays/whole",
    ]


def test_commands_can_be_pasted(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", [".venv/bin/python", "-m", "mnist_exp.train", "-m", "seed=range(2)"])
    monkeypatch.setattr(sys, "argv", ["/a/mnist_exp/train.py", "seed=range(2)", "-m"])
    assert console.command("mnist_exp.compare", "show", "98f5427a") == (
        ".venv/bin/python -m mnist_exp.compare show 98f5427a"
    )
    assert console.this_command() == ".venv/bin/python -m mnist_exp.train -m 'seed=range(2)'"
    monkeypatch.setattr(sys, "argv", ["/bin/mnist-exp-train", "tracking.uri=http://me:secret@host"])
    monkeypatch.setattr(sys, "orig_argv", ["/bin/python3", *sys.argv])
    assert console.this_command() == "mnist-exp-train tracking.uri=http://host"


@pytest.mark.parametrize("name", ["[red]x", "[/x]", f"x{EVIL}"])
def test_a_name_is_escaped_on_a_terminal(screen, name):
    row = console.SummaryRow(0, name, "FINISHED", f"name={name}", 0.5, 0.5, 1.0, "f" * 32)
    console.sweep_table(f"sweep {name}", [row])
    with console.RunProgress(name, 2) as progress:
        progress.within_epoch(0.5, {"accuracy": 0.5})
        progress.epoch(1, {"val_accuracy": 0.9})
        progress.within_epoch(1.5, {"accuracy": 0.5})
        progress.bar.refresh()
    assert "epoch 2/2 val_accuracy 90.00%" in screen.getvalue()
    assert console.printable(name)[:4] in screen.getvalue()
    assert "]0;owned\x07" not in screen.getvalue()
    assert "\x9b" not in screen.getvalue()
