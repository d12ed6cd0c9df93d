"""The jobs of a grid: all combinations, and values that go together."""

import re

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

from hydra_plugins.mnist_exp import Grid
from mnist_exp.config import CONF_DIR
from mnist_exp.errors import RequestError
from mnist_exp.sweep import grid


def test_the_command_line_wins_over_a_kept_sweep():
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = compose("train", ["sweep=seeds"], return_hydra_config=True)
        found = grid.expand(config, ["sweep=seeds", "seed=3,4", "name=x", "name=y"])
    assert found == [["seed=3", "sweep=seeds", "name=y"], ["seed=4", "sweep=seeds", "name=y"]]


@pytest.fixture
def expand():
    """The jobs of a multirun with these overrides."""
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        yield lambda *given: grid.expand(
            compose(
                "train", [o for o in given if "(" not in o and not re.search(r"=.*,", o)], return_hydra_config=True
            ),
            given,
        )


WIDTHS, RATES = "model.hidden=tag(zip,choice([64],[64,64]))", "optimizer.learning_rate=tag(zip,choice(3e-3,1e-3))"
PAIRS = [
    ["model.hidden=[64]", "optimizer.learning_rate=0.003"],
    ["model.hidden=[64,64]", "optimizer.learning_rate=0.001"],
]


def test_values_of_one_tag_go_together_and_multiply_with_the_rest(expand):
    assert expand(WIDTHS, RATES) == PAIRS
    assert expand(WIDTHS, "seed=1,2", RATES, "name=x") == [
        [*pair, f"seed={seed}", "name=x"] for pair in PAIRS for seed in (1, 2)
    ]
    second = ("trainer.batch_size=tag(other,range(1,3))", "trainer.epochs=tag(other,choice(8,4))")
    assert expand(WIDTHS, RATES, *second) == [
        [*pair, f"trainer.batch_size={size}", f"trainer.epochs={epochs}"]
        for pair in PAIRS
        for size, epochs in ((1, 8), (2, 4))
    ]
    assert expand("model=tag(a,choice(cnn))", "optimizer=tag(a,choice(sgd))") == [["model=cnn", "optimizer=sgd"]]


def test_hydra_launches_the_jobs_that_were_checked(expand):
    given = [WIDTHS, "seed=5", RATES, "seed=1,2"]
    checked = expand(*given)
    parsed = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(given)
    assert Grid.split_arguments(parsed, 3) == [checked[:3], checked[3:]]
    assert Grid.split_arguments(parsed, None) == [checked]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((WIDTHS,), "the tag zip of model.hidden pairs it with no other key: give one more key this tag"),
        (
            (WIDTHS, "seed=tag(zip,range(3))"),
            "need equally many values: by tag zip model.hidden has 2, seed has 3",
        ),
        ((WIDTHS, "seed=tag(a,b,range(2))"), "one tag says which keys go together, got 2"),
        ((WIDTHS, RATES, "hydra/sweeper=basic"), "only hydra/sweeper=grid pairs values"),
    ],
    ids=["alone", "unequal", "two tags", "Hydra's own sweeper"],
)
def test_tags_that_pair_nothing_are_refused(expand, given, says):
    with pytest.raises(RequestError, match=re.escape(says)):
        expand(*given)


@pytest.mark.parametrize(
    ("given", "seeds"),
    [
        (["sweep.seeds=1"], []),
        (["sweep.seeds=3"], ["seed=range(0,3)"]),
        (["seed=4", "sweep.seeds=2"], ["seed=range(4,6)"]),
    ],
)
def test_a_grid_trains_each_combination_with_the_seeds_asked_for(given, seeds):
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        assert grid.seeds(compose("train", given, return_hydra_config=True), given) == seeds
