"""Every option composes, obeys the rules and fits its target; a logged config composes to the same config."""

import ast
import contextlib
import copy
import dataclasses
import functools
import inspect
import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import keras
import numpy as np
import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

from mnist_exp import builders, data, experiment, provenance
from mnist_exp import config as configuration
from mnist_exp.analysis import leaderboard
from mnist_exp.config import (
    ACTIVATIONS,
    ARGUMENTS,
    CONF_DIR,
    LISTS,
    PACKAGE,
    RULES,
    STAND_INS,
    Config,
    ConfigError,
    SweepConfig,
    TrackingConfig,
    TrainerConfig,
    TrialConfig,
    changes_result,
    check,
    current_params,
    flatten,
    identity,
    params,
    signature,
    to_yaml,
    without_subset,
)
from mnist_exp.data import published, sources
from mnist_exp.data.dataset import check_arrays
from mnist_exp.provenance.modules import FOLDER, user_code
from mnist_exp.reproduction import verdict
from mnist_exp.reproduction.record import Record
from mnist_exp.sweep import jobs
from mnist_exp.tracking import RunInfo
from tests.helpers.configs import composed
from tests.helpers.digits import small

GROUPS = ("model", "loss", "optimizer", "schedule", "data")
OPTIONS = [(group, path.stem) for group in GROUPS for path in sorted((CONF_DIR / group).glob("*.yaml"))]
PRESETS = sorted(path.stem for path in (CONF_DIR / "experiment").glob("*.yaml"))


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=["=".join(pair) for pair in OPTIONS])
def test_every_option_fits_the_signature_of_its_target(group, option):
    config = check(copy.deepcopy(option_of(group, option)))
    node = getattr(config, group)
    target = node["_target_"]
    if target is None or option == "auto":
        return
    parameters = inspect.signature(get_object(target)).parameters
    given = without_subset(node) if group == "data" else node
    assert set(given) - {"_target_"} <= set(parameters)
    taken = signature(target)  # what is read from the source is what Python says
    named = [p for p in parameters.values() if p.kind is not p.VAR_KEYWORD]
    assert taken.keywords == {p.name for p in named}
    assert taken.required == {p.name for p in named if p.default is p.empty}
    assert not taken.any_keyword
    assert set(ARGUMENTS[group]) <= taken.keywords | {"seed"}


ALL_OPTIONS = OPTIONS + [(group, path.stem) for group in LISTS for path in sorted((CONF_DIR / group).glob("*.yaml"))]
each_option = pytest.mark.parametrize(("group", "option"), ALL_OPTIONS, ids=["=".join(pair) for pair in ALL_OPTIONS])
# Another value of keys for which `other_values` knows none.
OTHER = {"path": ["elsewhere.npz"], "validation": [0.4], "patch_size": [14], "split": ["letters"]}


def keys(group, option):
    """The node that each key of an option stands in, the key, and its value."""
    content = OmegaConf.to_container(OmegaConf.load(CONF_DIR / group / f"{option}.yaml"), resolve=False)
    nodes = {f"{group}.{name!s}": node for name, node in content.items()} if group in LISTS else {group: content}
    return [(place, str(key), v) for place, node in nodes.items() for key, v in node.items() if key != "_target_"]


@functools.cache
def option_of(group, option):
    more = ["data=digits"] if group != "data" else ["data.path=x.npz"] if option == "file" else []
    if group == "callbacks" and ("schedule", option) in OPTIONS:
        more.append(f"schedule={option}")  # made for each other
    config = composed(f"{group}={option}", *more)
    if group == "model" and "blocks" in config.model:
        config.model.blocks = 1  # quick to build
    return config


def with_value(group, option, place, key, value):
    config = copy.deepcopy(option_of(group, option))
    OmegaConf.update(config, f"{place}.{key}", value)
    return check(config)


