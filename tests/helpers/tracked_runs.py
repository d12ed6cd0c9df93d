"""Runs as `tracking` returns them."""

from mnist_exp.analysis.leaderboard import Choice
from mnist_exp.tracking import RunInfo

TAGS = {"kind": "run", "sweep": "s1", "data.name": "mnist", "data.fingerprint": "f1", "selection": "validation"}
METRIC = "final_val_accuracy"
ALL = Choice(everything=True)


def run(number, seed=0, accuracy=0.9, *, status="FINISHED", deleted=False, tags=None, metrics=None, **settings):
    params = {"name": "mine", "seed": str(seed), "model._target_": "mnist_exp.models.mlp", "trainer.epochs": "3"}
    params |= {key.replace("__", "."): str(value) for key, value in settings.items()}
    scores = {METRIC: accuracy, "test_accuracy": accuracy - 0.01, "val_accuracy": accuracy}
    return RunInfo(
        f"{number:032x}",
        f"mine-s{seed}",
        status,
        deleted,
        1000 - number,
        None,
        params,
        scores | (metrics or {}),
        {**TAGS, **(tags or {})},
    )


def grid():
    """Two optimizers, each with a learning rate of its own, times two widths. The second width lacks a seed."""
    rates = {"Adam": 0.001, "RMSprop": 0.01}
    return [
        run(
            1000 * w + 10 * s + len(name),
            s,
            0.5 + 0.1 * (name == "Adam") + w / 100 + s / 1000,
            model__width=w,
            optimizer___target_=f"keras.optimizers.{name}",
            optimizer__learning_rate=rate,
        )
        for name, rate in rates.items()
        for w in (1, 2)
        for s in range(3)
        if (w, s) != (2, 2)
    ]
