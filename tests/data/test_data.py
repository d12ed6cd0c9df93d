"""Sources, splits, fingerprints, and one message for everything that can be wrong with a file."""

import gzip
import hashlib
import io
import os
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mnist_exp import console, data
from mnist_exp.config import check
from mnist_exp.data import DataError, dataset, download, files, published
from mnist_exp.sweep import jobs
from tests.helpers.configs import composed
from tests.helpers.data_files import Arrays, arrays, idx, npz_bytes, offline, write_idx, write_npz

DIGITS_FINGERPRINT = "f3a198841372b031a6b9495f3b7cc288eae6130e28db5337712ceab071292615"
URLOPEN = urllib.request.urlopen


@pytest.fixture
def small_mnist(monkeypatch: pytest.MonkeyPatch) -> Arrays:
    """Fifty images that count as MNIST for one test."""
    content = arrays()
    digests = tuple(hashlib.sha256(array.tobytes()).hexdigest() for array in content.values())
    monkeypatch.setattr(published, "MNIST", published.MNIST._replace(digests=digests))
    return content


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "keras" / "datasets" / "mnist.npz"


def test_digits_are_what_they_were_on_every_machine() -> None:
    digits = data.digits()
    assert digits.fingerprint == DIGITS_FINGERPRINT
    assert (digits.name, digits.source, digits.num_classes) == ("digits", "scikit-learn", 10)
    assert digits.image_shape == (28, 28, 1)
    assert [len(split.labels) for split in digits[2:5]] == [1150, 287, 360]
    for split in digits[2:5]:
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int64)
        assert split.images.shape == (len(split.labels), 28, 28, 1)
        assert np.unique(split.labels).tolist() == list(range(10))
    assert digits.train.images.max() == 255
    assert not digits.train.images[:, [0, -1]].any()


@pytest.mark.parametrize(("validation", "count"), [(1, 1), (400, 400), (0.25, 359), (1436, 1436)])
def test_validation_images_are_taken_from_the_training_images(validation: float, count: int) -> None:
    whole, split = data.digits(validation="test").train, data.digits(validation=validation, split_seed=3)
    assert len(split.validation.labels) == count
    assert len(split.train.labels) == 1437 - count
    both = np.concatenate([split.train.images, split.validation.images])
    assert sorted(image.tobytes() for image in both) == sorted(image.tobytes() for image in whole.images)


def test_split_is_disjoint_and_keeps_the_order() -> None:
    kept, taken = dataset.divide(1000, 300, seed=5)
    assert np.all(np.diff(kept) > 0)
    assert np.all(np.diff(taken) > 0)
    assert sorted([*kept, *taken]) == list(range(1000))


def test_validation_on_the_test_set_keeps_all_training_images() -> None:
    digits = data.digits(validation="test")
    assert len(digits.train.labels) == 1437
    assert digits.validation is digits.test


def test_fingerprint_follows_the_split_and_nothing_else() -> None:
    variants = [{}, {"split_seed": 1}, {"validation": 0.3}, {"validation": "test"}]
    prints = [data.digits(**variant).fingerprint for variant in variants]
    assert len(set(prints)) == len(variants)
    assert data.digits(validation=287).fingerprint == prints[0]  # the same images, said as a count
    assert data.digits(validation="test", split_seed=1).fingerprint == prints[3]  # where the seed plays no part


def test_fingerprint_follows_the_content_and_not_the_container(tmp_path: Path) -> None:
    content = arrays()
    npz = data.file(path=str(write_npz(tmp_path / "a.npz", content)))
    folder = data.file(path=str(write_idx(tmp_path / "b", content, gz=True)))
    assert npz.fingerprint == folder.fingerprint
    content["x_test"][0, 0, 0] ^= 1
    assert data.file(path=str(write_npz(tmp_path / "c.npz", content))).fingerprint != npz.fingerprint


@pytest.mark.parametrize("validation", [1.0, 0, 0.0, -3, -0.1, True, float("nan"), "tset", None, [5]], ids=repr)
def test_validation_out_of_range(validation: object) -> None:
    message = "data.validation must be a count of at least 1, a share between 0 and 1, or 'test', got "
    with pytest.raises(DataError) as error:
        data.check_validation(validation)
    assert str(error.value) == f"{message}{validation!r}"
    for source in (data.digits, data.mnist, lambda **kwargs: data.file(path="none", **kwargs)):
        if validation is None and source is not data.digits and source is not data.mnist:
            continue  # the validation set of the file
        with pytest.raises(DataError, match=r"^data\.validation must be"):
            source(validation=validation)


