"""The commands and Python examples of README and the manual are run as they stand there, in the order of the manual.

Training commands get the overrides that their page, or else Getting started, recommends for a quick try.
"""

import re
import shlex
import subprocess
import sys

import mlflow
import numpy as np
import pytest

from tests.helpers.commands import Case, commands, environment
from tests.helpers.pages import DOCS, PAGES, ROOT, blocks, shell_commands

ORDER = [
    *("getting-started.md", "comparing.md", "evaluating.md", "README.md", "sweeps.md", "subsets.md"),
    *("augmentation.md", "menu.md", "search.md"),
    *("resuming.md", "presets.md", "models.md", "extending.md", "reproducing.md", "notebook.md", "deciding.md"),
]
NOT_RUN = {  # how a command begins, and why no test runs it
    "python3 -m venv": ".ci/run installs the package and runs the command after it",
    ".venv/bin/pre-commit": "changes the hooks of the checkout",
    "tensorboard --logdir": "a server that runs until Ctrl-C",
    "mlflow ui": "a server that runs until Ctrl-C",
    "mlflow server": "a server that runs until Ctrl-C",
    "mlflow models serve": "a server that runs until Ctrl-C",
    "export MLFLOW_TRACKING_URI": "for the server",
    'python -c "import json, os': "asks the server",
    "curl": "asks the server",
    "ray start": "needs a cluster",
    "python -m mnist_exp.train -m 'seed=range(64)'": "needs a cluster",
    "python -m mnist_exp.train resume=RUN": "needs a killed run: tests/end_to_end/test_kill.py",
    "python -m tests.end_to_end.test_kill": "minutes; tests/end_to_end/test_kill.py kills fewer runs",
    "python -m mnist_exp.train sweep=data_size": "needs the 55,000 training images of MNIST; tests/sweep/test_jobs.py",
    "python -m mnist_exp.train -m data=fashion_mnist": "needs Fashion-MNIST, which no package holds",
    "python -m benchmarks.": "minutes on an idle machine",
}
LONG = {  # checked, not trained
    "python -m mnist_exp.train sweep=folds": "sweep.preflight=only",
    "python -m mnist_exp.train sweep=depth_study": "sweep.preflight=only",
    "python -m mnist_exp.train sweep=optimizer_study": "sweep.preflight=only",
    "python -m mnist_exp.train sweep=augmentation_study": "sweep.preflight=only",
    "python -m mnist_exp.train sweep=regularisation_study": "sweep.preflight=only",
    "python -m mnist_exp.train -m experiment=workshop_mlp 'seed=range(5)'": "sweep.preflight=only",
    "python -m mnist_exp.train -m experiment=fashion_cnn 'seed=range(5)'": "sweep.preflight=only",
}
OWN_COMMANDS = ("mlflow ", "python -m mnist_exp --help")
OWN_PROCESS = ("trainer.devices=", "hydra/launcher=", "--config-name")  # the first two: before TensorFlow starts
TRAIN, DECIDE = (["python", "-m", f"mnist_exp.{name}"] for name in ("train", "decide"))
FEW_SEEDS = ["--max-seeds", "5"]  # for `decide`
SECONDS = 900  # for a command of the manual on a busy machine


def quick(page):
    """The overrides for a quick try, as the page gives them, or else Getting started."""
    found = re.findall(r"To try [^.]+, append\s`(.+)`", page.read_text(encoding="utf-8"))
    return found[0].split() if found else quick(DOCS / "getting-started.md")


def pages():
    """The pages whose commands are run, in order; pages that are not listed hold none."""
    return [{page.name: page for page in PAGES}[name] for name in ORDER]


def run(page):
    """The commands of a page that a test can run."""
    return [command for command in shell_commands(page) if not command.startswith(tuple(NOT_RUN))]


def arguments(command, page):
    """The words of a command, a training command's with the overrides for a quick try."""
    words = shlex.split(command)
    if words[:3] not in (TRAIN, DECIDE) or {"--help", "--config-name"} & {*words}:
        return words
    kept = [text for text in quick(page) if not ("data=" in text and any(word.startswith("data=") for word in words))]
    return [*words, *kept, *LONG.get(command, "").split(), *(FEW_SEEDS if words[:3] == DECIDE else [])]


