"""Five hundred damaged data sets, in each format. Each is refused in one line, or read as a valid data set."""

import gzip
import os
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mnist_exp import data
from mnist_exp.data import DataError
from tests.helpers.data_files import arrays, idx, npz_bytes, write_idx

LETTERS = 600  # of a refusal: paths of temporary folders are long
CONTENT = arrays()


def make_npz(folder):
    (folder / "own.npz").write_bytes(npz_bytes(CONTENT))
    return folder / "own.npz"


def make_idx(folder):
    return write_idx(folder / "own", CONTENT)


def make_idx_gz(folder):
    return write_idx(folder / "own", CONTENT, gz=True)


def make_csv(folder):
    for part in ("train", "test"):
        images, labels = CONTENT[f"x_{part}"], CONTENT[f"y_{part}"]
        table = np.column_stack([labels, images.reshape(len(labels), -1)])
        header = ",".join(["label", *(f"pixel{n}" for n in range(table.shape[1] - 1))])
        np.savetxt(folder / f"{part}.csv", table, "%d", ",", header=header, comments="")
    return folder


def make_images(folder):
    for part in ("train", "test"):
        for number, (image, label) in enumerate(zip(CONTENT[f"x_{part}"], CONTENT[f"y_{part}"], strict=True)):
            path = folder / part / f"class{label}" / f"{number}.{('png', 'bmp', 'pgm')[number % 3]}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return folder


def flip(chance, path):
    content = bytearray(path.read_bytes())
    reach = chance.choice((40, len(content)))  # often in the header
    for _ in range(chance.choice((1, 1, 3, 20))):
        content[chance.randrange(min(reach, len(content)))] = chance.randrange(256)
    path.write_bytes(content)


def cut(chance, path):
    path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])


def lengthen(chance, path):
    path.write_bytes(path.read_bytes() + chance.randbytes(chance.randrange(1, 3000)))


def replace(chance, path):
    """By another file, or by what is no file."""
    path.unlink()
    make = chance.choice(
        (
            lambda: None,
            path.mkdir,
            lambda: os.mkfifo(path),
            lambda: path.symlink_to(path.name),
            lambda: path.symlink_to("/dev/zero"),
            lambda: path.symlink_to("/etc/passwd"),
            lambda: path.write_bytes(b""),
            lambda: path.write_bytes(gzip.compress(bytes(10**7))),
            lambda: path.write_bytes(b"\0\0\x08\3" + b"\xff" * 12),
            lambda: path.write_bytes(idx(CONTENT["x_test"])),
            lambda: path.write_bytes(npz_bytes({"x_train": CONTENT["x_train"].astype(object)})),
            lambda: path.write_text("label,a,b\n1e999,2,\n", encoding="utf-16"),
            lambda: Image.fromarray(np.zeros((9, 8, 4), np.uint8)).save(path, "PNG"),
        )
    )
    make()


@pytest.mark.parametrize("make", [make_npz, make_idx, make_idx_gz, make_csv, make_images])
def test_damaged_data_is_refused_in_a_line_or_read_right(make, tmp_path):
    read = 0
    for number in range(100):
        chance = random.Random(number)
        folder = tmp_path / str(number)
        folder.mkdir()
        place = make(folder)
        files: list[Path] = sorted(path for path in folder.rglob("*") if path.is_file())
        chance.choice((flip, cut, lengthen, replace))(chance, chance.choice(files))
        refusal = ""
        try:
            found = data.file(path=str(place))
        except DataError as error:
            refusal = str(error) or "no reason"
        assert "\n" not in refusal, number
        assert len(refusal) <= LETTERS, number
        if refusal:
            continue
        read += 1
        for split in (found.train, found.validation, found.test):
            assert len(split.images) == len(split.labels) > 0, number
            assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int64), number
            assert 0 <= split.labels.min() <= split.labels.max() < found.num_classes, number
    assert 0 < read < 90
