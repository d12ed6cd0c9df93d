"""The command `reproduce`: invalid requests, and runs that differ in one recorded factor."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import mlflow
import numpy as np
import pytest

from mnist_exp import data, provenance
from mnist_exp.config import CONF_DIR, PACKAGE
from mnist_exp.reproduction.record import Record, write_archive
from tests.helpers.commands import SHORT, Case, commands, environment
from tests.helpers.logged_configs import DIGITS, GOOD, model, node

ROWS = "".join(json.dumps({"step": step, "train_loss": 1.0, "val_loss": 1.0}) + "\n" for step in (1, 2))
THEN = {"source": {"models.py": "0"}, "facts": {"data": "0", "threads": 99, "device": "cpu"}}
THEN["variables"] = {"NVIDIA_TF32_OVERRIDE": "0"}
# What is typed, and what the one line of the answer has to contain.
REFUSED = {
    "": "the following arguments are required: run",
    "x --nope": "unrecognized arguments: --nope",
    "x --epochs many": "argument --epochs: invalid int value: 'many'",
    "nobody": "there is no run 'nobody' in sqlite:///",
    "abc": "there is no run 'abc'",
    "it's": "there is no run",
    "'or'1'='1": "there is no run",
    "%": "there is no run",
    "twin-s0": "2 runs match 'twin-s0', name one by its id: ",
    "empty-s0": "has no config.yaml: it trained nothing",
    "nobody --tracking-uri sqlite:///nowhere.db": "there is no file",
    "nobody --tracking-uri nonsense://x": "tracking.uri=nonsense://x cannot be used",
    "nowhere.yaml": "nowhere.yaml: cannot be read: No such file",
    "nowhere.zip": "nowhere.zip: cannot be read: No such file",
    "config.yaml": "nothing to compare with: it has no epoch in its metrics.jsonl",
    "full/config.yaml --epochs 3": "--epochs must be between 1 and the 2 that the run recorded, got 3",
    "full/config.yaml --epochs 0": "--epochs must be between 1 and the 2 that the run recorded, got 0",
    "gap/config.yaml": "metrics.jsonl lacks the losses of epoch 1",
    "huge/config.yaml": "metrics.jsonl lacks the losses of epoch 3",
    "full/config.yaml --checkout out": "the run's commit is unknown",
    "archive nobody out.txt": "an archive's name must end in .zip, got out.txt",
    "archive nobody out.zip": "there is no run 'nobody'",
    "archive": "the following arguments are required: run, out",
    "capsule": "the following arguments are required: run, out",
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory, with_store):
    folder = with_store(tmp_path_factory.mktemp("reproduce"))
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (experiment,) = (e for e in client.search_experiments() if e.name == "mnist_exp")
    for name in ("twin-s0", "twin-s0", "empty-s0"):
        client.create_run(experiment.experiment_id, tags={"kind": "run"}, run_name=name)
    client.create_run(experiment.experiment_id, tags={"kind": "reproduction"}, run_name="empty-s0")
    (folder / "config.yaml").write_text(GOOD)
    arrays = dict(zip(data.ARRAYS, (np.zeros((200, 5, 5), np.uint8), np.arange(200) % 2) * 2, strict=True))
    np.savez(folder / "mine.npz", **arrays)
    gone = node(DIGITS, _target_="mnist_exp.data.file", path="/gone/mine.npz", validation=0.5)
    huge = ROWS + json.dumps({"step": 10**15, "train_loss": 1}) + "\n"
    for name, rows, config in (
        ("full", ROWS, GOOD),
        ("gap", ROWS.splitlines()[1], GOOD),
        ("huge", huge, GOOD),
        ("gone", ROWS, gone),
        ("lost", ROWS, gone.replace("mine.npz", "lost.npz")),
    ):
        (folder / name).mkdir()
        (folder / name / "config.yaml").write_text(config)
        (folder / name / "metrics.jsonl").write_text(rows)
        (folder / name / "environment.json").write_text(json.dumps(THEN))
    cases = {typed: Case(typed.split(), str(folder), module="reproduce") for typed in REFUSED}
    for name in ("full", "gone", "lost"):
        cases[f"dry {name}"] = Case([f"{name}/config.yaml", "--dry-run"], str(folder), module="reproduce")
    return folder, commands(cases, trains=False)


@pytest.mark.parametrize("typed", REFUSED)
def test_an_invalid_request_gets_one_line(typed, answers):
    said = answers[1][typed]
    assert (said.code, said.out, said.tensorflow) == (2, "", False)
    assert said.err.startswith("error: ")
    assert REFUSED[typed] in said.err
    assert said.err.count("\n") == 1


def test_a_refused_request_leaves_no_files(answers):
    names = {path.name for path in answers[0].iterdir()}
    assert not {"out", "out.txt", "out.zip", "nowhere.db", "outputs"} & names


def test_a_dry_run_lists_the_differences_without_tensorflow(answers):
    said = answers[1]["dry full"]
    assert (said.code, said.tensorflow) == (0, False)
    lines = said.out.splitlines()
    assert lines[0] == "full: this differs here"
    assert lines[1].startswith("  differs: package source: __init__.py, ")
    fingerprint = data.digits(validation=0.2, split_seed=0).fingerprint
    assert f"  differs: data: 0 then, {fingerprint[:12]}… now" in lines
    assert "  differs: variable NVIDIA_TF32_OVERRIDE: 0 then, unset now" in lines
    assert not any("threads" in line for line in lines)  # for they will be what they were
    assert (
        "  cannot be compared: config, version of, device, execution, execution.xla, hardware, Keras setting" in lines
    )
    assert lines[-1].startswith("  its code cannot be shown: the run's commit is unknown")


def test_moved_data_is_found_by_its_file_name(answers):
    folder, said = answers
    fingerprint = data.file(path=str(folder / "mine.npz"), validation=0.5).fingerprint
    assert f"  differs: data: 0 then, {fingerprint[:12]}… now\n" in said["dry gone"].out
    assert said["dry lost"].out.startswith("the data cannot be compared: /gone/lost.npz: no such file or folder\n")


USES = "uses the modules that the run recorded; here these differ or are missing: "
MINE = {"code/proj/model.py": b"import helper\ndef build(image_shape, num_classes): ...\n", "code/helper.py": b""}


def recorded(modules, target, **tags):
    """The files and tags of a run of a user's own model."""
    source = {name: hashlib.sha256(content).hexdigest() for name, content in modules.items()}
    files = {
        "config.yaml": model(target).encode(),
        "metrics.jsonl": ROWS.encode(),
        "environment.json": json.dumps({"source": source}).encode(),
    }
    return Record("run", None, "own-s0", {**files, **modules}, tags)


