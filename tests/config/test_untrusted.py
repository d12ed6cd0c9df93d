"""A logged config from a stranger: whatever it holds that could run, read or fetch something is refused in one line."""

import json
from types import SimpleNamespace

import pytest
from hydra.utils import get_object

from mnist_exp import provenance, tracking
from mnist_exp.config import ARGUMENTS, CONF_DIR, ConfigError, check, current_params, flatten, to_yaml
from mnist_exp.config.untrusted import MAX_BYTES, builders, read_config
from mnist_exp.errors import RequestError
from mnist_exp.reproduction.record import resumed
from tests.helpers.commands import drive
from tests.helpers.configs import composed
from tests.helpers.logged_configs import GOOD, MODEL, changed, data, model, optimizer

# The command on each config in turn, all in one process, which tells what it came to import.
DRIVER = """
import contextlib, io, json, os, sys
from pathlib import Path
from mnist_exp import reproduce

sys.path.insert(0, os.getcwd())
answers = {}
for number, (case, content) in enumerate(json.load(sys.stdin).items()):
    Path(str(number)).mkdir()
    config = Path(str(number), "config.yaml")
    config.write_text(content, encoding="utf-8")
    sys.argv[1:], err = [str(config)], io.StringIO()
    with contextlib.redirect_stderr(err):
        try:
            reproduce.main()
        except SystemExit as end:
            answers[case] = end.code, err.getvalue()
heavy = {"tensorflow", "keras", "mlflow", "matplotlib", "evil"}
print(json.dumps([answers, sorted(heavy & set(sys.modules)), sorted(path.name for path in Path().iterdir())]))
"""
CANARY = "touched"
ONE_OF = "_target_ must be one of "
PLAIN = " must be a number, a text, or a list of them"
ALIAS = "aliases and anchors are not allowed"


