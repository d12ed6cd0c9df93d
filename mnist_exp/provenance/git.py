"""Records and restores the commit and the uncommitted changes of the package's checkout."""

import functools
import os
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from mnist_exp.errors import RequestError
from mnist_exp.provenance.modules import INSTALLED
from mnist_exp.redact import is_private, shows_secret

DIFF_LIMIT = 2**20  # bytes of a recorded diff
LEFT_OUT = "# left out: "  # starts a comment line in a recorded diff, which names a file that is not in it

# A git hook sets these variables to its own repository, which may differ from the package's.
_REPOSITORY_VARIABLES = {
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_COMMON_DIR",
    "GIT_PREFIX",
}
_GIT_SECONDS = 10
_APPLY_MEMORY = 2**30


class Code(NamedTuple):
    """State of the checkout that holds the package.

    Attributes:
        commit: None outside a repository and before its first commit.
        branch: None likewise, and for a detached HEAD.
        dirty: whether there are uncommitted changes; None if unknown.
        diff: the uncommitted changes.
        problems: reasons, one line each, why the code is not recorded or only in part.
    """

    commit: str | None
    branch: str | None
    dirty: bool | None
    diff: str
    problems: tuple[str, ...] = ()


UNKNOWN = Code(None, None, None, "")


@functools.cache
def own_code(folder: Path) -> Code:
    """`code_state`, read once in a process, because a later edit does not change the imported code."""
    return code_state(folder)


def code_state(folder: Path) -> Code:
    """Reads commit, branch and uncommitted changes of the repository that holds the package.

    The diff is against HEAD. It contains every tracked file, and the untracked, not ignored files in the package and
    in `conf` beside it. `git apply` restores them, except text that is not UTF-8. Files such as `.env` and keys are not
    recorded. A file whose new lines contain a secret is left out, and a comment at the top of the diff names it. A diff
    of more than `DIFF_LIMIT` bytes is cut, which its last line states. The repository is only read.

    Args:
        folder: the package's folder.

    Returns:
        The state. It is `UNKNOWN` if the package is not part of a checkout, for example an installed wheel in another
        repository, and has `problems` if git is missing or fails.
    """
    folder = folder.resolve()
    if INSTALLED & set(folder.parts):
        return UNKNOWN
    try:
        # Git prints the file only if it is tracked or not ignored. Otherwise this is another repository.
        if not _git(folder, "ls-files", "--cached", "--others", "--exclude-standard", "--", "__init__.py"):
            return UNKNOWN
        lines = os.fsdecode(_git(folder, "rev-parse", "--show-toplevel", "--git-path", "index")).splitlines()
        top, index = Path(lines[0]), folder / lines[1]
        commit, branch, untracked = _status(top, folder)
    except (OSError, subprocess.SubprocessError) as error:
        if "not a git repository" in _reason(error) or not any((place / ".git").exists() for place in folder.parents):
            return UNKNOWN
        return UNKNOWN._replace(problems=(f"code.commit is not recorded, git failed: {_line(error)}",))
    try:
        diff = _diff(top, index, commit, untracked)
    except (OSError, subprocess.SubprocessError) as error:
        problem = f"code.diff is not recorded, git failed: {_line(error)}"
        return Code(commit, branch, None, f"# not recorded: {_line(error)}\n", (problem,))
    kept, left_out = _without_secrets(diff)
    problems = [f"code.diff leaves out {name}: it seems to hold a password or a key" for name in left_out]
    if len(kept) > DIFF_LIMIT:
        problems.append(f"code.diff is cut, so --checkout cannot restore the code: it has {len(kept):,} bytes")
        note = b"\n# cut: the whole diff has %d bytes, git apply will refuse this part\n" % len(kept)
        kept = kept[:DIFF_LIMIT].rpartition(b"\n")[0] + note
    return Code(commit, branch, bool(diff), kept.decode(errors="replace"), tuple(problems))


def restore(folder: Path, commit: str, diff: bytes, target: Path) -> Path:
    """Writes the code of a run into an empty folder: clones the package's repository at `commit` and applies `diff`.

    A stranger may have written `diff`, so a symbolic link in it becomes a file that contains the link's target path.

    Args:
        folder: the package's folder.
        commit: the recorded commit.
        diff: the recorded code.diff.
        target: a folder that is empty or does not exist yet.

    Returns:
        The package's folder in `target`, which the diff may have deleted.

    Raises:
        RequestError: the code was not recorded completely, the commit is not in this repository, or git fails.
    """
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", commit):
        raise RequestError(f"the run's commit is {commit}: its code was not in a repository and cannot be restored")
    if diff.startswith(b"# not recorded") or diff.rpartition(b"\n# cut: ")[2].startswith(b"the whole diff"):
        raise RequestError(f"the run's code.diff is incomplete and cannot be applied to commit {commit}")
    check_new(target)
    try:
        top = Path(os.fsdecode(_git(folder.resolve(), "rev-parse", "--show-toplevel")).rstrip("\n"))
        _git(top, "cat-file", "-e", f"{commit}^{{commit}}")
        _git(top, "clone", "--quiet", "--no-checkout", "--", str(top), str(target.absolute()))
        _git(target, "checkout", "--quiet", "--detach", commit)
        if any(not line.startswith(LEFT_OUT.encode()) for line in diff.splitlines()):
            _git(target, "-c", "core.symlinks=false", "apply", "--whitespace=nowarn", "-", stdin=diff, bounded=True)
        return target / folder.resolve().relative_to(top)
    except (OSError, subprocess.SubprocessError) as error:
        lines = _reason(error).splitlines() or ["no reason given"]
        raise RequestError(f"commit {commit} cannot be restored from {folder.parent}: {lines[-1]}") from error


