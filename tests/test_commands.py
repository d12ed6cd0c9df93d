"""Version, help, tracking store, errors and exit codes of all commands."""

import importlib
import signal
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
from omegaconf import OmegaConf

import mnist_exp
from mnist_exp import commands, compare, decide, evaluate, predict, relocate, reproduce, sync
from mnist_exp.config import CONF_DIR, PACKAGE
from mnist_exp.errors import RequestError, RunError

PROJECT = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
INSTALLED = any(metadata.distributions(name="mnist_exp"))  # else this is a checkout that is only on Python's path
VERSION = f"mnist_exp {PROJECT['version'] if INSTALLED else 'unknown'}\n"


def ended(main, monkeypatch, capsys, *arguments):
    """Exit code and output of a command in this process."""
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = main()
    except SystemExit as end:
        code = end.code
    for number, handler in handlers.items():
        signal.signal(number, handler)
    printed = capsys.readouterr()
    return code or 0, printed.out, printed.err


@pytest.fixture
def said(monkeypatch, capsys):
    return lambda command, *arguments: ended(command.main, monkeypatch, capsys, *arguments)


def python(*arguments):
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


def test_the_version_is_that_of_the_installed_package(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: {"mnist_exp": "1.2.3"}[name])
    assert mnist_exp.__version__ == "1.2.3"
    monkeypatch.undo()
    assert f"mnist_exp {mnist_exp.__version__}\n" == VERSION
    with pytest.raises(AttributeError, match="has no attribute 'versions'"):
        _ = mnist_exp.versions


def test_the_package_imports_nothing_for_its_version():
    code, out, _ = python("-c", "import mnist_exp, sys; print('importlib.metadata' in sys.modules)")
    assert (code, out) == (0, "False\n")


@pytest.mark.parametrize(
    "command", [compare, decide, evaluate, predict, reproduce, relocate, sync], ids=lambda module: module.__name__
)
def test_version_and_help_of_a_command(said, command):
    assert said(command, "--version") == (0, VERSION, "")
    code, out, err = said(command, "--help")
    assert (code, err) == (0, "")
    assert "--tracking-uri URI" in out
    named = {name for name in commands.COMMANDS if f"python -m mnist_exp.{name} " in out}
    assert named == set(commands.COMMANDS)  # its own name is in the usage
    assert commands.MANUAL in out
    assert max(map(len, out.splitlines())) <= 120


def test_version_and_help_of_train():
    assert python("-m", "mnist_exp.train", "seed=1", "--version") == (0, VERSION, "")
    code, out, _ = python("-m", "mnist_exp.train", "--help")
    assert code == 0
    shown = OmegaConf.load(CONF_DIR / "hydra_settings.yaml").help.footer
    assert shown in out
    assert {name for name in commands.COMMANDS if f"mnist_exp.{name}" in " ".join(shown.split())} == {
        *commands.COMMANDS.keys() - {"train"}
    }
    assert "docs/" in shown


def test_the_package_lists_the_commands():
    code, out, err = python("-m", "mnist_exp")
    assert (code, err) == (0, "")
    for name, does in commands.COMMANDS.items():
        assert f"  python -m mnist_exp.{name:<10} {does}\n" in out
        assert importlib.util.find_spec(f"mnist_exp.{name}")
    assert commands.MANUAL in out
    assert (PACKAGE.parent / "docs" / "index.md").is_file()
    assert python("-m", "mnist_exp", "--version") == (0, VERSION, "")
    code, out, err = python("-m", "mnist_exp", "fly")
    assert (code, out) == (2, "")
    assert err == "error: unrecognized arguments: fly; python -m mnist_exp --help lists the arguments\n"


def test_each_command_has_a_script():
    wanted = {f"mnist-exp-{name}": f"mnist_exp.{name}:main" for name in commands.COMMANDS}
    assert PROJECT["scripts"] == wanted
    for target in wanted.values():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (RequestError("--x must be 1"), 2, "error: --x must be 1\n"),
        (RunError("diverged"), 1, "error: it failed: diverged\n"),
        (OSError("disk full"), 1, "error: it failed: disk full\n"),
        (KeyboardInterrupt(), 130, "error: stopped\n"),
    ],
)
def test_an_error_gives_one_line_and_an_exit_code(error, code, line, capsys):
    def command():
        raise error

    assert commands.run(command, failed="it failed", interrupted="stopped") == code
    assert capsys.readouterr().err == line
    assert commands.run(lambda: 1) == 1


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        commands.run(lambda: 1 // 0)


def test_compare_accepts_the_earlier_name_of_the_store_option(said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for option in ("--uri", "--tracking-uri"):
        code, out, err = said(compare, option, "sqlite:///none.db")
        assert (code, out) == (2, "")
        assert "there is no file " in err