# What a config holds, and what the first line of the refusal says.
HOSTILE = {
    # targets that run, write, read or load
    "os.system": (model("os.system", command=f"touch {CANARY}"), ONE_OF),
    "posix.system": (model("posix.system"), ONE_OF),
    "subprocess.run": (model("subprocess.run", args=f"[touch, {CANARY}]"), ONE_OF),
    "builtins.open": (data("builtins.open", file=CANARY, mode="w"), ONE_OF),
    "builtins.eval": (model("builtins.eval"), ONE_OF),
    "builtins.exec": (model("builtins.exec"), ONE_OF),
    "builtins.__import__": (model("builtins.__import__", name="evil"), ONE_OF),
    "write_text": (model("pathlib.Path.write_text", data=CANARY), ONE_OF),
    "numpy.load": (data("numpy.load", file="evil.npy", allow_pickle="true"), ONE_OF),
    "pickle.loads": (data("pickle.loads"), ONE_OF),
    "runpy": (model("runpy.run_path", path_name="evil.py"), ONE_OF),
    "urllib": (data("urllib.request.urlopen", url="'http://127.0.0.1/'"), ONE_OF),
    "shutil.rmtree": (model("shutil.rmtree", path="."), ONE_OF),
    "load_model": (model("keras.models.load_model", filepath="evil.keras", safe_mode="false"), ONE_OF),
    "keras saving": (model("keras.saving.deserialize_keras_object", config="x", safe_mode="false"), ONE_OF),
    "unsafe": (model("keras.config.enable_unsafe_deserialization"), ONE_OF),
    "Lambda": (model("keras.layers.Lambda", function="x"), ONE_OF),
    "get_file": (data("keras.utils.get_file", origin="'http://127.0.0.1/'"), ONE_OF),
    "a module of mine": (model("evil.model"), ONE_OF),
    # what only looks allowed
    "prefix": (model("mnist_exp.models.mlp_evil"), ONE_OF),
    "prefix of a module": (model("mnist_exp.models_evil.mlp"), ONE_OF),
    "deeper": (model("mnist_exp.models.keras.models.load_model"), ONE_OF),
    "attribute": (model("mnist_exp.models.mlp.__globals__"), ONE_OF),
    "dunder": (model("mnist_exp.models.__loader__"), ONE_OF),
    "private": (model("mnist_exp.models._classifier"), ONE_OF),
    "imported": (model("mnist_exp.models.keras"), ONE_OF),
    "get_object": (model("mnist_exp.config.get_object", path="os.system"), ONE_OF),
    "build": (model("mnist_exp.config.build", node="{_target_: os.system}"), ONE_OF),
    "no builder": (data("mnist_exp.data.check_validation"), ONE_OF),
    "another group's": (optimizer("mnist_exp.models.mlp"), ONE_OF),
    "class of the module": (model("mnist_exp.models.Dropout"), ONE_OF),
    "keras function": (optimizer("keras.optimizers.deserialize", config="x"), ONE_OF),
    "keras wrapper": (optimizer("keras.optimizers.LossScaleOptimizer"), ONE_OF),
    "keras private": (optimizer("keras.src.optimizers.adam.Adam"), ONE_OF),
    "keras through": (optimizer("keras.optimizers.schedules.keras_export"), ONE_OF),
    "spaces": (model("' mnist_exp.models.mlp'"), ONE_OF),
    "newline": (model('"mnist_exp.models.mlp\\n"'), ONE_OF),
    "homoglyph": (model("mnist_\u0435xp.models.mlp"), ONE_OF),
    "list": (model("[os.system]"), ONE_OF),
    "mapping": (model("{_target_: os.system}"), ONE_OF),
    "augment": (
        changed("augment: {_target_: null}", "augment: {_target_: os.system}"),
        "augment._target_._target_ must be one of mnist_exp.augment.shift, ",
    ),
    # values
    "nested target": (changed("[3]", "{_target_: os.system, command: ls}"), f"model.hidden{PLAIN}"),
    "target in a list": (changed("[3]", "[{_target_: os.system}]"), f"model.hidden{PLAIN}"),
    "a Keras object": (
        changed("relu", "{class_name: Lambda, config: {}}"),
        f"model.activation{PLAIN}",
    ),
    "a schedule": (changed("1.0e-3", "{class_name: X}"), f"optimizer.learning_rate{PLAIN}"),
    "_args_": (changed("hidden: [3]", "hidden: [3], _args_: [x]"), "model._args_ is not a key of"),
    "_partial_": (changed("hidden: [3]", "hidden: [3], _partial_: true"), "model._partial_ is not a key of"),
    "a key that is none": (changed("hidden: [3]", "hidden: [3], 1: 2"), "model has a key that is no name"),
    # costs
    "threads": (changed("epochs: 2", "epochs: 2, threads: 1000000"), "trainer.threads must be null or a whole number,"),
    "devices": (changed("epochs: 2", "epochs: 2, devices: 'cpu:100000'"), "trainer.devices must be auto, cpu, gpu, or"),
    "layers": (changed("[3]", f"{[1] * 65}"), "model.hidden must be at most 64 layers or values"),
    "blocks": (
        model("mnist_exp.models.residual", width=1, blocks=65, activation="relu", dropout=0.0, batch_norm="false"),
        "model.blocks must be at most 64 layers or values, got 65; --trust",
    ),
    "epochs": (changed("epochs: 2", "epochs: 10000000000000"), "trainer.epochs must have no number beyond 2147483647"),
    "width": (changed("[3]", "[10000000000000]"), "model.hidden must have no number beyond 2147483647"),
    "a search without end": (
        optimizer("keras.optimizers.Muon", exclude_layers="['(a+)+$']"),
        "optimizer.exclude_layers must have no text but plain names, got \"['(a+)+$']\"; --trust",
    ),
    "a search in a text": (optimizer("keras.optimizers.Muon", exclude_layers="'a|b'"), "must have no text but plain"),
    "many unknown keys": (GOOD + "".join(f"k{number}: 1\n" for number in range(6000)), "'k0' is not a key of a config"),
    "many unknown keys of a group": (
        changed("hidden: [3]", "hidden: [3], " + ", ".join(f"k{number}: 1" for number in range(5000))),
        "model.k0 is not a key of mnist_exp.models.mlp",
    ),
    # interpolations
    "environment": (changed("mlp-adam", "${oc.env:HOME}"), "'${oc.env:HOME}' is not allowed"),
    "decode": (changed("seed: 0", "seed: ${oc.decode:'1'}"), "is not allowed"),
    "in a key": (changed("hidden:", "'${oc.env:HOME}':"), "is not allowed"),
    "in a target": (model("'${name}'"), "is not allowed"),
    "in a path": (data("mnist_exp.data.file", path="'${oc.env:HOME}/x'"), "is not allowed"),
    # nodes
    "hydra": (GOOD + "hydra: {run: {dir: /tmp/x}}\n", "hydra: a logged config has no such node"),
    "defaults": (
        GOOD + "defaults: [schema, override hydra/launcher: evil]\n",
        "defaults: a logged config composes",
    ),
    "defaults text": (GOOD + "defaults: /etc\n", "defaults: a logged config composes"),
    "callback": (
        GOOD + "callbacks: {a: {_target_: keras.callbacks.CSVLogger, filename: x}}\n",
        "callbacks.a._target_ must be one of mnist_exp.training.callbacks.swa, ",
    ),
    "lambda callback": (
        GOOD + "callbacks: {a: {_target_: keras.callbacks.LambdaCallback}}\n",
        "callbacks.a._target_ must be one of ",
    ),
    "score": (GOOD + "scores: {a: {_target_: os.system}}\n", "scores.a._target_ must be one of "),
    "loss": (
        GOOD + "loss: {_target_: os.system}\n",
        "loss._target_ must be one of mnist_exp.losses.cross",
    ),
    "layer": (
        GOOD.replace("augment: {_target_: null}", "augment: {a: {_target_: keras.layers.Lambda, function: x}}"),
        "augment.a._target_ must be one of mnist_exp.augment.shift, ",
    ),
    "unknown": (GOOD + "extras: {_target_: os.system}\n", "'extras' is not a key of a config"),
    "trainer": (changed("epochs: 2", "epochs: 2, hook: os.system"), "hook"),
    "no group": (changed(f"model: {MODEL}\n", ""), "model"),
    "no mapping": (changed(MODEL, "os.system"), "model must name an option"),
    # names
    "name": (changed("mlp-adam", "../../etc/cron.d/x"), "name must be a name, not a path"),
    "backslashes": (changed("mlp-adam", r"..\..\x"), "name must be a name, not a path"),
    "preset": (changed("experiment: null", "experiment: a/../../x"), "experiment must be a name, not a path"),
    "store": (changed("experiment: mnist_exp", "experiment: ../x"), "tracking.experiment must be a name, not a path"),
    "escape codes": (changed("mlp-adam", r'"\e]0;x\a"'), "name must be text of 1 to 200 printable characters"),
    "escape codes in a key": (changed("hidden: [3]", r'"\e]0;x\a": 1'), "model has a key that is no name"),
    "escape codes in a node": (GOOD + r'"\e]0;x\a": 1', "is not a key of a config"),
    "escape codes in a number": (changed("epochs: 2", r'epochs: "\e]0;x\a"'), r"\x1b]0;x\x07"),
    "escape codes in a target": (model(r'"\e]0;x\a"'), ONE_OF),
    "escape codes in a choice": (changed("relu", r'"\e]0;x\a"'), "model.activation must be one of"),
    "a run elsewhere": (GOOD + "init_from: ../../x\n", "init_from must be"),
    # YAML
    "object tag": (changed("seed: 0", f"seed: !!python/object/apply:os.system ['touch {CANARY}']"), "the tag"),
    "name tag": (changed("seed: 0", "seed: !!python/name:os.system ''"), "the tag"),
    "path tag": (changed("seed: 0", "seed: !!python/object/apply:pathlib.Path [x]"), "the tag"),
    "plain tag": (changed("seed: 0", "seed: !!int 0"), "the tag"),
    "alias": (
        changed("seed: 0", "seed: &a 0").replace("epochs: 2", "epochs: *a"),
        "aliases and anchors are not allowed",
    ),
    "merge": (changed("hidden: [3]", "<<: {hidden: [3]}"), "'<<' is not allowed"),
    "laughs": ("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n", ALIAS),
    "deep": ("a: " + "[" * 5000 + "]" * 5000, "nested more than 6 deep"),
    "deep mapping": (changed("[3]", "{a: {b: {c: {d: {e: 1}}}}}"), "nested more than 6 deep"),
    "huge": (GOOD + "# " + "x" * MAX_BYTES, "must have at most 65,536 bytes"),
    "huge number": (changed("seed: 0", "seed: " + "9" * 900), "seed"),
    "huger number": (changed("seed: 0", "seed: " + "9" * 5000), "a value of more than 1000 characters"),
    "two documents": (GOOD + "---\n" + GOOD, "config.yaml is not a config"),
    "twice": (GOOD + "seed: 1\n", "config.yaml is not a config"),
    "not YAML": ("a: [", "config.yaml is not a config"),
    "a list": ("[1, 2]", "config.yaml must hold keys and values"),
    "a text": ("os.system", "is not a key of a config"),
    "nothing": ("", ""),
    "zero bytes": ("a: \0", "config.yaml is not a config"),
}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "evil.py").write_text(f"open({CANARY!r}, 'w')\n")
    given = {case: content for case, (content, _) in HOSTILE.items()}
    return json.loads(drive(folder, DRIVER, given, 120))


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_config_is_refused_in_a_line(case, refusals):
    code, err = refusals[0][case]
    first, *others = err.splitlines()
    assert code == 2
    assert first.startswith("error: ")
    assert HOSTILE[case][1] in first
    assert all(line.startswith("error: ") for line in others)
    assert all(line.isprintable() and len(line) < 2000 for line in (first, *others))


