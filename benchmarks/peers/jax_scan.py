"""What a compiler can do here: a whole epoch of an MLP with Adam as one jitted `lax.scan` (extra `bench`)."""

import argparse
import itertools
import json
import os
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

parser = argparse.ArgumentParser()
parser.add_argument("--hidden", type=int, nargs="+", required=True)
parser.add_argument("--epochs", type=int, default=6)
parser.add_argument("--batch-size", type=int, default=32)
settings = parser.parse_args()
with np.load(Path(os.environ["MNIST_EXP_DATA"]) / "mnist.npz") as arrays:
    images, labels = jnp.asarray(arrays["x_train"].reshape(-1, 784)), jnp.asarray(arrays["y_train"].astype(np.int32))


def loss(params, x, y):
    """Mean cross-entropy of a batch of uint8 pixels."""
    features = x.astype(jnp.float32) / 255
    for kernel, bias in params[:-1]:
        features = jax.nn.relu(features @ kernel + bias)
    logits = features @ params[-1][0] + params[-1][1]
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1).mean(), logits


def step(state, chosen):
    """One Adam step (Kingma and Ba 2014) and the running metrics that Keras keeps."""
    params, mean, square, count, total_loss, correct = state
    (value, logits), grads = jax.value_and_grad(loss, has_aux=True)(params, images[chosen], labels[chosen])
    count = count + 1
    mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, grads)
    square = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, square, grads)
    rate = 0.001 * jnp.sqrt(1 - 0.999**count) / (1 - 0.9**count)
    params = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v) + 1e-7), params, mean, square)
    correct = correct + (logits.argmax(axis=1) == labels[chosen]).sum()
    return (params, mean, square, count, total_loss + value, correct), None


@partial(jax.jit, donate_argnums=0)
def epoch(state, key):
    """All full batches of a new order."""
    steps = len(labels) // settings.batch_size
    order = jax.random.permutation(key, len(labels))[: steps * settings.batch_size]
    return jax.lax.scan(step, state, order.reshape(steps, settings.batch_size))[0]


generator = np.random.default_rng(0)
sizes = [784, *settings.hidden, 10]
params = [
    (jnp.asarray(generator.uniform(-1, 1, (a, b)) * np.sqrt(6 / (a + b)), jnp.float32), jnp.zeros(b))
    for a, b in itertools.pairwise(sizes)
]
zeros = jax.tree.map(jnp.zeros_like, params)
state = (params, zeros, jax.tree.map(jnp.zeros_like, params), 0, 0.0, 0)
seconds = []
for number in range(settings.epochs):
    began = time.perf_counter()
    state = jax.block_until_ready(epoch(state, jax.random.key(number)))
    seconds.append(time.perf_counter() - began)
    state = (*state[:4], 0.0, 0)
print(json.dumps({"epoch_seconds": seconds[1:]}))
