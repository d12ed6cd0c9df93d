"""The tests compose as Hydra does."""

import omegaconf.base
import pytest
from hydra import initialize_config_dir
from hydra._internal import config_repository, defaults_list
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf, grammar_parser

from mnist_exp.config import CONF_DIR
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


def test_only_the_kept_sweeps_set_the_mode():
    """Else a process of `tests.helpers.commands` would take a sweep for a single run."""
    assert {path.parent.name for path in CONF_DIR.rglob("*.yaml") if "MULTIRUN" in path.read_text()} == {"sweep"}
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        modes = [hydra.get_mode("train", [given]) for given in ("sweep=seeds", "hydra.mode=MULTIRUN", "seed=1")]
    assert modes == [RunMode.MULTIRUN, RunMode.MULTIRUN, None]