def test_every_command_is_run_or_has_a_reason():
    for page in PAGES:
        if page.name not in ORDER:
            assert run(page) == [], f"{page.name} has commands but is not in ORDER"
    for begins in NOT_RUN:
        assert any(command.startswith(begins) for page in PAGES for command in shell_commands(page)), begins


def test_files_of_the_same_name_are_the_same_on_every_page():
    found = {}
    for page in PAGES:
        for block in blocks(page):
            if block.title:
                assert found.setdefault(block.title, block.text) == block.text, f"{page.name}: {block.title}"


def write_files(folder):
    """The files that the pages show, and the user's own images."""
    for page in pages():
        for block in blocks(page):
            if block.title:
                path = folder / block.title
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text, encoding="utf-8")
    random = np.random.default_rng(0)
    arrays = {f"x_{part}": random.integers(256, size=(200, 28, 28), dtype=np.uint8) for part in ("train", "test")}
    np.savez(folder / "my_images.npz", **arrays, y_train=np.arange(200) % 10, y_test=np.arange(200) % 10)
    np.savez(folder / "new_images.npz", images=arrays["x_test"])


@pytest.fixture(scope="module")
def manual(tmp_path_factory, with_store):
    """A folder in which the manual has been followed, and the exit code and output of each command."""
    folder = with_store(tmp_path_factory.mktemp("manual"))
    write_files(folder)
    typed: dict[str, list[str]] = {}  # each command once, where it stands first
    for page in pages():
        for command in run(page):
            typed.setdefault(command, arguments(command, page))
    alone = [command for command in typed if command.startswith(OWN_COMMANDS) or any(t in command for t in OWN_PROCESS)]
    cases = {
        command: Case(words[3:], str(folder), module=words[2].removeprefix("mnist_exp."), seconds=SECONDS)
        for command, words in typed.items()
        if command not in alone
    }
    done = commands(cases)
    results = {command: (said.code, said.out + said.err) for command, said in done.items()}
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (named,) = client.search_runs(["1"], "tags.mlflow.runName = 'mlp-rmsprop-s0'")
    for command in alone:
        words = [named.info.run_id if word == "RUN_ID" else word for word in typed[command]]
        words = words[1:] if words[0] == "python" else ["-m", *words]
        results[command] = started([sys.executable, *words], folder)
    return folder, results


def started(words, folder, **given):
    """Run a command in a process of its own; returns its exit code and its output."""
    done = subprocess.run(
        words,
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        **given,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", dict.fromkeys(command for page in pages() for command in run(page)))
def test_command(manual, command):
    code, output = manual[1][command]
    assert code == 0, output
    assert not re.search("^error: ", output, re.MULTILINE), output


@pytest.mark.slow
def test_readme_shows_the_output_of_the_quick_start(manual):
    """Line by line, but for the figures; the table's order follows the results."""

    def shapes(text):
        text = re.sub(r"\b\d{8}-\d{6}-[0-9a-f]{4}\b|\b[0-9a-f]{8}\b", "ID", text)
        text = re.sub(r"\S*python\S* -m", "python -m", re.sub(r"[\d.]+", "N", re.sub(" +", " ", text)))
        return sorted(line for line in text.splitlines() if line)

    (shown,) = [block.text for block in blocks(ROOT / "README.md") if block.language == "text"]
    printed = manual[1][next(command for command in manual[1] if "model=mlp,residual optimizer=adam" in command)][1]
    assert set(shapes(shown)) <= set(shapes(printed))


@pytest.mark.slow
def test_python_of_the_notebook_page(manual):
    folder = manual[0]
    source = "".join(block.text for block in blocks(DOCS / "notebook.md") if block.language == "python")
    code, output = started([sys.executable, "-"], folder, input=source)
    assert code == 0, output
    assert "Available options in 'model': cnn, lenet5, " in output
