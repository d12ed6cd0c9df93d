"""All start-up tricks behind one door."""

import atexit
import gc
import os
import sys

from mnist_exp import console, provenance
from mnist_exp.config import PACKAGE, TrainerConfig

UNUSED = ("sklearn", "jax")  # Keras and TensorFlow import them where they find them, for wrappers that no run calls


def import_tensorflow() -> None:
    """Import all that a run needs, once a process and without what native libraries print."""
    if "mnist_exp.builders" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    unused = [name for name in UNUSED if name not in sys.modules]
    gc.disable()  # what is imported stays: looking through it for garbage takes a second of the import's four
    try:
        for name in unused:
            sys.modules[name] = None  # type: ignore[assignment]  # not to be found
        with console.quiet_stderr("importing TensorFlow"):
            import mnist_exp.builders
            import mnist_exp.figures.run
            import mnist_exp.training.trainer  # noqa: F401
        provenance.package_files(PACKAGE)  # as they are imported: what a fork of this process computes with
        provenance.own_code(PACKAGE)
    finally:
        for name in unused:
            del sys.modules[name]
        gc.freeze()  # and would take each run a third of a second
        gc.enable()
    atexit.register(gc.freeze)  # and Python's end a fifth


def device(trainer: TrainerConfig) -> str:
    """The device as `training.devices.describe` names it, without TensorFlow where it can be no GPU.

    Raises:
        DeviceError: the machine lacks the devices.
    """
    kind, _, number = trainer.devices.partition(":")
    if kind == "cpu" or (kind == "auto" and not provenance.may_have_gpu()):
        return f"{number} x cpu" if number else "cpu"
    import_tensorflow()
    from mnist_exp.training import devices

    return devices.describe(devices.configure(trainer.devices, trainer.threads or provenance.cores()))
