"""Models: exact sizes, raw pixels in, logits out."""

import re
from contextlib import nullcontext

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from mnist_exp import builders, models
from mnist_exp.config import CONF_DIR, check
from mnist_exp.errors import RequestError
from mnist_exp.training import checkpoint, devices
from tests.helpers.configs import composed

SHAPE, CLASSES = (28, 28, 1), 10
DENSE = {"activation": "relu", "dropout": 0.0, "batch_norm": False}
NORMED = {**DENSE, "batch_norm": True}
LADDER = [1000, 500, 250, 250, 250]
TOKENS = {"patch_size": 7, "width": 8, "blocks": 2, "dropout": 0.0}
MIXER = {**TOKENS, "token_units": 5, "channel_units": 6}
VIT = {**TOKENS, "heads": 2, "mlp_units": 6}
IMAGES = np.random.default_rng(0).integers(0, 256, (6, *SHAPE), np.uint8)
BUILDERS = {
    "linear": lambda: models.linear(SHAPE, CLASSES),
    "mlp": lambda: models.mlp(SHAPE, CLASSES, hidden=[128], **DENSE),
    "mlp_deep_bn": lambda: models.mlp(SHAPE, CLASSES, hidden=[512, 256], **{**DENSE, "batch_norm": True}),
    "mlp_empty": lambda: models.mlp(SHAPE, CLASSES, hidden=[], **DENSE),
    "residual": lambda: models.residual(SHAPE, CLASSES, width=100, blocks=1, **DENSE),
    "residual_2": lambda: models.residual(SHAPE, CLASSES, width=10, blocks=2, **DENSE),
    "cnn": lambda: models.cnn(SHAPE, CLASSES, filters=[32, 64], **DENSE),
    "cnn_pooled": lambda: models.cnn(
        SHAPE, CLASSES, filters=[8, 16], kernel_size=5, global_pooling=True, dense=[20], **DENSE
    ),
    "cnn_speedrun": lambda: models.cnn(SHAPE, CLASSES, filters=[24, 32], kernel_size=[5, 3], dense=[256], **DENSE),
    "ladder": lambda: models.mlp(SHAPE, CLASSES, hidden=LADDER, input_noise=0.3, noise=0.5, **NORMED),
    "mlp_layer_norm": lambda: models.mlp(SHAPE, CLASSES, hidden=[20], layer_norm=True, **DENSE),
    "lenet5": lambda: models.lenet5(SHAPE, CLASSES),
    "resnet": lambda: models.resnet(SHAPE, CLASSES, depth=8, width=4),
    "mixer": lambda: models.mixer(SHAPE, CLASSES, **MIXER),
    "vit": lambda: models.vit(SHAPE, CLASSES, **VIT),
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
    "cnn_pooled": (25 * 8 + 8) + (25 * 8 * 16 + 16) + (16 * 20 + 20) + (20 * 10 + 10),
    "cnn_speedrun": (25 * 24 + 24) + (9 * 24 * 32 + 32) + (7 * 7 * 32 * 256 + 256) + (256 * 10 + 10),
    "ladder": 784 * 1000 + 1000 * 500 + 500 * 250 + 2 * 250 * 250 + 4 * sum(LADDER) + 250 * 10 + 10,
    "mlp_layer_norm": 784 * 20 + 2 * 20 + 20 * 10 + 10,
    "lenet5": 61_706,  # of the paper, with a dense layer at the end and all maps connected
    # convolutions; batch normalisation of 4 numbers a channel before each but the first, and at the end; logits
    "resnet": 9 * (4 + 4 * 4 * 2 + 4 * 8 + 8 * 8 + 8 * 16 + 16 * 16) + 4 * (4 + 4 + 4 + 8 + 8 + 16 + 16) + 16 * 10 + 10,
    # patches; in each block two normalisations, four dense layers; the last normalisation, logits
    "mixer": (49 * 8 + 8) + 2 * (2 * 16 + (16 * 5 + 5 + 5 * 16 + 16) + (8 * 6 + 6 + 6 * 8 + 8)) + 16 + 90,
    # patches with a bias for each of 16 positions; in each block two normalisations, four projections, two dense layers
    "vit": (49 * 8 + 16 * 8) + 2 * (2 * 16 + 4 * (8 * 8 + 8) + (8 * 6 + 6 + 6 * 8 + 8)) + 16 + 90,
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


def trained_parameters(build):
    with keras.StatelessScope(initialize_variables=False):  # of shapes only
        return sum(np.prod(weight.shape) for weight in build().trainable_variables)


@pytest.mark.parametrize(
    ("build", "number"),
    [
        # timm 1.0: mixer_s16_224 has 18,528,264 parameters, as in Tolstikhin et al., table 1: 18.5 million
        (
            lambda: models.mixer(
                (224, 224, 3), 1000, patch_size=16, width=512, blocks=8, token_units=256, channel_units=2048, dropout=0
            ),
            18_528_264,
        ),
        # timm 1.0: vit_base_patch16_224 has 86,567,656, with a class token, its position, and a bias of the projection
        (
            lambda: models.vit(
                (224, 224, 3), 1000, patch_size=16, width=768, blocks=12, heads=12, mlp_units=3072, dropout=0
            ),
            86_567_656 - 3 * 768,
        ),
        # He et al. 2015, table 6: 0.27, 0.46 and 0.85 million
        (lambda: models.resnet((32, 32, 3), 10, depth=20, width=16), 269_722),
        (lambda: models.resnet((32, 32, 3), 10, depth=32, width=16), 464_154),
        (lambda: models.resnet((32, 32, 3), 10, depth=56, width=16), 853_018),
    ],
    ids=["mixer_s16", "vit_b16", "resnet20", "resnet32", "resnet56"],
)
def test_the_sizes_of_the_papers_have_the_papers_parameters(build, number):
    assert trained_parameters(build) == number


# SHA-256 of the initial variables for seed 3, computed before the models had more keys than `DENSE`.
OLD = {"activation": "tanh", "dropout": 0.2, "batch_norm": True}
DIGESTS = {
    "f76f8623020d9c9b": lambda: models.linear(SHAPE, CLASSES),
    "8f20bc3b3212fa59": lambda: models.mlp(SHAPE, CLASSES, hidden=[128], **DENSE),
    "17241aa644b9f8fb": lambda: models.mlp(SHAPE, CLASSES, hidden=[64, 32], **OLD),
    "3aad71348693eb7a": lambda: models.residual(SHAPE, CLASSES, width=20, blocks=2, **OLD),
    "63836281c1f86050": lambda: models.cnn(SHAPE, CLASSES, filters=[32, 64], **DENSE),
    "d9f537f843625c97": lambda: models.cnn((28, 28, 3), CLASSES, filters=[4, 8], **OLD),
}


@pytest.mark.parametrize("digest", DIGESTS)
def test_configs_of_earlier_versions_begin_with_the_same_weights(digest):
    devices.fresh_session(3, "float32")
    assert checkpoint.digest(map(np.asarray, DIGESTS[digest]().variables))[:16] == digest


@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 32, 3)], ids=str)
@pytest.mark.parametrize("option", sorted(path.stem for path in (CONF_DIR / "model").glob("*.yaml")))
def test_every_model_takes_images_of_other_shapes_and_other_classes(option, shape):
    node = check(composed(f"model={option}")).model
    with keras.StatelessScope(initialize_variables=False):
        models.check(builders.build_model(node, shape, 7), shape, 7)


