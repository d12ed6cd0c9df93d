"""What a result came from: the code, the libraries and the machine."""

import contextlib
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Collection, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from mnist_exp.errors import RequestError
from mnist_exp.provenance.modules import UserCode
from mnist_exp.redact import is_private, shows_secret

# Installed distributions that can change a number, a sweep's choices or what is recorded.
PACKAGES = (
    "hydra-core",
    "hydra-joblib-launcher",
    "hydra-optuna-sweeper",
    "hydra-ray-launcher",
    "hydra-submitit-launcher",
    "h5py",
    "keras",
    "matplotlib",
    "ml-dtypes",
    "mlflow",
    "mlflow-skinny",
    "numpy",
    "nvidia-cublas-cu12",
    "nvidia-cuda-nvcc-cu12",
    "nvidia-cudnn-cu12",
    "nvidia-nccl-cu12",
    "omegaconf",
    "optuna",
    "scikit-learn",
    "scipy",
    "tensorflow",
    "tensorflow-cpu",
)

# Of the above, by their beginning, those that can change a number.
NUMERIC = ("python", "tensorflow", "keras", "numpy", "ml-dtypes", "scikit-learn", "nvidia-")
# Folders and files of the package that cannot: any other counts, also one that a user puts there.
NOT_COMPUTING = {
    *("__init__.py", "__main__.py", "analysis", "commands.py", "compare.py", "console.py", "errors.py", "figures"),
    *("provenance", "redact.py", "relocate.py", "reproduce.py", "reproduction", "sweep", "tracking", "train.py"),
}

# Named one by one: by prefix, TF_ would let in Terraform's secrets (TF_VAR_*, TF_TOKEN_*).
NUMERIC_VARIABLES = (
    "CUBLAS_WORKSPACE_CONFIG",
    "DNNL_DEFAULT_FPMATH_MODE",
    "DNNL_MAX_CPU_ISA",
    "KERAS_BACKEND",
    "MKL_CBWR",
    "NPY_DISABLE_CPU_FEATURES",
    "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
    "TF_CUDNN_DETERMINISTIC",
    "TF_CUDNN_USE_AUTOTUNE",
    "TF_CUDNN_USE_FRONTEND",
    "TF_CUDNN_USE_RUNTIME_FUSION",
    "TF_DETERMINISTIC_OPS",
    "TF_DISABLE_MKL",
    "TF_ENABLE_CUBLAS_TENSOR_OP_MATH_FP32",
    "TF_ENABLE_CUDNN_TENSOR_OP_MATH_FP32",
    "TF_ENABLE_MLIR_BRIDGE",
    "TF_ENABLE_ONEDNN_OPTS",
    "TF_ENABLE_WINOGRAD_NONFUSED",
    "TF_SET_ONEDNN_FPMATH_MODE",
    "TF_USE_CUBLASLT",
    "TF_USE_LEGACY_KERAS",
    "TF_XLA_FLAGS",
    "XLA_FLAGS",
)
ENVIRONMENT = (
    *NUMERIC_VARIABLES,
    "CUDA_VISIBLE_DEVICES",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "PYTHONHASHSEED",
    "TF_FORCE_GPU_ALLOW_GROWTH",
    "TF_GPU_ALLOCATOR",
    "TF_GPU_THREAD_MODE",
    "TF_NUM_INTEROP_THREADS",
    "TF_NUM_INTRAOP_THREADS",
)
KERAS_DEFAULTS = {"epsilon": 1e-07, "floatx": "float32", "image_data_format": "channels_last"}
# What compilers and libraries choose their code by: of x86 and of ARM.
_INSTRUCTIONS = ("amx", "asimd", "avx", "bf16", "f16c", "fma", "i8mm", "sse4", "sve")

DIFF_LIMIT = 2**20  # bytes
LEFT_OUT = "# left out: "  # begins a line of a diff that names a file which the diff lacks

