"""The libraries, the machine and this process, and those of their properties that can change a result."""

import contextlib
import functools
import json
import os
import platform
import re
import uuid
from collections.abc import Collection
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from mnist_exp.provenance.modules import UserCode
from mnist_exp.provenance.source import source_digest, source_trees

# Distributions that can change a number, the choices of a sweep, or the record of a run.
# fmt: off
PACKAGES = (
    "hydra-core", "hydra-joblib-launcher", "hydra-optuna-sweeper", "hydra-ray-launcher", "hydra-submitit-launcher",
    "h5py", "keras", "matplotlib", "ml-dtypes", "mlflow", "mlflow-skinny", "numpy", "nvidia-cublas-cu12",
    "nvidia-cuda-nvcc-cu12", "nvidia-cudnn-cu12", "nvidia-nccl-cu12", "omegaconf", "optuna", "scikit-learn", "scipy",
    "tensorflow", "tensorflow-cpu",
)
# fmt: on

_DEVICES = Path("/dev")

# Prefixes of those in `PACKAGES` that can change a number.
NUMERIC = ("python", "tensorflow", "keras", "numpy", "ml-dtypes", "scikit-learn", "nvidia-")

# Variables that can change a number. A prefix TF_ would include the secrets of Terraform (TF_VAR_*, TF_TOKEN_*).
# fmt: off
NUMERIC_VARIABLES = (
    "CUBLAS_WORKSPACE_CONFIG", "DNNL_DEFAULT_FPMATH_MODE", "DNNL_MAX_CPU_ISA", "KERAS_BACKEND", "MKL_CBWR",
    "NPY_DISABLE_CPU_FEATURES", "NVIDIA_TF32_OVERRIDE", "ONEDNN_DEFAULT_FPMATH_MODE", "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE", "TF_CUDNN_DETERMINISTIC", "TF_CUDNN_USE_AUTOTUNE", "TF_CUDNN_USE_FRONTEND",
    "TF_CUDNN_USE_RUNTIME_FUSION", "TF_DETERMINISTIC_OPS", "TF_DISABLE_MKL", "TF_ENABLE_CUBLAS_TENSOR_OP_MATH_FP32",
    "TF_ENABLE_CUDNN_TENSOR_OP_MATH_FP32", "TF_ENABLE_MLIR_BRIDGE", "TF_ENABLE_ONEDNN_OPTS",
    "TF_ENABLE_WINOGRAD_NONFUSED", "TF_SET_ONEDNN_FPMATH_MODE", "TF_USE_CUBLASLT", "TF_USE_LEGACY_KERAS",
    "TF_XLA_FLAGS", "XLA_FLAGS",
)
ENVIRONMENT = (
    *NUMERIC_VARIABLES, "CUDA_VISIBLE_DEVICES", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS",
    "PYTHONHASHSEED", "TF_FORCE_GPU_ALLOW_GROWTH", "TF_GPU_ALLOCATOR", "TF_GPU_THREAD_MODE", "TF_NUM_INTEROP_THREADS",
    "TF_NUM_INTRAOP_THREADS",
)
# fmt: on
KERAS_DEFAULTS = {"epsilon": 1e-07, "floatx": "float32", "image_data_format": "channels_last"}
# Prefixes of the instruction sets (x86, ARM) by which compilers and numeric libraries select their code.
_INSTRUCTIONS = ("amx", "asimd", "avx", "bf16", "f16c", "fma", "i8mm", "sse4", "sve")


def versions(imported: Collection[str] = ()) -> dict[str, str]:
    """Versions of Python, of the installed `PACKAGES`, and of the distributions behind these import names."""
    found = dict(_versions(PACKAGES))
    return found | {name: version for name, version in map(_distribution, sorted(imported)) if name not in found}


@functools.cache
def _distribution(imported: str) -> tuple[str, str]:
    """Name and version of the installed distribution that provides this top-level module."""
    try:
        metadata.distribution(imported)
        name = imported
    except metadata.PackageNotFoundError:  # another name, such as pillow for PIL: a slow search
        name = (metadata.packages_distributions().get(imported) or [""])[0]
    return re.sub("[-_.]+", "-", name or imported).lower(), metadata.version(name) if name else "unknown"


@functools.cache  # reading the versions takes 50 ms; an imported package keeps its version
def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def requirements(imported: Collection[str] = ()) -> list[str]:
    """`versions` without Python, as sorted lines `name==version` of a requirements.txt."""
    return sorted(f"{name}=={version}" for name, version in versions(imported).items() if name != "python")