def other_values(group, option, place, key, value):
    """Values of the kind that a key takes; some may break its rule."""
    if key in OTHER:
        return OTHER[key]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value * 2, value + 1, value + 6, (value + 1) / 2, 0.5, value / 2]
    if isinstance(value, list):
        return [["other"]] if value and isinstance(value[0], str) else [[0.3], [7]]
    if isinstance(value, str):
        with pytest.raises(ConfigError) as error:
            with_value(group, option, place, key, "no such choice")
        return re.findall(r"one of ([\w, ]+), got", str(error.value))[0].split(", ")
    return [0.5, 2, "balanced"]


def other_config(group, option, place, key, value):
    """A config that obeys the rules, with another value of a key."""
    for other in other_values(group, option, place, key, value):
        with contextlib.suppress(ConfigError):
            config = with_value(group, option, place, key, other)
            if other != value:
                return config
    raise AssertionError(f"{place}.{key}={value} of {option}: OTHER needs a value that the rules allow")


LOGITS = np.random.default_rng(0).standard_normal((40, 10)).astype(np.float32)
LABELS = np.arange(40) % 7


def plain(values):
    """What of an object's attributes can be compared."""
    return {key: value for key, value in values.items() if isinstance(value, int | float | str | list | type(None))}


def built(group, config):
    """What a config makes of a group, as far as a change of a key must be seen in it."""
    if group == "model":
        with keras.StatelessScope(initialize_variables=False):  # of shapes only
            text = builders.build_model(config.model, (28, 28, 1), 10).to_json()
        return re.sub(r'_\d+"', '"', text)  # names count the layers of the process
    if group == "loss":
        return float(builders.build_loss(config.loss, np.arange(1, 11))(LABELS, LOGITS))
    if group == "data":
        config = copy.deepcopy(config)
        if jobs.is_auto(config):
            config.sweep.data = "mnist"
            jobs.resolve_data(config)
        return jobs.load(config).fingerprint
    if group == "scores":
        return [score(LOGITS, LABELS) for score in builders.build_scores(config, 10).values()]
    if group == "callbacks":
        return {key: plain(vars(callback)) for key, callback in builders.build_callbacks(config, Path()).items()}
    return str(builders.build_optimizer(config.optimizer, config.schedule, 100).get_config())


@pytest.fixture(scope="module")
def digits_for_mnist(tmp_path_factory):
    """Published data sets are four times the digits, of which 5,000 may validate; `x.npz` has the digits."""
    x_train, y_train, *test = sources._digits_arrays()
    four = [np.concatenate([array] * 4) for array in (x_train, y_train)]

    def cached(described, split):
        """Images that count as those of a published data set; of as many classes."""
        wanted = published.EMNIST_CLASSES.get(split, published.CIFAR100_CLASSES * (described.title == "CIFAR-100"))
        labels = [np.arange(len(y)) % len(wanted) if wanted else y for y in (four[1], test[1])]
        parts = (four[0], labels[0], test[0], labels[1])
        return check_arrays("scikit-learn", dict(zip(data.ARRAYS, parts, strict=True)))

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MNIST_EXP_DATA", raising=False)
        patch.chdir(tmp_path_factory.mktemp("data"))
        patch.setattr(published, "_from_cache", cached)
        np.savez("x.npz", **dict(zip(data.ARRAYS, (x_train, y_train, *test), strict=True)))
        yield


@each_option
def test_every_key_of_every_option_changes_the_identity_and_what_is_built(group, option, digits_for_mnist):
    before = check(option_of(group, option))
    # Images are augmented anew in tests/test_augment.py, for each key.
    first = built(group, before) if keys(group, option) and group != "augment" else None
    for place, key, value in keys(group, option):
        after = other_config(group, option, place, key, value)
        assert (identity(before, {}) != identity(after, {})) is changes_result(f"{place}.{key}"), key
        if key == "path":  # is read; the identity has the fingerprint of the images there
            with pytest.raises(data.DataError, match=r"elsewhere\.npz: no such file"):
                built(group, after)
        elif group != "augment":
            assert built(group, after) != first, key


