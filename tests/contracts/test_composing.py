"""A sweep's check composes each choice of options once; its configs are those that Hydra composes."""

import pytest
from hydra import initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from mnist_exp.config import CONF_DIR, ConfigError
from mnist_exp.sweep.jobs import compose_job

JOBS = [
    [],
    ["seed=1"],
    ["seed=2", "name='a=b'", "trainer.batch_size=64"],
    ["seed=3", "++seed=4"],
    ["data={split_seed:3}", "model.hidden=[7,8]"],
    ["~model.dropout", "model.activation=tanh"],
    ["name=${optimizer.learning_rate}-${seed}", "optimizer.learning_rate=0.5"],
    ["name=${hydra:job.override_dirname}", "seed=5"],
]


@pytest.fixture(autouse=True)
def _in_conf():
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        yield


def both(*arguments):
    """The config of the job and Hydra's own config, both as YAML."""
    config = compose_job("train", *arguments)
    return OmegaConf.to_yaml(config), OmegaConf.to_yaml(HydraConfig.instance().cfg.hydra)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("experiment=smoke", "model=mlp", "optimizer=sgd"),
        ("augment=[shift,cutout]", "hydra.job.config.override_dirname.exclude_keys=[seed]", "hydra.job.chdir=true"),
    ],
)
def test_jobs_that_share_their_options_have_the_configs_that_hydra_composes(options):
    known: dict = {}
    for job in JOBS:
        assert both([*job, *options], known) == both([*job, *options])
    assert len(known) == 1


def test_other_options_are_composed_anew():
    known: dict = {}
    for model in ("mlp", "cnn", "mlp"):
        job = [f"model={model}", "seed=7"]
        assert both(job, known) == both(job)
    assert len(known) == 2


@pytest.mark.parametrize("override", ["seed=1,2", "modle=mlp", "trainer.epoch=1", "model=[", "+optimizer=adam"])
def test_refusals_have_the_same_words(override):
    refusals = []
    for known in (None, {}):
        with pytest.raises(ConfigError) as refused:
            compose_job("train", [override], known)
        refusals.append(str(refused.value))
    assert refusals[0] == refusals[1]