def cores() -> int:
    """The number of logical cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # missing on macOS and Windows
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def memory() -> int:
    """Bytes of memory that this process may use: the machine's, or the limit of its container or batch system."""
    limits = [psutil.virtual_memory().total]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # the two versions of Linux control groups
        with contextlib.suppress(OSError, ValueError):  # without a limit the first holds "max"
            limits.append(int(Path("/sys/fs/cgroup", name).read_text(encoding="ascii")))
    return min(limits)


def hardware() -> dict[str, str | int]:
    """Describes machine and process: `cores` that this process may use, `memory` of the machine in bytes."""
    return {
        "platform": platform.platform(),
        "machine": platform.machine(),
        **processor(),
        "cores": cores(),
        "memory": psutil.virtual_memory().total,
        "hostname": platform.node(),
        "pid": os.getpid(),
    }


def environment_record(imported: Collection[str] = ()) -> dict[str, Any]:
    """Versions, hardware and the variables of `ENVIRONMENT`, for environment.json.

    Other variables and the command line are not read, because they may contain secrets.
    """
    packages = versions(imported)
    return {
        "python": packages.pop("python"),
        "packages": packages,
        "hardware": hardware(),
        "variables": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
    }


def environment_factors(folder: Path, own: UserCode, fingerprint: str, threads: int, device: str) -> dict[str, Any]:
    """Everything outside the config that can change a run's result. Code that only plots or records is left out.

    Args:
        folder: the package's folder.
        own: the user's own modules.
        fingerprint: SHA-256 of the data set.
        threads: the number of threads that the run computes with.
        device: the result of `devices.describe`.
    """
    numeric = (*NUMERIC, *(_distribution(name)[0] for name in own.packages))
    return {
        "data": fingerprint,
        "source": source_digest(source_trees(folder, own)),
        "versions": {name: version for name, version in versions(own.packages).items() if name.startswith(numeric)},
        "threads": threads,
        "device": device,
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "default"),
        "processor": processor(),
        "variables": {name: os.environ[name] for name in NUMERIC_VARIABLES if os.environ.get(name)},
        "keras_config": keras_config(),
    }


def keras_config() -> dict[str, Any]:
    """The settings that Keras reads from the user's keras.json at its import."""
    home = os.environ.get("KERAS_HOME") or Path("~", ".keras").expanduser()
    try:
        settings = json.loads(Path(home, "keras.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # Keras uses its defaults, too
        settings = None
    if not isinstance(settings, dict):
        return KERAS_DEFAULTS
    return {key: settings.get(key, value) for key, value in KERAS_DEFAULTS.items()}


def process(pid: int | None = None) -> str:
    """An identifier of this process, or of another one on this host: host name, hardware address, pid, start time."""
    found = psutil.Process(pid)
    return " ".join((*_host(), str(found.pid), f"{found.create_time():.2f}"))


def is_gone(identifier: str) -> bool:
    """Whether the process with this identifier has ended; False on another host, where this cannot be checked."""
    *host, pid, started = identifier.split(" ")
    if host != _host():
        return False
    try:
        return f"{psutil.Process(int(pid)).create_time():.2f}" != started
    except psutil.NoSuchProcess:
        return True


def is_here(identifier: str) -> bool:
    """Whether the process with this identifier ran on this machine."""
    return identifier.split(" ")[:2] == _host()


def _host() -> list[str]:
    return [platform.node(), f"{uuid.getnode():x}"]


def gpus() -> list[str]:
    """The GPUs that TensorFlow may find, as CUDA_VISIBLE_DEVICES names them; none is certain, more are not.

    TensorFlow itself takes seconds to import, and reserves their memory. On Linux every GPU driver creates one of the
    files below.
    """
    files = ("nvidiactl", "nvmap", "nvhost-ctrl", "dxg", "kfd")  # NVIDIA, two of its boards, WSL, AMD
    if platform.system() == "Linux" and not any((_DEVICES / name).exists() for name in files):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name not in ("", "-1")]
    numbers = sorted(int(path.name.removeprefix("nvidia")) for path in _DEVICES.glob("nvidia[0-9]*"))
    return list(map(str, numbers)) or ["0"]  # other drivers do not number theirs


@functools.cache
def processor() -> dict[str, str]:
    """The model of the processor, and the instruction sets by which numeric libraries select their code."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    first = {line.partition(":")[0].strip().lower(): line.partition(":")[2].strip() for line in reversed(lines)}
    flags = (first.get("flags") or first.get("features") or "").split()
    chosen = sorted(flag for flag in flags if flag.startswith(_INSTRUCTIONS))
    model = first.get("model name") or platform.processor() or platform.machine()
    return {"cpu": model, "instructions": " ".join(chosen) or "unknown"}
