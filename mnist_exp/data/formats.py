"""The formats of `data=file`: finds the format of a path and reads its arrays, CSV and image folders here."""

import contextlib
import csv
import math
import os
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mnist_exp.data import files
from mnist_exp.data.dataset import ARRAYS, DataError
from mnist_exp.data.files import IDX_FILES, Loaded, check_memory, open_files, open_npz, read_data
from mnist_exp.data.normalize import Part, check_part_headers, integer_pixels, normalize

FORMATS = (
    f"data.path takes an .npz file with the arrays {', '.join(ARRAYS)} or MedMNIST's names, a .csv file, or a folder"
    " with the four IDX files of MNIST's names, with train.csv and test.csv, or with a folder of images for each class"
)
# First bytes of other kinds of files that users name by mistake.
_MAGIC = {
    b"\0\0\x08": "one IDX file",
    b"\x1f\x8b": "a gzip file",
    b"\x93NUMPY": "one array (.npy)",
    b"\x89HDF": "an HDF5 file",
    b"\x80": "a pickle, which could run code when read",
    b"\x89PNG": "one image",
    b"\xff\xd8": "one image",
}
PARTS = ("train", "test", "validation")
# Arrays of an .npz file: images and labels of each part, as Keras and as MedMNIST name them.
NPZ_NAMES = (
    {"train": ("x_train", "y_train"), "test": ("x_test", "y_test"), "validation": ("x_val", "y_val")},
    {
        "train": ("train_images", "train_labels"),
        "test": ("test_images", "test_labels"),
        "validation": ("val_images", "val_labels"),
    },
)
FOLDERS = {
    **{"train": "train", "training": "train", "test": "test", "testing": "test"},
    **{"val": "validation", "valid": "validation", "validation": "validation"},
}
LABEL_COLUMNS = ("label", "labels", "class", "target", "y")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".pgm", ".ppm")
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "PPM")  # of Pillow's readers only those for these suffixes
_NOT_IMAGES = ("thumbs.db", "desktop.ini")  # made by file managers
_LONGEST_LINE = 2**24  # characters of a CSV file's first line
_LONGEST_LABEL = 101  # letters read of a text label; `normalize` refuses longer ones


def load_file(place: Path) -> Loaded:
    """Reads a user's file or folder.

    Raises:
        DataError: If it is missing or damaged, of no format that is read, or of an uncertain meaning.
    """
    with files.reading(place):
        if place.is_file():
            start = _start(place)
            if zipfile.is_zipfile(place):
                return files.load(_read_npz, place, [place])
            text = _is_text(start)
            if not text or place.suffix == ".npz":
                kind = ", it is text; the name of a CSV file must not end in .npz" if text else ""
                kind = next((f", it is {said}" for magic, said in _MAGIC.items() if start.startswith(magic)), kind)
                raise ValueError(f"File is not a zip file{kind}; {FORMATS}")
            return files.load(_read_tables, place, [place])
        if not place.is_dir():
            raise DataError(f"{place}: {'neither a file nor a folder' if place.exists() else 'no such file or folder'}")
        if idx := _find_idx(place):
            return files.load(_read_idx, place, idx)
        if tables := _find_tables(place):
            return files.load(_read_tables, place, tables)
        if images := list(_find_images(place)):
            return files.load(_read_images, place, images)
    inside = next((path.name for kind in ("*.npz", "*.csv") for path in sorted(place.glob(kind))), None)
    advice = f"name the file in it: {place / inside}" if inside is not None else FORMATS
    raise DataError(f"{place}: this folder has no files of a known format; {advice}")