def test_every_key_of_the_schema_is_read_outside_of_it():
    nodes = (TrainerConfig, TrackingConfig, TrialConfig, SweepConfig, Config)
    keys = {f.name for node in nodes for f in dataclasses.fields(node)}
    sources = [path.read_text() for path in PACKAGE.rglob("*.py") if path.parent.name != "config"]
    read = {node.attr for text in sources for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)}
    assert keys <= read


@pytest.mark.parametrize("group", ["augment", "callbacks", "scores"])
@pytest.mark.parametrize("given", ["._target_=mine.flip", "._target_=[0]", ".p=0.5", ".a={p:3}", ".a=3"])
def test_options_of_a_list_stand_under_keys_of_their_own(group, given):
    with pytest.raises(ConfigError, match=rf"^{group}(\.\w+)? must "):
        check(composed(f"+{group}{given}"))


def test_options_of_a_list_are_checked_like_any_target():
    rotation = "+augment.turn={_target_:keras.layers.RandomRotation,factor:0.1%s}"
    assert check(composed(rotation % "")).augment["turn"]["factor"] == 0.1
    for more, message in (
        (",angle:3", r"^augment\.turn\.angle is not a key of keras\.layers\.RandomRotation; its keys: .*factor"),
        (",seed:3", r"^augment\.turn\.seed must be left out: the run's seed decides, got 3"),
    ):
        with pytest.raises(ConfigError, match=message):
            check(composed(rotation % more))
    with pytest.raises(ConfigError, match=r"^scores\.top\._target_ must name what takes logits, labels first"):
        check(composed("+scores.top._target_=mnist_exp.schedules.no", "scores.top._target_=mnist_exp.data.digits"))


def test_the_order_of_a_list_is_that_given_and_part_of_the_identity():
    turn, move = (f"+augment.{key}={{_target_:keras.layers.Random{kind},{rest}}}" for key, kind, rest in (
        ("turn", "Rotation", "factor:0.1"), ("move", "Translation", "height_factor:0.1,width_factor:0.1")
    ))  # fmt: skip
    one, other = check(composed(turn, move)), check(composed(move, turn))
    assert [*one.augment] == ["turn", "move"]
    assert [*other.augment] == ["move", "turn"]
    assert identity(one, {}) != identity(other, {})


def test_a_config_of_an_earlier_version_is_read_as_what_it_did():
    config = check(composed("+augment._target_=null"))
    assert asdict(config) == asdict(check(composed()))
    assert {**Config().loss, "label_smoothing": 0.0, "class_weight": None} == config.loss


@each_option
def test_a_whole_number_is_as_good_as_a_float(group, option):
    numbers = [found for found in keys(group, option) if type(found[2]) in (int, float, type(None))]
    for place, key, _ in numbers:
        for value in (0, 1):
            try:
                real = with_value(group, option, place, key, float(value))
            except ConfigError:  # no number, or a whole one
                continue
            whole = with_value(group, option, place, key, value)
            assert identity(whole, {}) == identity(real, {}), key
            if group in ("optimizer", "schedule"):
                built(group, whole)  # Keras refuses whole numbers for some keys


def test_lion_is_refused_a_beta_that_keras_refuses_it():
    with pytest.raises(ConfigError, match=r"optimizer\.beta_1 must be a number above 0, below 1, got 0"):
        check(composed("optimizer=lion", "optimizer.beta_1=0"))


def test_a_number_that_no_float_holds_is_refused():
    with pytest.raises(ConfigError, match=r"optimizer\.learning_rate must be a number above 0, got 1000"):
        check(composed(f"optimizer.learning_rate=1{'0' * 400}"))


