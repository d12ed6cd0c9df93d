"""Schedules at points that can be computed by hand."""

import math

import keras
import pytest

from mnist_exp import schedules


def rates(schedule, *steps):
    return [float(schedule(step)) for step in steps]


def test_constant():
    assert schedules.constant(0.1, 100) == 0.1


def test_cosine():
    schedule = schedules.cosine(0.1, 100, alpha=0.2)
    quarter = 0.1 * (0.8 * 0.5 * (1 + math.cos(math.pi / 4)) + 0.2)
    assert rates(schedule, 0, 25, 50, 100, 200) == pytest.approx([0.1, quarter, 0.06, 0.02, 0.02])


def test_warmup_cosine():
    schedule = schedules.warmup_cosine(0.1, 100, warmup=0.1, alpha=0.0)
    assert rates(schedule, 0, 5, 10, 55, 100) == pytest.approx([0.0, 0.05, 0.1, 0.05, 0.0], abs=1e-8)


def test_no_warmup_is_cosine():
    assert rates(schedules.warmup_cosine(0.1, 100, warmup=0.0, alpha=0.0), 0, 50) == pytest.approx([0.1, 0.05])


def test_exponential():
    assert rates(schedules.exponential(0.1, 100, final=0.01), 0, 50, 100) == pytest.approx([0.1, 0.01, 0.001])


def test_lr_range_reaches_the_base_rate_at_the_last_step():
    assert rates(schedules.lr_range(10.0, 101, lowest=1e-4), 0, 50, 100) == pytest.approx([0.001, 0.1, 10.0], rel=1e-5)


def test_step():
    schedule = schedules.step(0.1, 100, drops=[0.5, 0.75], factor=0.1)
    assert rates(schedule, 0, 50, 51, 75, 76, 100) == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_one_cycle():
    schedule = schedules.one_cycle(0.1, 100, warmup=0.3, start=0.04, final=0.0001)
    assert rates(schedule, 0, 15, 30, 65, 100) == pytest.approx([0.004, 0.052, 0.1, 0.050005, 0.00001], rel=1e-4)


@pytest.mark.parametrize(
    ("fall", "expected"), [(0.25, [0.1, 0.1, 0.06, 0.0, 0.0]), (1.0, [0.1, 0.025, 0.015, 0.0, 0.0])]
)
def test_linear(fall, expected):
    schedule = schedules.linear(0.1, 100, fall=fall)
    assert rates(schedule, 0, 75, 85, 100, 101) == pytest.approx(expected)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert rates(copy, 85) == rates(schedule, 85)