def _start(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(512)


def _is_text(start: bytes) -> bool:
    return bool(start) and min(start) >= 9 and not start.startswith(tuple(_MAGIC))


def _read_npz(source: str, paths: Sequence[Path], option: str) -> Loaded:
    path = paths[0]
    with files.reading(path), contextlib.ExitStack() as stack:
        held = files.npz_names(path)
        naming = next((names for names in NPZ_NAMES if names["train"][0] in held), NPZ_NAMES[0])
        optional = [pair for pair in (naming["validation"],) if pair[0] in held]
        pairs = [naming["train"], naming["test"], *optional]
        stored = open_npz(path, {name: name for pair in pairs for name in pair}, stack)
        return _read_parts(source, stored)


def _find_idx(place: Path) -> list[Path]:
    """The four IDX files of a folder, or of folders in it: as torchvision lays them, or as archives unpack."""
    folders = [place, *(path for deep in ("*/", "*/*/") for path in sorted(place.glob(deep)))]
    found = {folder: held for folder in folders if (held := files.idx_in(folder))}
    complete = [folder for folder, held in found.items() if len(held) == len(IDX_FILES)]
    if place in complete:
        complete = [place]
    if len(complete) > 1:
        raise DataError(f"{place}: holds several data sets, name one of {', '.join(map(str, complete[:5]))}")
    if complete:
        return [found[complete[0]][name] for name in IDX_FILES]
    if not found:
        return []
    single: dict[str, list[Path]] = {
        name: [held[name] for held in found.values() if name in held] for name in IDX_FILES
    }
    missing = [name for name, paths in single.items() if not paths]
    if missing:
        present = next(path for paths in single.values() for path in paths)
        raise DataError(f"{place}: has {present.relative_to(place)} but no {', '.join(missing)} (plain or .gz)")
    several = next((paths for paths in single.values() if len(paths) > 1), None)
    if several:
        raise DataError(f"{place}: holds {several[0]} and {several[1]}; name the folder of one data set")
    return [paths[0] for paths in single.values()]


def _read_idx(source: str, paths: Sequence[Path], option: str) -> Loaded:
    with contextlib.ExitStack() as stack:
        return _read_parts(source, open_files(paths, stack))


def _read_parts(source: str, stored: Sequence[files.Stored]) -> Loaded:
    """Images and labels of training, test and perhaps validation set, in this order."""
    for images, labels in zip(stored[::2], stored[1::2], strict=True):
        check_part_headers(images.header, labels.header)
    arrays = list(read_data(source, stored).items())
    return normalize(source, {part: Part(*x, *y) for part, x, y in zip(PARTS, arrays[::2], arrays[1::2], strict=False)})


def _find_tables(place: Path) -> list[Path]:
    """The CSV files of training, test and validation set, such as train.csv or mnist_train.csv; empty without one."""
    found = []
    for part in ("train", "test", "val"):
        paths = sorted(path for path in place.glob("*.csv") if path.stem.lower().endswith(part))
        if len(paths) > 1:
            raise DataError(f"{place}: holds several {part}.csv: {', '.join(path.name for path in paths[:5])}")
        found.append(paths[0] if paths else None)
    train = found[0]
    return [path for path in found if path is not None] if train is not None else []


def _part_of(path: Path) -> str:
    ends = {"test": "test", "val": "validation"}
    return next((part for end, part in ends.items() if path.stem.lower().endswith(end)), "train")


def _read_tables(source: str, paths: Sequence[Path], option: str) -> Loaded:
    check_memory(source, 3 * sum(path.stat().st_size for path in paths))  # text, and at most two bytes a character
    parts = {}
    for path in paths:
        part = _part_of(path) if len(paths) > 1 else "train"
        with files.reading(path, "a CSV file of numbers"):
            images, labels = _read_table(path)
            parts[part] = Part(f"{path}: pixels", images, f"{path}: labels", labels)
    return normalize(source, parts)


def _read_table(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Square images (n, side, side) and labels (n,): a line each, `label,pixel0,pixel1,...`, with or without a header.

    Without a header the first column is the label; the last one is, if the first column is constant.
    """
    with path.open(encoding="utf-8-sig", newline="") as stream:
        first = next(csv.reader([stream.readline(_LONGEST_LINE)]), [])
    header = not all(map(_is_number, first[1:-1]))
    options: dict[str, Any] = {
        "delimiter": ",",
        "comments": None,
        "quotechar": '"',
        "ndmin": 2,
        "skiprows": int(header),
    }
    side = math.isqrt(max(len(first) - 1, 0))
    if side < 2 or side * side != len(first) - 1:
        kind = "; a header line that names all columns helps" if not header else ""
        raise DataError(
            f"{path}: a line must be a label and the pixels of a square image, such as 1 + 784 values separated by"
            f" commas, got {len(first):,}{_no_label(first) if header else kind}"
        )
    column = _label_column(path, first) if header else 0
    table = _numbers(path, np.int16, None, options)
    if table is not None and not header and np.ptp(table[:, 0]) == 0:
        column = len(first) - 1
    pixels = [place for place in range(len(first)) if place != column]
    if table is not None:
        return table[:, pixels].reshape(-1, side, side), table[:, column]
    labels = _labels(path, column, options)
    found = _numbers(path, np.int16, pixels, options)
    if found is None:
        found = _load(path, np.float32, pixels, options)
    return found.reshape(-1, side, side), labels


def _labels(path: Path, column: int, options: dict[str, Any]) -> np.ndarray:
    numbers = _numbers(path, np.float64, [column], options)
    if numbers is not None and (numbers == np.rint(numbers)).all() and np.abs(numbers).max() < 2**63:
        return numbers[:, 0].astype(np.int64)
    return _load(path, f"U{_LONGEST_LABEL}", [column], options)[:, 0]


def _no_label(header: Sequence[str]) -> str:
    if any(name.strip().lower() in LABEL_COLUMNS for name in header):
        return ""
    return (
        f"; no column is called {' or '.join(LABEL_COLUMNS)}: images without labels, such as Kaggle's test.csv, cannot"
        " be scored: name train.csv itself, which is then split"
    )


def _label_column(path: Path, header: Sequence[str]) -> int:
    named = [place for place, name in enumerate(header) if name.strip().lower() in LABEL_COLUMNS]
    if len(named) != 1:
        raise DataError(f"{path}: one column must be called {' or '.join(LABEL_COLUMNS)}, got {', '.join(header[:5])}")
    return named[0]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _numbers(path: Path, dtype: Any, columns: Sequence[int] | None, options: dict[str, Any]) -> np.ndarray | None:
    """The columns of a table as this type, or None if a value is of another one."""
    try:
        return _load(path, dtype, columns, options)
    except (ValueError, OverflowError):
        return None


def _load(path: Path, dtype: Any, columns: Sequence[int] | None, options: dict[str, Any]) -> np.ndarray:
    # Given only a path, NumPy would unpack archives.
    with path.open(encoding="utf-8-sig") as stream, warnings.catch_warnings():
        warnings.simplefilter("error")  # of a file without lines
        return np.loadtxt(stream, dtype, usecols=columns, **options)


def _find_images(place: Path) -> Iterator[Path]:
    """The images of `train/CLASS/`, `test/CLASS/` and `val/CLASS/`, or of `CLASS/`."""
    inner = _folders(place)
    parts = [folder for folder in inner if folder.name.lower() in FOLDERS]
    if any(FOLDERS[folder.name.lower()] == "train" for folder in parts):
        inner = [folder for part in parts for folder in _folders(part)]
    for folder in inner:
        for path in _entries(folder):
            if path.suffix.lower() not in IMAGE_SUFFIXES or not path.is_file():
                raise DataError(f"{path}: is no image; a class's folder holds files with {', '.join(IMAGE_SUFFIXES)}")
            yield path


def _folders(place: Path) -> list[Path]:
    return [path for path in _entries(place) if path.is_dir()]


def _entries(place: Path) -> list[Path]:
    """The sorted entries of a folder without hidden files. A link is refused, because it could lead anywhere."""
    with os.scandir(place) as entries:
        found = [e for e in entries if not (e.name.startswith(".") or e.name.lower() in _NOT_IMAGES)]
    for entry in found:
        if entry.is_symlink():
            raise DataError(f"{entry.path}: is a link; put the file or folder itself there")
    return sorted(Path(entry.path) for entry in found)


def _read_images(source: str, paths: Sequence[Path], option: str) -> Loaded:
    """Images of one size, grey or RGB, with the names of their folders as labels."""
    depth = len(Path(source).parts)
    by_part: dict[str, list[Path]] = {}
    for path in paths:
        below = path.parts[depth:]
        by_part.setdefault(FOLDERS[below[0].lower()] if len(below) == 3 else "train", []).append(path)
    images = {part: _decode_all(source, members, len(paths)) for part, members in by_part.items()}
    depths = max(array.shape[-1] for decoded in images.values() for array in decoded)
    parts = {}
    for part, members in by_part.items():
        stacked = np.stack([np.broadcast_to(array, (*array.shape[:2], depths)) for array in images.pop(part)])
        labels = np.array([path.parent.name for path in members])
        parts[part] = Part(f"{source}: {part} images", stacked, f"{source}: {part} classes", labels)
    return normalize(source, parts)


def _decode_all(source: str, paths: Sequence[Path], total: int) -> list[np.ndarray]:
    decoded: list[np.ndarray] = []
    for path in paths:
        with files.reading(path, f"an image of the formats {', '.join(IMAGE_FORMATS)}"):
            decoded.append(_decode(path, decoded[0].shape[:2] if decoded else None))
        if len(decoded) == 1:
            check_memory(source, 2 * total * decoded[0].nbytes)
    return decoded


def _decode(path: Path, size: tuple[int, int] | None) -> np.ndarray:
    """uint8 (height, width, 1 or 3). The size is compared before the pixels are decompressed."""
    from PIL import Image  # takes 60 ms, which only folders of images need

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        opened = Image.open(path, formats=IMAGE_FORMATS)
    with opened:
        image: Image.Image = opened
        found = (image.height, image.width)
        if size is not None and found != size:
            raise DataError(f"{path}: all images must have one size, got {found} after {size}; resize them first")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            if image.getchannel("A").getextrema() != (255, 255):
                raise DataError(f"{path}: is partly transparent; put it on a background first")
        if image.mode in ("1", "L"):
            return np.asarray(image.convert("L"))[..., None]
        if image.mode not in ("P", "RGB", "RGBA"):
            raise DataError(f"{path}: must be an 8-bit grey or RGB image, got Pillow's mode {image.mode}")
        pixels = np.asarray(image.convert("RGB"))
        is_grey = image.mode != "RGB" and bool((pixels == pixels[..., :1]).all())
        return pixels[..., :1] if is_grey else pixels


def load_unlabelled(path: str) -> tuple[list[str], np.ndarray]:
    """Reads images without labels: a folder of image files, or an .npz file with one array, or the array `images`.

    Returns:
        Names (of the files, or the numbers from 0) and uint8 images (n, height, width, channels).

    Raises:
        DataError: It is missing or damaged, holds no images, or its pixels have an uncertain meaning.
    """
    place = files.expand(path)
    with files.reading(place, "a folder of images or an .npz file"), contextlib.ExitStack() as stack:
        if place.is_dir():
            paths = _entries(place)
            if not paths or any(image.suffix.lower() not in IMAGE_SUFFIXES for image in paths):
                raise DataError(f"{place}: must hold image files ({', '.join(IMAGE_SUFFIXES)}) and nothing else")
            return [image.name for image in paths], _stack(_decode_all(str(place), paths, len(paths)))
        held = files.npz_names(place)
        if len(held) > 1 and "images" not in held:
            raise DataError(f"{place}: must have one array or an array `images`, found {', '.join(held[:10])}")
        stored = open_npz(place, {str(place): "images" if len(held) != 1 else held[0]}, stack)
        images = read_data(str(place), stored)[str(place)]
    if images.ndim not in (3, 4) or images.size == 0 or images.dtype.kind not in "iufb":
        raise DataError(
            f"{place}: images must be (n, height, width) or (n, height, width, channels),"
            f" got {images.dtype} {images.shape}"
        )
    (pixels,) = integer_pixels(str(place), {"train": Part(str(place), images, "", np.zeros(len(images), int))})
    return list(map(str, range(len(pixels)))), pixels.astype(np.uint8).reshape(*images.shape[:3], -1)


def _stack(decoded: Sequence[np.ndarray]) -> np.ndarray:
    """uint8 (n, height, width, channels): grey images beside coloured ones get three channels."""
    depth = max(array.shape[-1] for array in decoded)
    return np.stack([np.broadcast_to(array, (*array.shape[:2], depth)) for array in decoded])
