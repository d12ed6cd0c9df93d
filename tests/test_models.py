"""Models: exact sizes, raw pixels in, logits out."""

from contextlib import nullcontext

import keras
import numpy as np
import pytest
import tensorflow as tf

from mnist_exp import models
from mnist_exp.errors import RequestError
from mnist_exp.training import devices

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
    models.check(model, SHAPE, CLASSES)


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


def sequence(*layers, dtype="uint8"):
    return keras.Sequential([keras.Input(SHAPE, dtype=dtype), keras.layers.Flatten(), *layers])


def dense(units=CLASSES, activation=None, **options):
    return keras.layers.Dense(units, activation=activation, **options)


def nested(inner):
    images = keras.Input(SHAPE, dtype="uint8")
    return keras.Model(images, inner(images))


class Subclassed(keras.Model):
    def __init__(self, activation=None, units=CLASSES):
        super().__init__()
        self.flat, self.last = keras.layers.Flatten(), dense(units, activation)

    def call(self, images):
        return self.last(self.flat(images))


def two_outputs():
    images = keras.Input(SHAPE, dtype="uint8")
    flat = keras.layers.Flatten()(images)
    return keras.Model(images, [dense()(flat), dense()(flat)])


def in_operations():
    images = keras.Input(SHAPE, dtype="uint8")
    return keras.Model(images, keras.ops.softmax(dense()(keras.layers.Flatten()(images))))


SOFTMAX = "must return a model of logits, got one that ends in Softmax: leave out its last activation"
ONE_EACH = "must return a model with one logit for each class, output shape (None, 10), got"
WRONG = {
    "softmax": (lambda: sequence(dense(activation="softmax")), SOFTMAX),
    "softmax layer": (lambda: sequence(dense(), keras.layers.Softmax()), SOFTMAX),
    "activation layer": (lambda: sequence(dense(), keras.layers.Activation("softmax")), SOFTMAX),
    "softmax, then float32": (
        lambda: sequence(dense(activation="softmax"), keras.layers.Activation("linear", dtype="float32")),
        SOFTMAX,
    ),
    "softmax, reshaped": (lambda: sequence(dense(activation="softmax"), keras.layers.Reshape((CLASSES,))), SOFTMAX),
    "nested": (lambda: nested(sequence(dense(activation="softmax"))), SOFTMAX),
    "nested twice": (lambda: nested(nested(sequence(dense(), keras.layers.Softmax()))), SOFTMAX),
    "subclassed": (lambda: Subclassed("softmax"), SOFTMAX),
    "in operations": (in_operations, SOFTMAX),
    "sigmoid": (lambda: sequence(dense(activation="sigmoid")), "got one that ends in Sigmoid"),
    "relu": (lambda: sequence(dense(activation="relu")), "got one that ends in Relu"),
    "too wide": (lambda: sequence(dense(CLASSES + 5)), f"{ONE_EACH} (None, 15)"),
    "too narrow": (lambda: sequence(dense(1)), f"{ONE_EACH} (None, 1)"),
    "subclassed, too wide": (lambda: Subclassed(units=CLASSES + 5), f"{ONE_EACH} (None, 15)"),
    "not flat": (lambda: nested(dense()), f"{ONE_EACH} (None, 28, 28, 10)"),
    "two outputs": (two_outputs, "must return a model with one output, got a list"),
    "floats in": (lambda: sequence(dense(), dtype="float32"), 'keras.Input(image_shape, dtype="uint8"), got images of'),
    "half precision": (lambda: sequence(dense(dtype="float16")), "of float32 logits, got float16: give its last layer"),
    "other images": (
        lambda: keras.Sequential([keras.Input((8, 8, 3), dtype="uint8"), keras.layers.Flatten(), dense()]),
        "must return a model that takes images of shape (28, 28, 1); calling it failed: ",
    ),
    "a layer": (dense, "must return a keras.Model, got Dense"),
    "nothing": (lambda: None, "must return a keras.Model, got NoneType"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("shapes_only", [False, True], ids=["", "shapes_only"])
def test_a_model_that_breaks_the_contract_is_refused_in_one_line(name, shapes_only):
    build, said = WRONG[name]
    scope = keras.StatelessScope(initialize_variables=False) if shapes_only else nullcontext()
    with scope, pytest.raises(RequestError) as error:
        models.check(build(), SHAPE, CLASSES)
    assert str(error.value).startswith("model._target_ must return a ")
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1


RIGHT = {
    "sequential": lambda: sequence(dense(8, "softmax"), dense()),
    "nested": lambda: nested(sequence(dense())),
    "subclassed, unbuilt": Subclassed,
    "log_softmax": lambda: sequence(dense(activation="log_softmax")),
    "half precision inside": lambda: sequence(dense(8, "relu", dtype="mixed_float16"), dense(dtype="float32")),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_model_that_keeps_the_contract_passes_and_is_built(name):
    model = RIGHT[name]()
    models.check(model, SHAPE, CLASSES)
    assert model.count_params() >= 784 * CLASSES / 2
    assert model(IMAGES).shape == (6, CLASSES)


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