TARGETS = """
import functools

import keras
from targets_elsewhere import builder, builder as again


class Inherits(keras.optimizers.SGD):
    pass


class Takes(keras.optimizers.SGD):
    def __init__(self, learning_rate, **options):
        super().__init__(learning_rate, **options)


def free(image_shape, num_classes, **options):
    ...


def anything(*facts, width):
    ...


half = functools.partial(builder, depth=2)


class Family:
    @staticmethod
    def small(image_shape, num_classes, *, width=3):
        ...
"""


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("targets")
    (folder / "targets_mine.py").write_text(TARGETS)
    (folder / "targets_elsewhere.py").write_text("def builder(image_shape, num_classes, *, width, depth=1): ...")
    (folder / "targets_torn.py").write_text("from targets_elsewhere import builder\nimport no_such_library")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield "targets_mine"


@pytest.mark.parametrize(
    ("target", "keys"),
    [
        ("free", "+model.width=0.5 +model.anything=[1]"),
        ("anything", "+model.width=0.5"),
        ("builder", "+model.width=0.5 +model.depth=2"),
        ("again", "+model.width=-1"),
        ("half", "+model.width=3"),
        ("Family.small", "+model.width=3"),
        ("Family.small", ""),
    ],
)
def test_any_callable_that_takes_the_facts_is_a_model_and_its_keys_mean_what_it_says(targets, target, keys):
    config = check(composed("model=linear", f"model._target_={targets}.{target}", *keys.split()))
    assert set(config.model) - {"_target_"} == {key.partition("=")[0].removeprefix("+model.") for key in keys.split()}


@pytest.mark.parametrize("target", ["Inherits", "Takes"])
def test_a_subclass_of_an_optimizer_takes_what_its_base_takes(targets, target):
    config = check(
        composed("data=digits", "optimizer=sgd", f"optimizer._target_={targets}.{target}", "optimizer.momentum=0.5")
    )
    optimizer = builders.build_optimizer(config.optimizer, config.schedule, 100)
    assert (type(optimizer).__name__, optimizer.momentum) == (target, 0.5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("model._target_=targets_mine.builder", "model.width is required by targets_mine.builder and missing"),
        (
            "model._target_=targets_mine.again +model.height=3",
            "model.height is not a key of targets_mine.again; its keys: d",
        ),
        (
            "model._target_=targets_mine.missing",
            "must name a function or class that exists, got 'targets_mine.missing'",
        ),
        ("model._target_=targets_torn.builder", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("optimizer._target_=targets_mine.Takes ~optimizer.learning_rate", "optimizer.learning_rate is required by"),
        ("optimizer._target_=targets_mine.Takes optimizer.learning_rate=-1", "learning_rate must be a number above 0"),
        ("data._target_=targets_mine.again", "data._target_ must take validation, got 'targets_mine.again'"),
    ],
)
def test_of_a_users_target_what_python_would_refuse_is_refused(targets, given, said):
    bare = ["~optimizer.beta_1", "~optimizer.beta_2"] if "optimizer" in given else []
    with pytest.raises(ConfigError, match=re.escape(said)):
        check(composed("model=linear", *bare, *given.split()))


def test_the_sources_of_a_users_targets_are_found(targets):
    config = check(composed("model=linear", f"model._target_={targets}.Family.small"))
    found = set(user_code(configuration.targets(config)).files)  # it imports the second
    assert found == {f"{FOLDER}/{name}.py" for name in (targets, "targets_elsewhere")}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_composes_under_its_name(preset):
    config = check(composed(f"experiment={preset}"))
    assert config.experiment == preset
    assert config.name == (f"mlp-adam-{preset}" if preset in ("smoke", "lr_range") else preset)


def test_presets_train_what_their_authors_wrote():
    wide = check(composed("experiment=wide_mlp"))
    assert wide.model["hidden"] == [512, 256]
    assert (wide.trainer.batch_size, wide.trainer.epochs) == (32, 5)
    assert wide.optimizer["learning_rate"] == 0.001
    # Those that are selected on validation images.
    selected = {"smoke", "lr_range", "residual_mlp_plus", "mlp_record", "mlp_elastic", "cnn_record", "fashion_cnn"}
    for preset in PRESETS:
        validation = check(composed(f"experiment={preset}")).data["validation"]
        assert (validation == "test") == (preset not in selected)


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=["=".join(pair) for pair in OPTIONS])
def test_every_key_says_what_it_means(group, option):
    lines = (CONF_DIR / group / f"{option}.yaml").read_text().splitlines()
    assert lines[0].startswith("# ")
    assert all("  # " in line for line in lines[1:] if line.strip() and not line.startswith("_target_"))


