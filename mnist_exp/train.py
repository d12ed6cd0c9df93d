"""`python -m mnist_exp.train`: translate arguments, call one function, print. docs/options.md lists the options."""

import gc
import os
import signal
import sys

if __name__ == "__main__" or sys.argv[0].endswith("mnist-exp-train"):
    gc.disable()  # during the imports below: saves a fifth of the time of `--help`
    # The imports below take a second, in which Ctrl-C would print a traceback. There is nothing to close yet.
    handler = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, handler if handler is signal.SIG_IGN else lambda *_: os._exit(130))

import math
from contextlib import AbstractContextManager, chdir, nullcontext
from pathlib import Path
from typing import NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from mnist_exp import commands, console
from mnist_exp.config import CONF_DIR, Config, check, explain, run_name
from mnist_exp.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_INVALID,
    RequestError,
    RunError,
    first_line,
    interruption,
)
from mnist_exp.job import checked, prepare_job, run_job
from mnist_exp.sweep.jobs import stop_others
from mnist_exp.sweep.startup import share_config_store
from mnist_exp.sweep.summary import abandon_sweep, print_next_steps

gc.enable()


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="train")
def job(composed: DictConfig) -> float | list[float]:
    """Trains one run. Returns the metrics named by `sweep.objective`; NaN if a job of a sweep failed."""
    code = EXIT_FAILED
    try:
        return _train(check(composed))
    except RequestError as error:
        console.complain(str(error))
        code = EXIT_INVALID
    except Exception as error:  # noqa: BLE001 - the other jobs of the sweep continue
        if (stop := interruption(error)) is not None:
            raise stop from None
        if not isinstance(error, RunError | OSError):  # a diverged loss or a full disk is not a bug
            console.print_traceback(error)
        console.complain(f"run {run_name(composed)} failed: {type(error).__name__}: {first_line(error)}")
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        with _given_folder():
            stop_others(composed.sweep, composed.tracking)
        return math.nan
    sys.exit(code)


def _train(config: Config) -> float | list[float]:
    """Trains one run; returns the metrics named by `sweep.objective`, NaN if another job stopped the sweep."""
    settings = HydraConfig.get()
    with _given_folder():
        prepared = prepare_job(config, settings.overrides.task)
    result = run_job(prepared, Path(settings.runtime.output_dir), settings.job.num if config.sweep.id else 0)
    if result is None:
        return math.nan
    if config.sweep.id is None:
        print_next_steps(prepared.store, result.run_id)
    values = [result.metrics[name] for name in config.sweep.objective]
    return values if len(values) > 1 else values[0]


def _given_folder() -> AbstractContextManager[None]:
    """The folder of the command, from which relative paths of the config start, also with `hydra.job.chdir`."""
    settings = HydraConfig.get()
    return chdir(settings.runtime.cwd) if settings.job.chdir else nullcontext()


def _arguments(given: list[str]) -> list[str]:
    """The arguments with the overrides first, because Hydra's parser accepts them in one place only.

    Raises:
        RequestError: an option is unknown or has a wrong value, or a key is one of an earlier version.
    """

    def refuse(message: str) -> NoReturn:
        raise RequestError(f"{message}; --hydra-help lists the options")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]  # the original prints seven lines of usage
    options, overrides = list(given), parser.parse_intermixed_args(given).overrides
    for override in overrides:
        options.remove(override)
    return [*checked(overrides), *options]


def main() -> None:
    """The command; exits with 0, 1 (a run failed), 2 (invalid arguments), 130 (Ctrl-C) or 143 (SIGTERM)."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra's own error reports take several lines
    share_config_store()
    if "--version" in sys.argv[1:]:  # else Hydra prints its own
        print(commands.version())
        return
    try:
        sys.argv[1:] = _arguments(sys.argv[1:])
        with console.interruptible():
            job()
    except RequestError as error:
        console.complain(str(error))
        sys.exit(EXIT_INVALID)
    except KeyboardInterrupt:
        abandon_sweep("KILLED")
        said = "interrupted; finished runs are kept, and the same command continues:"
        console.say(f"{said}\n  {console.this_command()}", sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except SystemExit:
        abandon_sweep("KILLED")
        raise
    except Exception as error:  # noqa: BLE001 - raised by Hydra, because `job` catches its own
        given = "" if isinstance(error, HydraException) else f"{' '.join(sys.argv[1:])!r} cannot be started: "
        console.complain(given + explain(error))
        sys.exit(EXIT_FAILED if abandon_sweep("FAILED") else EXIT_INVALID)


if __name__ == "__main__":
    main()
