"""Every mistake: one clear line, the exit code that is promised, and no run that looks alive."""

import resource
import shlex
import sqlite3

import numpy as np
import pytest

from mnist_exp.data import ARRAYS
from tests.helpers.commands import Case, commands, runs, start, typed

MODELS = "Available options in 'model': cnn, lenet5, linear, mixer, mlp, residual, resnet, vit"
TRAINER = "batch_size, checkpoint, devices, epochs, execution, precision"
SHARE = "must be a number from 0 to below 1, got"
VALIDATION = "data.validation must be a count of at least 1, a share between 0 and 1, or 'test', got"
FILE = "data=file data.path"

# What is typed, and what the one line of the answer has to contain; all of it before TensorFlow is imported.
MISTAKES: dict[str, tuple[str, ...]] = {
    "-m seed=0,1 hydra.sweep.dir=x/${no_key}": ("hydra.sweep.dir: ", "no_key"),
    # names
    "model=transformer": ("'model/transformer'", MODELS),
    "optimizer=adm": ("'optimizer/adm'", "adagrad, adam, adamax, adamw, ftrl, lamb, lion"),
    "schedule=cosin": ("'schedule/cosin'", "constant, cosine"),
    "data=imagenet": (
        "'data/imagenet'",
        "auto, cifar10, cifar100, digits, emnist, fashion_mnist, file, kmnist, mnist, mnist5k",
    ),
    "experiment=smok": ("'experiment/smok'", "smoke, speedrun, wide_mlp, workshop_mlp"),
    "trainer=fast": ("'trainer/fast'", "Available options in 'trainer': default"),
    "model=": ("'model/'", MODELS),
    "modle=mlp": ("modle is not a key of the config", "valid here: ", "model, name, optimizer"),
    "modle/x=mlp": ("modle/x is not a key of the config",),
    "model.hiden=[3]": ("model.hiden is not a key of the config", "activation, batch_norm, dropout, hidden"),
    "optimizer.lr=0.1": ("optimizer.lr is not a key of the config", "learning_rate"),
    "schedule=cosine schedule.alhpa=0.1": ("schedule.alhpa is not a key of the config", "alpha"),
    "trainer.epoch=3": ("trainer.epoch is not a key of the config", TRAINER),
    "data=digits data.pth=x": ("data.pth is not a key of the config", "split_seed, train_size, validation"),
    "tracking.url=x": ("tracking.url is not a key of the config", "experiment, uri"),
    "hydra.nope=3": ("hydra.nope is not a key of the config", "sweeper"),
    "+foo=1": ("foo is not a key of the config", "model, loss, optimizer"),
    "+trainer.steps=1": ("trainer.steps is not a key of the config", "epochs, batch_size"),
    "+model.layers=3": ("model.layers is not a key of mnist_exp.models.mlp", "activation, batch_norm, dropout, hidden"),
    "+model.depth=3": ("model.depth is not a key of mnist_exp.models.mlp",),  # no rule of another model's key
    "~trainer.epochs": ("trainer.epochs cannot be deleted",),
    "+optimizer.lr=0.1": ("optimizer.lr is not a key of keras.optimizers.Adam", "learning_rate"),
    "+schedule.alpha=0.1": ("schedule.alpha is not a key of mnist_exp.schedules.constant; its keys: none",),
    "+data.foo=1": ("data.foo is not a key of mnist_exp.data.digits; its keys: split_seed, validation",),
    "--config-name train +experiment=x": ("Could not find 'experiment/x'", "smoke, speedrun, wide_mlp"),
    "--config-name train +experiment=wide_mlp": ("experiment has an option: experiment=wide_mlp changes it",),
    "+model=mlp": ("model has an option: model=OPTION changes it",),
    "++model=mlp": ("force-add of config groups is not supported", "'++model=mlp'"),
    "~model": ("model", "missing mandatory value"),
    "~model.hidden": ("model.hidden is required by mnist_exp.models.mlp and missing",),
    "~optimizer.learning_rate": ("optimizer.learning_rate is required by keras.optimizers.Adam and missing",),
    "~data.validation": ("data.validation is required by",),
    "~foo": ("'foo' does not exist",),
    "data.train_size={a:1}": ("data.train_size must be null, a count of at least 1, or a share", "got {'a': 1}"),
    "optimizer.learning_rate={a:{b:1}}": ("optimizer.learning_rate must be ", "got {'a': {'b': 1}}"),
    "model=null": ("model=null", "cannot be started: ", "must be a string or a list", "NoneType"),
    "model=3": ("model=3", "cannot be started: ", "must be a string or a list", "int"),
    # targets
    "model._target_=mlp": ("model._target_ must be a dotted path to a function, got 'mlp'",),
    "model._target_=3": ("model._target_ must be a dotted path to a function, got 3",),
    "model._target_=[0]": ("model._target_ must be a dotted path to a function, got [0]",),
    "schedule._target_={a:1}": ("schedule._target_ must be a dotted path to a function, got {'a': 1}",),
    "optimizer._target_=os.nothing": ("must name a function or class that exists, got 'os.nothing'",),
    "+augment._target_=mine.flip": (
        "augment must be none or options under keys of their own",
        "got {'_target_': 'mine.flip'}",
    ),
    "+augment._target_=[0]": ("augment must be none",),
    "+augment.p=0.5": (
        "augment.p must name an option (affine, crop, cutmix, cutout, elastic, flip, mixup, noise, none, rotate, "
        "shear, shift, zoom) or have a _target_, got 0.5",
    ),
    "model._target_=mnist_exp.models.gpt": ("must name a function or class that exists, got 'mnist_exp.models.gpt'",),
    "model._target_=no.such.thing": ("must name a function or class that exists, got 'no.such.thing'",),
    "model._target_=plain_model.build": ("plain_model.build does not take activation, batch_norm", "add model=linear"),
    "model._target_=broken.model": ("must name a function or class, but", "broken.py is not Python"),
    "~model._target_": (
        "model must name an option (cnn, lenet5, linear, mixer, mlp, residual, resnet, vit) or have a _target_",
    ),
    "optimizer._target_=keras.optimizers.Adamm": ("optimizer._target_", "'keras.optimizers.Adamm'"),
    "schedule._target_=mnist_exp.data.digits": ("schedule._target_ must name what takes learning_rate, total_steps",),
    # types
    "trainer.epochs=many": ("trainer.epochs=many", "'many'", "it must be a whole number, at least 1"),
    "trainer.epochs=1.5": ("trainer.epochs=1.5", "it must be a whole number, at least 1"),
    "trainer.epochs=true": ("trainer.epochs=true", "it must be a whole number, at least 1"),
    "trainer.epochs=null": ("trainer.epochs=null", "it must be a whole number, at least 1"),
    "trainer.epochs=[]": ("trainer.epochs",),
    "trainer.batch_size=1e3": ("trainer.batch_size=1e3", "it must be a whole number"),
    "seed=true": ("seed=true", "it must be a whole number, between 0 and 2147483647"),
    "model.dropout=true": (f"model.dropout {SHARE} True",),
    "model.batch_norm=1": ("model.batch_norm must be true or false, got 1",),
    "model.hidden=3": ("model.hidden must be a list, each entry a whole number, at least 1, got 3",),
    "model.hidden=[a]": ("model.hidden must be a list", "got ['a']"),
    "model=cnn model.filters=[]": ("model.filters must be a list of at least one whole number", "got []"),
    "optimizer.learning_rate=fast": ("optimizer.learning_rate must be a number above 0, got 'fast'",),
    "optimizer.learning_rate=true": ("optimizer.learning_rate must be a number above 0, got True",),
    # ranges
    "trainer.epochs=0": ("trainer.epochs must be a whole number, at least 1, got 0",),
    "trainer.batch_size=0": ("trainer.batch_size must be a whole number, at least 1, got 0",),
    "trainer.batch_size=5000": ("trainer.batch_size must be at most the", "training images, got 5000"),
    "trainer.threads=0": ("trainer.threads must be null or a whole number, between 1 and 1024, got 0",),
    "trainer.threads=1000000": ("trainer.threads must be null or a whole number, between 1 and 1024, got 1000000",),
    "optimizer.learning_rate=-0.1": ("optimizer.learning_rate must be a number above 0, got -0.1",),
    "optimizer.learning_rate=nan": ("optimizer.learning_rate must be a number above 0, got nan",),
    "optimizer.learning_rate=inf": ("optimizer.learning_rate must be a number above 0, got inf",),
    "model.dropout=1.5": (f"model.dropout {SHARE} 1.5",),
    "model.hidden=[0]": ("model.hidden must be a list, each entry a whole number, at least 1, got [0]",),
    "model.activation=rlu": ("model.activation must be one of relu, leaky_relu", "got 'rlu'"),
    "data.validation=1.0": (f"{VALIDATION} 1.0",),
    "data.validation=0": (f"{VALIDATION} 0",),
    "data.validation=2000": ("data.validation=2000 takes 2,000 of the 1,437 training images of digits",),
    "seed=-1": ("seed must be a whole number, between 0 and 2147483647, got -1",),
    "name=": ("name must be text of 1 to 200 printable characters, got ''",),
    "name='a\nb'": ("name must be text of 1 to 200 printable characters, got 'a\\nb'",),
    "name=été": ("'name=été' is not of the form key=value; a text with special", """ the shell: "name='été'\""""),
    "data.path=ok_(1).npz": ("is not of the form key=value: ", """ the shell: "data.path='ok_(1).npz'\""""),
    "name=it's": (shlex.quote(r"name='it\'s'"),),
    "name=a\nb": (r"'name=a\nb' is not of the form key=value",),
    "name=lr/../base": ("name must be a name, not a path, got 'lr/../base'",),
    r"tracking.experiment=..\x": ("tracking.experiment must be a name, not a path, got '..",),
    "tracking.experiment=": ("tracking.experiment must be text of 1 to 200 printable characters, got ''",),
    "trainer.execution=fast": ("trainer.execution must be one of auto, device_loop, keras, got 'fast'",),
    "trainer.devices=tpu": ("trainer.devices must be auto, cpu, gpu, or cpu:N or gpu:N", "got 'tpu'"),
    "trainer.devices=cpu:100000": ("trainer.devices must be", "cpu:N or gpu:N with N from 2 to 99, got 'cpu:100000'"),
    "trainer.precision=float8": ("trainer.precision must be one of float32, mixed_bfloat16, mixed_float16",),
    "callbacks=early_stopping callbacks.early_stopping.monitor=loss": (
        "callbacks.early_stopping.monitor must be one of val_loss, val_accuracy, got 'loss'",
    ),
    "trainer.early_stopping=val_loss": (
        "trainer.early_stopping is no key any more; write callbacks=early_stopping ",
        " callbacks.early_stopping.monitor=val_loss",
    ),
    "-m +trainer.patience=1,2": ("write callbacks=early_stopping callbacks.early_stopping.patience=1,2",),
    "callbacks=reduce_on_plateau schedule=cosine": (
        "callbacks.reduce_on_plateau needs schedule=constant, got mnist_exp.schedules.cosine",
    ),
    "callbacks=lr_range": ("callbacks.lr_range needs schedule=lr_range, got mnist_exp.schedules.constant",),
    "callbacks=[early_stopping,swa]": (
        "callbacks.early_stopping and callbacks.swa decide on the final weights: choose one of them",
    ),
    "callbacks=swa optimizer.use_ema=true": ("optimizer.use_ema and callbacks.swa decide on the final weights",),
    "+callbacks.x={_target_:mnist_exp.training.callbacks.tensorboard,histograms:true,folder:x}": (
        "callbacks.x.folder is not a key of mnist_exp.training.callbacks.tensorboard; its keys: histograms",
    ),
    "trainer.execution=device_loop trainer.devices=cpu:2": (
        "trainer.execution=device_loop runs on one device, got",
        "cpu:2",
    ),
    # keys of a sweep that a single run would not read
    "sweep.seeds=3": ("sweep.seeds is for a sweep, got 3 in a single run: add -m",),
    "sweep.preflight=only": ("sweep.preflight is for a sweep, got 'only' in a single run: add -m",),
    # syntax and options of the command
    "seed=-1 -m trainer.epochs=1,2": ("seed must be a whole number, between 0 and 2147483647, got -1",),
    "seed=1 --nope": ("unrecognized arguments: --nope; --hydra-help lists the options",),
    "--cfg nope": ("argument --cfg/-c: invalid choice: 'nope'",),
    "trainer.epochs=[": ("'trainer.epochs=[' is not of the form key=value",),
    "trainer.epochs": ("'trainer.epochs' is not of the form key=value", "missing EQUAL"),
    "trainer.epochs=1,2": ("trainer.epochs=1,2", "--multirun"),
    "seed=${nope}": ("seed", "'nope' not found"),
    "--config-dir nowhere": ("Additional config directory", "nowhere' not found"),
    "--config-name nope": ("Cannot find primary config 'nope'",),
    "hydra.run.dir=/dev/null/x": (
        "hydra.run.dir=/dev/null/x",
        "cannot be started: ",
        "Not a directory: '/dev/null/x'",
    ),
    "hydra.run.dir=${nope}": ("'nope' not found", "hydra.run.dir"),
    # a downloaded config.yaml
    "--config-dir logged --config-name config optimizer=sgd": (
        "optimizer is not in the defaults list of this config; change its values by key, optimizer.KEY=VALUE;",
    ),
    "--config-dir not_yaml --config-name config": ("not_yaml/config.yaml", "line 2"),
    "--config-dir not_text --config-name config": ("--config-dir not_text", "can't decode byte 0xff"),
    "--config-dir no_schema --config-name config": ("the config must have `schema` first in its defaults list",),
    "--config-dir no_group --config-name config": ("optimizer", "missing mandatory value"),
    "--config-dir unknown_key --config-name config": ("'config'", "trainer.epoch is not a key of the config", TRAINER),
    "--config-dir empty --config-name config": ("the config must have `schema` first in its defaults list",),
    # data
    "data=file": ("data.path", "Missing mandatory value"),
    "data=file data.path=null": ("data.path must name a file or a folder", "got None"),
    f"{FILE}=nowhere.npz": ("nowhere.npz: no such file or folder",),
    "data=emnist data.split=all": (
        "data.split must be one of balanced, byclass, bymerge, digits, letters, mnist, got 'all'",
    ),
    "data=mnist data.path=nowhere": ("data.path: ", "nowhere: no such file or folder"),
    f"{FILE}=damaged.npz": ("damaged.npz: damaged, truncated, or not an .npz or IDX file",),
    f"{FILE}=garbage.npz": ("garbage.npz: damaged, truncated, or not an .npz or IDX file",),
    f"{FILE}=floats.npz": ("the pixels of all sets must be of one type", "got float64 and integers"),
    f"{FILE}=/proc/self/mem": ("/proc/self/mem",),
    f"{FILE}=empty": ("this folder has no files of a known format",),
    # sweeps: every mistake of every run, before the first
    "-m trainer.epochs=0": ("trainer.epochs must be a whole number, at least 1, got 0",),
    "-m model=mlp,transformer": ("model=transformer: ", "'model/transformer'", MODELS),
    "-m model=mlp,cnn model.hidden=[3]": ("model=cnn: ", "model.hidden is not a key of the config", "filters"),
    "-m trainer.batch_size=64,5000": ("trainer.batch_size must be at most the", "got 5000"),
    "-m model=glob(zzz*)": ("the sweep has no runs: ", "model=glob(zzz*)"),
    "-m trainer.epochs=[": ("'trainer.epochs=[' is not of the form key=value",),
    "-m experiment=1,2": ("Config group override must be a string or a list, the name of an option, got int",),
    "-m model=null": ("model=null", "must be a string or a list"),
    # searches
    "-m model.dropout=interval(0,0.5)": ("model.dropout=interval(0,0.5) needs a search: hydra/sweeper=random or",),
    "-m seed=1,2 sweep.seeds=3": ("sweep.seeds=3 and several values of seed: give one of them",),
    "-m model=tag(zip,mlp,cnn)": ("model=tag(zip,mlp,cnn)", "must be a choice(), range() or interval()"),
    "-m model=tag(zip,choice(mlp,cnn)) seed=tag(zip,range(3))": (
        "keys with the same tag need equally many values: by tag zip model has 2, seed has 3",
    ),
    "-m hydra/sweeper=random model=mlp": ("a search needs at least one key with several values",),
    "-m hydra/sweeper=random seed=1,2 hydra.sweeper.n_trials=0": ("hydra.sweeper.n_trials must be a whole number, at",),
    "-m hydra/sweeper=random model=mlp,cnn +model.hidden=[3]": (
        "model=cnn: model.hidden is not a key of mnist_exp.models.cnn",
        "filters",
    ),
    "-m hydra/sweeper=optuna seed=1,2 hydra.sweeper.sampler=best": (
        "must be one of tpe, cmaes, random, qmc, grid, got",
    ),
    "-m hydra/sweeper=random model.dropout=interval(0,1.5)": ("model.dropout=1.5: model.dropout must be a number",),
    "sweep.objective=[test_accuracy]": ("sweep.objective must be a list of one or several of final_val_accuracy",),
}
SEVERAL = {
    "trainer.epochs=0 model.dropout=1.5 seed=-1": [
        "error: seed must be a whole number, between 0 and 2147483647, got -1",
        f"error: model.dropout {SHARE} 1.5",
        "error: trainer.epochs must be a whole number, at least 1, got 0",
    ],
    "-m seed=0,-1 model.dropout=0.1,1.5": [
        f"error: seed=0 model.dropout=1.5: model.dropout {SHARE} 1.5",
        "error: seed=-1 model.dropout=0.1: seed must be a whole number, between 0 and 2147483647, got -1",
        "error: seed=-1 model.dropout=1.5: seed must be a whole number, between 0 and 2147483647, got -1",
        f"error: seed=-1 model.dropout=1.5: model.dropout {SHARE} 1.5",
    ],
    "-m seed=0,-1 trainer.epochs=0": [
        "error: trainer.epochs must be a whole number, at least 1, got 0",
        "error: seed=-1: seed must be a whole number, between 0 and 2147483647, got -1",
    ],
}
GOOD_CONFIG = """defaults: [schema, hydra_settings, _self_, override hydra/job_logging: disabled]
model: {_target_: mnist_exp.models.linear}
optimizer: {_target_: keras.optimizers.SGD, learning_rate: 0.1}
trainer: {epochs: 1}
"""


