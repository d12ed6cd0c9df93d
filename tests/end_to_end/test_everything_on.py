"""A run with every kind of option on gives the same bits alone, by `reproduce`, and as a later job of a sweep."""

import json
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from tests.helpers.commands import environment

EVERYTHING = [
    *("data=digits", "data.folds=5", "data.fold=1", "data.label_noise=0.05", "data.imbalance=2"),
    *("model=mlp", "model.dropout=0.2", "model.batch_norm=true", "model.noise=0.1", "optimizer=adamw"),
    *("augment=[affine,elastic,noise,cutout,mixup]", "loss.label_smoothing=0.1", "loss.class_weight=balanced"),
    *("scores=[top_k,macro_f1,calibration_error]", "callbacks=[reduce_on_plateau,swa,stop_on_nan]"),
    *("trainer.epochs=4", "trainer.batch_size=32"),
]


def weights(folder):
    """Digests of the weights after each epoch of each run, by its seed."""
    return {
        OmegaConf.load(record.parent / "config.yaml").seed: [
            json.loads(line).get("weights") for line in record.read_text().splitlines()
        ]
        for record in folder.glob("mlruns/*/*/artifacts/metrics.jsonl")
    }


def command(folder, module, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", f"mnist_exp.{module}", *arguments],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("devices", ["auto", "cpu:2"])
def test_a_run_with_everything_on_has_the_same_bits_alone_again_and_in_a_sweep(devices, tmp_path, with_store):
    alone, sweep = with_store(tmp_path / "alone"), with_store(tmp_path / "sweep")
    given = [*EVERYTHING, f"trainer.devices={devices}"]
    command(alone, "train", *given, "name=x")
    command(sweep, "train", "-m", *given, "name=x", "seed=1,0")
    expected = weights(alone)[0]
    assert len(expected) == 5
    assert len(set(expected[:4])) == 4
    assert weights(sweep)[0] == expected
    (record,) = alone.glob("mlruns/*/*/artifacts")
    assert "identical" in command(alone, "reproduce", record.parent.name)
