"""Each augmentation on images whose result is known, and what every option of the group has in common."""

import copy

import numpy as np
import pytest
import tensorflow as tf
from omegaconf import OmegaConf

from mnist_exp import augment
from mnist_exp.config import CONF_DIR, ConfigError, build, check
from mnist_exp.data import Split
from mnist_exp.training.augmentation import Augmentation
from tests.helpers.configs import composed

OPTIONS = sorted(path.stem for path in (CONF_DIR / "augment").glob("*.yaml") if path.stem != "none")
MIXING = {"mixup", "cutmix"}
RANDOM = np.random.default_rng(0)


def option(name):
    """The layer of an option with the values of its file."""
    (node,) = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "augment" / f"{name}.yaml")).values()
    return build(node)


def pictures(*shape):
    return RANDOM.integers(0, 256, shape).astype(np.float32)


def moved(images, **changes):
    n, height, width, _ = images.shape
    still = {"dx": 0.0, "dy": 0.0, "degrees": 0.0, "factor": 1.0, "slant": 0.0}
    values = {key: np.full(n, value) for key, value in {**still, **changes}.items()}
    return augment.warp(images, augment.affine_places(height, width, **values))


@pytest.mark.parametrize("channels", [1, 3])
def test_rotations_by_right_angles(channels):
    images = pictures(2, 9, 9, channels)
    for turns in (1, 2, 3):
        expected = np.rot90(images, turns, axes=(1, 2))  # counter-clockwise
        np.testing.assert_allclose(moved(images, degrees=90.0 * turns), expected, atol=1e-2)


def test_shifts_are_slices_with_zeros_from_outside():
    images = pictures(2, 10, 12, 1)
    found = moved(images, dx=3.0, dy=-2.0)
    assert np.array_equal(found[:, :-2, 3:], images[:, 2:, :-3])
    assert not found[:, -2:].any()
    assert not found[:, :, :3].any()
    np.testing.assert_allclose(moved(images, dx=0.5)[:, :, 1:], (images[:, :, 1:] + images[:, :, :-1]) / 2, atol=1e-3)


def test_zoom_and_shear_move_a_point_to_where_it_belongs():
    images = np.zeros((1, 11, 11, 1), np.float32)
    images[0, 3, 7] = 100  # two to the right of the centre, two above it
    assert moved(images, factor=2.0)[0, 1, 9, 0] == pytest.approx(100)
    assert moved(images, slant=45.0)[0, 3, 5, 0] == pytest.approx(100, abs=0.1)  # above the centre: to the left


def test_all_affine_maps_in_one_are_those_one_after_the_other():
    """Of the places, not of the images, which each interpolation blurs."""
    drawn = {"slant": 12.0, "factor": 1.2, "degrees": 33.0, "dx": 2.5, "dy": -1.5}

    def places(**changes):
        still = {"dx": 0.0, "dy": 0.0, "degrees": 0.0, "factor": 1.0, "slant": 0.0}
        (matrix,) = augment.affine_places(28, 20, **{k: np.array([v]) for k, v in {**still, **changes}.items()})
        return np.vstack([matrix, [0, 0, 1]])

    parts = [places(**{key: value}) for key, value in drawn.items()]
    np.testing.assert_allclose(places(**drawn), np.linalg.multi_dot(parts), atol=1e-12)


def test_draws_stay_within_the_limits_and_reach_them():
    dots = np.zeros((500, 15, 15, 1), np.float32)
    dots[:, 7, 7] = 255
    mass = dots.sum(axis=(1, 2, 3)).mean()
    done = np.asarray(augment.shift(pixels=3.0)(dots, training=True))
    np.testing.assert_allclose(done.sum(axis=(1, 2, 3)), mass, rtol=1e-2)
    ys, xs = ((done[..., 0] * grid).sum(axis=(1, 2)) / mass - 7 for grid in np.indices((15, 15)))
    for along in (ys, xs):
        assert -3.05 <= along.min() < -2.8
        assert 2.8 < along.max() <= 3.05
    assert abs(np.corrcoef(ys, xs)[0, 1]) < 0.2


