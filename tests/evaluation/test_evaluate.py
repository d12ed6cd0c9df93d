"""The command line of `evaluate`."""

import pytest

from mnist_exp import evaluate


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "--shifts", "5"], "--shifts must be from 0 to 4 pixels, got 5"),
        (["a", "--log-model"], "--log-model needs several runs and no --shifts"),
        (["a", "b", "--log-model", "--shifts", "1"], "--log-model needs several runs and no --shifts"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_line(arguments, message, capsys):
    assert evaluate.main(arguments) != 0
    assert message in capsys.readouterr().err