# A git hook exports these to point at its own repository, which need not be the package's.
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

    `commit` is None outside a repository and before its first commit, `branch` also for a detached HEAD.
    `dirty` is whether there are uncommitted changes, which `diff` holds; None when that is not known.
    `problems` are lines for the user: why the code of a repository is not recorded, or not wholly.
    """

    commit: str | None
    branch: str | None
    dirty: bool | None
    diff: str
    problems: tuple[str, ...] = ()


UNKNOWN = Code(None, None, None, "")


def versions(imported: Collection[str] = ()) -> dict[str, str]:
    """Versions of Python, of those of `PACKAGES` that are installed, and of the packages of these import names."""
    found = dict(_versions(PACKAGES))
    return found | {name: version for name, version in map(_distribution, sorted(imported)) if name not in found}


@functools.cache
def _distribution(imported: str) -> tuple[str, str]:
    """Name and version of the installed distribution that has a module of this name at its top."""
    try:
        metadata.distribution(imported)
        name = imported
    except metadata.PackageNotFoundError:  # called otherwise than it is imported, such as PIL; this takes a while
        name = (metadata.packages_distributions().get(imported) or [""])[0]
    return re.sub("[-_.]+", "-", name or imported).lower(), metadata.version(name) if name else "unknown"


@functools.cache  # reading them takes 50 ms, and what is imported stays as it is
def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def requirements(imported: Collection[str] = ()) -> list[str]:
    """The same, without Python, as sorted lines `name==version` of a requirements.txt."""
    return sorted(f"{name}=={version}" for name, version in versions(imported).items() if name != "python")


def cores() -> int:
    """How many logical cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # missing on macOS and Windows
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def memory() -> int:
    """Bytes of memory that this process may use: the machine's, or less where a container or batch system limits it."""
    limits = [psutil.virtual_memory().total]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # the two versions of Linux control groups
        with contextlib.suppress(OSError, ValueError):  # without a limit the first holds "max"
            limits.append(int(Path("/sys/fs/cgroup", name).read_text(encoding="ascii")))
    return min(limits)


def hardware() -> dict[str, str | int]:
    """Describes machine and process: `cores` are those this process may use, `memory` is in bytes."""
    return {
        "platform": platform.platform(),
        "machine": platform.machine(),
        **processor(),
        "cores": cores(),
        "memory": psutil.virtual_memory().total,
        "hostname": platform.node(),
        "pid": os.getpid(),
    }


def environment(imported: Collection[str] = ()) -> dict[str, Any]:
    """All of the above as one JSON-able dict, with those variables of `ENVIRONMENT` that are set.

    Neither the rest of the environment nor the command line is read: they may hold secrets.
    """
    packages = versions(imported)
    return {
        "python": packages.pop("python"),
        "packages": packages,
        "hardware": hardware(),
        "variables": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
    }


@functools.cache
def package_files(folder: Path) -> dict[str, str]:
    """SHA-256, in hex, of each *.py file below `folder`, by its path in there.

    They are read once a process: what is edited later does not change what this process computes.
    """
    paths = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*.py"))
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths}


def source_files(folder: Path, own: UserCode) -> dict[str, str]:
    """The same of the package and of the user's own modules."""
    return package_files(folder) | {name: hashlib.sha256(text).hexdigest() for name, text in own.files.items()}


def source_digest(files: Mapping[str, str]) -> str:
    """SHA-256, in hex, over names and contents of files, each given by its own.

    It names the code where no commit does: in an installed wheel or an edited checkout.
    """
    digest = hashlib.sha256()
    for name, inner in files.items():
        # The inner hash has a fixed length, so no two lists of files feed the same bytes.
        digest.update(name.encode() + b"\0" + bytes.fromhex(inner))
    return digest.hexdigest()


def facts(folder: Path, own: UserCode, fingerprint: str, threads: int, device: str) -> dict[str, Any]:
    """What can change a run's result besides its config: a plot drawn otherwise makes no finished run another one.

    Args:
        folder: the package's folder.
        own: the user's own modules.
        fingerprint: of the data.
        threads: that it computes with.
        device: in the words of `devices.describe`.
    """
    numeric = (*NUMERIC, *(_distribution(name)[0] for name in own.packages))
    return {
        "data": fingerprint,
        "source": source_digest({k: v for k, v in source_files(folder, own).items() if _computes(k)}),
        "versions": {name: version for name, version in versions(own.packages).items() if name.startswith(numeric)},
        "threads": threads,
        "device": device,
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "default"),
        "processor": processor(),
        "variables": {name: os.environ[name] for name in NUMERIC_VARIABLES if os.environ.get(name)},
        "keras_config": keras_config(),
    }


