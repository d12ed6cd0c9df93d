"""The overrides of a decision: two values of one of them, and what does not go with it."""

import pytest

from mnist_exp.errors import RequestError
from mnist_exp.sweep import pair


def test_two_values_the_first_seed_and_the_store():
    assert pair.parse(["model=mlp,residual", "seed=7", "trainer.epochs=2"], None) == (
        ["model=mlp,residual", "trainer.epochs=2"],
        7,
        None,
        "mnist_exp",
    )
    found = pair.parse(["augment=[affine],[]", 'tracking.uri="sqlite:///a b.db"', "tracking.experiment=x"], None)
    assert found[1:] == (0, "sqlite:///a b.db", "x")


def test_options_of_the_user(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tiny.yaml").write_text("_target_: my.tiny\nwidth: 3\n")
    assert pair.parse(["model=tiny", "model.width=3,4"], tmp_path).overrides == ["model=tiny", "model.width=3,4"]
    with pytest.raises(RequestError, match="Could not find 'model/tiny'"):
        pair.parse(["model=tiny", "model.width=3,4"], None)


NEED = "one override must have two values, such as model=mlp,residual, got"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("model=mlp", f"{NEED} none"),
        ("model=mlp,linear optimizer=sgd,adam", f"{NEED} model=mlp,linear and optimizer=sgd,adam"),
        (
            "model=mlp,linear,cnn",
            "model=mlp,linear,cnn: a decision is between two values, such as model=mlp,residual, got 3",
        ),
        ("model=range(2)", "model=range(2): list the two values, such as model=mlp,residual"),
        ("model=glob(*)", "model=glob(*): list the two values, such as model=mlp,residual"),
        ("model=mlp,linear seed=0,1", "seed=0,1: a decision chooses the seeds; seed=N names the first"),
        ("data=mnist,mnist5k", "data=mnist,mnist5k: scores on different data are not comparable"),
        ("model=mlp,linear sweep.seeds=3", "sweep.seeds=3: a decision chooses the number of seeds"),
        ("model=mlp,linear data.folds=5", "data.folds=5: folds are not independent runs"),
    ],
)
def test_what_is_no_decision(overrides, message):
    with pytest.raises(RequestError) as error:
        pair.parse(overrides.split(), None)
    assert str(error.value) == message


@pytest.mark.parametrize("override", ["model=mlp,nope", "model=nope,mlp", "modle=mlp,linear", "model=mlp,linear,"])
def test_mistakes_have_one_line(override):
    with pytest.raises(RequestError) as error:
        pair.parse([override], None)
    assert len(str(error.value).splitlines()) == 1
