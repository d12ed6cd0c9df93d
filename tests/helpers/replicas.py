"""The same trainings on one device and on several, each a logical CPU.

TensorFlow fixes a process's devices when it first computes, so several devices need a process of their own.
"""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from mnist_exp import augment, models
from mnist_exp.losses import cross_entropy
from mnist_exp.training import devices, evaluation, trainer
from mnist_exp.training.augmentation import Augmentation
from tests.helpers.digits import small

MLPS = ("plain", "bn", "augmented", "clipped", "keras")
START = "from tests.helpers import replicas; replicas.main()"


def _fit(build, dataset, batch_size, precision, strategy, augmentation=None, wanted="auto", **options):
    """The model, how it was trained, and what came of two epochs."""
    devices.fresh_session(0, precision)
    with strategy.scope() if strategy else contextlib.nullcontext():
        model, optimizer = build(), keras.optimizers.SGD(0.05, **options)
    replicas = strategy.num_replicas_in_sync if strategy else 1
    execution = trainer.choose_execution(wanted, model, replicas, gpu=False)
    settings = trainer.Training(cross_entropy(10), optimizer, 2, batch_size, 0, execution, augmentation)
    return model, execution.name, trainer.fit(model, dataset, settings)


def train_mlps(folder, strategy=None):
    """Save a model of each kind; returns execution, device and losses of each."""
    found = []
    for name in MLPS:
        parts = {"move": augment.shift(pixels=2.0), "mix": keras.layers.MixUp(0.4)}
        augmentation = Augmentation(parts, 0, small().train.images, 10) if name == "augmented" else None
        options = {"activation": "relu", "dropout": 0.0, "batch_norm": name == "bn"}

        def build(options=options):
            return models.mlp((28, 28, 1), 10, hidden=[32], **options)

        clip = {"global_clipnorm": 0.1} if name == "clipped" else {}  # the norms are 0.5 to 2
        wanted = "keras" if name == "keras" else "auto"
        model, execution, fitted = _fit(build, small(), 64, "float32", strategy, augmentation, wanted, **clip)
        model.export(f"{folder}/{name}", verbose=False)
        np.savez(f"{folder}/{name}.npz", *model.get_weights())
        found.append([execution, devices.describe(strategy), fitted.history["val_loss"]])
    return found


def train_sizes(sizes, strategy=None):
    """History, weights and validation logits for each (images, validation images, batch size, precision)."""
    found = []
    for images, validation, batch_size, precision in sizes:
        digits = small(images, validation)
        model, _, fitted = _fit(lambda: models.linear((28, 28, 1), 10), digits, batch_size, precision, strategy)
        logits = evaluation.predict(model, digits.validation)
        found.append([fitted.history, [w.tolist() for w in model.get_weights()], logits.tolist()])
    return found


def overflow(strategy):
    """A weight of 1 and a loss scale of 8, after a step whose gradient is infinite on the last device alone."""
    with strategy.scope():
        weight = keras.Variable([1.0])
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=8.0)
        optimizer.build([weight])
    devices.sum_gradients_first(optimizer)

    def step():
        last = tf.distribute.get_replica_context().replica_id_in_sync_group == strategy.num_replicas_in_sync - 1
        optimizer.apply([tf.where(last, [np.inf], [1.0])], [weight])

    tf.function(lambda: strategy.run(step))()
    return [keras.ops.convert_to_numpy(variable).tolist() for variable in (weight, optimizer.dynamic_scale)]


def on_several(replicas, sizes, folder=None):
    """What `train_mlps`, with a folder, `train_sizes` and `overflow` return on several devices."""
    given = json.dumps([replicas, sizes, str(folder) if folder else None])
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", START, given]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def main():
    """The process that `on_several` starts."""
    replicas, sizes, folder = json.loads(sys.argv[1])
    strategy = devices.configure(f"cpu:{replicas}", 2)
    assert isinstance(strategy, tf.distribute.MirroredStrategy)
    mlps = train_mlps(folder, strategy) if folder else []
    again = devices.configure(f"cpu:{replicas}", 2)  # as each run of a process does
    print(json.dumps([mlps, train_sizes(sizes, again), overflow(again)]))