def check_new(target: Path) -> None:
    """Checks that code can be restored into `target` without touching other files.

    Raises:
        RequestError: the target is not a folder, or not empty.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise RequestError(f"--checkout needs a new or an empty folder, got {target}")


def _status(top: Path, folder: Path) -> tuple[str | None, str | None, list[bytes]]:
    """Commit, branch and untracked files (relative to `top`) of the package and of conf beside it."""
    arguments = ["--porcelain=v2", "--branch", "-z", "--no-renames", "--untracked-files=all"]
    records = _git(top, "status", *arguments, "--", str(folder), str(folder.parent / "conf")).split(b"\0")
    header = dict(os.fsdecode(record[2:]).split(" ", 1) for record in records if record.startswith(b"# "))
    commit, branch = header["branch.oid"], header["branch.head"]
    untracked = [record[2:] for record in records if record.startswith(b"? ")]
    untracked = [path for path in untracked if not is_private(os.fsdecode(path))]
    return None if commit == "(initial)" else commit, None if branch == "(detached)" else branch, untracked


def _diff(top: Path, index: Path, commit: str | None, untracked: list[bytes]) -> bytes:
    """Changes since `commit`, or all files without a commit. A copy of the index also lists the untracked files."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "index"
        if index.exists():  # not before the first `git add`
            shutil.copy2(index, copy)  # with its time stamp: git reads files that changed after it
        # Git diffs the content of the working tree, so any object id serves, and no object is written.
        blob = _git(top, "hash-object", "--stdin")
        entries = b"".join(b"100644 %s\t%s\0" % (blob.strip(), path) for path in untracked)
        _git(top, "update-index", "-z", "--index-info", index=copy, stdin=entries)
        tree = commit or _git(top, "hash-object", "-t", "tree", "--stdin").decode().strip()
        # diff-index ignores the user settings with which diff writes patches that `git apply` cannot read.
        options = ["--patch", "--binary", "--no-ext-diff", "--no-textconv", "--no-color"]
        return _git(top, "diff-index", *options, tree, "--", index=copy)


def _without_secrets(diff: bytes) -> tuple[bytes, list[str]]:
    """Removes files whose new lines contain a secret; returns the diff, with a comment for each, and their names."""
    kept, left_out = [], []
    for patch in re.split(rb"^(?=diff --git )", diff, flags=re.MULTILINE):
        name = patch.partition(b"\n")[0].rpartition(b" b/")[2].decode(errors="replace")
        added = b"\n".join(line[1:] for line in patch.splitlines() if line.startswith(b"+"))
        if shows_secret(name, added.decode(errors="replace")):
            left_out.append(name)
        else:
            kept.append(patch)
    comments = [f"{LEFT_OUT}{name}: it seems to hold a password or a key\n".encode() for name in left_out]
    return b"".join(comments + kept), left_out


def _git(folder: Path, *arguments: str, index: Path | None = None, stdin: bytes = b"", bounded: bool = False) -> bytes:
    """Runs a git command without prompts, pager or changes to the repository, and returns its output.

    If `bounded`, git may use at most `_APPLY_MEMORY` bytes, because a binary patch of 1 MB can expand to gigabytes.

    Raises:
        OSError: git is missing.
        subprocess.SubprocessError: git fails or takes too long.
    """
    environ = {name: value for name, value in os.environ.items() if name not in _REPOSITORY_VARIABLES}
    environ |= {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    if index is not None:
        environ["GIT_INDEX_FILE"] = str(index)
    # The file-system monitor of git is a daemon that would outlive this process.
    settings = ["-c", "core.quotepath=off", "-c", "core.fsmonitor=false"]
    command = ["git", "--no-pager", "--literal-pathspecs", *settings, *arguments]
    return subprocess.run(
        command,
        cwd=folder,
        env=environ,
        input=stdin,
        capture_output=True,
        check=True,
        timeout=_GIT_SECONDS,
        preexec_fn=_bound if bounded and platform.system() == "Linux" else None,
    ).stdout


def _bound() -> None:
    import resource  # missing on Windows

    resource.setrlimit(resource.RLIMIT_AS, (_APPLY_MEMORY, _APPLY_MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (DIFF_LIMIT * 64, DIFF_LIMIT * 64))


def _reason(error: Exception) -> str:
    """The message of git, or else that of the exception."""
    stderr: bytes | None = getattr(error, "stderr", None)
    return stderr.decode(errors="replace").strip() if stderr else str(error)


def _line(error: Exception) -> str:
    return " ".join(_reason(error).split())