def arrays() -> dict[str, np.ndarray]:
    images, labels = np.zeros((20, 4, 4), np.uint8), (np.arange(20) % 2).astype(np.uint8)
    return dict(zip(ARRAYS, (images, labels, images, labels), strict=True))


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    """The answers to all mistakes that need neither a store nor TensorFlow, and the folder they were made in."""
    folder = tmp_path_factory.mktemp("refused")
    (folder / "broken.py").write_text("def model(:")
    (folder / "plain_model.py").write_text("def build(image_shape, num_classes): ...")
    for name, text in {
        "not_yaml": GOOD_CONFIG.replace("mnist_exp.models.linear}", "{"),
        "no_schema": GOOD_CONFIG.replace("schema, ", ""),
        "no_group": GOOD_CONFIG.replace("optimizer: ", "# "),
        "unknown_key": GOOD_CONFIG.replace("epochs:", "epoch:"),
        "empty": "",
        "logged": GOOD_CONFIG,
    }.items():
        (folder / name).mkdir()
        (folder / name / "config.yaml").write_text(text)
    (folder / "not_text").mkdir()
    (folder / "not_text" / "config.yaml").write_bytes(b"\xff\xfe\x00")
    np.savez(folder / "damaged.npz", **arrays())
    (folder / "damaged.npz").write_bytes((folder / "damaged.npz").read_bytes()[:500])
    (folder / "garbage.npz").write_bytes(b"garbage" * 100)
    np.savez(folder / "floats.npz", **{**arrays(), "x_train": np.zeros((20, 4, 4))})
    before = {path.name for path in folder.iterdir()}
    said = commands({text: Case(typed(text), str(folder)) for text in (*MISTAKES, *SEVERAL)}, trains=False)
    return said, {path.name for path in folder.iterdir()} - before


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_gets_one_line_at_once(refused, text):
    said = refused[0][text]
    assert said.code == 2, said
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("error: ")
    for part in MISTAKES[text]:
        assert part in line
    assert not said.tensorflow
    assert said.processor_seconds < 3  # 0.2 on an idle machine; scikit-learn's digits 1.2 the first time


