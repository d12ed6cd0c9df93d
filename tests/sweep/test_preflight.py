"""What is said before a sweep's first run."""

import pytest
from omegaconf import OmegaConf

from mnist_exp import data
from mnist_exp.config import CONF_DIR, ConfigError, check
from mnist_exp.errors import RequestError
from mnist_exp.sweep import preflight
from mnist_exp.tracking import RunInfo
from tests.helpers.configs import composed

MINE = """
import keras


def stubborn(image_shape, num_classes):
    weights = keras.Variable(keras.ops.ones((num_classes,)))  # which a stateless scope forbids
    images = keras.Input(image_shape, dtype="uint8")
    model = keras.Model(images, keras.layers.Dense(num_classes)(keras.layers.Flatten()(images)))
    model.mine = weights
    return model


def probabilities(image_shape, num_classes):
    images = keras.Input(image_shape, dtype="uint8")
    return keras.Model(images, keras.layers.Dense(num_classes, "softmax")(keras.layers.Flatten()(images)))


def wide(image_shape, num_classes):
    images = keras.Input(image_shape, dtype="uint8")
    return keras.Model(images, keras.layers.Dense(num_classes + 5)(keras.layers.Flatten()(images)))


def no_rate(learning_rate, total_steps):
    return lambda: learning_rate


def negative(learning_rate, total_steps):
    return keras.optimizers.schedules.PolynomialDecay(learning_rate, total_steps // 2, -learning_rate)


def no_optimizer(learning_rate, **options):
    return {"learning_rate": learning_rate}


def broken(image_shape, num_classes):
    return keras.Model(undefined)
"""


@pytest.fixture(scope="module")
def dataset():
    return data.digits()


def models(dataset, *jobs):
    return preflight.models([(check(composed("data=digits", *job.split())), dataset, job) for job in jobs])


def test_parameters_are_counted_without_the_weights(dataset):
    hidden = "model.hidden=[200000,200000]"  # 160 GB, which building it would take
    counts = models(dataset, "model=linear", hidden, "model=cnn", "model=linear seed=1")
    outputs = (784 + 1) * 200_000 + (200_000 + 1) * 200_000 + (200_000 + 1) * 10
    assert counts == [7850, outputs, (9 + 1) * 32 + (9 * 32 + 1) * 64 + (7 * 7 * 64 + 1) * 10, 7850]


def test_what_is_counted_is_what_is_built(dataset):
    config = check(composed("data=digits", "model=residual", "model.batch_norm=true"))
    built = preflight.build_model(config.model, dataset.image_shape, dataset.num_classes)
    assert preflight.models([(config, dataset, "")]) == [built.count_params()]


def test_all_that_cannot_be_built_is_told_with_the_first_job_that_has_it(dataset):
    deep, wide = "model=cnn model.filters=[1,1,1,1,1]", "model=cnn model.filters=[1,1,1,1,1,1,1]"
    with pytest.raises(ConfigError) as error:
        models(dataset, deep, "model=linear", wide, f"{deep} seed=1", f"{deep} seed=2")
    assert str(error.value).splitlines() == [
        f"{deep}: model.filters: 5 poolings need images of 32 pixels or more (and 2 more)",
        f"{wide}: model.filters: 7 poolings need images of 128 pixels or more",
    ]


