"""Hydra's private argument parser, which `mnist_exp.train` uses to put the overrides first and to report mistakes."""

import pytest
from hydra._internal.utils import get_args_parser

from mnist_exp.errors import RequestError
from mnist_exp.train import _arguments


def test_the_parser_collects_overrides_and_calls_error_for_an_unknown_option():
    """Else `train -m a=1 --cfg job b=2` fails, and a mistyped option prints seven lines of usage."""
    parser = get_args_parser()
    assert parser.parse_intermixed_args(["a=1", "--cfg", "job", "b=2"]).overrides == ["a=1", "b=2"]
    assert _arguments(["a=1", "--cfg", "job", "-m", "b=2"]) == ["a=1", "b=2", "--cfg", "job", "-m"]
    with pytest.raises(RequestError, match="unrecognized arguments: --nope; --hydra-help lists the options"):
        _arguments(["a=1", "--nope"])
