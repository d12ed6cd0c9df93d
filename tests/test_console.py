"""Texts that a terminal shows, some of them written by strangers."""

import importlib
import io

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


@pytest.mark.parametrize("name", ["[red]x", "[/x]", f"x{EVIL}"])
def test_a_name_is_escaped_on_a_terminal(screen, name):
    row = console.SummaryRow(0, name, "FINISHED", f"name={name}", 0.5, 0.5, 1.0, "f" * 32)
    console.sweep_table(f"sweep {name}", [row])
    with console.RunProgress(name, 2) as progress:
        progress.bar.refresh()
    assert console.printable(name)[:4] in screen.getvalue()
    assert "]0;owned\x07" not in screen.getvalue()
    assert "\x9b" not in screen.getvalue()