def test_builders_of_a_user(dataset, tmp_path, monkeypatch):
    (tmp_path / "preflight_mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    mine = "model=linear model._target_=preflight_mine."
    assert models(dataset, f"{mine}stubborn") == [7850 + 10]
    for builder, said in (
        ("probabilities", "ends in Softmax"),
        ("wide", r"output shape \(None, 10\), got \(None, 15\)"),
    ):
        with pytest.raises(ConfigError, match=rf"^{mine}{builder}: model._target_ must .*{said}"):
            models(dataset, f"{mine}{builder}")
    with pytest.raises(ConfigError, match="broken: the model cannot be built: NameError: name 'undefined' is not"):
        models(dataset, f"{mine}broken")


@pytest.mark.parametrize(
    ("job", "said"),
    [
        ("schedule._target_=preflight_mine.no_rate", "schedule._target_ must return a float or a keras LearningRateSc"),
        ("schedule._target_=preflight_mine.negative", "schedule._target_ must give a rate of at least 0 at each step"),
        ("optimizer._target_=preflight_mine.no_optimizer", "must return a keras.Optimizer, got dict"),
    ],
)
def test_schedules_and_optimizers_of_a_user(dataset, job, said, tmp_path, monkeypatch):
    (tmp_path / "preflight_mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError) as error:
        models(dataset, f"model=linear {job}")
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_an_optimizer_that_keras_refuses(dataset, monkeypatch):
    def refuse(*_):
        raise ValueError("no such rate\nsee there")

    monkeypatch.setattr(preflight, "build_optimizer", refuse)
    with pytest.raises(ConfigError, match=r"=7: the optimizer cannot be built: ValueError: no such rate$"):
        models(dataset, "optimizer.learning_rate=7")


def run(parameters, fit, epochs, seconds, compiling=0.0):
    metrics = {"parameters": parameters, "fit_seconds": fit, "compile_seconds": compiling}
    return RunInfo("", "", "FINISHED", False, 0.0, float(seconds), {"trainer.epochs": str(epochs)}, metrics, {})


def test_time_is_that_of_earlier_runs_of_the_nearest_size():
    runs = [run(100, 10, 5, 12), run(100, 21, 5, 23, compiling=1), run(100, 30, 5, 32), run(9000, 500, 5, 600)]
    assert preflight._seconds(runs, epochs=5, images=50, parameters=90) == 23
    assert preflight._seconds(runs, epochs=10, images=50, parameters=2000) == 43
    assert preflight._seconds(runs, epochs=5, images=50, parameters=7000) == 600
    few = runs[0]._replace(tags={"data.train_images": "100"})
    assert preflight._seconds([few], epochs=10, images=1000, parameters=100) == 2 + 10 * 2 * 10


def test_plan_adds_up_jobs_and_names_what_is_unknown(dataset, monkeypatch):
    older, edited = run(7850, 4, 10, 6), run(7850, 4, 10, 6)
    del older.metrics["compile_seconds"], edited.params["trainer.epochs"]  # says nothing about the time
    linear, mlp = (("linear", "adam", 128, "digits"), ("mlp", "adam", 128, "digits"))
    found = {linear: [older, edited, run(7850, 4, 10, 6)], mlp: [older]}
    monkeypatch.setattr(preflight, "similar_runs", lambda store, *kind: found.get(kind, []))
    jobs = [(check(composed("data=digits", *job.split())), dataset, 7850) for job in ("model=linear", "model=mlp")]
    plan = preflight.plan([*jobs, jobs[0]], None)
    assert (plan.seconds, plan.unknown) == (12, 1)
    assert plan.bytes == 3 * (600_000 + 16 * 7850 + 360 * (4 * 10 + 8))
    assert str(plan) == "about 12 s one after the other, time unknown for 1 of them; 2 MB on disk"


@pytest.mark.parametrize(("seconds", "said"), [(59.6, "1 min 0 s"), (185, "3 min 5 s"), (7300, "2 h 1 min")])
def test_plan_says_the_time(seconds, said):
    assert str(preflight.Plan(seconds, 0, 10**9)) == f"about {said} one after the other; 1,000 MB on disk"


def refused(dataset, *options):
    """What a single run is refused with, on a machine with 23 GB."""
    with pytest.raises(RequestError) as error:
        preflight.check(check(composed("data=digits", *options)), dataset)
    return str(error.value)


@pytest.fixture
def small_machine(monkeypatch):
    monkeypatch.setattr(preflight.devices, "configure", lambda *_: None)  # the tests before have begun to compute
    monkeypatch.setattr(preflight.provenance, "memory", lambda: 23 * 10**9)
    monkeypatch.setattr(preflight.provenance, "gpus", lambda: [])


@pytest.mark.usefixtures("small_machine")
def test_a_model_larger_than_the_memory_is_refused(dataset, monkeypatch):
    wide = "model.hidden=[100000,100000]"
    assert refused(dataset, wide) == (
        "this model needs at least 81 GB, the machine has 23: it has 10,079,600,010 parameters, and its largest layer"
        " has 100,000 outputs for each of the 128 images of a batch"
    )
    # Few weights, but 28 x 28 x 100,000 outputs for each image.
    assert refused(dataset, "model=cnn", "model.filters=[100000]").startswith("this model needs at least 42 GB")
    fits = check(composed("data=digits", "model.hidden=[10000,10000]"))
    preflight.check(fits, dataset)
    with pytest.raises(ConfigError, match=r"^seed=1: this model needs at least 81 GB"):
        preflight.models([(check(composed("data=digits", wide)), dataset, "seed=1")], 23 * 10**9)
    monkeypatch.setattr(preflight.provenance, "gpus", lambda: ["0"])
    preflight.check(check(composed("data=digits", wide)), dataset)  # a GPU has a memory of its own
    assert refused(dataset, wide, "trainer.devices=cpu").startswith("this model needs at least 81 GB")


@pytest.mark.usefixtures("small_machine")
@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("+optimizer.clipnorm=x", "the optimizer cannot be applied: "),
        ("+optimizer.loss_scale_factor=x", "the optimizer cannot be applied: "),
        ("+optimizer.gradient_accumulation_steps=[1]", "the optimizer cannot be built: TypeError: "),
        ("model.hidden=[2147483647,2147483647,2147483647]", "this model needs at least "),
    ],
)
def test_a_single_run_is_refused_for_what_keras_refuses(dataset, option, said):
    assert refused(dataset, option).startswith(said)


SIZED = """
import keras

def large(image_shape, num_classes):
    images = keras.Input(image_shape, dtype="uint8")
    features = keras.layers.Dense(10**8)(keras.layers.Flatten()(images))
    return keras.Model(images, keras.layers.Dense(num_classes)(features))

def broken(image_shape, num_classes):
    return keras.Model(undefined)
"""


@pytest.mark.usefixtures("small_machine")
def test_a_user_s_builder_is_measured_and_its_bugs_are_left_to_the_run(dataset, tmp_path, monkeypatch):
    (tmp_path / "sized.py").write_text(SIZED)
    monkeypatch.syspath_prepend(tmp_path)
    without = ("~model." + str(key) for key in OmegaConf.load(CONF_DIR / "model" / "mlp.yaml") if key != "_target_")
    own = f"{' '.join(without)} model._target_=sized"
    preflight.check(check(composed("data=digits", *f"{own}.broken".split())), dataset)
    assert refused(dataset, *f"{own}.large".split()).startswith("this model needs at least 687 GB")
