"""The tests compose as Hydra does."""

import omegaconf.base
import pytest
from hydra._internal import config_repository, defaults_list
from hydra._internal.hydra import Hydra
from omegaconf import OmegaConf, grammar_parser

from tests.helpers import quick_hydra
from tests.helpers.configs import composed


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("experiment=smoke", "model=cnn", "trainer.epochs=7", "augment=[shift,cutout]"),
        ("optimizer=sgd", "name=${optimizer.learning_rate}-${now:%Y}", "hydra.job.chdir=true"),
    ],
)
def test_a_config_is_the_one_that_hydra_composes(overrides, monkeypatch):
    quick = [composed(*overrides, whole=True) for _ in range(2)]
    monkeypatch.setattr(config_repository.ConfigRepository, "load_config", quick_hydra.load_config)
    monkeypatch.setattr(defaults_list, "_create_interpolation_map", quick_hydra.create_interpolation_map)
    monkeypatch.setattr(omegaconf.base, "parse", grammar_parser.parse)
    expected = OmegaConf.to_yaml(composed(*overrides, whole=True))
    assert [OmegaConf.to_yaml(config) for config in quick] == [expected, expected]


def test_a_changed_file_is_read_again(tmp_path):
    for content in ("a: 1", "a: 22"):
        (tmp_path / "config.yaml").write_text(content)
        assert OmegaConf.to_yaml(composed(folder=tmp_path, name="config")) == f"{content}\n"


def test_no_config_of_ours_sets_the_mode(monkeypatch):
    assert composed("experiment=smoke", whole=True).hydra.mode is None
    assert Hydra.get_mode(None, "train", ["seed=1"]) is None