@pytest.fixture(scope="module")
def own(tmp_path_factory, with_store):
    """Answers of the command for runs of the user's own models: recorded, packed, copied. None of them trains."""
    folder = with_store(tmp_path_factory.mktemp("own"))
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (experiment,) = (e for e in client.search_experiments() if e.name == "mnist_exp")
    (folder / "same.py").write_text("def build(image_shape, num_classes): ...\n")
    same = {"code/same.py": (folder / "same.py").read_bytes()}
    (folder / "edited.py").write_text("edited")
    edited = {"code/edited.py": same["code/same.py"]}
    here = provenance.process()
    runs = {
        "same": recorded(same, "same.build", process=here),
        "edited": recorded(edited, "edited.build", process=here),
        "gone": recorded({"code/gone.py": same["code/same.py"]}, "gone.build", process=here),
        "foreign": recorded({"code/foreign.py": same["code/same.py"]}, "foreign.build", process="elsewhere 1f 7 1.0"),
    }
    cases = {}
    for name, record in runs.items():
        run = client.create_run(experiment.experiment_id, tags={"kind": "run", **record.tags}, run_name=name)
        for file, content in record.files.items():
            place = file.rpartition("/")[0] or None
            (folder / "sent" / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / "sent" / file).write_bytes(content)
            client.log_artifact(run.info.run_id, str(folder / "sent" / file), place)
        cases[name] = [name, "--dry-run"]
    packed = {
        "whole": recorded(MINE, "proj.model.build"),
        "lost": recorded({}, "proj2.model.build"),
        "hiding": recorded({"code/json/tool.py": b"evil"}, "json.tool.build"),
        "fake": recorded({"code/fake.py": same["code/same.py"]}, "fake.build", process=here),
    }
    for name, record in packed.items():
        write_archive(record, [], folder / f"{name}.zip")
        cases |= {
            f"{name}.zip": [f"{name}.zip", "--dry-run"],
            f"{name} trusted": [f"{name}.zip", "--dry-run", "--trust"],
        }
    cases["checkout"] = ["whole.zip", "--checkout", "out"]
    cases["hiding checkout"] = ["hiding.zip", "--checkout", "out2"]
    for file, content in recorded(MINE, "proj.model.build").files.items():
        (folder / "copy" / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / "copy" / file).write_bytes(content)
    (folder / "copy" / "code" / "other.py").write_text("of another project")
    cases["copy"] = ["copy/config.yaml", "--dry-run", "--trust"]
    typed = {name: Case(given, str(folder), module="reproduce") for name, given in cases.items()}
    return folder, commands(typed, trains=False)


