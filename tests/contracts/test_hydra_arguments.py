"""Hydra's argument parser, which puts the overrides first and reports mistakes, and its store of configs."""

import copy

import pytest
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore

from mnist_exp.errors import RequestError
from mnist_exp.sweep.startup import share_config_store
from mnist_exp.train import _arguments
from tests.helpers.configs import composed


def test_the_parser_collects_overrides_and_calls_error_for_an_unknown_option():
    """Else `train -m a=1 --cfg job b=2` fails, and a mistyped option prints seven lines of usage."""
    parser = get_args_parser()
    assert parser.parse_intermixed_args(["a=1", "--cfg", "job", "b=2"]).overrides == ["a=1", "b=2"]
    assert _arguments(["a=1", "--cfg", "job", "-m", "b=2"]) == ["a=1", "b=2", "--cfg", "job", "-m"]
    with pytest.raises(RequestError, match="unrecognized arguments: --nope; --hydra-help lists the options"):
        _arguments(["a=1", "--nope"])


def test_configs_from_a_shared_store_are_copies(monkeypatch):
    """Hydra copies what it loads from the store, so the store itself need not be copied for each group of `--help`."""
    monkeypatch.setattr(ConfigStore, "__deepcopy__", None, raising=False)  # so that it is restored
    share_config_store()
    store = ConfigStore.instance()
    assert copy.deepcopy(store) is store
    before = composed("trainer.epochs=3")
    before.trainer.epochs = 7
    assert composed("trainer.epochs=3").trainer.epochs == 3
    assert composed().trainer.epochs == 10