@pytest.mark.parametrize(("case", "rest"), [("many unknown keys", "5,980"), ("many unknown keys of a group", "4,980")])
def test_at_most_twenty_mistakes_are_named(case, rest, refusals):
    lines = refusals[0][case][1].splitlines()
    assert len(lines) == 21
    assert lines[-1] == f"error: ... and {rest} more"


def test_plain_names_of_layers_are_accepted_and_trust_lifts_the_bounds():
    plain = optimizer("keras.optimizers.Muon", exclude_layers="[dense_1/kernel, logits]")
    assert read_config(plain.encode()).optimizer["exclude_layers"] == ["dense_1/kernel", "logits"]
    own = optimizer("keras.optimizers.Muon", exclude_layers="['.*bias$']").replace("[3]", f"{[1] * 65}")
    assert len(read_config(own.encode(), trusted=True).model["hidden"]) == 65


def test_hostile_configs_run_import_and_leave_nothing(refusals):
    _, heavy, left = refusals
    assert heavy == []
    assert left == sorted(["evil.py", *map(str, range(len(HOSTILE)))])
    assert len(HOSTILE) >= 30


def test_bytes_that_are_no_text_are_refused():
    for content in (b"\xff\xfe\x00", GOOD.encode("utf-16"), b"name: \xe9\n"):
        with pytest.raises(ConfigError, match=r"config\.yaml must be UTF-8 text"):
            read_config(content)


