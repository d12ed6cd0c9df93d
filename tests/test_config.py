"""Every option composes, obeys the rules and fits its target; a logged config composes to the same config."""

import inspect
import shutil
from dataclasses import asdict

import keras
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from omegaconf import OmegaConf, open_dict

from mnist_exp.config import ACTIVATIONS, CONF_DIR, FACTS, RULES, check, flatten, identity, signature, to_yaml

GROUPS = ("model", "optimizer", "schedule", "data", "augment")
OPTIONS = [(group, path.stem) for group in GROUPS for path in sorted((CONF_DIR / group).glob("*.yaml"))]
PRESETS = sorted(path.stem for path in (CONF_DIR / "experiment").glob("*.yaml"))


def composed(*overrides, folder=CONF_DIR, name="train"):
    with initialize_config_dir(str(folder), version_base="1.3"):
        config = compose(name, list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        del config["hydra"]
    return config


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=["=".join(pair) for pair in OPTIONS])
def test_every_option_fits_the_signature_of_its_target(group, option):
    path = ["data.path=x"] if (group, option) == ("data", "file") else []
    config = check(composed(f"{group}={option}", *path))
    node = getattr(config, group)
    target = node["_target_"]
    if target is None or option == "auto":
        return
    parameters = inspect.signature(get_object(target)).parameters
    assert set(node) - {"_target_"} <= set(parameters)
    accepted, required = signature(target)  # what is read from the source is what Python says
    named = [p for p in parameters.values() if p.kind is not p.VAR_KEYWORD]
    assert accepted == {p.name for p in named}
    assert required == {p.name for p in named if p.default is p.empty}
    assert set(FACTS[group]) <= accepted | {"seed"}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_composes_under_its_name(preset):
    config = check(composed(f"experiment={preset}"))
    assert config.experiment == preset
    assert config.name == (preset if preset != "smoke" else "mlp-adam-smoke")


def test_presets_train_what_their_authors_wrote():
    wide = check(composed("experiment=wide_mlp"))
    assert wide.model["hidden"] == [512, 256]
    assert (wide.trainer.batch_size, wide.trainer.epochs) == (32, 5)
    assert wide.optimizer["learning_rate"] == 0.001
    for preset in set(PRESETS) - {"smoke"}:
        assert check(composed(f"experiment={preset}")).data["validation"] == "test"


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=["=".join(pair) for pair in OPTIONS])
def test_every_key_says_what_it_means(group, option):
    lines = (CONF_DIR / group / f"{option}.yaml").read_text().splitlines()
    assert lines[0].startswith("# ")
    assert all("  # " in line for line in lines[1:] if line.strip() and not line.startswith("_target_"))


def test_every_key_of_the_options_has_a_rule():
    without = {"path", "validation", "exclude_layers", "_target_"}  # checked elsewhere, or free
    for group, option in OPTIONS:
        keys = set(OmegaConf.load(CONF_DIR / group / f"{option}.yaml")) - without
        assert keys <= RULES.keys(), (group, option)


def test_activations_are_those_of_keras():
    for name in ACTIVATIONS:
        assert callable(keras.activations.get(name))


def test_override_wins_over_preset_and_preset_over_options():
    config = check(composed("experiment=dropout_mlp", "trainer.epochs=3"))
    assert (config.trainer.epochs, config.trainer.batch_size, config.model["dropout"]) == (3, 32, 0.2)


def test_run_name_comes_from_the_options():
    assert check(composed("model=residual", "optimizer=momentum")).name == "residual-momentum"


def test_a_logged_config_composes_to_the_same_config(tmp_path):
    config = check(composed("experiment=dropout_mlp", "seed=3", "optimizer=lion"))
    shutil.copytree(CONF_DIR, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert asdict(check(composed(folder=tmp_path, name="config"))) == asdict(config)


def test_flatten():
    assert flatten({"a": {"b": 1, "c": [1, 2]}, "d": None, "e": {}}) == {"a.b": 1, "a.c": [1, 2], "d": None, "e": {}}


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("tracking.experiment=other", True),
        ("name=other", True),
        ("data.path=elsewhere", True),
        ("seed=1", False),
        ("trainer.epochs=11", False),
        ("model.hidden=[64]", False),
        ("trainer.precision=mixed_bfloat16", False),
    ],
)
def test_identity_is_what_can_change_the_result(override, same):
    facts = {"data": "abc", "threads": 2}
    base, changed = (identity(check(composed("data=mnist", *o)), facts) for o in ([], [override]))
    assert (base == changed) is same
    assert identity(check(composed("data=mnist")), {**facts, "threads": 1}) != base
