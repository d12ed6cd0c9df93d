"""MNIST from the place that the user names, from Keras' cache, or downloaded into that cache."""

import contextlib
import http.client
import os
import shutil
import tempfile
import threading
import urllib.request
import uuid
from pathlib import Path

from mnist_exp.data.dataset import ARRAYS, CheckedArrays, DataError
from mnist_exp.data.files import expand, load_arrays

# The file that keras.datasets.mnist downloads.
MNIST_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
# Of the decoded uint8 arrays, in the order of ARRAYS, so that the container (npz, IDX, gzip) does not matter.
MNIST_SHA256 = (
    "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
    "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
    "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
    "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
)
DOWNLOAD_SECONDS = 30  # longest silence of the server during a download
PROBE_SECONDS = 8  # longest wait for the server's first answer, name resolution included


def named_mnist(path: str | None) -> CheckedArrays | None:
    """MNIST from the place the user named, or None when no place was named."""
    named = {"data.path": path, "MNIST_EXP_DATA": os.environ.get("MNIST_EXP_DATA") or None}
    for key, place in named.items():
        if place is not None:
            try:
                return _mnist_at(expand(place))
            except DataError as error:
                raise DataError(f"{key}: {error}") from error
    return None


def cached_mnist() -> CheckedArrays:
    """MNIST from Keras' cache, downloaded into it if it is missing or damaged there."""
    cache = _cache_file()
    try:
        return _mnist_at(cache)
    except DataError as error:
        _download(cache, str(error))
    return _mnist_at(cache)


def _mnist_at(place: Path) -> CheckedArrays:
    arrays = load_arrays(place, "mnist.npz")
    if arrays.digests != MNIST_SHA256 or arrays.train.images.shape[1:] != (28, 28, 1):
        pairs = zip(ARRAYS, arrays.digests, MNIST_SHA256, strict=True)
        wrong = [name for name, found, expected in pairs if found != expected] or ["the image shape"]
        raise DataError(f"{place}: not MNIST, or damaged: {', '.join(wrong)} differs; use data=file for other data")
    return arrays


def _cache_file() -> Path:
    """Where keras.utils.get_file keeps MNIST: in $KERAS_HOME, else ~/.keras, else the temporary folder."""
    home = expand(os.environ.get("KERAS_HOME") or "~/.keras").absolute()
    cache = home / "datasets" / "mnist.npz"
    existing = next(folder for folder in (home, *home.parents) if os.access(folder, os.F_OK))
    if os.access(cache, os.R_OK) or os.access(existing, os.W_OK):
        return cache
    return Path(tempfile.gettempdir(), ".keras", "datasets", "mnist.npz")


def _download(target: Path, problem: str) -> None:
    """Downloads MNIST and moves it to `target` once it is verified. `problem` says why it is needed."""
    part = target.with_name(f"{target.name}.{uuid.uuid4().hex}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            urllib.request.urlopen(MNIST_URL, timeout=DOWNLOAD_SECONDS) as response,
            part.open("wb") as stream,
        ):
            shutil.copyfileobj(response, stream)
        _mnist_at(part)
        part.replace(target)
    except (OSError, http.client.HTTPException, DataError) as error:
        raise DataError(
            f"{problem}, and downloading {MNIST_URL} failed: {error};"
            " name the place of MNIST in data.path or MNIST_EXP_DATA, or use data=digits"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # moved away, or never made
            part.unlink()


def mnist_is_available() -> bool:
    """Whether Keras' cache holds MNIST, or else the download address answers."""
    try:
        _mnist_at(_cache_file())
    except DataError:
        return _download_answers()
    return True


def _download_answers() -> bool:
    answered = threading.Event()

    def knock() -> None:
        request = urllib.request.Request(MNIST_URL, method="HEAD")
        with (
            contextlib.suppress(OSError, http.client.HTTPException, ValueError),
            urllib.request.urlopen(request, timeout=PROBE_SECONDS),
        ):
            answered.set()

    # In a thread, because the look-up of a host name has no timeout. A daemon thread cannot delay the exit.
    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return answered.is_set()