@pytest.mark.parametrize("preset", ["smoke", "wide_mlp", "dropout_mlp", "residual_mlp", "linear"])
def test_what_a_run_logs_is_read_as_it_was(preset):
    logged = check(composed(f"experiment={preset}", "data=digits", "optimizer=muon", "schedule=warmup_cosine"))
    assert read_config(to_yaml(logged).encode()) == logged


def test_where_it_was_tracked_does_not_count():
    config = read_config(changed("uri: null", "uri: http://127.0.0.1:1").encode())
    assert config.tracking.uri is None
    assert config == read_config((GOOD + "sweep: {id: x}\n").encode())


def test_keys_that_came_later_have_defaults():
    config = read_config(GOOD.encode())
    assert (config.trainer.epochs, config.trainer.batch_size, config.trainer.precision) == (2, 64, "float32")


def test_early_stopping_of_an_earlier_version_is_a_callback(tmp_path):
    """Its keys were in the trainer. Such a config is read, and composes as the primary config of a command."""
    expected = check(composed("callbacks=early_stopping", "callbacks.early_stopping.patience=5")).callbacks
    logged = to_yaml(check(composed("data=digits")))
    without, stopping = (
        logged.replace("\ntrainer:", f"\ntrainer:\n  early_stopping: {monitor}\n  patience: 5")
        for monitor in ("null", "val_loss")
    )
    (tmp_path / "config.yaml").write_text(stopping)
    for config in (
        read_config(stopping.encode()),
        check(composed(f"hydra.searchpath=[file://{CONF_DIR}]", folder=tmp_path, name="config")),
    ):
        assert config.callbacks == expected
        assert "early_stopping" not in to_yaml(config).partition("\ntrainer:")[2]
    assert read_config(without.encode()).callbacks == {}
    params = current_params({"trainer.early_stopping": "val_loss", "trainer.patience": "5", "callbacks": "a"})
    assert params["callbacks"] == "a,early_stopping"
    today = flatten(expected, "callbacks.")
    assert {key: value for key, value in params.items() if key.startswith("callbacks.")} == {
        key: str(value) for key, value in today.items()
    }