def test_lenet5_pads_small_images_with_zeros_on_all_sides():
    devices.fresh_session(0, "float32")
    small, large = models.lenet5(SHAPE, CLASSES), models.lenet5((32, 32, 1), CLASSES)
    large.set_weights(small.get_weights())
    padded = np.pad(IMAGES, [(0, 0), (2, 2), (2, 2), (0, 0)])
    np.testing.assert_allclose(small(IMAGES), large(padded), rtol=1e-4, atol=1e-6)


def silenced(model, names):
    """Sets the weights of layers to zero, so that only the shortcuts around them are left."""
    for layer in model._flatten_layers():
        if layer.name in names:
            layer.set_weights([np.zeros_like(weight) for weight in layer.get_weights()])
    return model


def normed(x):
    return (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-6)


def test_shortcuts_of_resnet_take_every_second_pixel_and_add_channels_of_zeros():
    devices.fresh_session(0, "float32")
    model = models.resnet(SHAPE, CLASSES, depth=8, width=4)
    last = [layer.name for layer in model.layers if isinstance(layer, keras.layers.Conv2D)][2::2]
    silenced(model, last)
    assert len(last) == 3  # the second convolution of each block
    first = model.layers[2]
    active = np.maximum(first(IMAGES / np.float32(255)), 0) / np.sqrt(1.001)
    kept = np.pad(active[:, ::4, ::4], [(0, 0)] * 3 + [(0, 12)]) / np.sqrt(1.001)
    kernel, bias = model.layers[-1].get_weights()
    np.testing.assert_allclose(model(IMAGES), kept.mean(axis=(1, 2)) @ kernel + bias, rtol=1e-4, atol=1e-5)


def patches():
    """float32 (6, 16, 49): the 7x7 patches of the images, row by row."""
    corners = [(row, column) for row in range(0, 28, 7) for column in range(0, 28, 7)]
    cut = [IMAGES[:, row : row + 7, column : column + 7].reshape(6, 49) for row, column in corners]
    return np.stack(cut, axis=1) / np.float32(255)


