"""Hydra's own features around runs and sweeps: folders by the run's name, a working directory for each job."""

import numpy as np
import pytest

from tests.helpers.commands import Case, commands, runs

MINE = "data=file data.path=mine.npz model=linear trainer.epochs=1 hydra.job.chdir=true"
FOLDERS = (
    "hydra.sweep.dir=multirun/${name} hydra.sweep.subdir=${hydra:job.override_dirname} "
    "hydra.job.config.override_dirname.exclude_keys=[data,data.path,model,trainer.epochs,tracking.uri]"
)
CASES = {
    "alone": f"{MINE} hydra.run.dir=alone/${{name}} hydra.output_subdir=null",
    "sweep": f"-m {MINE} {FOLDERS} seed=0,1 optimizer=sgd,adam tracking.uri=sqlite:///./mlflow.db",
    "search": f"-m {MINE} {FOLDERS} hydra/sweeper=random hydra.sweeper.n_trials=1 seed=3,4",
}


@pytest.fixture(scope="module")
def done(tmp_path_factory, with_store):
    """What each command said, and its folder."""
    folders = {name: with_store(tmp_path_factory.mktemp(name)) for name in CASES}
    images = np.random.default_rng(0).integers(0, 256, (200, 28, 28), dtype=np.uint8)
    labels = np.arange(200, dtype=np.uint8) % 10
    for folder in folders.values():
        np.savez(folder / "mine.npz", x_train=images, y_train=labels, x_test=images[:50], y_test=labels[:50])
    cases = {name: Case(CASES[name].split(), str(folder)) for name, folder in folders.items()}
    return commands(cases), folders


@pytest.mark.parametrize("name", CASES)
def test_paths_are_those_of_the_folder_where_the_command_was_given(done, name):
    said, folder = done[0][name], done[1][name]
    assert said.code == 0, said.err
    assert {path.relative_to(folder).parts[0] for path in folder.rglob("*.db")} == {"mlflow.db"}
    assert set(runs(folder).values()) == {"FINISHED"}
    assert list(folder.glob("mlruns/*/*/artifacts/config.yaml"))


def test_a_run_lies_in_the_folder_that_has_its_name(done):
    assert len(list(done[1]["alone"].glob("alone/linear-adam/run-*/metrics.jsonl"))) == 1
    assert not list(done[1]["alone"].rglob(".hydra"))


def test_jobs_lie_in_folders_named_by_their_overrides_and_by_none_of_ours(done):
    folder = done[1]["sweep"]
    assert sorted(str(run.parent.relative_to(folder)) for run in folder.rglob("run-*")) == [
        f"multirun/linear-{optimizer}/optimizer={optimizer},seed={seed}"
        for optimizer in ("adam", "sgd")
        for seed in (0, 1)
    ]