def test_every_key_of_the_options_has_a_rule():
    without = {"path", "validation", "split", "exclude_layers", "_target_"}  # checked elsewhere, or free
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
    config = check(composed("data=digits"))
    for dirty, said in ((None, "unknown"), (True, "true"), (False, "false")):
        code = provenance.Code("c0ffee", "main", dirty, "")
        assert experiment._tags(experiment.prepare(config, small(50), "cpu"), code)["code.dirty"] == said


@pytest.mark.parametrize(("group", "option"), [pair for pair in ALL_OPTIONS if pair[1] != "none"])
def test_params_are_in_the_words_of_the_command_line_and_lose_nothing(group, option):
    needed = {"data=file": ["data.path=x"], "callbacks=lr_range": ["schedule=lr_range"]}
    choice = f"{group}={option}"
    config = check(composed(choice, *needed.get(choice, [])))
    found = params(config)
    assert found[group] == option
    assert not [key for key in found if "_target_" in key]
    whole = {key: value for key, value in flatten(asdict(config)).items() if not key.startswith(("sweep.", "resume"))}
    whole |= {key: ",".join(getattr(config, key)) or None for key in LISTS}
    assert current_params(found) == {
        key: json.dumps(value) if isinstance(value, list) else str(value) for key, value in whole.items()
    }


def test_params_name_a_target_that_is_no_option():
    given = [
        "model._target_=keras.Sequential",
        "+augment.rotate._target_=mine.rotate",
        "+augment.mine._target_=mine.own",
    ]
    found = params(OmegaConf.to_object(composed(*given)))
    assert {key: found[key] for key in ("model", "augment", "augment.rotate", "augment.mine")} == {
        "model": "keras.Sequential",
        "augment": "rotate,mine",
        "augment.rotate": "mine.rotate",
        "augment.mine": "mine.own",
    }
    targets = {key: value for key, value in current_params(found).items() if key.startswith(("model.", "augment."))}
    assert targets["model._target_"] == "keras.Sequential"
    assert targets["augment.rotate._target_"] == "mine.rotate"
    assert targets["augment.mine._target_"] == "mine.own"


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
        runs.append(RunInfo(f"{number:032x}", "x", "FINISHED", False, 0, 0, params(each), scores, tags))
        environment = json.dumps({"facts": found, "config": params(each), "packages": {"keras": "3"}, "python": "3"})
        records.append(Record("run", None, None, {"environment.json": environment.encode()}, tags))
        recorded.append(identity(each, found))
    tables = leaderboard.board(runs, leaderboard.Choice(everything=True), "final_val_accuracy").tables
    rows = sum(len(table.rows) for table in tables)
    return recorded[0] != recorded[1], rows == 2, verdict.compare_factors(*records)[0] != []


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
        setattr(place, last, {"other": {"_target_": "mine.other"}} if key in LISTS else "other")
    same_row = key == "seed"  # seeds of one row, as are folds, but this one is without data.folds
    assert told_apart(changed) == (changes_result(key), changes_result(key) and not same_row, changes_result(key))


@pytest.mark.parametrize("fact", sorted({fact for fact in STAND_INS.values() if fact is not None}))
def test_identity_rows_and_factors_agree_about_what_stands_in_for_a_key(fact):
    assert told_apart(FULL) == (False, False, False)
    assert told_apart(FULL, {fact: "other"}) == (True, True, True)


def test_the_experiment_may_come_from_the_environment(monkeypatch):
    assert composed().tracking.experiment == "mnist_exp"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    assert composed().tracking.experiment == "mine"
    assert composed("tracking.experiment=other").tracking.experiment == "other"
