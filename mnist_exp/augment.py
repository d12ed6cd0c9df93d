"""Augmentations that the config group `augment` names: functions that return a Keras layer.

A layer takes and returns float32 images (n, height, width, channels) with values from 0 to 255, of any size, grey or in
colour. What moves into an image from outside is 0, the background of MNIST. Each image has random numbers of its own,
from the layer's `SeedGenerator`. `keras.layers.RandomFlip` and `keras.layers.MixUp` need no function here.

Images are moved by OpenCV, on one thread: on small images it takes half the processor time of TensorFlow's operation
for affine maps, and a tenth of the time of four gathers for elastic ones.
"""

from collections.abc import Callable
from typing import Any

import cv2
import keras
import numpy as np
import tensorflow as tf

cv2.setNumThreads(1)  # the training has the other cores
VARIANCE = 0.999  # share of an elastic field's variance that its principal components keep


def shift(*, pixels: float) -> keras.Layer:
    """Move each image by -pixels to +pixels, to the right and down, drawn uniformly for either direction."""
    return Affine(shift_pixels=pixels)


def rotate(*, degrees: float) -> keras.Layer:
    """Rotate each image about its centre by -degrees to +degrees, drawn uniformly; positive is counter-clockwise."""
    return Affine(rotate_degrees=degrees)


def zoom(*, share: float) -> keras.Layer:
    """Scale each image about its centre by a factor drawn uniformly from 1 - share to 1 + share."""
    return Affine(zoom_share=share)


def shear(*, degrees: float) -> keras.Layer:
    """Slant each image by -degrees to +degrees, drawn uniformly; positive moves its lower half to the right."""
    return Affine(shear_degrees=degrees)


def affine(*, shift_pixels: float, rotate_degrees: float, zoom_share: float, shear_degrees: float) -> keras.Layer:
    """Shear, scale, rotate and shift each image, as the functions of these names do, in one interpolation."""
    return Affine(shift_pixels, rotate_degrees, zoom_share, shear_degrees)


def elastic(*, alpha: float, sigma: float) -> keras.Layer:
    """Distort each image by a smooth random field.

    Each pixel's displacement in x and in y is uniform noise from -1 to 1, smoothed by a Gaussian and multiplied by
    `alpha`: Simard, Steinkraus and Platt, "Best Practices for Convolutional Neural Networks", 2003. The paper's values
    for MNIST are alpha 34 and sigma 4; a pixel then moves by 1.4 pixels (standard deviation) in x and in y.

    Args:
        alpha: strength, in pixels.
        sigma: standard deviation of the Gaussian, in pixels. The larger it is, the smoother the field.
    """
    return Elastic(alpha, sigma)


def crop(*, pixels: int) -> keras.Layer:
    """Pad each image by `pixels` on each side with 0, and crop it to its size at a place drawn uniformly."""
    return Crop(pixels)


def cutout(*, pixels: int) -> keras.Layer:
    """Set a square of `pixels` by `pixels` to 0, its centre drawn uniformly from all pixels.

    Parts of it may lie outside of the image: DeVries and Taylor, 2017, https://arxiv.org/abs/1708.04552.
    """
    return Cutout(pixels)


def noise(*, stddev: float) -> keras.Layer:
    """Add Gaussian noise to each value; `stddev` is on the scale of pixels, 0 to 255."""
    return Noise(stddev)


def cutmix(*, alpha: float) -> keras.Layer:
    """Replace a rectangle of each image by that of another image of the same block, and mix the labels by area.

    Yun et al., 2019, https://arxiv.org/abs/1905.04899. The share of the image that is kept is drawn from Beta(alpha,
    alpha). Where the rectangle is cut off by the border, the share is corrected.
    """
    return CutMix(alpha)