@pytest.mark.parametrize("name", ["mixer", "vit"])
def test_tokens_are_the_projected_patches_and_the_logits_those_of_their_mean(name):
    devices.fresh_session(0, "float32")
    model = BUILDERS[name]()
    dense_layers = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    second = [layer.name for layer in dense_layers[2 if name == "mixer" else 1 : -1 : 2]]
    silenced(model, [*second, "attention_output"])
    (kernel, bias), (last, last_bias) = (model.layers[i].get_weights() for i in (5, -1))
    assert bias.shape == ((8,) if name == "mixer" else (16, 8))  # the vision transformer has one for each position
    expected = normed(patches() @ kernel + bias).mean(axis=1) @ last + last_bias
    np.testing.assert_allclose(model(IMAGES), expected, rtol=1e-3, atol=1e-5)


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


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: models.mixer(SHAPE, CLASSES, **{**MIXER, "patch_size": 5}),
            "model.patch_size must divide height and width of the 28 x 28 images (1, 2, 4, 7, 14, 28), got 5",
        ),
        (lambda: models.vit(SHAPE, CLASSES, **{**VIT, "heads": 3}), "model.heads must divide model.width=8, got 3"),
        (
            lambda: models.mlp(SHAPE, CLASSES, hidden=[8], layer_norm=True, **NORMED),
            "model.layer_norm and model.batch_norm exclude each other, got true for both",
        ),
    ],
    ids=["patch_size", "heads", "layer_norm"],
)
def test_values_that_do_not_fit_each_other_are_refused(build, message):
    with pytest.raises(RequestError, match=re.escape(message)):
        build()


def test_noise_is_normal_repeats_by_seed_and_is_left_out_of_predictions():
    zeros = tf.zeros((1000, 200))
    layers = [models.GaussianNoise(0.5, seed=seed) for seed in (5, 5, 6)]
    first, same, other = (layer(zeros, training=True).numpy() for layer in layers)
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, layers[0](zeros, training=True).numpy())  # the next step's noise
    assert scipy.stats.kstest(first.ravel(), "norm", (0, 0.5)).pvalue > 0.01
    for shift in (1, 2, 200):
        assert abs(np.corrcoef(first.ravel()[shift:], first.ravel()[:-shift])[0, 1]) < 0.01
    assert np.array_equal(layers[0](zeros, training=False), zeros)
    assert layers[0](tf.cast(zeros, tf.bfloat16), training=True).dtype == tf.float32  # the layer's own dtype


def test_noise_comes_before_each_activation_and_on_the_pixels():
    model = BUILDERS["ladder"]()
    names = [type(layer).__name__ for layer in model.layers]
    assert names[2:4] == ["Flatten", "GaussianNoise"]
    block = ["Dense", "BatchNormalization", "GaussianNoise", "Activation", "Dropout"]
    assert names[4:-1] == block * 5
    assert [layer.stddev for layer in model.layers if "Noise" in type(layer).__name__] == [0.3] + [0.5] * 5


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


@keras.saving.register_keras_serializable(package="mine")
class Mine(keras.layers.Layer):
    def call(self, features):
        return 2 * features


def test_a_portable_copy_predicts_the_same_without_layers_of_this_package():
    devices.fresh_session(0, "float32")
    noisy = {"dropout": 0.2, "noise": 0.3, "input_noise": 0.1, "batch_norm": True, "activation": "relu"}
    images = keras.Input(SHAPE, dtype="uint8")
    model = keras.Model(images, models.mlp(SHAPE, CLASSES, hidden=[6, 5], **noisy)(images))  # nested
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    copy = models.portable(model)
    assert copy is not None
    assert '"mnist_exp' not in copy.to_json()
    assert '"mnist_exp' in model.to_json()
    assert not copy.compiled
    assert np.array_equal(copy(IMAGES, training=False), model(IMAGES, training=False))
    copy.set_weights([0 * weight for weight in copy.get_weights()])
    assert np.any(model(IMAGES, training=False))  # the two share no weights


def test_a_model_with_foreign_code_has_no_portable_copy():
    images = keras.Input(SHAPE, dtype="uint8")
    for layer in (Mine(), keras.layers.Lambda(lambda features: 2 * features)):
        assert models.portable(keras.Model(images, layer(keras.layers.Flatten()(images)))) is None


def test_each_filter_has_a_kernel_size():
    with pytest.raises(RequestError, match=r"model\.kernel_size must be .* 2 model\.filters, got \[5, 3, 3\]"):
        models.cnn(SHAPE, CLASSES, filters=[24, 32], kernel_size=[5, 3, 3], **DENSE)