@pytest.mark.parametrize("validation", [1, 5000, 0.5, "test"])
def test_validation_in_range(validation: object) -> None:
    data.check_validation(validation)


@pytest.mark.parametrize(("validation", "count"), [(1437, "1,437"), (5000, "5,000"), (0.0001, "0")])
def test_validation_must_leave_images_on_both_sides(validation: float, count: str) -> None:
    rule = f"data.validation={validation} takes {count} of the 1,437 training images of digits; at least 1"
    with pytest.raises(DataError, match=f"^{rule}"):
        data.digits(validation=validation)


@pytest.mark.parametrize("seed", [-1, 1.5, True, "a", None], ids=repr)
def test_split_seed_out_of_range(seed: object) -> None:
    with pytest.raises(DataError, match=r"^data\.split_seed must be an integer of at least 0, got"):
        data.digits(split_seed=seed)


@pytest.mark.parametrize("container", ["npz", "folder with npz", "idx", "idx dot", "idx gz"])
def test_mnist_in_any_container(container: str, small_mnist: Arrays, tmp_path: Path) -> None:
    if "npz" in container:
        place = write_npz(tmp_path / "mnist.npz", small_mnist)
    else:
        place = write_idx(tmp_path / "idx", small_mnist, dot="dot" in container, gz="gz" in container)
    path = place.parent if container.startswith("folder") else place
    mnist = data.mnist(path=str(path), validation="test")
    assert (mnist.name, mnist.source) == ("mnist", str(path))
    np.testing.assert_array_equal(mnist.train.images[..., 0], small_mnist["x_train"])
    np.testing.assert_array_equal(mnist.test.labels, small_mnist["y_test"])


