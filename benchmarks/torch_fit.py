"""Trains an MLP or a CNN in PyTorch on the CPU, in float32, by hand or with PyTorch Lightning (extra `bench`).

It is not in `peers`, whose start imports Keras: TensorFlow and PyTorch in one process may crash.
"""

import argparse
import itertools
import json
import os
import time
import warnings
from pathlib import Path

import lightning
import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

NETS = {
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10)),
    "cnn": lambda: nn.Sequential(
        nn.Conv2d(1, 32, 3, padding="same"),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding="same"),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(7 * 7 * 64, 10),
    ),
}


class Module(lightning.LightningModule):
    """The same training as `by_hand` in the hooks of Lightning; notes the ends of epochs."""

    def __init__(self, net, optimizer):
        super().__init__()
        self.net, self.optimizer, self.ends = net, optimizer, []

    def training_step(self, batch):
        images, labels = batch
        logits = self.net(images)
        loss = functional.cross_entropy(logits, labels)
        accuracy = (logits.argmax(1) == labels).float().mean()
        self.log_dict({"loss": loss, "accuracy": accuracy}, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch):
        images, labels = batch
        logits = self.net(images)
        self.log("val_loss", functional.cross_entropy(logits, labels))
        self.log("val_accuracy", (logits.argmax(1) == labels).float().mean())

    def on_train_epoch_end(self):  # after the epoch's validation
        self.ends.append(time.perf_counter())

    def configure_optimizers(self):
        return self.optimizer


def with_lightning(net, optimizer, train, validation, settings):
    """Returns when each epoch ended, and the validation accuracy."""
    module = Module(net, optimizer)
    trainer = lightning.Trainer(
        max_epochs=settings.epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(
        module,
        DataLoader(TensorDataset(*train), settings.batch_size, shuffle=True),
        DataLoader(TensorDataset(*validation), settings.batch_size),
    )
    return module.ends, float(trainer.callback_metrics["val_accuracy"])


def by_hand(net, optimizer, train, validation, settings):
    """Returns when each epoch ended, and the validation accuracy.

    It indexes the whole tensors, which is faster than a DataLoader.
    """
    images, labels = train
    ends = []
    for _ in range(settings.epochs):
        total, right = torch.zeros(()), torch.zeros((), dtype=torch.int64)
        for chosen in torch.randperm(len(images)).split(settings.batch_size):
            optimizer.zero_grad()
            logits = net(images[chosen])
            loss = functional.cross_entropy(logits, labels[chosen])
            loss.backward()
            optimizer.step()
            total += loss.detach()
            right += (logits.argmax(1) == labels[chosen]).sum()
        with torch.no_grad():
            batches = zip(*(part.split(settings.batch_size) for part in validation), strict=True)
            predicted = [(net(some).argmax(1) == those).sum() for some, those in batches]
        ends.append(time.perf_counter())
    return ends, float(sum(predicted)) / len(validation[1])


def main():
    """Trains, and prints the seconds between the ends of epochs and the last validation accuracy."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--net", choices=NETS, required=True)
    parser.add_argument("--lightning", action="store_true")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--batch-size", type=int, default=128)
    settings = parser.parse_args()
    warnings.simplefilter("ignore")  # Lightning recommends worker processes, which are slower on two cores
    with np.load(Path(os.environ["MNIST_EXP_DATA"]) / "mnist.npz") as arrays:
        train, validation = (
            (
                torch.from_numpy(arrays[f"x_{part}"]).unsqueeze(1).float() / 255,
                torch.from_numpy(arrays[f"y_{part}"].astype("int64")),
            )
            for part in ("train", "test")
        )
    torch.manual_seed(0)
    net = NETS[settings.net]().to(memory_format=torch.channels_last)  # faster for convolutions than PyTorch's default
    optimizer = torch.optim.Adam(net.parameters(), eps=1e-7)  # as Keras's
    fit = with_lightning if settings.lightning else by_hand
    ends, accuracy = fit(net, optimizer, train, validation, settings)
    seconds = [after - before for before, after in itertools.pairwise(ends)]
    print(json.dumps({"epoch_seconds": seconds, "val_accuracy": accuracy}))


if __name__ == "__main__":
    main()
