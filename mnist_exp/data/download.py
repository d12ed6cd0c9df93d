"""The cache of Keras, and downloads into it."""

import contextlib
import functools
import hashlib
import http.client
import os
import shutil
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from mnist_exp import console
from mnist_exp.data.dataset import DataError
from mnist_exp.data.files import expand

DOWNLOAD_SECONDS = 30  # longest wait for more data during a download
PROBE_SECONDS = 8  # longest wait for the server's first answer, name resolution included


class Address(NamedTuple):
    """A file to download.

    Attributes:
        url: Its published address, which ends in the file's name.
        md5: The published MD5 digest (hex) of the file; None if the arrays in it are verified instead.
    """

    url: str
    md5: str | None = None

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rpartition("/")[2]


def cache_folder() -> Path:
    """Where keras.utils.get_file keeps data sets: in $KERAS_HOME, else ~/.keras, else the temporary folder."""
    home = expand(os.environ.get("KERAS_HOME") or "~/.keras").absolute()
    existing = next(folder for folder in (home, *home.parents) if os.access(folder, os.F_OK))
    if os.access(home / "datasets", os.R_OK) or os.access(existing, os.W_OK):
        return home / "datasets"
    return Path(tempfile.gettempdir(), ".keras", "datasets")


def fetch(addresses: tuple[Address, ...], folder: Path, check: Callable[[Path], object]) -> None:
    """Downloads files and moves them into `folder` once they are verified.

    Args:
        addresses: Of the files.
        folder: Made if it is missing.
        check: Called with the folder that holds the downloaded files; raises an error if they are wrong.

    Raises:
        DataError: If a download fails, a digest differs, or `check` raises it.
    """
    url = addresses[0].url
    try:
        with _scratch(folder.parent) as scratch:
            for address in addresses:
                url = address.url
                _fetch_one(address, scratch / address.name)
            check(scratch)
            folder.mkdir(exist_ok=True)
            for address in addresses:
                (scratch / address.name).replace(folder / address.name)
    except (OSError, http.client.HTTPException, DataError) as error:
        raise DataError(f"downloading {url} failed: {error}") from error


@contextlib.contextmanager
def _scratch(beside: Path) -> Iterator[Path]:
    """A new folder in the file system of the final files, so that moving them is atomic."""
    beside.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(".part", dir=beside))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _fetch_one(address: Address, path: Path) -> None:
    console.say(f"downloading {address.url}", sys.stderr)
    with urllib.request.urlopen(address.url, timeout=DOWNLOAD_SECONDS) as response, path.open("wb") as stream:
        shutil.copyfileobj(response, stream)
    if address.md5 is not None:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "md5").hexdigest()
        if found != address.md5:
            raise DataError(f"its MD5 digest is {found}, the published one is {address.md5}")


@functools.cache  # the jobs of a sweep ask alike
def answers(address: Address) -> bool:
    """Whether the server of a file answers; a process asks once."""
    answered = threading.Event()

    def knock() -> None:
        request = urllib.request.Request(address.url, method="HEAD")
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