def test_mnist_search_order(small_mnist: Arrays, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_npz(cache, small_mnist)
    assert data.mnist(validation=5).source == str(cache)
    monkeypatch.setenv("MNIST_EXP_DATA", "")  # as if unset
    assert data.mnist(validation=5).source == str(cache)
    folder = write_idx(tmp_path / "env", small_mnist)
    monkeypatch.setenv("MNIST_EXP_DATA", str(folder))
    assert data.mnist(validation=5).source == str(folder)
    named = write_npz(tmp_path / "other.npz", small_mnist)
    assert data.mnist(path=str(named), validation=5).source == str(named)


@pytest.mark.parametrize("key", ["data.path", "MNIST_EXP_DATA"])
@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("missing", "{place}: no such file or folder"),
        (
            "empty",
            "{place}: this folder has no {idx} (plain or .gz), and no mnist.npz",
        ),
        (
            "other.npz",
            "{place}: not MNIST, or damaged: x_train, x_test differs; use data=file for other data",
        ),
    ],
)
def test_a_named_place_must_hold_mnist(
    key: str,
    place: str,
    message: str,
    small_mnist: Arrays,
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_npz(cache, small_mnist)  # never a substitute for what the user named
    (tmp_path / "empty").mkdir()
    other = {name: np.bitwise_not(x) if name[0] == "x" else x for name, x in small_mnist.items()}
    write_npz(tmp_path / "other.npz", other)
    path = str(tmp_path / place)
    if key == "MNIST_EXP_DATA":
        monkeypatch.setenv(key, path)
    for load in (data.mnist, data.resolve_auto):
        with pytest.raises(DataError) as error:
            load(path=path if key == "data.path" else None)
        assert str(error.value).startswith(f"{key}: " + message.format(place=path, idx=", ".join(data.IDX_FILES)))


def served(content: bytes) -> Callable[..., io.BytesIO]:
    return lambda *_, **__: io.BytesIO(content)


@pytest.mark.parametrize("before", [None, b"", b"PK\x03\x04 cut", "other arrays"], ids=str)
def test_missing_or_damaged_cache_is_replaced(
    before: bytes | str | None, small_mnist: Arrays, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if before is not None:
        cache.parent.mkdir(parents=True)
        other = npz_bytes(small_mnist | {"y_train": small_mnist["y_train"][::-1]})
        cache.write_bytes(other if isinstance(before, str) else before)
    monkeypatch.setattr(urllib.request, "urlopen", served(npz_bytes(small_mnist)))
    mnist = data.mnist(validation="test")
    np.testing.assert_array_equal(mnist.train.images[..., 0], small_mnist["x_train"])
    assert [path.name for path in cache.parent.iterdir()] == ["mnist.npz"]


def test_damaged_cache_without_network(cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_bytes(b"cut")
    with pytest.raises(DataError) as error:
        data.mnist()
    message = str(error.value)
    assert message.startswith(f"{cache}: damaged, truncated, or not an .npz or IDX file: File is not a zip file,")
    assert (
        f"and downloading {published.MNIST.addresses[0].url} failed: <urlopen error no network in tests>; name"
        in message
    )
    assert cache.read_bytes() == b"cut"


def test_a_download_that_is_not_mnist_is_not_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", served(b"<html>Please log in</html>"))
    with pytest.raises(DataError, match=r"no such file or folder, and downloading .* not an \.npz"):
        data.mnist()
    assert list(cache.parents[1].iterdir()) == []


def test_cache_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "taken"))
    monkeypatch.setattr(urllib.request, "urlopen", served(b""))
    with pytest.raises(DataError, match=r"and downloading .* failed: "):
        data.mnist()


@pytest.mark.mnist
@pytest.mark.skipif(not os.environ.get("MNIST_EXP_DATA"), reason="MNIST_EXP_DATA does not name MNIST's folder")
def test_real_mnist() -> None:
    mnist = data.mnist()
    assert [len(split.labels) for split in mnist[2:5]] == [55_000, 5_000, 10_000]
    assert (mnist.image_shape, mnist.num_classes) == ((28, 28, 1), 10)
    assert mnist.fingerprint == "679bfa160d7cda820ea76372255781a68206da02dbdb2c659b62e17c1fe05465"
    assert data.mnist(validation="test").train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert data.resolve_auto() == "mnist"


def test_auto_is_mnist_when_at_hand_or_within_reach(
    small_mnist: Arrays, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert data.resolve_auto() == "mnist5k"
    download.answers.cache_clear()
    monkeypatch.setattr(urllib.request, "urlopen", served(b""))
    assert data.resolve_auto() == "mnist"
    monkeypatch.setattr(urllib.request, "urlopen", offline)
    download.answers.cache_clear()
    write_npz(cache, small_mnist)
    assert data.resolve_auto() == "mnist"
    cache.write_bytes(b"cut")
    assert data.resolve_auto() == "mnist5k"


def test_a_sweep_decides_once_what_auto_means_and_warns_once(capsys: pytest.CaptureFixture[str]) -> None:
    console.warn_no_mnist.cache_clear()
    configs = [check(composed("data=auto", f"seed={seed}")) for seed in (0, 1)]
    assert [jobs.resolve_data(config) for config in configs] == ["mnist5k"] * 2
    assert capsys.readouterr().err.count("mnist5k is used instead") == 1
    assert configs[0].data["_target_"] == "mnist_exp.data.mnist5k"
    console.warn_no_mnist.cache_clear()  # as in the process of a job, which gets the answer
    assert jobs.resolve_data(check(composed("data=auto", "sweep.data=mnist5k"))) == "mnist5k"
    assert capsys.readouterr().err == ""


def test_auto_does_not_wait_for_a_hanging_name_lookup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", URLOPEN)
    monkeypatch.setenv("no_proxy", "*")
    assert download.PROBE_SECONDS < 10
    monkeypatch.setattr(download, "PROBE_SECONDS", 0.3)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(3) or [])
    start = time.perf_counter()
    assert data.resolve_auto() == "mnist5k"
    assert 0.3 <= time.perf_counter() - start < 2


def test_second_run_shares_the_arrays_and_cannot_change_them(tmp_path: Path) -> None:
    path = str(write_npz(tmp_path / "own.npz", arrays() | {"y_train": np.arange(40) % 10}))
    first, second = data.file(path=path), data.file(path=path, split_seed=1)
    assert first.test.images is second.test.images
    for array in (*first.train, *first.validation, *first.test, *data.digits().test):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_changed_file_is_read_again(tmp_path: Path) -> None:
    content = arrays()
    path = write_npz(tmp_path / "own.npz", content)
    before = data.file(path=str(path)).fingerprint
    stat = path.stat()
    content["x_test"][0] = 0
    write_npz(path, content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert data.file(path=str(path)).fingerprint != before


def test_many_files_do_not_pile_up(tmp_path: Path) -> None:
    for number in range(5):
        data.file(path=str(write_npz(tmp_path / f"{number}.npz", arrays())))
    assert files._read.cache_info().currsize <= 2


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, mnist_exp.data; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"tensorflow", "keras", "mlflow", "hydra", "sklearn"} & set(done.stdout.split())


@pytest.mark.parametrize(
    ("change", "image_shape", "num_classes"),
    [
        ({}, (28, 28, 1), 10),
        (
            {"x_train": np.zeros((40, 8, 9, 3), np.int64), "x_test": np.ones((10, 8, 9, 3), ">u2")},
            (8, 9, 3),
            10,
        ),
        ({"x_train": np.asfortranarray(np.zeros((40, 28, 28), np.uint8))}, (28, 28, 1), 10),
        (
            {"x_train": np.ones((300, 4, 4), np.uint8), "y_train": np.arange(300), "x_test": np.ones((10, 4, 4), int)},
            (4, 4, 1),
            300,
        ),
    ],
    ids=["gray", "colour, wide integers", "Fortran order", "many classes"],
)
def test_own_npz(change: Arrays, image_shape: tuple[int, ...], num_classes: int, tmp_path: Path) -> None:
    content = arrays() | change
    own = data.file(path=str(write_npz(tmp_path / "own.v2.npz", content)), validation="test")
    assert (own.name, own.image_shape, own.num_classes) == ("own.v2", image_shape, num_classes)
    assert (own.train.images.dtype, own.train.labels.dtype) == (np.uint8, np.int64)
    np.testing.assert_array_equal(own.train.images.reshape(content["x_train"].shape), content["x_train"])
    np.testing.assert_array_equal(own.test.labels, content["y_test"])


def test_own_folder_is_named_after_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(tmp_path / "2024.v2", arrays(), dot=True)
    monkeypatch.chdir(tmp_path)
    own = data.file(path="2024.v2")
    assert (own.name, own.source) == ("2024.v2", str(tmp_path / "2024.v2"))


BAD_ARRAYS = {
    "missing": ({"y_test": None}, "lacks y_test; expected x_train, y_train, x_test, y_test, found"),
    "floats and integers": (
        {"x_train": np.zeros((40, 28, 28), np.float32)},
        "the pixels of all sets must be of one type, got float32 and integers",
    ),
    "booleans and integers": ({"x_test": np.zeros((10, 28, 28), bool)}, "the pixels of all sets must be of one type"),
    "complex": ({"x_test": np.zeros((10, 28, 28), complex)}, "x_test: pixels must be integers in 0..255, which models"),
    "negative": (
        {"x_train": np.full((40, 28, 28), -3)},
        "x_train: pixels must be integers in 0..255, got -3..-3",
    ),
    "too bright": (
        {"x_train": np.arange(40 * 784, dtype=np.uint16).reshape(40, 28, 28)},
        "x_train: pixels must be integers in 0..255, got 0..31359",
    ),
    "flat": (
        {"x_train": np.zeros((40, 784), np.uint8)},
        "x_train: images must be (n, height, width) or (n, height, width, 1 or 3), got (40, 784)",
    ),
    "channels first": (
        {"x_train": np.zeros((40, 3, 28, 28), np.uint8)},
        "x_train: images must be (n, height, width) or (n, height, width, 1 or 3), got (40, 3, 28, 28)",
    ),
    "no images": (
        {"x_test": np.zeros((0, 28, 28), np.uint8)},
        "x_test: at least one image of at least one pixel is needed, got shape (0, 28, 28)",
    ),
    "no labels": ({"y_test": np.zeros(0, np.uint8)}, "y_test: at least one label is needed, got none"),
    "sizes differ": (
        {"x_test": np.zeros((10, 28, 27), np.uint8)},
        "images must have one size and depth, got (28, 28, 1) in the training set and (28, 27, 1)",
    ),
    "counts differ": (
        {"y_train": np.arange(39) % 10},
        "y_train: each image needs one label, got 39 for 40 images",
    ),
    "one-hot": ({"y_train": np.eye(40, dtype=int)}, "y_train: labels must have shape (n,), got (40, 40)"),
    "float labels": ({"y_train": np.zeros(40)}, "y_train: labels must be integers, got float64"),
    "text labels": ({"y_train": np.array(["a"] * 40)}, "every test label must occur in training, got '0' only in"),
    "empty text labels": ({"y_train": np.array(["", "b"] * 20)}, "y_train: text labels must have 1 to 100 letters"),
    "negative label": ({"y_train": np.arange(40) - 1}, "y_train: labels must be in 0..999, got -1..38"),
    "too many classes": (
        {"y_train": np.arange(40) + 961},
        "y_train: labels must be in 0..999, got 961..1000",
    ),
    "huge label": ({"y_train": np.full(40, 2**64 - 1)}, "y_train: labels must be in 0..999, got 18446744"),
    "unseen label": (
        {"y_test": np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 11])},
        "every test label must occur in training, got 11 only in the test set",
    ),
    "one class": (
        {"y_train": np.zeros(40, int), "y_test": np.zeros(10, int)},
        "labels must name at least 2 classes, got only label 0",
    ),
    "one class that is not 0": (
        {"y_train": np.full(40, 3), "y_test": np.full(10, 3)},
        "labels must name at least 2 classes, got only label 3",
    ),
    "objects": ({"y_train": np.array([0, None] * 20)}, "y_train holds Python objects (a pickle)"),
}