def _computes(name: str) -> bool:
    return name.split("/")[0] not in NOT_COMPUTING


def keras_config() -> dict[str, Any]:
    """The user's settings in Keras' own file, which Keras reads when it is imported."""
    home = os.environ.get("KERAS_HOME") or Path("~", ".keras").expanduser()
    try:
        settings = json.loads(Path(home, "keras.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # Keras takes its defaults, too
        settings = None
    if not isinstance(settings, dict):
        return KERAS_DEFAULTS
    return {key: settings.get(key, value) for key, value in KERAS_DEFAULTS.items()}


def process() -> str:
    """This process in words that fit no other: host and its network address, pid, and when the process started."""
    return " ".join((*_host(), str(os.getpid()), f"{psutil.Process().create_time():.2f}"))


def is_gone(named: str) -> bool:
    """Whether the process that `process` named has ended; False for one of another host, of which nobody here knows."""
    *host, pid, started = named.split(" ")
    if host != _host():
        return False
    try:
        return f"{psutil.Process(int(pid)).create_time():.2f}" != started
    except psutil.NoSuchProcess:
        return True


def is_here(named: str) -> bool:
    """Whether the process that `process` named ran on this machine."""
    return named.split(" ")[:2] == _host()


def _host() -> list[str]:
    return [platform.node(), f"{uuid.getnode():x}"]


def may_have_gpu() -> bool:
    """Whether TensorFlow could find a GPU; False is certain, for on Linux every driver has one of these files."""
    files = ("nvidiactl", "nvmap", "nvhost-ctrl", "dxg", "kfd")  # NVIDIA, two of its boards, WSL, AMD
    return platform.system() != "Linux" or any(Path("/dev", name).exists() for name in files)


@functools.cache
def own_code(folder: Path) -> Code:
    """`code_state`, asked once a process: what is edited later does not change what this process computes."""
    return code_state(folder)


def code_state(folder: Path) -> Code:
    """Reads commit, branch and uncommitted changes of the repository that holds the package.

    The diff is against HEAD, covers every tracked file and those untracked, not ignored files that lie in
    the package or in `conf` beside it, and restores them with `git apply` (text that is not UTF-8 excepted).
    Files such as `.env` and keys do not belong to the code. A file whose new lines show a secret is left out; a comment
    at the top of the diff names it. Beyond `DIFF_LIMIT` bytes it is cut, and its last line says so. Nothing in the
    repository is written.

    Args:
        folder: The package's folder.

    Returns:
        The state; `UNKNOWN` when the package is not part of a checkout (an installed wheel, also one that
        lies inside somebody else's repository), and with its `problems` when git is missing or refuses.
    """
    folder = folder.resolve()
    if {"site-packages", "dist-packages"} & set(folder.parts):
        return UNKNOWN
    try:
        # Printed only when tracked or at least not ignored: else the repository around us is not ours.
        if not _git(folder, "ls-files", "--cached", "--others", "--exclude-standard", "--", "__init__.py"):
            return UNKNOWN
        lines = os.fsdecode(_git(folder, "rev-parse", "--show-toplevel", "--git-path", "index")).splitlines()
        top, index = Path(lines[0]), folder / lines[1]
        commit, branch, untracked = _status(top, folder)
    except (OSError, subprocess.SubprocessError) as error:
        # Without a repository there is nothing to record.
        if "not a git repository" in _reason(error) or not any((place / ".git").exists() for place in folder.parents):
            return UNKNOWN
        return UNKNOWN._replace(problems=(f"code.commit is not recorded, git cannot tell it: {_line(error)}",))
    try:
        diff = _diff(top, index, commit, untracked)
    except (OSError, subprocess.SubprocessError) as error:
        problem = f"code.diff is not recorded, git cannot tell the changes: {_line(error)}"
        return Code(commit, branch, None, f"# not recorded: {_line(error)}\n", (problem,))
    kept, left_out = _without_secrets(diff)
    problems = [f"code.diff leaves out {name}: it seems to hold a password or a key" for name in left_out]
    if len(kept) > DIFF_LIMIT:
        problems.append(f"code.diff is cut, so --checkout cannot restore the code: it has {len(kept):,} bytes")
    return Code(commit, branch, bool(diff), _capped(kept), tuple(problems))


def restore(folder: Path, commit: str, diff: bytes, target: Path) -> Path:
    """Write the code of a run into an empty folder: a clone of the package's own repository at `commit`, then `diff`.

    A symbolic link in `diff`, which may come from a stranger, becomes a file that holds the path the link points to.

    Args:
        folder: the package's folder.
        commit: as recorded by the run.
        diff: the run's code.diff.
        target: a folder that is empty or does not exist yet.

    Returns:
        The package's folder in `target`; the diff may have deleted it.

    Raises:
        RequestError: the code was not recorded or not wholly, the commit is not in this repository, or git refuses.
    """
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", commit):
        raise RequestError(f"the run's commit is {commit}: its code was not in a repository and cannot be restored")
    if diff.startswith(b"# not recorded") or diff.rpartition(b"\n# cut: ")[2].startswith(b"the whole diff"):
        raise RequestError(f"the run's code.diff is not whole and cannot be applied to commit {commit}")
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
    """Refuse to restore code where other files are.

    Raises:
        RequestError: the target is no folder, or not empty.
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
    """Changes since `commit` or since nothing, by a copy of the index that knows the untracked files, too."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "index"
        if index.exists():  # not before the first `git add`
            shutil.copy2(index, copy)  # with its time, by which git knows files changed right after it
        # Any object id does, as a file's content is taken from the working tree: so no object is written.
        blob = _git(top, "hash-object", "--stdin")
        entries = b"".join(b"100644 %s\t%s\0" % (blob.strip(), path) for path in untracked)
        _git(top, "update-index", "-z", "--index-info", index=copy, stdin=entries)
        tree = commit or _git(top, "hash-object", "-t", "tree", "--stdin").decode().strip()
        # diff-index, unlike diff, has no user settings that make a patch `git apply` cannot read.
        options = ["--patch", "--binary", "--no-ext-diff", "--no-textconv", "--no-color"]
        return _git(top, "diff-index", *options, tree, "--", index=copy)


def _without_secrets(diff: bytes) -> tuple[bytes, list[str]]:
    """The diff without the files whose new lines show a secret, behind a comment for each; and their names."""
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


def _capped(diff: bytes) -> str:
    if len(diff) > DIFF_LIMIT:
        kept = diff[:DIFF_LIMIT].rpartition(b"\n")[0]
        diff = kept + b"\n# cut: the whole diff has %d bytes, git apply will refuse this part\n" % len(diff)
    return diff.decode(errors="replace")


def _git(folder: Path, *arguments: str, index: Path | None = None, stdin: bytes = b"", bounded: bool = False) -> bytes:
    """Output of a git command that asks nothing, pages nothing and leaves the repository as it is.

    With `bounded`, git gets at most `_APPLY_MEMORY` bytes: a binary patch of 1 MB can expand to many gigabytes.

    Raises:
        OSError: If there is no git.
        subprocess.SubprocessError: If it fails or does not end in time.
    """
    environ = {name: value for name, value in os.environ.items() if name not in _REPOSITORY_VARIABLES}
    environ |= {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    if index is not None:
        environ["GIT_INDEX_FILE"] = str(index)
    # The file-system monitor is a daemon that would outlive us.
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
    """What git said, or what happened to it."""
    stderr: bytes | None = getattr(error, "stderr", None)
    return stderr.decode(errors="replace").strip() if stderr else str(error)


def _line(error: Exception) -> str:
    return " ".join(_reason(error).split())


@functools.cache
def processor() -> dict[str, str]:
    """Model of the processor, and those of its instruction sets that numeric libraries choose their code by."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    first = {line.partition(":")[0].strip().lower(): line.partition(":")[2].strip() for line in reversed(lines)}
    flags = (first.get("flags") or first.get("features") or "").split()
    chosen = sorted(flag for flag in flags if flag.startswith(_INSTRUCTIONS))
    model = first.get("model name") or platform.processor() or platform.machine()
    return {"cpu": model, "instructions": " ".join(chosen) or "unknown"}