def test_the_earlier_name_of_the_device_loop_is_read_as_todays():
    assert check(composed("trainer.execution=resident")) == check(composed("trainer.execution=device_loop"))
    logged = {"trainer.execution": "resident", "trainer.epochs": "2"}
    assert current_params(logged)["trainer.execution"] == "device_loop"


def mine(image_shape, num_classes, *, size):
    raise NotImplementedError


def test_trust_lets_targets_and_values_pass_but_no_tricks():
    own = model("tests.config.test_untrusted.mine", size="{a: 1}")
    with pytest.raises(ConfigError, match="--trust"):
        read_config(own.encode())
    with pytest.raises(ConfigError, match="must name what takes image_shape, num_classes first"):
        read_config(model("mnist_exp.models.Dropout").encode(), trusted=True)
    assert read_config(own.encode(), trusted=True).model["size"] == {"a": 1}
    with pytest.raises(ConfigError, match="is not allowed"):
        read_config(changed("mlp-adam", "${oc.env:HOME}").encode(), trusted=True)


@pytest.mark.parametrize(
    ("uri", "process", "own"),
    [
        ("sqlite:///x.db", provenance.process(), True),
        ("sqlite:///x.db", "elsewhere 1f 7 1.0", False),
        ("sqlite:///x.db", "", False),
        ("http://127.0.0.1:1", provenance.process(), False),
    ],
    ids=["here", "elsewhere", "unknown", "server"],
)
def test_only_a_run_that_this_machine_recorded_in_a_file_resumes_with_its_own_model(uri, process, own, monkeypatch):
    files = {"config.yaml": model("tests.config.test_untrusted.mine", size="3").encode(), "overrides.yaml": b"[a=1]"}
    run = SimpleNamespace(run_id="0" * 32, tags={"process": process})
    monkeypatch.setattr(tracking, "find_run", lambda *_: run)
    monkeypatch.setattr(tracking, "read_files", lambda *_: files)
    given = check(composed(f"resume={'0' * 32}", f"tracking.uri={uri}"))
    if own:
        config, overrides = resumed(given, [])
        assert (config.model["_target_"], overrides) == ("tests.config.test_untrusted.mine", ["a=1"])
    else:
        with pytest.raises(RequestError, match=r"give the run's own command again instead: model\._target_ must be"):
            resumed(given, [])


def test_builders_are_the_public_ones_and_can_be_called():
    models = ("cnn", "lenet5", "linear", "mixer", "mlp", "residual", "resnet", "vit")
    assert sorted(builders("model")) == [f"mnist_exp.models.{name}" for name in models]
    names = ("cifar10", "cifar100", "digits", "emnist", "fashion_mnist", "file", "kmnist", "mnist", "mnist5k")
    assert builders("data") == [f"mnist_exp.data.{name}" for name in names]
    ours = [f"mnist_exp.training.callbacks.{name}" for name in ("swa", "tensorboard", "lr_range")]
    theirs = ("EarlyStopping", "ReduceLROnPlateau", "SwapEMAWeights", "TerminateOnNaN")
    assert builders("callbacks") == [*ours, *(f"keras.callbacks.{name}" for name in theirs)]
    assert "keras.optimizers.Muon" in builders("optimizer")
    assert "keras.optimizers.schedules.CosineDecay" in builders("schedule")
    for group in ARGUMENTS:
        for target in builders(group):
            assert callable(get_object(target))
