"""The changes of code that `reproduce --dry-run` prints, also for a `code.diff` of a stranger."""

import base64
import hashlib
import platform
import shutil
import subprocess
import time
import zlib

import pytest

from mnist_exp import provenance
from mnist_exp.errors import RequestError
from mnist_exp.reproduction import replay
from mnist_exp.reproduction.record import Record

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
SECRET = "the content of a file elsewhere"
NEW_FILE = "diff --git a/package/{name} b/package/{name}\nnew file mode {mode}\n--- /dev/null\n+++ b/package/{name}\n"


def git(folder, *arguments):
    settings = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *settings, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The folder of a package in a repository of its own."""
    folder = tmp_path_factory.mktemp("checkout") / "package"
    folder.mkdir()
    (folder / "__init__.py").write_text("first = 1\n")
    (folder / "model.py").write_text("layers = 2\n")
    git(folder.parent, "init", "--quiet")
    git(folder.parent, "add", ".")
    git(folder, "commit", "--quiet", "-m", "first")
    return folder


@pytest.fixture
def changes(package, monkeypatch):
    """The lines that are printed for a given code.diff."""
    monkeypatch.setattr(replay, "PACKAGE", package)
    commit = git(package, "rev-parse", "HEAD")
    return lambda diff: list(
        replay._code_changes(Record("x", None, None, {"code.diff": diff.encode()}, {"code.commit": commit}))
    )


def link(name, target):
    return NEW_FILE.format(name=name, mode="120000") + f"@@ -0,0 +1 @@\n+{target}\n\\ No newline at end of file\n"


@pytest.mark.parametrize("kind", ["file", "device", "folder", "package"])
def test_a_symbolic_link_is_not_followed(kind, changes, tmp_path):
    (tmp_path / "secret.py").write_text(SECRET)
    (tmp_path / "__init__.py").write_text(SECRET)
    if kind == "package":  # the whole package becomes a link
        gone = (
            "diff --git a/package/{0} b/package/{0}\ndeleted file mode 100644\n--- a/package/{0}\n+++ /dev/null\n"
            "@@ -1 +0,0 @@\n-{1}\n"
        )
        diff = gone.format("__init__.py", "first = 1") + gone.format("model.py", "layers = 2")
        diff += link("", tmp_path).replace("package/", "package")
    else:
        target = {"file": tmp_path / "secret.py", "device": "/dev/zero", "folder": tmp_path}[kind]
        diff = link("evil.py", target)
    lines = changes(diff)
    assert lines
    assert SECRET not in "\n".join(lines)
    if kind != "package":  # git wrote a file with the target's path
        assert f"-{target}" in lines


def test_a_restored_folder_has_no_symbolic_link(package, tmp_path):
    commit = git(package, "rev-parse", "HEAD")
    found = provenance.restore(package, commit, link("evil.py", "/etc/passwd").encode(), tmp_path / "then")
    assert found == tmp_path / "then" / "package"
    assert not (found / "evil.py").is_symlink()
    assert (found / "evil.py").read_text() == "/etc/passwd"


def test_a_deleted_init_is_a_change(changes):
    diff = (
        "diff --git a/package/__init__.py b/package/__init__.py\ndeleted file mode 100644\n--- a/package/__init__.py\n"
        "+++ /dev/null\n@@ -1 +0,0 @@\n-first = 1\n"
    )
    assert changes(diff) == ["--- then/__init__.py", "+++ now/__init__.py", "@@ -0,0 +1 @@", "+first = 1"]


def test_a_huge_file_is_compared_in_seconds_and_cut(changes):
    began = time.perf_counter()
    lines = changes(
        NEW_FILE.format(name="long.py", mode="100644")
        + "@@ -0,0 +1,400000 @@\n"
        + "+\n" * 399_999
        + f"+{'x' * 10**6}\n"
    )
    assert time.perf_counter() - began < 20
    assert len(lines) == replay.SHOWN_LINES + 1
    assert max(map(len, lines)) <= replay.SHOWN_LETTERS


def binary(size):
    """A git binary patch of a file of zeros, `size` bytes long."""
    pack = zlib.compress(bytes(size), 9)
    lines = []
    for start in range(0, len(pack), 52):
        part = pack[start : start + 52]
        letter = chr(ord("A") + len(part) - 1) if len(part) <= 26 else chr(ord("a") + len(part) - 27)
        lines.append(letter + base64.b85encode(part, pad=True).decode())
    head = "diff --git a/package/x.bin b/package/x.bin\nnew file mode 100644\nindex {:040x}..{}\n"
    digest = hashlib.sha1(f"blob {size}\0".encode() + bytes(size)).hexdigest()
    body = "\n".join(lines)
    return head.format(0, digest) + f"GIT binary patch\nliteral {size}\n{body}\n\nliteral 0\nHcmV?d00001\n\n"


@pytest.mark.skipif(platform.system() != "Linux", reason="limits are set on Linux")
def test_a_patch_that_expands_too_far_is_refused(package, tmp_path):
    commit = git(package, "rev-parse", "HEAD")
    small = provenance.restore(package, commit, binary(1000).encode(), tmp_path / "small")
    assert (small / "x.bin").read_bytes() == bytes(1000)
    diff = binary(100 * 2**20).encode()
    assert len(diff) < 2**20
    with pytest.raises(RequestError, match="cannot be restored"):
        provenance.restore(package, commit, diff, tmp_path / "then")
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.bin")) < 2**27