@pytest.mark.parametrize("text", SEVERAL)
def test_all_mistakes_are_reported_together(refused, text):
    assert refused[0][text].code == 2
    assert sorted(refused[0][text].err.splitlines()) == sorted(SEVERAL[text])


def test_a_mistake_leaves_no_store(refused):
    assert refused[1] <= {"outputs"}


def test_a_mistake_takes_about_a_second_from_the_prompt(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = start(tmp_path, "trainer.epochs=0")
    _, err = process.communicate(timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (process.returncode, err) == (2, "error: trainer.epochs must be a whole number, at least 1, got 0\n")
    # Processor seconds, which other processes of a busy machine do not change. TensorFlow and MLflow take 8 to import.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5


# Stores that cannot be used: what is added to `experiment=smoke`, and parts of the one line.
STORES: dict[str, tuple[str, tuple[str, ...]]] = {
    "deleted": ("tracking.experiment=old", ("tracking.experiment=old was deleted", "experiments restore", "another")),
    "deleted, sweep": ("-m tracking.experiment=old seed=0,1", ("tracking.experiment=old was deleted in MLflow",)),
    "no folder": ("tracking.uri=sqlite:///no/where.db", ("tracking.uri=sqlite:////", "/no does not exist")),
    "no folder, sweep": ("-m tracking.uri=sqlite:///no/where.db seed=0,1", ("tracking.uri=", "/no does not exist")),
    "read-only": ("tracking.uri=sqlite:////proc/x.db", ("tracking.uri=sqlite:////proc/x.db cannot be used: ",)),
    "device": ("tracking.uri=sqlite:////dev/full", ("tracking.uri=sqlite:////dev/full cannot be used: ",)),
    "a folder": (
        "tracking.uri=sqlite:///folder",
        ("tracking.uri=", "/folder cannot be used: unable to open database"),
    ),
    "garbage": ("tracking.uri=sqlite:///garbage.db", ("garbage.db cannot be used: file is not a database",)),
    "a file store": (
        "tracking.uri=nowhere/runs",
        ("tracking.uri=nowhere/runs cannot be used: ", "sqlite:///mlflow.db"),
    ),
    "no scheme": ("tracking.uri=foo://x", ("tracking.uri=foo://x cannot be used: ", "Supported URI schemes", "sqlite")),
    "no driver": ("tracking.uri=mssql+pyodbc://x/y", ("tracking.uri=mssql+pyodbc://x/y cannot be used: ",)),
    "no server": ("tracking.uri=http://127.0.0.1:9", ("tracking.uri=http://127.0.0.1:9 cannot be used: ",)),
    "full": ("hydra.output_subdir=null tracking.uri=sqlite:///new.db", ("/new.db cannot be used: disk I/O error",)),
}


@pytest.fixture(scope="module")
def unusable(tmp_path_factory, with_store):
    folder = with_store(tmp_path_factory.mktemp("unusable"))
    (folder / "garbage.db").write_bytes(b"garbage" * 1000)
    (folder / "folder").mkdir()
    with sqlite3.connect(folder / "mlflow.db") as database:
        database.execute("UPDATE experiments SET lifecycle_stage = 'deleted', name = 'old' WHERE name = 'mnist_exp'")
    database.close()
    cases = {name: Case(typed(text), str(folder), full=name == "full") for name, (text, _) in STORES.items()}
    return commands(cases, trains=False), folder


@pytest.mark.parametrize("name", STORES)
def test_a_store_that_cannot_be_used_is_said_before_anything_starts(unusable, name):
    said = unusable[0][name]
    assert said.code == 2, said
    (line,) = said.err.splitlines()
    assert line.startswith("error: tracking.")
    for part in STORES[name][1]:
        assert part in line
    assert not said.tensorflow
    assert said.seconds < 20


def test_no_run_was_begun_in_a_store_that_cannot_be_used(unusable):
    assert runs(unusable[1]) == {}


def test_two_commands_make_one_store_in_a_fresh_folder(tmp_path):
    """Both ask the store for a run, which it does not have, before TensorFlow is imported."""
    both = [start(tmp_path, "experiment=smoke", "init_from=nobody") for _ in range(2)]
    for process in both:
        _, err = process.communicate(timeout=120)
        assert (process.returncode, err.count("\n")) == (2, 1), err
        assert "there is no run 'nobody'" in err
    assert runs(tmp_path) == {}
