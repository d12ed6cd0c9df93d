"""The scripts that mnist_exp replaces, as their authors would write them: plain `model.fit` on NumPy arrays.

What they share is only what a benchmark needs: where MNIST is, how many epochs to train, and when each epoch ended.
"""

import argparse
import json
import os
import resource
import time
from pathlib import Path

import keras
import numpy as np


def arguments(epochs: int, batch_size: int, optimizer: str) -> argparse.Namespace:
    """The script's own settings, unless the command line has others."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--batch-size", type=int, default=batch_size)
    parser.add_argument("--optimizer", default=optimizer)
    return parser.parse_args()


def load_mnist() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """What `keras.datasets.mnist.load_data()` returns, without the download."""
    with np.load(Path(os.environ["MNIST_EXP_DATA"]) / "mnist.npz") as arrays:
        return (arrays["x_train"], arrays["y_train"]), (arrays["x_test"], arrays["y_test"])


class EpochEnds(keras.callbacks.Callback):
    """Prints, when training ends, the seconds between the ends of epochs and the peak resident memory in bytes."""

    def on_train_begin(self, logs: dict | None = None) -> None:
        self.ends: list[float] = []

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.ends.append(time.perf_counter())
        self.logs = logs or {}

    def on_train_end(self, logs: dict | None = None) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        seconds = np.diff(self.ends).tolist()
        accuracy = self.logs.get("val_accuracy")
        print("\n" + json.dumps({"epoch_seconds": seconds, "peak_memory": peak, "val_accuracy": accuracy}))
