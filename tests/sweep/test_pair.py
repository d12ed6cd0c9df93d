"""The overrides of a decision: two values of one of them, and what does not go with it."""

import pytest

from mnist_exp.errors import RequestError
from mnist_exp.sweep import pair


def test_two_values_of_one_override():
    assert pair.parse(["model=mlp,residual", "seed=7", "trainer.epochs=2"]) == (
        ["model=mlp,residual", "trainer.epochs=2"],
        ["model=mlp", "seed=7", "trainer.epochs=2"],
        ["model=residual", "seed=7", "trainer.epochs=2"],
    )
    assert pair.parse(["augment=[affine],[]"])[1:] == (["augment=[affine]"], ["augment=[]"])


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
        pair.parse(overrides.split())
    assert str(error.value) == message


def test_a_mistake_has_one_line():
    with pytest.raises(RequestError, match=r"^'x==' is not of the form key=value: .*$"):
        pair.parse(["x=="])
