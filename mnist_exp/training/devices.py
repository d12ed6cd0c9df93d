"""Threads, GPUs or mirrored replicas, precision and seeds of a run, and a clean state before every run."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mnist_exp.errors import RequestError

OUT_OF_MEMORY = (MemoryError, tf.errors.ResourceExhaustedError)


class DeviceError(RequestError):
    """The machine does not have the requested devices."""


def configure(devices: str, threads: int) -> tf.distribute.Strategy | None:
    """Sets TensorFlow's threads and devices, before anything is computed.

    Args:
        devices: `auto` (all GPUs, else the CPU), `cpu`, `gpu`, or a number to mirror over, as in `gpu:2`, `cpu:2`.
        threads: CPU threads inside and between operations.

    Returns:
        A MirroredStrategy over two or more devices; None for one, where mirroring would only cost time.

    Raises:
        DeviceError: the machine lacks the GPUs, or an earlier run of this process fixed other threads or devices.
    """
    gpus = tf.config.list_physical_devices("GPU")
    kind, _, number = devices.partition(":")
    if kind == "auto":
        kind, number = ("gpu", str(len(gpus))) if gpus else ("cpu", "1")
    count = int(number or 1)
    if kind == "gpu" and count > len(gpus):
        raise DeviceError(f"trainer.devices={devices} needs {count} GPU(s), TensorFlow finds {len(gpus)}")
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
        tf.config.set_visible_devices(gpus if kind == "gpu" else [], "GPU")
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
        if kind == "cpu" and count > 1:
            cpu = tf.config.list_physical_devices("CPU")[0]
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    except RuntimeError as error:
        raise DeviceError(
            f"trainer.threads={threads} trainer.devices={devices}: an earlier run of this process fixed other threads "
            "or devices, and TensorFlow cannot change them; start this run in a process of its own"
        ) from error
    return _mirrored(kind, count) if count > 1 else None


@lru_cache
def _mirrored(kind: str, count: int) -> tf.distribute.Strategy:
    """One strategy for all runs of a process.

    Each strategy numbers its sums of gradients from 100 on. With a new one for each run, a model's sums would have the
    numbers of the earlier model's, and TensorFlow refuses them: `Shape mismatch in the collective instance`.
    """
    return tf.distribute.MirroredStrategy([f"{kind}:{i}" for i in range(count)])


def sum_gradients_first(optimizer: keras.Optimizer) -> None:
    """Makes mirrored replicas sum their gradients before the optimizer uses them; the optimizer is built.

    Keras sums them only for the update of a variable. Until then each replica has its own gradients: it would clip
    those, and `LossScaleOptimizer` would look for an overflow on the first replica alone.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)  # inside of Keras' LossScaleOptimizer
    add, apply = inner._all_reduce_sum_gradients, optimizer.apply

    def apply_sum(gradients: Sequence[Any], variables: Sequence[Any]) -> None:
        apply([gradient for gradient, _ in add(zip(gradients, variables, strict=True))], variables)

    optimizer.apply = apply_sum
    for part in getattr(inner, "optimizers", [inner]):  # those of Keras' MultiOptimizer
        part._all_reduce_sum_gradients = list


def fresh_session(seed: int, precision: str) -> None:
    """Removes the state that earlier runs of this process left in Keras, and seeds the draw of the initial weights.

    Args:
        seed: seeds every generator of Keras; batches and masks are stateless functions of it.
        precision: `float32`, `mixed_bfloat16` or `mixed_float16` (a Keras dtype policy).
    """
    keras.backend.clear_session()
    keras.config.set_dtype_policy(precision)
    keras.utils.set_random_seed(seed)
    keras.config.disable_interactive_logging()  # exporting a model would print its endpoints


@contextmanager
def settings_kept() -> Iterator[None]:
    """Restores what `fresh_session` sets for the whole process, except the seed of TensorFlow's own generator."""
    policy, interactive = keras.config.dtype_policy(), keras.config.is_interactive_logging_enabled()
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the state that `set_random_seed` sets
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)
        if interactive:
            keras.config.enable_interactive_logging()
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002 - as above


def describe(strategy: tf.distribute.Strategy | None) -> str:
    """The devices in words, such as `cpu`, `2 x cpu` or `NVIDIA H200`."""
    gpus = tf.config.get_visible_devices("GPU")
    name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "gpu") if gpus else "cpu"
    return name if strategy is None else f"{strategy.num_replicas_in_sync} x {name}"