def test_crop_is_a_shift_by_whole_pixels():
    images = pictures(200, 8, 8, 3)
    done = np.asarray(augment.crop(pixels=1)(images, training=True))
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    crops = {(y, x): padded[:, y : y + 8, x : x + 8] for y in range(3) for x in range(3)}
    places = [next(place for place in crops if np.array_equal(crops[place][i], done[i])) for i in range(200)]
    assert set(places) == crops.keys()


def test_cutout_is_one_square_of_zeros_cut_off_by_the_border():
    white = np.ones((400, 12, 10, 3), np.float32)
    holes = np.asarray(augment.cutout(pixels=4)(white, training=True)) == 0
    assert (holes == holes[..., :1]).all()
    sizes = []
    for hole in holes[..., 0]:
        rows, columns = hole.any(axis=1), hole.any(axis=0)
        assert np.array_equal(hole, np.outer(rows, columns))  # a rectangle, as both are runs:
        assert all(abs(np.diff(np.flatnonzero(side)) - 1).sum() == 0 for side in (rows, columns))
        sizes.append((rows.sum(), columns.sum()))
    assert max(sizes) == (4, 4)
    assert min(min(size) for size in sizes) == 2  # a centre in the first row or column: 2 before it are outside
    assert np.mean([size == (4, 4) for size in sizes]) == pytest.approx(9 / 12 * 7 / 10, abs=0.1)


def test_the_field_of_elastic_is_simards():
    """Smooth uniform noise, as SciPy does it, has the variance and the covariances of the components."""
    from scipy.ndimage import gaussian_filter

    components = augment.elastic_components(28, 20, 34.0, 4.0)
    assert len(components) < 60
    found = components.T @ components  # the covariance of all pixels
    noise = RANDOM.uniform(-1, 1, (4000, 28, 20))
    fields = 34 * gaussian_filter(noise, (0, 4, 4), mode="constant", truncate=8).reshape(4000, -1)
    expected = fields.T @ fields / len(fields)
    assert np.sqrt(found[14 * 20 + 10, 14 * 20 + 10]) == pytest.approx(1.37, abs=0.03)
    assert np.abs(found - expected).max() < 0.1 * expected.max()
    exact = augment.elastic_components(6, 5, 1.0, 0.01)  # nothing is smoothed: each pixel for itself
    np.testing.assert_allclose(exact.T @ exact, np.eye(30) / 3, atol=1e-6)


def test_elastic_takes_pixels_from_where_the_field_says():
    ramp = np.broadcast_to(np.arange(40, dtype=np.float32)[None, None, :, None], (50, 40, 40, 1))
    layer = augment.elastic(alpha=34.0, sigma=4.0)
    done = np.asarray(layer(np.ascontiguousarray(ramp), training=True))
    inner = (done - ramp)[:, 8:-8, 8:-8, 0]  # the displacement in x
    assert inner.std() == pytest.approx(1.38, abs=0.15)
    assert np.abs(np.diff(inner, axis=2)).mean() < 0.5


def test_noise_has_its_standard_deviation():
    grey = np.full((20, 28, 28, 1), 128, np.float32)
    done = np.asarray(augment.noise(stddev=25.0)(grey, training=True))
    assert (done.mean(), done.std()) == (pytest.approx(128, abs=1), pytest.approx(25, abs=0.5))


def test_flip_mirrors_half_of_the_images():
    images = pictures(200, 6, 6, 3)
    done = np.asarray(option("flip")(images, training=True))
    mirrored = [np.array_equal(a, b[:, ::-1]) for a, b in zip(done, images, strict=True)]
    assert all(m or np.array_equal(a, b) for m, a, b in zip(mirrored, done, images, strict=True))
    assert 70 < sum(mirrored) < 130