def test_a_run_of_the_user_s_own_store_needs_no_trust_and_uses_its_recorded_modules(own):
    assert own[1]["same"].code == 0
    assert "uses" not in own[1]["same"].out
    for name in ("edited", "gone"):
        assert (own[1][name].code, own[1][name].tensorflow) == (0, False)
        assert own[1][name].out.startswith(f"{USES}{name}\n")


@pytest.mark.parametrize("case", ["foreign", "whole.zip", "lost.zip", "hiding.zip", "fake.zip"])
def test_a_run_of_another_machine_or_from_a_file_needs_trust(own, case):
    said = own[1][case]
    assert (said.code, said.out) == (2, "")
    assert "model._target_ must be one of" in said.err
    assert "--trust" in said.err


def test_an_archive_contains_the_modules_that_its_config_calls(own):
    for case in ("whole trusted", "copy"):
        assert own[1][case].code == 0, own[1][case].err
        assert own[1][case].out.startswith(f"{USES}helper, proj.model\n")
        assert "user module" not in own[1][case].out
    assert "must name a function or class that exists" in own[1]["lost trusted"].err


def test_a_module_of_an_archive_must_not_hide_one_of_python(own):
    assert own[1]["hiding trusted"].code == own[1]["hiding checkout"].code == 2
    assert "the recorded module code/json/tool.py would hide json" in own[1]["hiding trusted"].err
    assert "the recorded module code/json/tool.py would hide json" in own[1]["hiding checkout"].err
    assert not (own[0] / "out2").exists()


def test_a_checkout_has_the_user_s_modules_even_without_a_repository(own):
    assert own[1]["checkout"].code == 0, own[1]["checkout"].err
    found = {path.relative_to(own[0] / "out").as_posix() for path in (own[0] / "out").rglob("*") if path.is_file()}
    assert {f"code/{name}" for name in found} == set(MINE)
    assert "the code of mnist_exp was not in a repository" in own[1]["checkout"].out


def python(folder, code, *arguments, path=None):
    """Runs code in a new process; returns its exit code and output."""
    environ = environment(folder) | ({"PYTHONPATH": str(path)} if path is not None else {})
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


TRAIN = "from mnist_exp.train import main; main()"
REPRODUCE = "from mnist_exp import reproduce; reproduce.main()"
ONE_CORE = f"import os; os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}}); {REPRODUCE}"


OWN_MODEL = """
import keras


def build(image_shape, num_classes):
    from own_helper import UNITS

    inputs = keras.Input(image_shape, dtype="uint8")
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    return keras.Model(inputs, keras.layers.Dense(num_classes)(keras.layers.Dense(UNITS)(x)))
"""


@pytest.fixture(scope="module")
def original(tmp_path_factory, with_store):
    """A folder with a run on the user's own images, with layers so wide that threads share their work."""
    folder = with_store(tmp_path_factory.mktemp("original"))
    digits = data.digits()
    parts = {"x_train": digits.train.images, "y_train": digits.train.labels}
    np.savez(folder / "mine.npz", **parts, x_test=digits.test.images, y_test=digits.test.labels)
    options = ["data=file", "data.path=mine.npz", "model.hidden=[512,256]", "trainer.batch_size=32", "trainer.epochs=2"]
    code, _, err = python(folder, TRAIN, "name=mine", *options)
    assert code == 0, err
    return folder


@pytest.mark.slow
def test_an_unchanged_run_is_identical(original):
    code, out, err = python(original, REPRODUCE, "mine-s0", "--strict")
    assert code == 0, err
    assert "nothing that was recorded differs here" in out
    assert out.endswith("identical: 2 epochs and the final scores compared\n")


