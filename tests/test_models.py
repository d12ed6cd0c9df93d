"""Models: exact sizes, raw pixels in, logits out."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mnist_exp import devices, models

SHAPE, CLASSES = (28, 28, 1), 10
DENSE = {"activation": "relu", "dropout": 0.0, "batch_norm": False}
IMAGES = np.random.default_rng(0).integers(0, 256, (6, *SHAPE), np.uint8)
BUILDERS = {
    "linear": lambda: models.linear(SHAPE, CLASSES),
    "mlp": lambda: models.mlp(SHAPE, CLASSES, hidden=[128], **DENSE),
    "mlp_deep_bn": lambda: models.mlp(SHAPE, CLASSES, hidden=[512, 256], **{**DENSE, "batch_norm": True}),
    "mlp_empty": lambda: models.mlp(SHAPE, CLASSES, hidden=[], **DENSE),
    "residual": lambda: models.residual(SHAPE, CLASSES, width=100, blocks=1, **DENSE),
    "residual_2": lambda: models.residual(SHAPE, CLASSES, width=10, blocks=2, **DENSE),
    "cnn": lambda: models.cnn(SHAPE, CLASSES, filters=[32, 64], **DENSE),
}
PARAMETERS = {
    "linear": 784 * 10 + 10,
    "mlp": (784 * 128 + 128) + (128 * 10 + 10),
    # batch normalisation: no bias before it, four numbers a unit, two of them trained
    "mlp_deep_bn": 784 * 512 + 4 * 512 + 512 * 256 + 4 * 256 + 256 * 10 + 10,
    "mlp_empty": 784 * 10 + 10,
    "residual": (784 * 100 + 100) + 2 * (100 * 100 + 100) + (300 * 10 + 10),
    "residual_2": (784 * 10 + 10) + 2 * (10 * 10 + 10) + (30 * 10 + 10) + 2 * (10 * 10 + 10) + (30 * 10 + 10),
    "cnn": (9 * 32 + 32) + (9 * 32 * 64 + 64) + (7 * 7 * 64 * 10 + 10),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_parameters_and_logits(name):
    devices.fresh_session(0, "float32")
    model = BUILDERS[name]()
    assert model.count_params() == PARAMETERS[name]
    assert (model.input.dtype, model.input.shape) == ("uint8", (None, *SHAPE))
    logits = model(IMAGES).numpy()
    assert (logits.shape, logits.dtype) == ((6, CLASSES), np.float32)
    assert not np.allclose(logits.sum(axis=1), 1)  # logits, not probabilities


def test_linear_is_affine_in_pixels_scaled_to_one():
    devices.fresh_session(0, "float32")
    model = models.linear(SHAPE, CLASSES)
    kernel, bias = model.get_weights()
    expected = IMAGES.reshape(6, -1) / 255 @ kernel + bias
    np.testing.assert_allclose(model(IMAGES), expected, rtol=1e-4, atol=1e-5)


def test_residual_branches_and_merges_as_described():
    devices.fresh_session(0, "float32")
    model = models.residual(SHAPE, CLASSES, width=5, blocks=1, **DENSE)
    wa, ba, wb, bb, wc, bc, wo, bo = model.get_weights()
    a = np.maximum(IMAGES.reshape(6, -1) / 255 @ wa + ba, 0)
    b, c = np.maximum(a @ wb + bb, 0), np.maximum(a @ wc + bc, 0)
    expected = np.concatenate([b + c, b + c, c], axis=1) @ wo + bo
    np.testing.assert_allclose(model(IMAGES), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_logits_are_float32_under_mixed_precision(policy):
    devices.fresh_session(0, policy)
    try:
        model = models.mlp(SHAPE, CLASSES, hidden=[8], **DENSE)
        assert model(IMAGES).dtype == tf.float32
        assert model.layers[3].compute_dtype == policy.removeprefix("mixed_")
    finally:
        devices.fresh_session(0, "float32")


def test_too_many_poolings_are_refused():
    with pytest.raises(ValueError, match=r"model\.filters: 5 poolings need images of 32 pixels"):
        models.cnn(SHAPE, CLASSES, filters=[4] * 5, **DENSE)


def test_dropout_drops_its_share_keeps_the_mean_and_repeats_by_seed():
    ones = tf.ones((1000, 100))
    layers = [models.Dropout(0.3, seed=seed) for seed in (5, 5, 6)]
    first, same, other = (layer(ones, training=True).numpy() for layer in layers)
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, layers[0](ones, training=True).numpy())  # the next step's mask
    assert (first == 0).mean() == pytest.approx(0.3, abs=0.01)
    assert first.mean() == pytest.approx(1.0, abs=0.01)
    kept = first != 0
    for shift in (1, 2, 100):  # neighbours in a row, and the same unit in the next image, are independent
        both = (kept.ravel()[shift:] & kept.ravel()[:-shift]).mean()
        assert both == pytest.approx(0.49, abs=0.01)
    assert np.array_equal(layers[0](ones, training=False), ones)


def test_saved_and_loaded_model_gives_the_same_logits(tmp_path):
    devices.fresh_session(0, "float32")
    model = models.mlp(SHAPE, CLASSES, hidden=[16], **{**DENSE, "dropout": 0.2, "batch_norm": True})
    model.save(tmp_path / "model.keras")
    model.export(tmp_path / "saved_model", verbose=False)
    logits = model(IMAGES, training=False).numpy()
    assert np.array_equal(keras.saving.load_model(tmp_path / "model.keras")(IMAGES, training=False), logits)
    loaded = tf.saved_model.load(tmp_path / "saved_model")
    np.testing.assert_allclose(loaded.serve(IMAGES), logits, rtol=1e-5)
