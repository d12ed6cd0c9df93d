"""Every option composes, obeys the rules and fits its target; a logged config composes to the same config."""

import copy
import inspect
import json
import shutil
from dataclasses import asdict
from types import SimpleNamespace

import keras
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from omegaconf import OmegaConf, open_dict

from mnist_exp import agreement, leaderboard, provenance, run
from mnist_exp.config import (
    ACTIVATIONS,
    CONF_DIR,
    FACTS,
    RULES,
    STAND_INS,
    changes_result,
    check,
    flatten,
    identity,
    params,
    signature,
    to_yaml,
)
from mnist_exp.record import Record
from mnist_exp.tracking import TrackedRun

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


def test_changes_of_the_code_that_git_cannot_tell_are_not_denied():
    config, data = check(composed("data=digits")), SimpleNamespace(name="digits", fingerprint="abc")
    for dirty, said in ((None, "unknown"), (True, "true"), (False, "false")):
        code = provenance.Code("c0ffee", "main", dirty, "")
        assert run._tags(config, data, {"device": "cpu", "threads": 1}, code)["code.dirty"] == said


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


FULL = check(composed("data=mnist", "model=mlp", "optimizer=adam"))
FACT_TAGS = {"device": "device", "threads": "threads", "data": "data.fingerprint"}  # where the store has each fact


def told_apart(config, facts=()):
    """Whether identity, the rows of `compare` and the factors of `reproduce` tell a run from that of `FULL`."""
    recorded, records, runs = [], [], []
    for number, (each, given) in enumerate(((FULL, {}), (config, dict(facts)))):
        found = {"data": "d1", "threads": 2, "device": "cpu", "versions": {"keras": "3"}} | given
        tags = {FACT_TAGS[name]: str(found[name]) for name in FACT_TAGS} | {"kind": "run"}
        tags["identity.facts"] = json.dumps(found)
        scores = {"final_val_accuracy": 0.9}
        runs.append(TrackedRun(f"{number:032x}", "x", "FINISHED", False, 0, params(each), scores, tags))
        environment = json.dumps({"facts": found, "config": params(each), "packages": {"keras": "3"}, "python": "3"})
        records.append(Record("run", None, None, {"environment.json": environment.encode()}, tags))
        recorded.append(identity(each, found))
    tables = leaderboard.board(runs, leaderboard.Choice(everything=True), "final_val_accuracy").tables
    rows = sum(len(table.rows) for table in tables)
    return recorded[0] != recorded[1], rows == 2, agreement.compare_factors(*records)[0] != []


@pytest.mark.parametrize("key", [key for key in flatten(asdict(FULL)) if not key.startswith("sweep.")])
def test_identity_rows_and_factors_agree_about_every_key(key):
    changed = copy.deepcopy(FULL)
    *parents, last = key.split(".")
    place = changed
    for parent in parents:
        place = place[parent] if isinstance(place, dict) else getattr(place, parent)
    if isinstance(place, dict):
        place[last] = "other"
    else:
        setattr(place, last, "other")
    same_row = key == "seed"  # seeds of one row
    assert told_apart(changed) == (changes_result(key), changes_result(key) and not same_row, changes_result(key))


@pytest.mark.parametrize("fact", sorted({fact for fact in STAND_INS.values() if fact is not None}))
def test_identity_rows_and_factors_agree_about_what_stands_in_for_a_key(fact):
    assert told_apart(FULL) == (False, False, False)
    assert told_apart(FULL, {fact: "other"}) == (True, True, True)
