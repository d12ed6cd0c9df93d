"""Every start-up trick. Each saves the time beside it, measured on two cores with Python 3.11 and TensorFlow 2.21."""

import gc
import logging
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from mnist_exp import console, provenance
from mnist_exp.config import PACKAGE, TrainerConfig

UNUSED = "sklearn"  # Keras imports it for wrappers that no run calls; to hide it saves 1.2 s of 5.2


def import_tensorflow() -> None:
    """Imports TensorFlow and the modules that a run needs, once a process; takes 4 s."""
    if "mnist_exp.builders" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    hide = UNUSED not in sys.modules
    gc.disable()  # saves 1.3 s of 5.2: the collector finds nothing to free during the import
    try:
        if hide:
            sys.modules[UNUSED] = None  # type: ignore[assignment]  # `import` then raises ModuleNotFoundError
        with console.quiet_stderr("importing TensorFlow"):  # native libraries ignore the log level
            import mnist_exp.builders
            import mnist_exp.figures.run
            import mnist_exp.training.trainer  # noqa: F401
        logging.getLogger("tensorflow").setLevel(logging.WARNING)  # in a notebook TensorFlow sets it to INFO
        provenance.package_files(PACKAGE)  # read now: later edits change neither this process nor its forks
        provenance.own_code(PACKAGE)
    finally:
        if hide:
            del sys.modules[UNUSED]
        gc.freeze()  # saves 0.6 s in each later collection; Keras collects when a run begins
        gc.enable()


def share_config_store() -> None:
    """Has Hydra use its one store of configs instead of copying it 115 times: `--help` takes 1.0 s instead of 1.8."""
    ConfigStore.__deepcopy__ = lambda store, memo: store  # type: ignore[attr-defined]


def start_method() -> str:
    """How worker processes start: forked after the import of TensorFlow where that is safe, otherwise anew.

    A fork saves each worker the import, 4 s of CPU time. It inherits neither threads nor a GPU context, so TensorFlow
    must not have computed before.
    """
    return "forkserver" if sys.platform == "linux" and not provenance.gpus() else "spawn"


def start_fork_server(launcher: DictConfig) -> None:
    """Starts the server that workers are forked from: its import of TensorFlow (4 s) overlaps the preflight's."""
    if launcher._target_.endswith(".Processes") and start_method() == "forkserver":
        multiprocessing.set_forkserver_preload(["mnist_exp.sweep.preload"])
        multiprocessing.forkserver.ensure_running()


def prepare_worker() -> None:
    """Settings of a process that trains beside others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all processes: the parent decides
    os.environ["TTY_COMPATIBLE"] = "0"  # Rich then prints lines: progress bars of several processes would overlap


def device(trainer: TrainerConfig) -> str:
    """The device as `training.devices.describe` names it, without TensorFlow where it can be no GPU.

    Raises:
        DeviceError: the machine lacks the devices.
    """
    kind, _, number = trainer.devices.partition(":")
    if kind == "cpu" or (kind == "auto" and not provenance.gpus()):
        return f"{number} x cpu" if number else "cpu"
    import_tensorflow()
    from mnist_exp.training import devices

    return devices.describe(devices.configure(trainer.devices, trainer.threads or provenance.cores()))