@pytest.mark.parametrize("name", sorted(MIXING))
def test_labels_are_mixed_with_the_share_of_the_images(name):
    """Image i is white in channel 0 if its class is 0, else in channel 1: the mean of a channel is a class's share."""
    classes = np.arange(300) % 2
    colours = np.zeros((300, 9, 7, 2), np.float32)
    colours[np.arange(300), :, :, classes] = 100
    data = {"images": tf.constant(colours), "labels": tf.one_hot(classes, 2)}
    done = option(name)(data, training=True)
    labels = np.asarray(done["labels"])
    np.testing.assert_allclose(np.asarray(done["images"]).mean(axis=(1, 2)) / 100, labels, atol=1e-5)
    np.testing.assert_allclose(labels.sum(axis=1), 1, atol=1e-6)
    mixed = (labels.max(axis=1) < 0.999).mean()
    assert 0.1 < mixed < 0.9
    assert np.array_equal(np.asarray(option(name)(tf.constant(colours), training=False)), colours)


@pytest.mark.parametrize("shape", [(28, 28, 1), (20, 33, 3)], ids=str)
def test_every_option_changes_images_of_any_shape_alike_for_equal_seeds_and_epochs(shape):
    split = Split(RANDOM.integers(0, 256, (70, *shape)).astype(np.uint8), np.arange(70) % 10)
    for name in OPTIONS:
        made, again = (Augmentation({name: option(name)}, 5, split.images, 10) for _ in range(2))
        assert bool(made.mixing) == (name in MIXING), name
        one, other = made.split(split, 1), made.split(split, 2)
        assert one.images.shape == split.images.shape, name
        for images in (one.images, other.images):
            assert (images != split.images).mean() > 0.02, name
        assert (one.images != other.images).any(), name
        for ours, theirs in zip(one, again.split(split, 1), strict=True):
            assert np.array_equal(ours, theirs), name
        assert one.labels.shape == ((70, 10) if name in MIXING else (70,)), name


def test_options_are_applied_in_the_order_given():
    split = Split(RANDOM.integers(0, 256, (40, 12, 12, 1)).astype(np.uint8), np.arange(40) % 10)

    def holes(*names):
        layers = {name: option(name) for name in names}
        return (Augmentation(layers, 0, split.images, 10).split(split, 0).images == 0).sum()

    assert holes("noise", "cutout") > holes("cutout", "noise")  # noise fills half of the hole


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("shift.pixels=-1", r"augment\.shift\.pixels must be a number of at least 0, got -1"),
        ("rotate.degrees=200", r"augment\.rotate\.degrees must be a number of degrees from 0 to 180, got 200"),
        ("zoom.share=1", r"augment\.zoom\.share must be a number from 0 to below 1, got 1"),
        ("affine.shear_degrees=90", r"augment\.affine\.shear_degrees must be a number of degrees from 0 to below 90"),
        ("elastic.sigma=0", r"augment\.elastic\.sigma must be a number above 0, got 0"),
        ("crop.pixels=1.5", r"augment\.crop\.pixels must be a whole number, at least 1, got 1\.5"),
        ("flip.mode=left", r"augment\.flip\.mode must be one of horizontal, vertical, horizontal_and_vertical"),
        ("mixup.alpha=0", r"augment\.mixup\.alpha must be a number above 0, got 0"),
    ],
)
def test_a_value_that_makes_no_sense_is_one_line(given, message):
    with pytest.raises(ConfigError, match=message):
        check(composed(f"augment={given.partition('.')[0]}", f"augment.{given}"))


def test_every_key_of_every_option_has_a_rule_and_changes_the_images():
    everything = composed(f"augment=[{','.join(OPTIONS)}]")
    images = tf.constant(pictures(64, 12, 12, 1))

    def augmented(name, key, value):
        config = copy.deepcopy(everything)
        config.augment[name][key] = value
        layer = build(check(config).augment[name])
        layer.generator.state.assign([1, 2])
        return np.asarray(layer(images, training=True))

    for name in OPTIONS:
        for key, value in everything.augment[name].items():
            if key != "_target_":
                with pytest.raises(ConfigError, match=rf"^augment\.{name}\.{key} must be "):
                    augmented(name, key, [])
                other = "vertical" if key == "mode" else type(value)(value / 2)
                assert (augmented(name, key, value) != augmented(name, key, other)).any(), (name, key)


def test_layers_do_nothing_outside_of_training():
    images = pictures(3, 8, 8, 1)
    for name in OPTIONS:
        assert np.array_equal(np.asarray(option(name)(images, training=False)), images), name
