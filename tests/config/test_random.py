"""A thousand random overrides and a thousand random logged configs: a config that can be trained, or plain lines."""

import random

import pytest
import yaml

from mnist_exp.config import CONF_DIR, flatten, params
from mnist_exp.config.untrusted import read_config
from mnist_exp.errors import RequestError
from mnist_exp.experiment import prepare
from mnist_exp.job import compose
from mnist_exp.sweep import preflight
from mnist_exp.sweep.jobs import load
from mnist_exp.sweep.startup import device
from mnist_exp.training import devices
from tests.helpers.commands import SHORT
from tests.helpers.logged_configs import GOOD

LETTERS = 1500  # of a line; some list all functions that a stranger may name
GROUPS = {
    group: sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))
    for group in ("model", "optimizer", "schedule", "loss", "augment", "callbacks", "scores", "debug")
}
TEXTS = (
    *("0", "1", "-1", "2", "7", "0.5", "1.0", "1e9", "1e-9", "1e308", "1e400", "-0.0", "nan", ".nan", "inf", "-inf"),
    *("true", "false", "null", "''", "a", "'a b'", "é", "'1'", "0x10", "1_000", "9223372036854775808", '"\\u0000"'),
    *("[]", "[0]", "[-1]", "[1,2]", "[[1,2],[3,4]]", "[a]", "[null]", "[1.5]", "{}", "{a:1}", "{a:{b:1}}"),
    *("${seed}", "${model}", "${nokey}", "${oc.env:HOME}", "${now:%Y}", "../../x", "/dev/null", "/", "~", "-", "test"),
    *("relu", "softmax", "same", "os.system", "mnist_exp.models.mlp", "keras.layers.Dense", "[{_target_: os.system}]"),
    *("{_target_: os.system}", "{_target_: keras.layers.Dense}", "range(3)", "choice(1,2)", "interval(0,1)"),
)
VALUES = (
    *(None, True, False, 0, 1, -1, 2, 0.5, 1e308, float("inf"), float("nan"), 2**63, 10**40, b"xx", "", "a", "\0", "é"),
    *([], [1], [0], [[1]], ["a"], [{}], {}, {"a": 1}, {1: 2}, "relu", "test", "../x", "1e3", "${seed}", "os.system"),
    *({"_target_": "os.system"}, {"_target_": "keras.layers.Dense", "units": 3}, {"_target_": 3}, {"_target_": None}),
    *({"_args_": [1]}, {"_partial_": True}, {"_recursive_": False}),
)


def in_plain_lines(error, said):
    lines = str(error).splitlines()
    assert lines, said
    assert max(map(len, lines)) <= LETTERS, said
    assert "Traceback" not in str(error), said


def overrides(chance):
    given = ["data=digits"]
    for group, options in GROUPS.items():
        if chance.random() < 0.2:
            given.append(f"{group}={chance.choice(options)}")
    try:
        keys = sorted(params(compose(given).config))
    except RequestError:
        keys = ["seed"]
    for key in chance.choices(keys, k=chance.choice((0, 1, 1, 2, 3))):
        place = key.rpartition(".")[0] if chance.random() < 0.1 else key
        before, after = chance.choice([("", "")] * 9 + [("+", "x"), ("~", ""), ("+", "")])
        given.append(f"{before}{place}{after}" + ("" if before == "~" else f"={chance.choice(TEXTS)}"))
    return given


@pytest.mark.slow  # 0.15 s each, for which models are built
@pytest.mark.parametrize("part", range(10))
def test_random_overrides_give_a_config_that_can_be_trained_or_plain_lines(part, monkeypatch):
    # The first test of a process fixes TensorFlow's threads and devices: without this all later configs are refused.
    monkeypatch.setattr(devices, "configure", lambda devices, threads: None)
    accepted = 0
    for number in range(part * 100, part * 100 + (20 if SHORT else 100)):
        given = overrides(random.Random(number))
        try:
            config = compose(given).config
            dataset = load(config)
            prepare(config, dataset, device(config.trainer))
            preflight.check(config, dataset)
        except RequestError as error:
            in_plain_lines(error, given)
        else:
            accepted += 1
    assert accepted > 0


def places(node, before=()):
    """The paths of all values of a config."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield (*before, key)
        yield from places(value, (*before, key))


def logged(chance):
    """A logged config with values that are missing, new, or of another kind; or with damaged bytes."""
    kind = chance.choice(("bytes", "cut", "values", "values", "values"))
    if kind == "cut":
        return GOOD.encode()[: chance.randrange(len(GOOD))]
    if kind == "bytes":
        content = bytearray(GOOD.encode())
        for _ in range(chance.choice((1, 3, 20))):
            content[chance.randrange(len(content))] = chance.randrange(256)
        return bytes(content)
    config = yaml.safe_load(GOOD)
    for _ in range(chance.choice((1, 1, 2, 3))):
        *path, last = chance.choice(sorted(places(config), key=repr))
        node = config
        for key in path:
            node = node[key]
        if chance.random() < 0.25:
            del node[last]
        elif chance.random() < 0.2 and isinstance(node, dict):
            node[chance.choice(("x", "_target_", "a.b", "", 3, "_args_", "_partial_"))] = chance.choice(VALUES)
        else:
            node[last] = chance.choice(VALUES)
    return yaml.safe_dump(config, allow_unicode=True).encode()


@pytest.mark.slow
def test_random_logged_configs_are_read_or_refused_in_plain_lines():
    accepted = 0
    for number in range(200 if SHORT else 1000):
        content = logged(random.Random(number))
        try:
            config = read_config(content, trusted=False)
        except RequestError as error:
            in_plain_lines(error, content)
        else:
            accepted += 1
            assert flatten(params(config)), content
    assert accepted > 0
