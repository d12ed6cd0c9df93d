"""Ctrl-C at any moment, once or twice: exit code 130, no traceback, no run that looks alive."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from mnist_exp import console
from tests.helpers.commands import SHORT, environment, runs, start

# Ctrl-C comes when the command imports what `sys.argv[1]` names.
EARLY = """
import builtins, os, runpy, signal, sys

importing, name = builtins.__import__, sys.argv.pop(1)

def interrupted(module, *rest, **named):
    if module == name:
        os.kill(os.getpid(), signal.SIGINT)
    return importing(module, *rest, **named)

builtins.__import__ = interrupted
runpy.run_module("mnist_exp.train", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("module", ["hydra", "omegaconf", "mnist_exp.sweep.jobs"])
def test_ctrl_c_while_the_command_is_imported(tmp_path, module):
    done = subprocess.run(
        [sys.executable, "-c", EARLY, module], cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (130, "")


@pytest.fixture
def handlers():
    """Leave the signal handlers of this process as they were."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_second_ctrl_c_neither_disturbs_what_the_first_began_nor_what_follows(handlers):
    done = []

    def work():
        try:
            signal.raise_signal(signal.SIGINT)
            done.append("worked")
        finally:
            signal.raise_signal(signal.SIGINT)
            done.append("cleaned up")

    with pytest.raises(KeyboardInterrupt), console.interruptible():
        work()
    signal.raise_signal(signal.SIGINT)
    assert done == ["cleaned up"]


def test_an_interrupt_that_some_library_swallowed_can_be_repeated(handlers, monkeypatch):
    monkeypatch.setattr(console, "SAME_SECONDS", 0.0)
    with console.interruptible():
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)


def test_what_a_shell_has_ignore_ctrl_c_goes_on_ignoring_it(handlers):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with console.interruptible():
        signal.raise_signal(signal.SIGINT)


@pytest.mark.slow  # tests/end_to_end/test_failed_runs.py has it in a process that other commands share
def test_a_second_ctrl_c_while_the_sweep_is_closed(tmp_path, with_store):
    given = ("-m", "experiment=smoke", "name=x", "model=linear", "trainer.epochs=100000", "seed=0,1")
    with start(with_store(tmp_path), *given) as process:
        while "epoch 2/" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        while not process.stdout.readline().startswith("sweep "):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert runs(tmp_path) == {"x-s0": "KILLED", "sweep": "KILLED"}


@pytest.mark.slow
@pytest.mark.parametrize("number", range(6 if SHORT else 40))
def test_ctrl_c_at_any_moment_of_a_sweep(tmp_path, with_store, number):
    chance = random.Random(number)
    process = start(with_store(tmp_path), "-m", "experiment=smoke", "name=x", "model=linear", "seed=0,1,2")
    again = chance.choice((0.0, 0.01, 0.3, 2.0, None))
    if number % 4:  # else before anything is said
        for line in process.stderr:
            if line.startswith(chance.choice(("preflight: ", "sweep ", "x-s0 ", "x-s1 "))):
                break
    time.sleep(chance.uniform(0.1, 2))  # Python itself takes some 50 ms to begin
    os.kill(process.pid, signal.SIGINT)
    if again is not None:
        time.sleep(again)
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert "Traceback" not in err
    left = runs(tmp_path)
    assert (process.returncode, set(left.values()) <= {"FINISHED", "KILLED"}) in ((130, True), (0, True)), (left, err)
    assert process.returncode == 130 or left["sweep"] == "FINISHED"