@pytest.mark.parametrize(("change", "message"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_unusable_arrays(change: dict[str, np.ndarray | None], message: str, tmp_path: Path) -> None:
    content = {name: array for name, array in (arrays() | change).items() if array is not None}
    path = write_npz(tmp_path / "own.npz", content)
    with pytest.raises(DataError) as error:
        data.file(path=str(path))
    assert str(error.value).startswith(f"{path}: {message}")


def npz_with_header(header: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in data.ARRAYS:
            archive.writestr(f"{name}.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header)
    return stream.getvalue()


def flipped(content: bytes) -> bytes:
    return content[:300] + bytes([content[300] ^ 0xFF]) + content[301:]


HUGE = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776, 28, 28), }\n"
NOT_READABLE = "damaged, truncated, or not an .npz or IDX file: "
BAD_NPZ = {
    "empty": (b"", NOT_READABLE),
    "CSV": (
        "label,pixel\n1,2\nä,3".encode(),
        f"{NOT_READABLE}File is not a zip file, it is text; the name of a CSV file must not end in .npz; ",
    ),
    "one IDX file": (idx(np.zeros((2, 2, 2), np.uint8)), f"{NOT_READABLE}File is not a zip file, it is one IDX file; "),
    "one IDX file, zipped": (gzip.compress(b"x"), f"{NOT_READABLE}File is not a zip file, it is a gzip file; "),
    "one array": (b"\x93NUMPY\x01\x00", f"{NOT_READABLE}File is not a zip file, it is one array (.npy); "),
    "other bytes": (b"\x00\x01\x02", f"{NOT_READABLE}File is not a zip file; data.path takes an .npz file"),
    "many members": (
        npz_bytes({f"a{number}": np.zeros(1) for number in range(99)}),
        "lacks x_train, y_train, x_test, y_test; expected x_train, y_train, x_test, y_test, found a0, a1, a10, a11,"
        " a12, a13, a14, a15, a16, a17 and 89 more",
    ),
    "truncated": (npz_bytes(arrays())[:-100], f"{NOT_READABLE}File is not a zip file"),
    "flipped bits": (flipped(npz_bytes(arrays())), NOT_READABLE),
    "huge header": (
        npz_with_header(HUGE),
        "x_train: its header promises 862,017,116,176,384 bytes of data, it has 0",
    ),
    "bad header": (npz_with_header(b"{'descr': [[[\n"), NOT_READABLE),
    "nested header": (npz_with_header(b"(" * 9000), NOT_READABLE),
    "empty archive": (npz_bytes({}), "lacks x_train, y_train, x_test, y_test; expected"),
}


@pytest.mark.parametrize(("content", "message"), BAD_NPZ.values(), ids=BAD_NPZ)
def test_unreadable_npz(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        data.file(path=str(path))
    assert str(error.value).startswith(f"{path}: {message}")
    assert "\n" not in str(error.value)


IMAGES = idx(arrays()["x_train"])
BAD_IDX = {
    "empty": (
        b"",
        "not an IDX file of unsigned bytes: must begin with 00 00 08 and the number of axes, got an empty",
    ),
    "magic": (b"\0\0\x0d\3" + IMAGES[4:], "not an IDX file of unsigned bytes: must begin with 00 00 08"),
    "axes": (b"\0\0\x08\2" + IMAGES[4:], "not an IDX file of unsigned bytes: must begin with 00 00 08"),
    "header cut": (IMAGES[:10], NOT_READABLE),
    "cut": (IMAGES[:-1], "its header promises 31,360 bytes of data, it has 31,359"),
    "too long": (IMAGES + b"x", "its header promises 31,360 bytes of data, it has 31,361"),
    "huge header": (
        IMAGES[:4] + b"\xff" * 12 + IMAGES[16:],
        "its header promises 79,228,162,458,924,105,385,300,197,375 bytes of data, it has 31,360",
    ),
    "labels": (idx(arrays()["y_train"]), "images must be (n, height, width) or"),
    "gz too long": (gzip.compress(IMAGES + bytes(10**6)), "its header promises 31,360 bytes of data, it has more"),
    "gz cut": (gzip.compress(IMAGES)[:-20], NOT_READABLE),
    "gz flipped bits": (flipped(gzip.compress(IMAGES)), ""),
    "gz noise": (b"\x1f\x8b" + b"noise" * 9, "cannot be read: Unknown compression method"),
}


@pytest.mark.parametrize(("content", "message"), BAD_IDX.values(), ids=BAD_IDX)
def test_unreadable_idx(content: bytes, message: str, tmp_path: Path) -> None:
    path = write_idx(tmp_path / "own", arrays()) / data.IDX_FILES[0]
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        data.file(path=str(path.parent))
    assert str(error.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (None, "data.path must name a file or a folder, got None; data.path takes an .npz file with"),
        ("", "data.path must name a file or a folder, got ''; data.path takes an .npz file with"),
        ("none.npz", "{path}: no such file or folder"),
        (2024, "{path}: no such file or folder"),
        ("~nobody-of-this-name/x", "{path}: no such file or folder"),
        ("a\0b", "{path}: no such file or folder"),
        (".", "{path}: this folder has no files of a known format; data.path takes an .npz file with the arrays"),
    ],
    ids=repr,
)
def test_nothing_at_the_path(path: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as error:
        data.file(path=path)
    assert str(error.value).startswith(message.format(path=Path(str(path)).absolute()))


def test_permission_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = write_npz(tmp_path / "own.npz", arrays())
    monkeypatch.setattr(zipfile, "ZipFile", denied)  # chmod would not stop a test run by root
    with pytest.raises(DataError) as error:
        data.file(path=str(path))
    assert str(error.value) == f"{path}: cannot be read: Permission denied"


def test_what_is_no_file_is_refused() -> None:
    with pytest.raises(DataError, match="/dev/zero: neither a file nor a folder"):
        data.file(path="/dev/zero")


@pytest.mark.parametrize(
    ("train", "test", "warned"),
    [(1, 1, True), (16, 16, True), (255, 1, True), (1, 255, True), (0, 0, True), (128, 200, False), (255, 255, False)],
)
def test_images_that_use_little_of_the_range_are_warned_of(train: int, test: int, warned: bool, tmp_path: Path) -> None:
    content = arrays()
    content["x_train"] = content["x_train"] // 255 * train
    content["x_test"] = content["x_test"] // 255 * test
    content["x_train"][0, 0, 0], content["x_test"][0, 0, 0] = train, test
    warnings = data.file(path=str(write_npz(tmp_path / "own.npz", content))).warnings
    assert len(warnings) == warned
    if warned:
        assert f"the largest pixel is {train} in the training set and {test} in the test set, of 255" in warnings[0]
        assert "scale the pixels of both sets to 0..255" in warnings[0]


def test_a_class_that_validation_takes_whole_is_warned_of(tmp_path: Path) -> None:
    path = str(write_npz(tmp_path / "own.npz", arrays(train=10)))
    (warning,) = data.file(path=path, validation=1).warnings
    taken = data.file(path=path, validation=1).validation.labels[0]
    assert warning == f"{path}: data.validation=1 leaves no training image of class {taken}"
    (warning,) = data.file(path=path, validation=3).warnings
    assert "leaves no training image of 3 classes, the first is class " in warning
    assert data.file(path=path, validation="test").warnings == ()
    assert data.digits().warnings == ()


# What is tried within the memory that Python and NumPy take, and 100 MB.
IN_LITTLE_MEMORY = """
import resource, sys
from mnist_exp import console, data

data.file(path=sys.argv[1])
with open("/proc/self/statm") as sizes:
    used = int(sizes.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 100 * 2**20, used + 100 * 2**20))
for path in sys.argv[2:]:
    try:
        data.file(path=path)
        print("read")
    except data.DataError as error:
        print(error)
"""
LARGE = 2**28


def npy_of_zeros(path: Path, shape: tuple[int, ...], held: int) -> None:
    """An .npz whose x_train has a header that promises `shape` and holds so many zeros; the rest is small."""
    header = io.BytesIO()
    described = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, described)
    labels = io.BytesIO()
    np.lib.format.write_array(labels, np.arange(40) % 10)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in data.ARRAYS[1:]:
            archive.writestr(f"{name}.npy", labels.getvalue())
        with archive.open("x_train.npy", "w", force_zip64=True) as stream:
            stream.write(header.getvalue())
            for _ in range(held // 2**20):
                stream.write(bytes(2**20))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits memory as Linux does")
def test_what_expands_without_end_is_refused_within_little_memory(tmp_path: Path) -> None:
    good = write_npz(tmp_path / "good.npz", arrays())
    npy_of_zeros(tmp_path / "lies.npz", (40, 28, 28), LARGE)
    npy_of_zeros(tmp_path / "unlike.npz", (LARGE, 1, 1), LARGE)
    folder = write_idx(tmp_path / "idx", arrays(), gz=True)
    with gzip.open(folder / f"{data.IDX_FILES[0]}.gz", "wb", 1) as stream:
        stream.write(IMAGES)
        for _ in range(LARGE // 2**20):
            stream.write(bytes(2**20))
    large = write_idx(tmp_path / "large", arrays(), gz=True)
    with gzip.open(large / f"{data.IDX_FILES[0]}.gz", "wb", 1) as stream:
        stream.write(struct.pack(">HBB3I", 0, 8, 3, 40, 2**20, 5))
        stream.write(bytes(10))
    paths = [str(path) for path in (good, tmp_path / "lies.npz", tmp_path / "unlike.npz", folder, large)]
    done = subprocess.run(
        [sys.executable, "-c", IN_LITTLE_MEMORY, *paths], capture_output=True, text=True, check=True, timeout=60
    )
    lies, unlike, long, over = done.stdout.splitlines()
    assert lies.endswith("its header promises 31,360 bytes of data, it has 268,435,456")
    assert unlike.endswith("y_train: each image needs one label, got 40 for 268,435,456 images")
    assert long.endswith("its header promises 31,360 bytes of data, it has more")
    assert over.endswith("this machine has too little memory to read it")


def test_data_larger_than_the_machine_s_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_npz(tmp_path / "own.npz", arrays(train=400))
    monkeypatch.setattr(files.provenance, "memory", lambda: 300_000)
    with pytest.raises(DataError, match=r"own\.npz: holds 0\.0 GB of data, this machine has 0\.0$"):
        data.file(path=str(path))


PIXELS, LABELS = np.zeros((4, 3, 3, 1), np.uint8), np.arange(4, dtype=np.int64) % 2
PART = data.Split(PIXELS, LABELS)
MINE = data.Dataset("mine", "nowhere", PART, PART, PART, 2, "abc", class_names=("0", "1"))


def test_a_data_set_of_a_user_that_keeps_the_rules_passes():
    assert data.check_dataset(MINE) is MINE
    assert data.check_dataset(MINE._replace(class_names=())) == MINE  # the labels' numbers
    named = MINE._replace(class_names=("cat", "dog"))
    assert data.check_dataset(named) is named


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (PART, "a mnist_exp.data.Dataset, got Split"),
        (None, "a mnist_exp.data.Dataset, got NoneType"),
        (MINE._replace(fingerprint=""), "a Dataset whose fingerprint is a text, got ''"),
        (MINE._replace(name=3), "a Dataset whose name is a text, got 3"),
        (MINE._replace(class_names=("cat",)), "class_names are 2 different texts, one for each label, got ('cat',)"),
        (MINE._replace(class_names=("cat", "cat")), "class_names are 2 different texts"),
        (MINE._replace(class_names=("cat", 3)), "class_names are 2 different texts"),
        (MINE._replace(class_names=["cat", "dog"]), "class_names are 2 different texts"),
        (MINE._replace(num_classes=1), "a Dataset whose num_classes is at least 2, got 1"),
        (MINE._replace(num_classes=2.0), "a Dataset whose num_classes is at least 2, got 2.0"),
        (MINE._replace(train=(PIXELS, LABELS)), "a Dataset whose train is a mnist_exp.data.Split, got tuple"),
        (
            MINE._replace(test=PART._replace(images=PIXELS / 255)),
            "test.images are uint8 (n, height, width, channels), n at",
        ),
        (MINE._replace(test=PART._replace(images=PIXELS[..., 0])), "n at least 1, got uint8 (4, 3, 3)"),
        (MINE._replace(test=data.Split(PIXELS[:0], LABELS[:0])), "n at least 1, got uint8 (0, 3, 3, 1)"),
        (MINE._replace(train=PART._replace(images=[1])), "n at least 1, got list (1,)"),
        (
            MINE._replace(train=PART._replace(labels=LABELS[:3])),
            "train.labels are int64 (4,), one for each image, got int64 (3,)",
        ),
        (MINE._replace(train=PART._replace(labels=np.eye(4))), "one for each image, got float64 (4, 4)"),
        (MINE._replace(validation=PART._replace(labels=LABELS + 1)), "validation.labels are in 0..1, got 1..2"),
        (
            MINE._replace(test=PART._replace(images=PIXELS[:, :2])),
            "images have one shape, got [(3, 3, 1), (3, 3, 1), (2, 3, 1)]",
        ),
    ],
)
def test_a_data_set_of_a_user_that_breaks_a_rule_is_refused_in_one_line(returned, said):
    with pytest.raises(data.DataError) as error:
        data.check_dataset(returned)
    assert str(error.value).startswith("data._target_ must return ")
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_arrays_make_the_data_set_that_a_file_of_them_makes(tmp_path: Path) -> None:
    content = arrays()
    own = data.file(path=str(write_npz(tmp_path / "own.npz", content)), validation=0.25, split_seed=3)
    made = data.arrays_to_dataset("own", *content.values(), validation=0.25, split_seed=3)
    assert (made.name, made.source, made.fingerprint) == ("own", "arrays", own.fingerprint)
    assert data.check_dataset(made) is made
    assert made.class_names == own.class_names == tuple("0123456789")
    for mine, theirs in zip(made[2:5], own[2:5], strict=True):
        np.testing.assert_array_equal(mine.images, theirs.images)
        np.testing.assert_array_equal(mine.labels, theirs.labels)
    letters = data.arrays_to_dataset(
        "own", *content.values(), validation="test", split_seed=0, class_names=[*"abcdefghij"]
    )
    assert letters.class_names == tuple("abcdefghij")
    content["x_train"][0] = 0  # the caller's arrays stay writable
    lists = (np.zeros((4, 2, 2), int).tolist(), [0, 1, 0, 1]) * 2
    assert data.arrays_to_dataset("own", *lists, validation=1, split_seed=0).image_shape == (2, 2, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_train": np.zeros((40, 28, 28))}, "mine: x_train: pixels must be integers in 0..255, which models scale"),
        ({"x_test": np.zeros((10, 28), int)}, "mine: x_test: images must be (n, height, width) or"),
        ({"x_test": np.zeros((10, 8, 8), int)}, "mine: images must have one size and depth"),
        ({"y_train": np.arange(39) % 10}, "mine: y_train: each image needs one label, got 39 for 40 images"),
        ({"y_test": np.full(10, -1)}, "mine: y_test: labels must be in 0..999, got -1..-1"),
        ({"class_names": ["a"]}, "mine: class_names must be 10 different texts, one for each label, got ('a',)"),
        ({"class_names": ["a"] * 10}, "mine: class_names must be 10 different texts"),
        ({"validation": 40}, "data.validation=40 takes 40 of the 40 training images of own"),
        ({"validation": "none"}, "data.validation must be a count of at least 1"),
        ({"split_seed": -1}, "data.split_seed must be an integer of at least 0, got -1"),
    ],
)
def test_arrays_that_break_a_rule_are_refused_in_one_line(change: dict[str, object], message: str) -> None:
    given = {**arrays(), "validation": 5, "split_seed": 0, "source": "mine", **change}
    with pytest.raises(DataError) as error:
        data.arrays_to_dataset("own", **given)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_warnings_are_printed_when_a_run_loads_its_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_npz(tmp_path / "own.npz", arrays() | {"x_train": np.ones((40, 28, 28), np.uint8)})
    for _ in range(2):  # the second run of a sweep
        jobs.load(check(composed("data=file", f"data.path={path}", "trainer.batch_size=8")))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {path}: the largest pixel is 1 in the training set and 255 in the test set")
