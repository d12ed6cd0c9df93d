"""A job of `hydra/launcher=processes` that trains nothing. Workers import this module, so it imports little."""

import os
import signal
from pathlib import Path

from hydra.core.hydra_config import HydraConfig


def task(config):
    """Note the process; the first of job 1 kills what workers are forked from, if there is a file `deadly`."""
    folder = Path(HydraConfig.get().sweep.dir)
    with (folder / f"tried-{config.seed}").open("a") as file:
        file.write(f"{os.getpid()}\n")
    if config.seed == 1 and (folder / "deadly").exists():
        (folder / "deadly").unlink()
        os.kill(os.getppid(), signal.SIGKILL)
        signal.pause()
    return float(config.seed)