@pytest.mark.slow
def test_an_edited_user_model_is_reproduced_from_its_record(tmp_path, with_store):
    folder, elsewhere = with_store(tmp_path / "here"), with_store(tmp_path / "elsewhere")
    (folder / "own_helper.py").write_text("UNITS = 8\n")
    (folder / "own_model.py").write_text(OWN_MODEL)
    model = ["model=linear", "model._target_=own_model.build"]  # linear has no keys
    options = ["data=digits", "trainer.epochs=1", "name=own", *model]
    code, _, err = python(folder, TRAIN, *options)
    assert code == 0, err
    code, out, err = python(folder, REPRODUCE, "archive", "own-s0", str(elsewhere / "run.zip"))
    assert code == 0, err
    (folder / "own_helper.py").write_text("UNITS = 4\n")
    for place, given in ((folder, ["own-s0"]), (elsewhere, ["run.zip", "--trust"])):
        code, out, err = python(place, REPRODUCE, *given, "--strict")
        assert code == 0, err
        assert out.startswith(f"{USES}own_helper")
        assert out.endswith("identical: 1 epoch and the final scores compared\n")
    code, _, err = python(folder, TRAIN, "-m", *options)
    assert code == 0, err
    assert "because the finished ones have not the same code\n" in err


@pytest.mark.slow
@pytest.mark.skipif(provenance.cores() < 2, reason="needs two cores")
def test_two_threads_give_the_same_bits_on_one_core(original):
    code, out, err = python(original, ONE_CORE, "mine-s0", "--strict")
    assert code == 0, err
    assert out.splitlines()[1] == f"  differs: hardware cores: {provenance.cores()} then, 1 now"
    assert out.splitlines()[-1] == "identical: 2 epochs and the final scores compared"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "was", "becomes", "named"),
    [
        ("seed", "\nseed: 0\n", "\nseed: 1\n", "config seed: 0 then, 1 now"),
        ("threads", "threads: null", "threads: 1", f"threads: {provenance.cores()} then, 1 now"),
    ],
)
def test_a_changed_value_is_named(key, was, becomes, named, original, tmp_path):
    configs = (path for path in original.glob("mlruns/*/*/artifacts/config.yaml"))
    (artifacts,) = (path.parent for path in configs if not path.with_name("reproduction.json").exists())
    shutil.copytree(artifacts, tmp_path / "downloaded")
    config = tmp_path / "downloaded" / "config.yaml"
    assert was in config.read_text()
    config.write_text(config.read_text().replace(was, becomes))
    code, out, _ = python(original, REPRODUCE, str(config), "--strict")
    assert code == 1
    assert f"  differs: {named}" in out.splitlines()
    assert "\nfirst difference: epoch 1: " in out


@pytest.mark.slow
def test_a_changed_line_of_a_model_is_named(original, tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "mnist_exp", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(CONF_DIR, tmp_path / "conf", dirs_exist_ok=True)
    models = tmp_path / "mnist_exp" / "models" / "layers.py"
    assert "Rescaling(1 / 255)" in models.read_text()
    models.write_text(models.read_text().replace("Rescaling(1 / 255)", "Rescaling(1 / 256)"))
    code, out, _ = python(original, REPRODUCE, "mine-s0", path=tmp_path)
    assert code == 1
    assert out.splitlines()[1] == "  differs: package source: models/layers.py"
    assert "\nfirst difference: epoch 1: " in out


@pytest.mark.slow
def test_a_changed_pixel_of_the_data_is_named(original, tmp_path):
    with np.load(original / "mine.npz") as arrays:
        changed = dict(arrays)
    changed["x_train"][0, 14, 14] ^= 1
    (original / "mine.npz").rename(original / "kept.npz")
    np.savez(original / "mine.npz", **changed)
    code, out, _ = python(original, REPRODUCE, "mine-s0", "--strict")
    (original / "kept.npz").replace(original / "mine.npz")
    assert code == 1
    assert out.splitlines()[1].startswith("  differs: data: ")
    assert "\nfirst difference: epoch 1: " in out


@pytest.mark.slow
@pytest.mark.mnist
@pytest.mark.skipif(not os.environ.get("MNIST_EXP_DATA"), reason="MNIST_EXP_DATA does not name MNIST's folder")
@pytest.mark.parametrize(
    "preset", ["residual_mlp", "linear", "workshop_mlp", "wide_mlp", "dropout_mlp"][: 1 if SHORT else 5]
)
def test_two_epochs_of_every_preset_are_identical_as_second_run_of_a_sweep(preset, tmp_path, with_store):
    folder = with_store(tmp_path)
    options = [f"experiment={preset}", f"data.path={os.environ['MNIST_EXP_DATA']}", "trainer.epochs=2", "seed=3,4"]
    code, _, err = python(folder, TRAIN, "-m", *options)
    assert code == 0, err
    code, out, err = python(folder, REPRODUCE, f"{preset}-s4", "--strict")
    assert code == 0, err
    assert out.endswith("identical: 2 epochs and the final scores compared\n")