def warp(images: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Affine maps of images, with bilinear interpolation.

    Args:
        images: float32 (n, height, width, channels).
        places: float64 (n, 2, 3). The matrix of an image maps a pixel (x, y, 1) of the result to the place (x, y) in
            the image that its value comes from.

    Returns:
        float32, of the same shape.
    """
    size, flags = (images.shape[2], images.shape[1]), cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    done = np.empty_like(images)
    for image, matrix, result in zip(images, places, done, strict=True):
        cv2.warpAffine(image, matrix, size, result, flags)
    return done


def affine_places(height: int, width: int, *, dx: Any, dy: Any, degrees: Any, factor: Any, slant: Any) -> np.ndarray:
    """The matrices with which `warp` shears, scales and rotates about the centre and then shifts.

    Args:
        height: of the images.
        width: of the images.
        dx: (n,), pixels to the right.
        dy: (n,), pixels down.
        degrees: (n,), angle of the rotation, counter-clockwise.
        factor: (n,), above 1 the content grows.
        slant: (n,), angle of the shear in degrees.

    Returns:
        float64 (n, 2, 3): the inverse of the map, as `warp` needs it.
    """
    angle, tangent = np.radians(degrees), np.tan(np.radians(slant))
    cos, sin = np.cos(angle) / factor, np.sin(angle) / factor
    # y points down, so a counter-clockwise rotation is [[cos, sin], [-sin, cos]], and the shear is [[1, tan], [0, 1]].
    inverse = np.array([[cos - tangent * sin, -sin - tangent * cos], [sin, cos]])
    x, y = (width - 1) / 2, (height - 1) / 2
    from_centre = np.array([-x - dx, -y - dy])
    last = np.einsum("abn,bn->an", inverse, from_centre) + np.array([[x], [y]])
    return np.concatenate([inverse, last[:, None]], axis=1).transpose(2, 0, 1)


def elastic_components(height: int, width: int, alpha: float, sigma: float) -> np.ndarray:
    """Principal components of the field of `elastic`, float32 (m, height * width).

    A sum of them with independent standard normal factors has the covariance of the smoothed noise. It is as good as
    normal itself, because each value is a mean over many. This takes a tenth of the time of smoothing.
    """
    (left, across), (right, along) = (_smoothing(side, sigma) for side in (height, width))
    strength = np.outer(across, along) * alpha / np.sqrt(3)  # the variance of the uniform noise is 1/3
    order = np.argsort(-strength, axis=None)
    explained = np.cumsum(strength.ravel()[order] ** 2)
    kept = order[: np.searchsorted(explained, VARIANCE * explained[-1]) + 1]
    rows, columns = np.unravel_index(kept, strength.shape)
    components = strength[rows, columns, None, None] * left.T[rows][:, :, None] * right.T[columns][:, None, :]
    return components.reshape(len(kept), height * width).astype(np.float32)


def _smoothing(side: int, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Left singular vectors, in columns, and singular values of the matrix that smooths a line of `side` pixels."""
    offsets = np.arange(side)
    weights = np.exp(-(offsets**2) / (2 * sigma**2))
    weights /= 2 * weights.sum() - weights[0]
    left, values, _ = np.linalg.svd(weights[np.abs(offsets[:, None] - offsets)])
    return left, values


class RandomLayer(keras.Layer):
    """A layer that changes images by random numbers, while it trains only."""

    def __init__(self) -> None:
        super().__init__(dtype="float32")  # half precision cannot tell all values of a pixel apart
        self.generator = keras.random.SeedGenerator()

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Float32 (n, height, width, channels) in and out."""
        return self._augmented(images) if training else images

    def _augmented(self, images: tf.Tensor) -> tf.Tensor:
        """What `call` returns while it trains."""
        raise NotImplementedError


class Affine(RandomLayer):
    """See `affine`."""

    def __init__(
        self,
        shift_pixels: float = 0.0,
        rotate_degrees: float = 0.0,
        zoom_share: float = 0.0,
        shear_degrees: float = 0.0,
    ) -> None:
        super().__init__()
        self.most = np.array([shift_pixels, shift_pixels, rotate_degrees, zoom_share, shear_degrees])

    def _augmented(self, images: tf.Tensor) -> tf.Tensor:
        drawn = keras.random.uniform((tf.shape(images)[0], len(self.most)), -1.0, 1.0, seed=self.generator)
        return _by_numpy(self._moved, images, drawn)

    def _moved(self, images: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        dx, dy, degrees, zoomed, slant = (self.most * drawn).T
        _, height, width, _ = images.shape
        places = affine_places(height, width, dx=dx, dy=dy, degrees=degrees, factor=1 + zoomed, slant=slant)
        return warp(images, places)


class Crop(RandomLayer):
    """See `crop`."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.pixels = pixels

    def _augmented(self, images: tf.Tensor) -> tf.Tensor:
        shape = (tf.shape(images)[0], 2)
        return _by_numpy(
            _shifted, images, keras.random.randint(shape, -self.pixels, self.pixels + 1, seed=self.generator)
        )


def _shifted(images: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Images moved by whole pixels, (n, 2): to the right, and down."""
    places = np.zeros((len(images), 2, 3))
    places[:, 0, 0] = places[:, 1, 1] = 1
    places[:, :, 2] = -pixels
    return warp(images, places)


class Elastic(RandomLayer):
    """See `elastic`."""

    def __init__(self, alpha: float, sigma: float) -> None:
        super().__init__()
        self.alpha, self.sigma = alpha, sigma

    def build(self, shape: tuple[int, ...]) -> None:
        """Make the components of the field for the images' size."""
        _, height, width, _ = shape
        self.components = elastic_components(height, width, self.alpha, self.sigma)
        self.pixels = np.indices((height, width), np.float32)[::-1]  # x and y of each pixel

    def _augmented(self, images: tf.Tensor) -> tf.Tensor:
        drawn = keras.random.normal((2 * tf.shape(images)[0], len(self.components)), seed=self.generator)
        field = tf.reshape(tf.matmul(drawn, self.components), (-1, *self.pixels.shape))
        return _by_numpy(_remapped, images, self.pixels + field)


def _remapped(images: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Bilinear interpolation at places float32 (n, 2, height, width), x and y of where each pixel comes from."""
    done = np.empty_like(images)
    for image, (x, y), result in zip(images, places, done, strict=True):
        cv2.remap(image, x, y, cv2.INTER_LINEAR, result)
    return done


class Noise(RandomLayer):
    """See `noise`. `keras.layers.GaussianNoise` is made for values from 0 to 1."""

    def __init__(self, stddev: float) -> None:
        super().__init__()
        self.stddev = stddev

    def _augmented(self, images: tf.Tensor) -> tf.Tensor:
        return images + keras.random.normal(tf.shape(images), stddev=self.stddev, seed=self.generator)


class Cutout(RandomLayer):
    """See `cutout`."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.pixels = pixels

    def _augmented(self, images: tf.Tensor) -> tf.Tensor:
        return tf.where(_boxes(tf.shape(images), self.pixels, self.pixels, self.generator), 0.0, images)


class CutMix(keras.layers.CutMix):
    """See `cutmix`. Keras' own layer draws `alpha` too, and its labels have the area before it is cut to pixels."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def get_random_transformation(self, data: Any, training: bool = True, seed: Any = None) -> dict[str, tf.Tensor]:
        """What Keras' layer changes images and labels by."""
        shape = tf.shape(data["images"] if isinstance(data, dict) else data)
        kept = keras.random.beta((shape[0],), self.alpha, self.alpha, seed=self.generator)
        height, width = (tf.cast(tf.round(tf.sqrt(1 - kept) * tf.cast(shape[i], tf.float32)), tf.int32) for i in (1, 2))
        boxes = _boxes(shape, height[:, None], width[:, None], self.generator)
        return {
            "permutation_order": keras.random.shuffle(tf.range(shape[0]), seed=self.generator),
            "batch_masks": boxes,
            "mix_weight": 1 - tf.reduce_mean(tf.cast(boxes, tf.float32), (1, 2, 3)),
        }


def _boxes(shape: tf.Tensor, height: Any, width: Any, generator: keras.random.SeedGenerator) -> tf.Tensor:
    """Rectangles about pixels drawn uniformly, bool (n, image height, image width, 1).

    Args:
        shape: of the images.
        height: of the rectangles in pixels, int or int32 (n, 1).
        width: likewise.
        generator: of the centres.
    """
    drawn = keras.random.uniform((shape[0], 2), seed=generator)
    inside = []
    for axis, side in enumerate((height, width)):
        length = shape[axis + 1]
        centre = tf.cast(drawn[:, axis, None] * tf.cast(length, tf.float32), tf.int32)
        offset = tf.range(length) - centre + side // 2
        inside.append((offset >= 0) & (offset < side))
    return inside[0][:, :, None, None] & inside[1][:, None, :, None]


def _by_numpy(function: Callable[..., np.ndarray], images: tf.Tensor, *arguments: tf.Tensor) -> tf.Tensor:
    """Calls a function of arrays, within a compiled function too; it returns images of the same shape."""
    done = tf.numpy_function(function, [images, *arguments], tf.float32)
    done.set_shape(images.shape)
    return done
