"""Learning-rate schedules: functions of the base rate and the total number of steps.

Each returns a value for the `learning_rate` of a Keras optimizer. Shares of the training become steps only here.
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras.optimizers.schedules import CosineDecay, ExponentialDecay, LearningRateSchedule, PiecewiseConstantDecay


def constant(learning_rate: float, total_steps: int) -> float:
    """The base rate at every step."""
    del total_steps
    return learning_rate


def cosine(learning_rate: float, total_steps: int, *, alpha: float) -> LearningRateSchedule:
    """Falls along half a cosine to `alpha` times the base rate (https://arxiv.org/abs/1608.03983, no restarts)."""
    return CosineDecay(learning_rate, total_steps, alpha=alpha)


def warmup_cosine(learning_rate: float, total_steps: int, *, warmup: float, alpha: float) -> LearningRateSchedule:
    """Rises linearly from 0 to the base rate over the share `warmup` of the steps, then falls as `cosine` does."""
    return _rise_and_fall(learning_rate, total_steps, warmup, 0.0, alpha)


def exponential(learning_rate: float, total_steps: int, *, final: float) -> LearningRateSchedule:
    """The base rate times `final` to the power step / total_steps."""
    return ExponentialDecay(learning_rate, total_steps, final)


def step(learning_rate: float, total_steps: int, *, drops: Sequence[float], factor: float) -> LearningRateSchedule:
    """The base rate, multiplied by `factor` after each of the shares `drops` of the steps."""
    boundaries = [round(share * total_steps) for share in drops]
    return PiecewiseConstantDecay(boundaries, [learning_rate * factor**n for n in range(len(drops) + 1)])


def one_cycle(
    learning_rate: float, total_steps: int, *, warmup: float, start: float, final: float
) -> LearningRateSchedule:
    """Rises linearly from `start` times the base rate over the share `warmup` of the steps, then falls.

    The fall is half a cosine to `final` times the base rate (after https://arxiv.org/abs/1708.07120).
    """
    return _rise_and_fall(learning_rate, total_steps, warmup, start, final)


def linear(learning_rate: float, total_steps: int, *, fall: float) -> LearningRateSchedule:
    """The base rate, which falls in a straight line to 0 over the last share `fall` of the steps."""
    return _Linear(learning_rate, total_steps, fall)


def lr_range(learning_rate: float, total_steps: int, *, lowest: float) -> LearningRateSchedule:
    """Rises exponentially from `lowest` times the base rate at the first step to the base rate at the last."""
    return ExponentialDecay(learning_rate * lowest, max(1, total_steps - 1), 1 / lowest)


@keras.saving.register_keras_serializable(package="mnist_exp")
class _Linear(LearningRateSchedule):
    """Keras has a straight line only from the first step on."""

    def __init__(self, learning_rate: float, total_steps: int, fall: float) -> None:
        super().__init__()
        self._config = {"learning_rate": learning_rate, "total_steps": total_steps, "fall": fall}

    def __call__(self, step: Any) -> Any:
        rate, total_steps, fall = self._config.values()
        left = (total_steps - keras.ops.cast(step, "float32")) / (fall * total_steps)
        return rate * keras.ops.clip(left, 0.0, 1.0)

    def get_config(self) -> dict[str, float]:
        return self._config


def _rise_and_fall(
    learning_rate: float, total_steps: int, warmup: float, start: float, final: float
) -> LearningRateSchedule:
    warmup_steps = round(warmup * total_steps)
    if warmup_steps == 0:
        return CosineDecay(learning_rate, total_steps, alpha=final)
    return CosineDecay(
        learning_rate * start,
        total_steps - warmup_steps,
        alpha=final,
        warmup_target=learning_rate,
        warmup_steps=warmup_steps,
    )
