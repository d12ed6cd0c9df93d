"""Configs as the command composes them."""

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from mnist_exp.config import CONF_DIR


def composed(*overrides, folder=CONF_DIR, name="train", whole=False):
    with initialize_config_dir(str(folder), version_base="1.3"):
        config = compose(name, list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    if whole:
        return config
    with open_dict(config):
        del config["hydra"]
    return config
