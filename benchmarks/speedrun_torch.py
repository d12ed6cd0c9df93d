"""The net and the recipe of the preset `speedrun` in PyTorch, float32 on the CPU. Needs `pip install torch`.

It is not in `peers`, whose start imports Keras.
"""

import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

EPOCHS, BATCH = 1, 256
began = time.perf_counter()
with np.load(Path(os.environ["MNIST_EXP_DATA"]) / "mnist.npz") as arrays:
    images = torch.from_numpy(arrays["x_train"]).unsqueeze(1).float() / 255
    labels = torch.from_numpy(arrays["y_train"].astype("int64"))
    test_images = torch.from_numpy(arrays["x_test"]).unsqueeze(1).float() / 255
    test_labels = torch.from_numpy(arrays["y_test"].astype("int64"))

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 24, 5, padding="same"),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Conv2d(24, 32, 3, padding="same"),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(7 * 7 * 32, 256),
    nn.ReLU(),
    nn.Linear(256, 10),
).to(memory_format=torch.channels_last)  # faster here than PyTorch's default
steps = EPOCHS * -(-len(images) // BATCH)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.7, 0.9), eps=1e-7)
schedule = torch.optim.lr_scheduler.OneCycleLR(
    optimizer, 0.01, total_steps=steps, pct_start=0.3, cycle_momentum=False, div_factor=25, final_div_factor=400
)
for _ in range(EPOCHS):
    for chosen in torch.randperm(len(images)).split(BATCH):
        optimizer.zero_grad()
        functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
        schedule.step()
with torch.no_grad():
    right = sum(
        int((model(some).argmax(1) == those).sum())
        for some, those in zip(test_images.split(1000), test_labels.split(1000), strict=True)
    )
print(json.dumps({"seconds": time.perf_counter() - began, "val_accuracy": right / len(test_images)}))
