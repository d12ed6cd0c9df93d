"""Images without labels."""

import numpy as np
import pytest
from PIL import Image

from mnist_exp.data import DataError, load_unlabelled

IMAGES = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)


def test_images_of_a_folder_and_of_a_file_are_the_same(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name, image in zip(("b.png", "a.png"), IMAGES, strict=True):
        Image.fromarray(image).save(folder / name)
    np.savez(tmp_path / "one.npz", IMAGES)
    np.savez(tmp_path / "named.npz", images=IMAGES / 255, other=1)
    names, pixels = load_unlabelled(str(folder))
    assert names == ["a.png", "b.png"]
    np.testing.assert_array_equal(pixels, IMAGES[::-1, ..., None])
    for file in ("one.npz", "named.npz"):
        names, pixels = load_unlabelled(str(tmp_path / file))
        assert (names, pixels.dtype) == (["0", "1"], np.uint8)
        np.testing.assert_array_equal(pixels, IMAGES[..., None])


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"a": IMAGES, "b": IMAGES}, "must have one array or an array `images`, found a, b"),
        ({"a": IMAGES[0]}, r"images must be \(n, height, width\)"),
        ({"a": IMAGES[:0]}, r"images must be \(n, height, width\)"),
        ({"a": IMAGES.astype(int) * 100}, r"pixels must be integers in 0..255, got 0..2300"),
        ({"a": np.array([[["x"]]])}, r"images must be"),
        ({}, "lacks images"),
    ],
)
def test_what_is_no_array_of_images_is_refused_in_a_line(arrays, said, tmp_path):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=said) as refused:
        load_unlabelled(str(tmp_path / "x.npz"))
    assert "\n" not in str(refused.value)


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(DataError, match="must hold image files"):
        load_unlabelled(str(tmp_path))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="must hold image files"):
        load_unlabelled(str(tmp_path))
    with pytest.raises(DataError, match="cannot be read: No such file"):
        load_unlabelled(str(tmp_path / "nowhere"))
